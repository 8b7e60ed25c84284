//! Should this server be asked?

use crate::raft::Consensus;

/// Judges whether this server should be asked. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    consensus: Consensus,
}

/// What it means for clients that a condition does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// This server should not be asked.
    Required,
    /// An operator should look, but this server serves: were all servers in this state, none would be asked, and
    /// that would be worse.
    Warning,
}

/// One condition of readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its name.
    pub name: &'static str,
    /// What follows if it does not hold.
    pub weight: Weight,
    /// Whether it holds.
    pub holds: bool,
    /// What it means if it does not.
    pub otherwise: &'static str,
}

impl Readiness {
    /// A judge of this server.
    #[must_use]
    pub fn new(consensus: Consensus) -> Self {
        Self { consensus }
    }

    /// Each condition, in the order in which they matter.
    #[must_use]
    pub fn conditions(&self) -> Vec<Condition> {
        let status = self.consensus.status();
        vec![
            Condition {
                name: "replication",
                weight: Weight::Required,
                holds: status.stopped.is_none(),
                otherwise: "replication has stopped, see the log",
            },
            Condition {
                name: "state",
                weight: Weight::Required,
                holds: !status.diverged,
                otherwise: "the state differs from the leader's and is not served (RC-110)",
            },
            Condition {
                name: "loaded",
                weight: Weight::Required,
                holds: status.loaded,
                otherwise: "the directory has not been loaded yet",
            },
            Condition {
                name: "leader",
                weight: Weight::Required,
                holds: self.consensus.hears_leader(),
                otherwise: "no leader is heard",
            },
            Condition {
                name: "disk",
                weight: Weight::Warning,
                holds: !status.disk_full,
                otherwise: "the disk is full; reads and heartbeats go on, writes wait for space (RC-111)",
            },
        ]
    }

    /// Whether this server's state may be shown, be it old or not.
    #[must_use]
    pub fn may_show(&self) -> bool {
        !self.consensus.status().diverged
    }

    /// Whether all that are required hold.
    ///
    /// # Errors
    /// The first that does not, for people.
    pub fn check(&self) -> Result<(), String> {
        match self.conditions().iter().find(|condition| condition.forbids()) {
            Some(condition) => Err(condition.otherwise.into()),
            None => Ok(()),
        }
    }
}

impl Condition {
    /// Whether this alone makes the server not ready.
    #[must_use]
    pub fn forbids(&self) -> bool {
        !self.holds && self.weight == Weight::Required
    }
}
