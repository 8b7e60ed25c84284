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
    /// 10 to 100 kB/s for each link.
    Narrow,
    /// Connections that break off, again and again.
    Reset,
    /// A host of clients that reaches no server, or only some.
    ClientCut,
    /// A host of clients that loses 10 to 50 % of its frames.
    ClientLoss,
    /// A host of clients that is 50 to 400 ms away.
    ClientSlow,
    /// SIGSTOP.
    Pause,
    /// kill -9 of one server.
    Kill,
    /// kill -9 of all.
    KillAll,
    /// SIGTERM and start, one server after the other, each once the one before is ready.
    RollingRestart,
    /// The same, with another program.
    RollingUpgrade,
    /// A server leaves for good, and a new one joins with its disk, wiped.
    Membership,
    /// Two servers join, two others leave, the leader first; and the same way back.
    Resize,
    /// The leader is asked to hand over.
    Transfer,
    /// A disk without a free byte.
    FullDisk,
    /// One host loses its power: what was not synced is gone.
    PowerLoss,
    /// All do, at once.
    PowerLossAll,
    /// A disk on which writes and syncs wait.
    HungDisk,
    /// A disk that answers everything with an error, until it is replaced by what it held when it was last synced.
    DeadDisk,
    /// Syncs that fail.
    SyncErrors,
    /// A log that ends in half a record or in zeros, as a power cut leaves it.
    TornTail,
    /// A log whose end is missing, as a disk leaves it that lied about its syncs.
    LostTail,
    /// Flipped bits in a file.
    BitRot,
    /// 2 to 10 % of a processor.
    Starved,
    /// No more memory than now, or little.
    Memory,
    /// No file descriptor to spare.
    Descriptors,
    /// A wall clock that jumps up to an hour, either way.
    Clock,
    /// A wall clock of half or double speed.
    ClockRate,
}

impl Kind {
    /// All of them, in no order that matters.
    pub const ALL: [Self; 37] = [
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
        Self::Reset,
        Self::ClientCut,
        Self::ClientLoss,
        Self::ClientSlow,
        Self::Pause,
        Self::Kill,
        Self::KillAll,
        Self::RollingRestart,
        Self::RollingUpgrade,
        Self::Membership,
        Self::Resize,
        Self::Transfer,
        Self::FullDisk,
        Self::PowerLoss,
        Self::PowerLossAll,
        Self::HungDisk,
        Self::DeadDisk,
        Self::SyncErrors,
        Self::TornTail,
        Self::LostTail,
        Self::BitRot,
        Self::Starved,
        Self::Memory,
        Self::Descriptors,
        Self::Clock,
        Self::ClockRate,
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
            Self::Reset => "reset",
            Self::ClientCut => "client-cut",
            Self::ClientLoss => "client-loss",
            Self::ClientSlow => "client-slow",
            Self::Pause => "pause",
            Self::Kill => "kill",
            Self::KillAll => "kill-all",
            Self::RollingRestart => "rolling-restart",
            Self::RollingUpgrade => "rolling-upgrade",
            Self::Membership => "membership",
            Self::Resize => "resize",
            Self::Transfer => "transfer",
            Self::FullDisk => "full-disk",
            Self::PowerLoss => "power-loss",
            Self::PowerLossAll => "power-loss-all",
            Self::HungDisk => "hung-disk",
            Self::DeadDisk => "dead-disk",
            Self::SyncErrors => "sync-errors",
            Self::TornTail => "torn-tail",
            Self::LostTail => "lost-tail",
            Self::BitRot => "bit-rot",
            Self::Starved => "starved",
            Self::Memory => "memory",
            Self::Descriptors => "descriptors",
            Self::Clock => "clock",
            Self::ClockRate => "clock-rate",
        }
    }

    /// Whether it is done to the network.
    #[must_use]
    pub fn is_network(self) -> bool {
        matches!(
            self,
            Self::Halves
                | Self::Single
                | Self::Bridge
                | Self::Ring
                | Self::OneWay
                | Self::NoClients
                | Self::NoGossip
                | Self::Loss
                | Self::Delay
                | Self::Mangle
                | Self::Narrow
                | Self::Reset
        ) || self.is_of_clients()
    }

    /// Whether it is done to hosts of clients.
    #[must_use]
    pub fn is_of_clients(self) -> bool {
        matches!(self, Self::ClientCut | Self::ClientLoss | Self::ClientSlow)
    }

    /// Whether it takes processes away, or may.
    #[must_use]
    pub fn is_process(self) -> bool {
        matches!(
            self,
            Self::Pause
                | Self::Kill
                | Self::KillAll
                | Self::RollingRestart
                | Self::RollingUpgrade
                | Self::Membership
                | Self::Resize
                | Self::PowerLoss
                | Self::PowerLossAll
                | Self::HungDisk
                | Self::DeadDisk
                | Self::SyncErrors
                | Self::TornTail
                | Self::LostTail
                | Self::BitRot
                | Self::Starved
                | Self::Memory
                | Self::Descriptors
        )
    }

    /// Whether it is done to a disk or to what is on it.
    #[must_use]
    pub fn is_disk(self) -> bool {
        matches!(
            self,
            Self::FullDisk
                | Self::Membership
                | Self::Resize
                | Self::PowerLoss
                | Self::PowerLossAll
                | Self::HungDisk
                | Self::DeadDisk
                | Self::SyncErrors
                | Self::TornTail
                | Self::LostTail
                | Self::BitRot
        )
    }

    /// Whether the two may not be under way together: a server is taken away, a disk broken, a clock set by one fault
    /// at a time, so that each is undone as it was done, and damage stays with a minority.
    #[must_use]
    pub fn excludes(self, other: Self) -> bool {
        let is_clock = |kind| matches!(kind, Self::Clock | Self::ClockRate);
        self.is_process() && other.is_process()
            || self.is_disk() && other.is_disk()
            || is_clock(self) && is_clock(other)
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
