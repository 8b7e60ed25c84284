//! How a client behaves. Every default suits a cluster in one datacenter.

use std::path::PathBuf;
use std::time::Duration;

use crate::credentials::Token;
use crate::error::Error;

/// Settings of a [`crate::Registry`] handle. Make one with [`RegistryConfig::new`] and change what you must.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegistryConfig {
    /// Client addresses of the servers: `host:port`, or `http://host:port`. Name several, so that one may be
    /// down. At least one, at most 64.
    pub servers: Vec<String>,
    /// A name for people: shown by `rollcall session list`. Default: program name and process id.
    pub client_name: String,
    /// The bearer token that every call shows; servers with a token file judge calls by its scopes. Connections are
    /// not encrypted yet: whoever can listen to the network can read it. `None` (default): none is shown.
    pub token: Option<Token>,
    /// The environment this process claims to belong to (`prod`, say), for groups whose admission list asks for one.
    /// `None` (default): none is claimed.
    pub environment: Option<String>,
    /// How long establishing a TCP connection may take. Default 500 ms; longer delays failover, shorter fails
    /// over long lines.
    pub connect_timeout: Duration,
    /// Deadline of a call that names none, all retries included. Default 5 s: longer than an election.
    pub call_timeout: Duration,
    /// How long one server may take to answer before the next is asked. Default 2 s: longer than an election at
    /// default settings, since another server would have to wait for it just the same.
    pub attempt_timeout: Duration,
    /// How long a server that did not answer is put aside, first and at most; doubled with each failure, with
    /// jitter. Default 100 ms and 5 s. While all are put aside, the one whose time is up first is asked.
    pub put_aside_min: Duration,
    /// See [`Self::put_aside_min`].
    pub put_aside_max: Duration,
    /// A connection that is silent for so long is probed. Default 2 s.
    pub keepalive_interval: Duration,
    /// A probe unanswered for so long ends the connection. Default 2 s.
    pub keepalive_timeout: Duration,
    /// Each stream (a session's, a handle's watches, its queries) has a TCP connection of its own, without HTTP/2: less
    /// work and memory for the servers. A server or a proxy that does not know how gets the streams by HTTP/2 on one
    /// shared connection, as all do with `false`. Default `true`.
    pub own_connections: bool,
    /// Largest message accepted from a server. Default 32 MiB, as the servers'.
    pub message_bytes_max: usize,
    /// Writes of one session that wait for their answers; further ones wait for room until their deadline.
    /// Default 256.
    pub writes_in_flight_max: usize,
    /// Events of one watch that its reader has not taken yet; beyond it they are replaced by one
    /// [`crate::WatchEvent::Lagged`] with the current state. Default 1,024.
    pub watch_events_max: usize,
    /// Subscriptions of one handle; more are refused. Default 4,000, just below the servers' default bound.
    pub subscriptions_max: usize,
    /// A watch stream on which nothing comes for so long, bookmarks included, is resumed at another server; nothing of CP groups,
    /// or nothing of AP groups, if it shows some of each. Where nothing
    /// changes, a server that hears its leader says so once in four of its intervals of bookmarks (20 s by default):
    /// choose more than that, twice as much say. While there is no leader no server says so, and all are
    /// tried in turn. `None` (default): only a broken connection or a failed probe ends it.
    pub watch_silence_max: Option<Duration>,
    /// How long [`crate::Registry::discover`] waits for a server when a disk snapshot could answer at once.
    /// Default 500 ms.
    pub discover_wait: Duration,
    /// Folder for disk snapshots, one file per service; made if it does not exist. Processes that talk to the
    /// same cluster may share it. `None` (default): none are written, and a start needs a server.
    pub snapshot_folder: Option<PathBuf>,
    /// A change is on disk after at most so long; changes within it are written once. Default 500 ms.
    pub snapshot_delay: Duration,
    /// Unchanged services are written again so often, so that the age on disk stays true. Default 5 min.
    pub snapshot_interval: Duration,
}

