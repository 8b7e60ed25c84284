//! Where to ask to be let in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

/// Most seeds that are asked.
const SEEDS_MAX: usize = 64;
/// How long the name service may take for one.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

/// Tells the seeds' addresses, `host:port`, as they are at the moment.
#[derive(Clone)]
pub struct Seeds(Arc<dyn Fn() -> Vec<String> + Send + Sync>);

impl Seeds {
    /// Seeds that are asked for anew each time.
    pub fn from_source(source: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// These.
    #[must_use]
    pub fn fixed(addresses: Vec<String>) -> Self {
        Self::from_source(move || addresses.clone())
    }

    /// Looks them up. Those that cannot be found are left out: the next round may find them.
    pub(crate) async fn look_up(&self, ipv4: bool) -> BTreeSet<SocketAddr> {
        let mut found = BTreeSet::new();
        for seed in (self.0)().into_iter().take(SEEDS_MAX) {
            match look_up(&seed, ipv4).await {
                Some(address) => _ = found.insert(address),
                None => tracing::debug!(seed, "seed not found"),
            }
        }
        found
    }
}

/// The first address of a host in the family of the socket.
pub(crate) async fn look_up(host: &str, ipv4: bool) -> Option<SocketAddr> {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return (address.is_ipv4() == ipv4 && address.port() != 0).then_some(address);
    }
    let mut addresses = timeout(LOOKUP_MAX, lookup_host(host)).await.ok()?.ok()?;
    addresses.find(|address| address.is_ipv4() == ipv4)
}
