//! How far the watchers of a service have come.

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall_core::directory::GroupMode;
use rollcall_core::ids::{Revision, ServiceKey};

use super::WatchHub;
use crate::watch::stream::Shared;

/// Most watchers that [`Convergence`] names.
const BEHIND_MAX: usize = 16;

/// How far the subscribers of some services have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Convergence {
    /// Streams on this server that follow any of them.
    pub subscribers: usize,
    /// Those whose clients have acknowledged the revision asked about.
    pub current: usize,
    /// The lowest revision acknowledged by any of them.
    pub oldest: Option<Revision>,
    /// Some of those that have not: the client's name, and what it acknowledged last, of groups of which mode. At
    /// most 16.
    pub behind: Vec<(String, Revision, GroupMode)>,
}

/// How far one stream has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    stream: u64,
    client: String,
    wanted: Revision,
    acked: Revision,
    mode: GroupMode,
}

impl Convergence {
    /// Of streams, each of which may come twice: at both hubs.
    pub(crate) fn of(progress: Vec<Progress>) -> Self {
        let mut convergence = Self::default();
        let mut current: BTreeMap<u64, bool> = BTreeMap::new();
        for one in progress {
            let reached = one.acked >= one.wanted;
            let oldest = convergence.oldest.unwrap_or(one.acked);
            convergence.oldest = Some(oldest.min(one.acked));
            *current.entry(one.stream).or_insert(true) &= reached;
            if !reached && convergence.behind.len() < BEHIND_MAX {
                convergence.behind.push((one.client, one.acked, one.mode));
            }
        }
        convergence.subscribers = current.len();
        convergence.current = current.values().filter(|current| **current).count();
        convergence
    }

    /// Whether every subscriber has seen it.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.current == self.subscribers
    }
}

impl WatchHub {
    /// How many of the streams on this server that follow any of `keys` have acknowledged `revision`.
    #[must_use]
    pub fn convergence(&self, keys: &[ServiceKey], revision: Revision) -> Convergence {
        let wanted: Vec<_> = keys.iter().map(|key| (key.clone(), revision)).collect();
        Convergence::of(self.progress(&wanted))
    }

    /// How far the streams of this hub have come that follow any of these services, each as of this revision.
    pub(crate) fn progress(&self, wanted: &[(ServiceKey, Revision)]) -> Vec<Progress> {
        // The hub is let go between any two targets, and each is looked at once: a thousand services below one prefix have
        // the same followers.
        let mut streams: BTreeMap<u64, (Revision, Arc<Shared>)> = BTreeMap::new();
        let followed = self.inner.state.lock().registrations.followed(wanted);
        for (target, revision) in followed {
            let followers = self.inner.state.lock().registrations.followers_of(&target);
            for stream in followers {
                let (latest, _) = streams.entry(stream.id).or_insert_with(|| (revision, stream));
                *latest = (*latest).max(revision);
            }
        }
        let progress = |(wanted, stream): (Revision, Arc<Shared>)| Progress {
            stream: stream.id,
            client: stream.client.lock().clone(),
            wanted,
            acked: stream.backlog.lock().acked,
            mode: self.inner.mode,
        };
        streams.into_values().map(progress).collect()
    }
}
