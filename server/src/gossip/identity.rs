//! Who a member is.

use std::cmp::Ordering;
use std::fmt;
use std::net::SocketAddr;

use rollcall_core::ids::ServerId;

/// Epochs beyond this are nobody's: what claims one was forged or damaged.
pub(crate) const EPOCH_MAX: u64 = 1 << 48;

/// A life so far beyond the last that is known of a server was made up: not even a server that dies every second
/// comes there before the others forget it. Believed, it would leave the server no later life to begin.
pub(crate) const LEAP_MAX: u64 = 1 << 20;

/// A life of a server: who, where, and which of its lives.
///
/// The epoch only grows, across restarts as well: it is on disk before it is used. So of two identities of one
/// server, the one with the higher epoch is the living one, and everybody agrees on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The server.
    pub server: ServerId,
    /// Where its gossip is received.
    pub address: SocketAddr,
    /// Which of its lives, from 1.
    pub epoch: u64,
}

impl Identity {
    /// Whom an announcement is for when only the address is known.
    pub(crate) fn whoever_is_at(address: SocketAddr) -> Self {
        Self {
            server: ServerId(0),
            address,
            epoch: 0,
        }
    }

    /// Compares two lives of one server: the greater one holds. Should two lives have one epoch, which takes a
    /// copied data folder, the address decides, so that all decide alike.
    pub(crate) fn precedence(&self, other: &Self) -> Ordering {
        (self.epoch, self.address).cmp(&(other.epoch, other.address))
    }

    /// Whether it can be somebody.
    pub(crate) fn is_plausible(&self) -> bool {
        let ip = self.address.ip();
        self.server.0 != 0
            && (1..=EPOCH_MAX).contains(&self.epoch)
            && self.address.port() != 0
            && !ip.is_unspecified()
            && !ip.is_multicast()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "server {} at {} epoch {}",
            self.server, self.address, self.epoch
        )
    }
}

impl foca::Identity for Identity {
    type Addr = ServerId;

    /// Never by itself: the next epoch is written to disk first (see `Swim::renewed`).
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> ServerId {
        self.server
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.precedence(adversary) == Ordering::Greater
    }
}
