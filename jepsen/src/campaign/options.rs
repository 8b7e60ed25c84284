//! What to run.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::nemesis::Kind;

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// [`crate::workload::registers`].
    Registers,
    /// [`crate::workload::heartbeats`].
    Heartbeats,
    /// [`crate::workload::followers`].
    Followers,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Registers, Self::Heartbeats, Self::Followers];

    /// As it is written on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Registers => "registers",
            Self::Heartbeats => "heartbeats",
            Self::Followers => "followers",
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|workload| workload.name() == name);
        known.ok_or_else(|| {
            format!("no workload is called {name}; there are: all, registers, heartbeats, followers")
        })
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides everything that chance decides.
    pub seed: u64,
    /// How long faults and load go on; the end in peace comes on top.
    pub length: Duration,
    /// How many servers.
    pub servers: u64,
    /// What runs.
    pub workloads: Vec<Workload>,
    /// What is done to it.
    pub kinds: Vec<Kind>,
    /// Clients of each workload.
    pub clients: u64,
    /// Of the sessions.
    pub ttl: Duration,
    /// Where the history goes.
    pub folder: PathBuf,
    /// The server program; `None`: [`crate::lab::binary::rollcalld`].
    pub binary: Option<PathBuf>,
}
