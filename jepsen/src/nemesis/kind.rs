//! What can be done to a cluster.

use std::str::FromStr;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two groups that do not reach each other; clients reach both.
    Halves,
    /// One server that reaches no other; sometimes no client either.
    Single,
    /// Two groups that reach each other only through one server, which reaches all.
    Bridge,
    /// Each server reaches only its neighbours in a ring.
    Ring,
    /// One server that is heard and hears nothing, or hears and is not heard.
    OneWay,
    /// One server that clients do not reach; the others do.
    NoClients,
    /// One server's gossip is cut; replication goes on.
    NoGossip,
    /// 5 to 30 % of all frames get lost.
    Loss,
    /// Up to 150 ms of delay and as much jitter, some frames overtaken.
    Delay,
    /// Some frames arrive twice, some damaged.
    Mangle,
    /// 100 to 500 kB/s for each link.
    Narrow,
    /// SIGSTOP.
    Pause,
    /// kill -9 of one server.
    Kill,
    /// kill -9 of all.
    KillAll,
    /// A disk without a free byte.
    FullDisk,
    /// A wall clock that jumps up to an hour, either way.
    Clock,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Halves,
        Self::Single,
        Self::Bridge,
        Self::Ring,
        Self::OneWay,
        Self::NoClients,
        Self::NoGossip,
        Self::Loss,
        Self::Delay,
        Self::Mangle,
        Self::Narrow,
        Self::Pause,
        Self::Kill,
        Self::KillAll,
        Self::FullDisk,
        Self::Clock,
    ];

    /// As it is written on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Halves => "halves",
            Self::Single => "single",
            Self::Bridge => "bridge",
            Self::Ring => "ring",
            Self::OneWay => "one-way",
            Self::NoClients => "no-clients",
            Self::NoGossip => "no-gossip",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Mangle => "mangle",
            Self::Narrow => "narrow",
            Self::Pause => "pause",
            Self::Kill => "kill",
            Self::KillAll => "kill-all",
            Self::FullDisk => "full-disk",
            Self::Clock => "clock",
        }
    }

    /// Whether it is done to the network.
    #[must_use]
    pub fn is_network(self) -> bool {
        !self.is_process() && self != Self::FullDisk && self != Self::Clock
    }

    /// Whether it takes processes away; one such fault at a time.
    #[must_use]
    pub fn is_process(self) -> bool {
        matches!(self, Self::Pause | Self::Kill | Self::KillAll)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!(
                "no fault is called {name}; there are: all, none, {}",
                names.join(", ")
            )
        })
    }
}
