//! The handle: what the other shells hold.

use std::sync::Arc;

use rollcall_core::directory::{ChangeLogBounds, Directory, Limits, Request};
use rollcall_core::ids::SessionId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::contract::{Acknowledged, ApStatus, SessionSeed, SessionValue};
use crate::raft::{AppliedHead, ProposeError, RenewalVerdict, SessionDeadline, SharedDirectory};

/// How AP groups are set up.
pub struct ApOptions {
    /// How much the view's change log keeps.
    pub change_log: ChangeLogBounds,
}

/// AP groups on this server. Cheap to clone.
#[derive(Clone)]
pub struct Ap {
    inner: Arc<Inner>,
}

struct Inner {
    epoch: u64,
    view: Arc<SharedDirectory>,
    head: watch::Sender<AppliedHead>,
}

impl Ap {
    /// Takes up what this server knows of AP groups.
    #[must_use]
    pub fn start(options: &ApOptions) -> Self {
        let view = Directory::new(Limits::default()).with_change_log(options.change_log);
        Self {
            inner: Arc::new(Inner {
                epoch: rand::random_range(1..=u64::MAX),
                view: Arc::new(SharedDirectory::new(view)),
                head: watch::Sender::default(),
            }),
        }
    }

    /// The AP groups, as this server sees them. Its revisions count this server's own steps and mean nothing
    /// elsewhere, nor under another [`Self::epoch`]. It may show a change shortly before that is on disk.
    #[must_use]
    pub fn view(&self) -> &Arc<SharedDirectory> {
        &self.inner.view
    }

    /// How far the view is, its changes on disk; has no position.
    #[must_use]
    pub fn applied_head(&self) -> watch::Receiver<AppliedHead> {
        self.inner.head.subscribe()
    }

    /// Tells this life of the server from every other.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Whether the view may be shown. Not before what is on disk is in it; and if there is nothing, not before
    /// another server was asked.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        false
    }

    /// Has a request applied to the view and written to disk; with 2 `acks` to another live server's as well, if
    /// one answers in time (see [`Acknowledged::acks`]). Needs no quorum.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied.
    pub async fn write(
        &self,
        _request: Request,
        _acks: u32,
        _deadline: Instant,
    ) -> Result<Acknowledged, ProposeError> {
        Err(starting())
    }

    /// Opens a session that lives by records alone. Its id has the highest bit set.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been opened.
    pub async fn open_session(
        &self,
        _secret_digest: [u8; 32],
        _ttl_ms: u32,
        _client: String,
        _deadline: Instant,
    ) -> Result<SessionId, ProposeError> {
        Err(starting())
    }

    /// From now on this server vouches for the session, until another claims it.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been claimed. A closed session is refused as not found.
    pub async fn claim(&self, _session: SessionSeed, _deadline: Instant) -> Result<(), ProposeError> {
        Err(starting())
    }

    /// A session that lives, or lapsed and has nodes held.
    #[must_use]
    pub fn session(&self, _id: SessionId) -> Option<SessionValue> {
        None
    }

    /// Records signs of life, at once and without a write. Sessions that this server does not hold are not found.
    #[must_use]
    pub fn renew(&self, sessions: &[SessionId]) -> RenewalVerdict {
        RenewalVerdict {
            not_found: sessions.to_vec(),
            undecided: Vec::new(),
        }
    }

    /// When these sessions lapse, by this server's clock; those it does not judge are left out.
    #[must_use]
    pub fn deadlines(&self, _sessions: &[SessionId]) -> Vec<SessionDeadline> {
        Vec::new()
    }

    /// How AP groups stand here.
    #[must_use]
    pub fn status(&self) -> ApStatus {
        ApStatus {
            records: 0,
            log: 0,
            head: 0,
            sessions_held: 0,
            origins: Vec::new(),
            agreed: None,
            loaded: self.is_loaded(),
        }
    }
}

fn starting() -> ProposeError {
    ProposeError::Unavailable {
        reason: "AP groups are not there yet on this server".into(),
    }
}
