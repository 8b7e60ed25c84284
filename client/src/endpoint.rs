//! The servers a client knows: which to ask next, and which to leave alone for a while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_proto::upgrade::{self, Streams};
use tokio::time::Instant;
use tonic::service::interceptor::InterceptedService;
use tonic::transport;

use crate::backoff::Backoff;
use crate::config::RegistryConfig;
use crate::credentials::Credentials;
use crate::error::Error;
use crate::queries::Queries;

/// A connection on which every call shows who calls.
pub(crate) type Channel = InterceptedService<upgrade::Channel, Credentials>;

/// One server. Its channel connects when it is used and again when it broke.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    pub(crate) queries: Queries,
    dialler: transport::Endpoint,
    /// As [`Self::channel`], without credentials.
    way: upgrade::Channel,
    credentials: Credentials,
    health: Mutex<Health>,
}

#[derive(Debug)]
struct Health {
    aside_until: Option<Instant>,
    backoff: Backoff,
}

impl Endpoint {
    /// A connection of its own, for who wants to close it: it ends with the last use of what is returned.
    pub(crate) fn own_channel(&self) -> Channel {
        InterceptedService::new(self.way.apart(&self.dialler), self.credentials.clone())
    }

    /// It did not answer.
    pub(crate) fn failed(&self) {
        let mut health = self.health.lock();
        let now = Instant::now();
        // Calls that failed together count once.
        if health.aside_until.is_none_or(|until| until <= now) {
            let delay = health.backoff.next_delay();
            health.aside_until = Some(now + delay);
        }
    }

    /// It answered.
    pub(crate) fn answered(&self) {
        let mut health = self.health.lock();
        if health.aside_until.is_some() {
            health.aside_until = None;
            health.backoff.reset();
        }
    }

    /// It asks to be left alone for so long.
    pub(crate) fn put_aside_for(&self, pause: Duration) {
        self.health.lock().aside_until = Some(Instant::now() + pause);
    }

