//! What a judge of silence has to say, and the command that says it.

use rollcall_core::directory::{Command, ExpiryFence, RevivalFence};
use rollcall_core::ids::{NodeKey, Revision, ServiceKey, Term};

/// Something the judge has to say, through the log or to its view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// These sessions lapsed; so many more nodes of which service lapsed in the same tick.
    Lapsed(Vec<ExpiryFence>, Vec<(ServiceKey, u32)>),
    /// These sessions had lapsed, and are heard from again.
    Heard(Vec<RevivalFence>),
    /// These overrides have outlived their ttl.
    Outlived(Vec<(NodeKey, Revision)>),
    /// These windows of removal guards are over.
    Over(Vec<(ServiceKey, Revision)>),
    /// These nodes were held long enough.
    HeldEnough(Vec<(ServiceKey, Revision)>),
}

impl Word {
    /// Whether somebody goes by it, so that it is said only while a quorum listens.
    pub(super) fn strikes_off(&self) -> bool {
        matches!(self, Self::Lapsed(..) | Self::HeldEnough(_))
    }

    pub(crate) fn command(&self, term: Term) -> Command {
        match self.clone() {
            Self::Lapsed(sessions, following) => Command::ExpireSessions {
                term,
                sessions,
                following,
            },
            Self::Heard(sessions) => Command::ReviveSessions { term, sessions },
            Self::Outlived(overrides) => Command::ExpireOverrides { term, overrides },
            Self::Over(windows) => Command::CloseGuardWindows { term, windows },
            Self::HeldEnough(holds) => Command::ReleaseHeld { term, holds },
        }
    }
}
