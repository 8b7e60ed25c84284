//! One target, and how far what is told of it has come.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::key::ServiceKey;
use crate::view::Counted;

/// One target, however many handles want it.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) handles: usize,
    /// Its number on the stream; 0: not asked for yet.
    pub(crate) number: u64,
    /// Its groups in mode CP.
    pub(super) cp: Part,
    /// Its groups in mode AP.
    pub(super) ap: Part,
    /// One part has started, and the other one will: those of the services held that are not of the first.
    pub(super) unlisted: Option<BTreeSet<ServiceKey>>,
    pub(super) ask_at: Option<Instant>,
    /// How often in a row a server said that it is not ready for it.
    pub(super) refusals: u32,
}

/// What a subscription follows in groups of one mode.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    /// Asked for on this stream, and started.
    pub(super) started: bool,
    /// It was resumed without a gap.
    pub(super) resumed: bool,
    /// Everything up to here has come.
    pub(super) position: u64,
    /// In whose count.
    pub(super) epoch: u64,
}

impl Part {
    /// Everything up to here has come, or: the server must not be behind this.
    pub(super) fn reach(&mut self, counted: Counted, revision: u64) {
        let epoch = counted.epoch();
        let before = if self.epoch == epoch { self.position } else { 0 };
        (self.position, self.epoch) = (before.max(revision), epoch);
    }

    /// What has come is not enough: from state again. Where it was not started, its position is a mere lower bound.
    pub(super) fn forget(&mut self) {
        if std::mem::take(&mut self.started) {
            self.position = 0;
        }
    }
}

impl Subscription {
    pub(super) fn new() -> Self {
        Self {
            handles: 0,
            number: 0,
            cp: Part::default(),
            ap: Part::default(),
            unlisted: None,
            ask_at: None,
            refusals: 0,
        }
    }

    pub(super) fn part(&mut self, counted: Counted) -> &mut Part {
        match counted {
            Counted::Unknown | Counted::Cluster => &mut self.cp,
            Counted::Server { .. } => &mut self.ap,
        }
    }

    /// Asked for with its number, and live.
    pub(super) fn live(&self) -> bool {
        (self.cp.started || self.ap.started) && self.unlisted.is_none()
    }

    /// Another cluster counts anew: positions of the one before say nothing about it.
    pub(super) fn on_other_cluster(&mut self) {
        self.cp.position = 0;
        self.ap.position = 0;
    }

    pub(super) fn forget(&mut self) {
        self.cp.forget();
        self.ap.forget();
        self.unlisted = None;
    }

    /// No longer asked for on this stream, or no longer live.
    pub(super) fn stop(&mut self) {
        self.cp.started = false;
        self.ap.started = false;
        self.unlisted = None;
    }
}
