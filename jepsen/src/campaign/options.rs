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
    /// [`crate::workload::ap`].
    Ap,
    /// [`crate::workload::guard`].
    Guard,
    /// [`crate::workload::takeover`].
    Takeover,
    /// [`crate::workload::mode_switch`].
    ModeSwitch,
    /// [`crate::workload::resumes`].
    Resumes,
    /// [`crate::workload::batches`].
    Batches,
    /// [`crate::workload::retries`].
    Retries,
    /// [`crate::workload::racers`].
    Racers,
    /// [`crate::workload::ages`].
    Ages,
    /// [`crate::workload::storm`]: alone on a cluster, for it changes when all watchers are told.
    Storm,
}

impl Workload {
    /// All of them that go together.
    pub const TOGETHER: [Self; 12] = [
        Self::Registers,
        Self::Heartbeats,
        Self::Followers,
        Self::Ap,
        Self::Guard,
        Self::Takeover,
        Self::ModeSwitch,
        Self::Resumes,
        Self::Batches,
        Self::Retries,
        Self::Racers,
        Self::Ages,
    ];
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Registers,
        Self::Heartbeats,
        Self::Followers,
        Self::Ap,
        Self::Guard,
        Self::Takeover,
        Self::ModeSwitch,
        Self::Resumes,
        Self::Batches,
        Self::Retries,
        Self::Racers,
        Self::Ages,
        Self::Storm,
    ];

    /// As it is written on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Registers => "registers",
            Self::Heartbeats => "heartbeats",
            Self::Followers => "followers",
            Self::Ap => "ap",
            Self::Guard => "guard",
            Self::Takeover => "takeover",
            Self::ModeSwitch => "mode-switch",
            Self::Resumes => "resumes",
            Self::Batches => "batches",
            Self::Retries => "retries",
            Self::Racers => "racers",
            Self::Ages => "ages",
            Self::Storm => "storm",
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|workload| workload.name() == name);
        known.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|workload| workload.name()).collect();
            format!(
                "no workload is called {name}; there are: all, {}",
                names.join(", ")
            )
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
    /// How registers are read; unspecified: half linearizable, half leased. Linearizable and leased reads must satisfy the judges; local ones under faults do not,
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
    /// What rolling upgrades install; `None`: there are none.
    pub upgrade_to: Option<PathBuf>,
    /// On loopback behind a proxy, as without root, whoever runs it.
    pub loopback: bool,
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
            ReadMode::Linearizable => "linearizable",
            ReadMode::Unspecified => "mixed",
        };
        format!(
            "rollcall-jepsen lab --seed {} --seconds {} --servers {} --clients {} --ttl {} --reads {reads} --workload {} \
             --nemesis {}{}",
            self.seed,
            self.length.as_secs(),
            self.servers,
            self.clients,
            self.ttl.as_secs(),
            list(self.workloads.iter().map(|of| of.name()).collect()),
            list(self.kinds.iter().map(|of| of.name()).collect()),
            if self.loopback { " --loopback" } else { "" },
        )
    }
}