impl RegistryConfig {
    /// The defaults, for these servers.
    #[must_use]
    pub fn new<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            client_name: default_client_name(),
            token: None,
            environment: None,
            connect_timeout: Duration::from_millis(500),
            call_timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(2),
            put_aside_min: Duration::from_millis(100),
            put_aside_max: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(2),
            own_connections: true,
            message_bytes_max: 32 << 20,
            writes_in_flight_max: 256,
            watch_events_max: 1024,
            subscriptions_max: 4000,
            watch_silence_max: None,
            discover_wait: Duration::from_millis(500),
            snapshot_folder: None,
            snapshot_delay: Duration::from_millis(500),
            snapshot_interval: Duration::from_secs(300),
        }
    }

    /// With another name for people.
    #[must_use]
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = name.into();
        self
    }

    /// With a bearer token.
    #[must_use]
    pub fn token(mut self, token: impl Into<Token>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// With a claim of the environment this process belongs to.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>) -> Self {
        self.environment = Some(name.into());
        self
    }

    /// With disk snapshots.
    #[must_use]
    pub fn snapshot_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.snapshot_folder = Some(folder.into());
        self
    }

    /// With another deadline for calls that name none.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |subject: &str, message: String| {
            Err(Error::InvalidArgument {
                subject: subject.into(),
                message: format!("{subject}: {message}"),
            })
        };
        if self.servers.is_empty() || self.servers.len() > 64 {
            return invalid(
                "servers",
                format!("{} were named, 1 to 64 are allowed", self.servers.len()),
            );
        }
        for (name, duration) in [
            ("connect_timeout", self.connect_timeout),
            ("call_timeout", self.call_timeout),
            ("attempt_timeout", self.attempt_timeout),
            ("put_aside_min", self.put_aside_min),
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
            ("snapshot_delay", self.snapshot_delay),
            ("snapshot_interval", self.snapshot_interval),
        ] {
            if duration.is_zero() || duration > Duration::from_secs(24 * 3600) {
                return invalid(name, format!("{duration:?} is not between 0 and 24 h"));
            }
        }
        for (name, count) in [
            ("writes_in_flight_max", self.writes_in_flight_max),
            ("watch_events_max", self.watch_events_max),
            ("subscriptions_max", self.subscriptions_max),
            ("message_bytes_max", self.message_bytes_max),
        ] {
            if count == 0 {
                return invalid(name, "0 would allow nothing".into());
            }
        }
        Ok(())
    }
}

fn default_client_name() -> String {
    let program = std::env::args_os().next().map(PathBuf::from);
    let program = program
        .as_ref()
        .and_then(|path| path.file_name())
        .map(|name| name.to_string_lossy());
    format!(
        "{}[{}]",
        program.unwrap_or("rollcall-client".into()),
        std::process::id()
    )
}

/// How a write is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Its name; `None`: a new one at random. Give the id of an [`Error::OutcomeUnknown`] to repeat that write
    /// safely.
    pub request_id: Option<crate::RequestId>,
    /// Deadline, retries included; `None`: [`RegistryConfig::call_timeout`].
    pub timeout: Option<Duration>,
    /// In groups of mode ap: on how many servers' disks it is to be before it is answered, 1 or 2; 0: 1.
    /// [`crate::Written::acks`] says on how many it is: fewer, if no other server confirmed in time.
    pub acks: u32,
}

/// How fresh an answer must be. Groups of mode ap are always read as [`Self::Local`], and without `max_age` unless you
/// ask for `Local`: look at the answer's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// It reflects every write acknowledged before the call: a quorum confirmed the leader after it came.
    #[default]
    Linearizable,
    /// The leader answers under its leader lease: as fresh, if clocks run alike.
    Leased,
    /// What the server that was asked has applied, with its age.
    Local {
        /// Refuse staler answers; `None`: any.
        max_age: Option<Duration>,
    },
}

/// How a read is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// How fresh.
    pub freshness: Freshness,
    /// Wait until this revision is reflected; 0: do not.
    pub min_revision: u64,
    /// Of which epoch [`Self::min_revision`] is, for groups of mode ap ([`crate::Written::epoch`]): another server, or
    /// the same one in another life, does not wait for it, since its revisions are its own. 0 for groups of mode cp.
    pub epoch: u64,
    /// Deadline, retries included; `None`: [`RegistryConfig::call_timeout`].
    pub timeout: Option<Duration>,
}

impl ReadOptions {
    /// What the server that is asked has applied, however old.
    #[must_use]
    pub fn local() -> Self {
        Self {
            freshness: Freshness::Local { max_age: None },
            ..Self::default()
        }
    }

    pub(crate) fn to_wire(self) -> rollcall_proto::v1::ReadOptions {
        use rollcall_proto::v1::ReadMode;
        let (mode, max_age_ms) = match self.freshness {
            Freshness::Linearizable => (ReadMode::Linearizable, 0),
            Freshness::Leased => (ReadMode::Leased, 0),
            Freshness::Local { max_age } => (ReadMode::Local, max_age.map_or(0, |age| millis(age).max(1))),
        };
        rollcall_proto::v1::ReadOptions {
            mode: mode.into(),
            max_age_ms,
            min_revision: self.min_revision,
            epoch: self.epoch,
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_refused_by_name() {
        assert!(RegistryConfig::new(["127.0.0.1:7400"]).check().is_ok());
        let refused = |config: RegistryConfig| config.check().unwrap_err().to_string();
        assert!(refused(RegistryConfig::new(Vec::<String>::new())).contains("servers"));
        let mut config = RegistryConfig::new(["a:1"]);
        config.writes_in_flight_max = 0;
        assert!(refused(config).contains("writes_in_flight_max"));
        let mut config = RegistryConfig::new(["a:1"]);
        config.attempt_timeout = Duration::ZERO;
        assert!(refused(config).contains("attempt_timeout"));
    }
}
