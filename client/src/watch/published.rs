//! What watchers are shown of one service.

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::Error;
use crate::view::ServiceView;

/// The side that shows: the one rule by which watchers wake.
#[derive(Debug)]
pub(crate) struct Published {
    view: watch::Sender<Arc<ServiceView>>,
    refusal: watch::Sender<Option<Arc<Error>>>,
}

/// The side that looks.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) view: watch::Receiver<Arc<ServiceView>>,
    /// Why the servers will not show it.
    pub(super) refusal: watch::Receiver<Option<Arc<Error>>>,
}

impl Published {
    pub(crate) fn new(view: &Arc<ServiceView>) -> Self {
        Self {
            view: watch::Sender::new(Arc::clone(view)),
            refusal: watch::Sender::new(None),
        }
    }

    pub(super) fn subscribe(&self) -> Reader {
        Reader {
            view: self.view.subscribe(),
            refusal: self.refusal.subscribe(),
        }
    }

    /// The view as it is now. Its age is renewed in any case; watchers wake only for what differs.
    pub(crate) fn show(&self, next: &Arc<ServiceView>) {
        self.view.send_if_modified(|shown| {
            let differs = differ(shown, next);
            *shown = Arc::clone(next);
            differs
        });
    }

    /// Asking again would not help, or (`None`) somebody has answered.
    pub(crate) fn refuse(&self, refusal: Option<&Arc<Error>>) {
        self.refusal.send_if_modified(|told| {
            let differs = told.is_some() || refusal.is_some();
            *told = refusal.cloned();
            differs
        });
    }
}

/// More than a confirmation is new.
fn differ(shown: &ServiceView, next: &ServiceView) -> bool {
    shown.source != next.source
        || shown.revision != next.revision
        || shown.counted() != next.counted()
        || shown.sign != next.sign
        || shown.guard != next.guard
        || shown.exists != next.exists
        || shown.metadata != next.metadata
}
