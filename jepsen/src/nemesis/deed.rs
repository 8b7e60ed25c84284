//! A fault under way.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use crate::lab::{Cluster, Leading, Server};
use crate::net::Net;
use crate::seed::Seeded;

/// What a deed works on.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) net: Option<&'a Net>,
    pub(super) leading: &'a Leading,
    /// What a rolling upgrade installs.
    pub(super) upgrade_to: Option<&'a Path>,
}

/// A fault that has begun.
#[tonic::async_trait]
pub(super) trait Deed: Debug + Send {
    /// What was done to whom.
    fn what(&self) -> String;

    /// Asked again and again while it lasts. Must not wait for long.
    async fn tend(&mut self, _ground: &mut Ground<'_>) -> anyhow::Result<()> {
        Ok(())
    }

    /// Its time is up: undoes it. `None`: that takes longer; asked again soon.
    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>>;
}

/// What was seen of a fault from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    /// Whether it did something to somebody.
    pub(super) bit: bool,
    /// What was seen, as a sentence.
    pub(super) seen: String,
    /// A promise that was broken on the spot.
    pub(super) broken: Option<String>,
}

impl Effect {
    pub(super) fn seen(bit: bool, seen: impl Into<String>) -> Self {
        Self {
            bit,
            seen: seen.into(),
            broken: None,
        }
    }

    pub(super) fn broken(what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            bit: true,
            seen: what.clone(),
            broken: Some(what),
        }
    }
}

/// Something that could not be done, since nobody was there to suffer it.
#[derive(Debug)]
pub(super) struct Nothing(pub(super) String);

#[tonic::async_trait]
impl Deed for Nothing {
    fn what(&self) -> String {
        self.0.clone()
    }

    async fn end(&mut self, _ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        Ok(Some(Effect::seen(false, "nobody was there to suffer it")))
    }
}

impl Ground<'_> {
    /// All servers that run, in some order; more often than not the leader comes first.
    pub(super) fn targets(&mut self, random: &mut Seeded) -> Vec<u64> {
        let mut ids = self.cluster.ids();
        random.shuffle(&mut ids);
        let leader = self.leading.latest().server;
        let first = random.chance(0.6);
        if let Some(at) = ids.iter().position(|id| first && *id == leader) {
            ids.swap(0, at);
        }
        ids.retain(|id| self.cluster.server(*id).is_running());
        ids
    }

    /// Whether the cluster still has a server of this id.
    pub(super) fn has(&self, id: u64) -> bool {
        self.cluster.servers().any(|server| server.id() == id)
    }
}

/// Starts a server that has ended by itself meanwhile, for a reason of its own that it told by its exit status, or
/// since the kernel ended it; gives back how it had ended.
pub(super) fn start_if_ended(server: &mut Server) -> anyhow::Result<Option<String>> {
    let ended = server.process().and_then(|process| process.exit_status());
    let Some(status) = ended else { return Ok(None) };
    server.start()?;
    Ok(Some(status.to_string()))
}

/// Whether a server says that it is ready. Does not wait for long.
pub(super) async fn is_ready(server: &Server) -> bool {
    let asked = tokio::time::timeout(Duration::from_millis(400), server.status()).await;
    matches!(asked, Ok(Ok(status)) if status.ready)
}

/// The reasons that a server gave, by their codes: the last line with `RC-`.
pub(super) fn reason(log: &str) -> Option<String> {
    let line = log.lines().rev().find(|line| line.contains("RC-"))?;
    let from = line.find("RC-").unwrap_or(0);
    Some(line[from..].chars().take(160).collect())
}
