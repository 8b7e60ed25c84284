//! What to run.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rollcall_proto::v1::ReadMode;

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
    /// How registers are read. Linearizable and leased reads must satisfy the judges; local ones under faults do not,
    /// which shows that the judges see.
    pub reads: ReadMode,
    /// Clients of each workload.
    pub clients: u64,
    /// Of the sessions.
    pub ttl: Duration,
    /// Whether the servers' data and logs are kept when something was found.
    pub keep: bool,
    /// Where the history goes.
    pub folder: PathBuf,
    /// The server program; `None`: [`crate::lab::binary::rollcalld`].
    pub binary: Option<PathBuf>,
}

impl Options {
    /// The command that runs the same schedule again.
    #[must_use]
    pub fn command_line(&self) -> String {
        let list = |names: Vec<&str>| {
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(",")
            }
        };
        let reads = match self.reads {
            ReadMode::Leased => "leased",
            ReadMode::Local => "local",
            ReadMode::Linearizable | ReadMode::Unspecified => "linearizable",
        };
        format!(
            "rollcall-jepsen lab --seed {} --seconds {} --servers {} --clients {} --ttl {} --reads {reads} --workload {} \
             --nemesis {}",
            self.seed,
            self.length.as_secs(),
            self.servers,
            self.clients,
            self.ttl.as_secs(),
            list(self.workloads.iter().map(|of| of.name()).collect()),
            list(self.kinds.iter().map(|of| of.name()).collect()),
        )
    }
}