    fn aside_until(&self) -> Option<Instant> {
        self.health.lock().aside_until
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Endpoints {
    all: Vec<Arc<Endpoint>>,
    next: AtomicUsize,
}

impl Endpoints {
    /// Connects to none of them yet. Must be called within a tokio runtime.
    pub(crate) fn new(config: &RegistryConfig) -> Result<Self, Error> {
        let credentials = Credentials::new(config)?;
        let streams = config.own_connections.then_some(Streams::of_clients(
            config.keepalive_interval,
            config.keepalive_timeout,
            config.connect_timeout,
        ));
        // Who is named twice is one server all the same: rounds are counted by servers.
        let mut named = BTreeSet::new();
        let all = config
            .servers
            .iter()
            .filter(|server| named.insert(authority(server)))
            .map(|server| {
                let dialler = dialler(server, config)?;
                let way = upgrade::Channel::connect_lazy(&dialler, streams);
                let channel = InterceptedService::new(way.clone(), credentials.clone());
                let health = Health {
                    aside_until: None,
                    backoff: Backoff::new(config.put_aside_min, config.put_aside_max),
                };
                Ok(Arc::new(Endpoint {
                    address: server.clone(),
                    channel,
                    queries: Queries::default(),
                    dialler,
                    way,
                    credentials: credentials.clone(),
                    health: Mutex::new(health),
                }))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        // Clients that start together should not all begin with the first server.
        let next = AtomicUsize::new(rand::random_range(0..all.len().max(1)));
        Ok(Self { all, next })
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The next one in turn that is not put aside; if all are, the one whose time is up first.
    pub(crate) fn pick(&self) -> Arc<Endpoint> {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let turn = |at: usize| &self.all[(start.wrapping_add(at)) % self.all.len()];
        let healthy = (0..self.all.len())
            .map(turn)
            .find(|e| e.aside_until().is_none_or(|until| until <= now));
        let chosen = healthy.or_else(|| (0..self.all.len()).map(turn).min_by_key(|e| e.aside_until()));
        Arc::clone(chosen.expect("a config without servers is refused"))
    }

    /// All but this one, beginning with the next one in turn.
    pub(crate) fn others(&self, than: &Endpoint) -> Vec<Arc<Endpoint>> {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        (0..self.all.len())
            .map(|at| &self.all[(start.wrapping_add(at)) % self.all.len()])
            .filter(|endpoint| endpoint.address != than.address)
            .cloned()
            .collect()
    }

    /// As [`Self::pick`], but the first of `addresses` that is known and not put aside.
    pub(crate) fn pick_preferred(&self, addresses: &[String]) -> Arc<Endpoint> {
        let now = Instant::now();
        addresses
            .iter()
            .filter_map(|address| {
                self.all
                    .iter()
                    .find(|e| authority(&e.address) == authority(address))
            })
            .find(|e| e.aside_until().is_none_or(|until| until <= now))
            .map_or_else(|| self.pick(), Arc::clone)
    }
}

fn authority(address: &str) -> &str {
    address
        .strip_prefix("http://")
        .unwrap_or(address)
        .trim_end_matches('/')
}

fn dialler(server: &str, config: &RegistryConfig) -> Result<transport::Endpoint, Error> {
    let invalid = |problem: String| Error::InvalidArgument {
        subject: "servers".into(),
        message: format!("server address {server:?}: {problem}"),
    };
    if server.starts_with("https://") {
        return Err(invalid("TLS is not available, write host:port".into()));
    }
    let uri = if server.contains("://") {
        server.to_owned()
    } else {
        format!("http://{server}")
    };
    let endpoint = transport::Endpoint::from_shared(uri).map_err(|error| invalid(error.to_string()))?;
    if endpoint.uri().port_u16().is_none() {
        return Err(invalid("a port is missing, write host:port".into()));
    }
    Ok(endpoint
        .connect_timeout(config.connect_timeout)
        .http2_keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .http2_adaptive_window(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(servers: &[&str]) -> Endpoints {
        Endpoints::new(&RegistryConfig::new(servers.iter().copied())).unwrap()
    }

    #[tokio::test]
    async fn healthy_servers_take_turns_and_a_failed_one_is_left_out_for_a_while() {
        let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
        let failed = endpoints.pick();
        failed.failed();
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..30 {
            *seen.entry(endpoints.pick().address.clone()).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 2);
        assert!(!seen.contains_key(&failed.address));
        assert!(seen.values().all(|count| *count >= 10), "{seen:?}");
        let until = failed.aside_until().unwrap();
        assert!(until <= Instant::now() + Duration::from_secs(60));
        tokio::time::sleep_until(until).await;
        assert!((0..3).any(|_| endpoints.pick().address == failed.address));
    }

    #[tokio::test]
    async fn with_all_put_aside_the_first_due_is_asked() {
        let endpoints = endpoints(&["a:1", "b:1"]);
        let first = endpoints.pick();
        first.failed();
        let second = endpoints.pick();
        second.put_aside_for(Duration::from_secs(60));
        for _ in 0..4 {
            assert_eq!(endpoints.pick().address, first.address);
        }
    }

    #[tokio::test]
    async fn advice_is_followed_only_to_known_servers() {
        let endpoints = endpoints(&["a:1", "http://b:1"]);
        assert_eq!(
            endpoints.pick_preferred(&["x:1".into(), "b:1".into()]).address,
            "http://b:1"
        );
    }

    #[tokio::test]
    async fn a_server_that_is_named_twice_is_one() {
        let endpoints = endpoints(&["a:1", "b:1", "http://a:1", "a:1/", "b:1", "a:2"]);
        let addresses: Vec<&str> = endpoints.all.iter().map(|e| e.address.as_str()).collect();
        assert_eq!(addresses, ["a:1", "b:1", "a:2"]);
    }

    #[tokio::test]
    async fn addresses_are_checked() {
        for wrong in ["", "host", "https://a:1", "a b:1"] {
            let error = Endpoints::new(&RegistryConfig::new([wrong])).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "{wrong}: {error}");
        }
    }
}
