//! What a consumer holds.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::event::WatchEvent;
use super::hub::{Hub, discover_wait};
use super::published::{Published, Reader};
use super::target::WatchTarget;
use crate::error::Error;
use crate::key::ServiceKey;
use crate::registry::Registry;
use crate::view::{ServiceView, Source};

/// One service, kept current. It shows the latest state only, so a slow reader costs nothing. Dropping the last
/// handle on a service ends its subscription.
#[derive(Debug)]
pub struct ServiceWatch {
    key: ServiceKey,
    shown: Reader,
    _kept: Keep,
}

/// What a [`ServiceWatch`] keeps going.
#[derive(Debug)]
pub(crate) enum Keep {
    Subscription {
        _hold: Hold,
    },
    /// The task of a poll.
    Poll {
        _guard: Arc<crate::poll::Guard>,
    },
}

/// One handle's share in a subscription.
#[derive(Debug)]
pub(crate) struct Hold {
    hub: Hub,
    target: WatchTarget,
}

impl Hold {
    fn new(hub: &Hub, target: WatchTarget) -> Result<Self, Error> {
        hub.want(&target)?;
        Ok(Self {
            hub: hub.clone(),
            target,
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.hub.unwant(&self.target);
    }
}

/// Events of one or many services, in order, each at most once. Between two reads at most
/// [`crate::RegistryConfig::watch_events_max`] are kept; beyond that there is one [`WatchEvent::Lagged`].
#[derive(Debug)]
pub struct Watch {
    hold: Hold,
    queue: u64,
    wake: Arc<Notify>,
}

impl Registry {
    /// The nodes of a service. The first call asks a server; if none answers within
    /// [`crate::RegistryConfig::discover_wait`] and there is a disk snapshot, it answers from disk. From then on
    /// a service that exists is kept current until the handle is dropped, and calls answer from memory without waiting,
    /// also while no server can be reached: see [`ServiceView::source`] and [`ServiceView::age`].
    ///
    /// # Errors
    /// [`Error::ServiceNotFound`]: the servers say so. [`Error::Unavailable`]: nothing is known and no server
    /// answered within [`crate::RegistryConfig::call_timeout`]. [`Error::TooLarge`]: too many subscriptions.
    pub async fn discover(&self, key: &ServiceKey) -> Result<Arc<ServiceView>, Error> {
        let held = {
            let state = self.inner.hub.shared.state.lock();
            let slot = state.slots.get(key).filter(|_| state.discovered.contains(key));
            slot.map(|slot| Arc::clone(slot.cached.view()))
                .filter(|view| view.source != Source::Nothing)
        };
        if let Some(view) = held {
            return found(view);
        }
        let began_at = Instant::now();
        let mut watch = self.watch_service(key).await?;
        let deadline = began_at + discover_wait(&self.inner.config, watch.view().source);
        let view = match tokio::time::timeout_at(deadline, watch.live()).await {
            Ok(Ok(view)) => view,
            Ok(Err(error)) if watch.view().source == Source::Nothing => return Err(error),
            // What is held serves.
            Ok(Err(_)) | Err(_) => watch.view(),
        };
        let view = found(view)?;
        // Kept before the watch ends. Names that are none, or not yet, would use up the subscriptions.
        let mut state = self.inner.hub.shared.state.lock();
        if state.discovered.insert(key.clone()) {
            state.want(&WatchTarget::Service(key.clone()));
        }
        drop(state);
        Ok(view)
    }

    /// Keeps one service current. Returns at once: with what is in memory, else with the disk snapshot if there
    /// is one (and the disk says so within half a second), else with a view that says that nothing is known; [`ServiceWatch::live`] waits for a server.
    ///
    /// # Errors
    /// [`Error::TooLarge`]: too many subscriptions.
    pub async fn watch_service(&self, key: &ServiceKey) -> Result<ServiceWatch, Error> {
        let hub = &self.inner.hub;
        let hold = Hold::new(hub, WatchTarget::Service(key.clone()))?;
        hub.load(key).await;
        let shown = hub.shared.state.lock().slot(key).published.subscribe();
        Ok(ServiceWatch {
            key: key.clone(),
            shown,
            _kept: Keep::Subscription { _hold: hold },
        })
    }

    /// Follows a service, or all services of a group and below. What is held already comes first, as
    /// [`WatchEvent::Snapshot`]s. (Disk snapshots are used for single services only.)
    ///
    /// # Errors
    /// [`Error::TooLarge`]: too many subscriptions.
    pub async fn watch(&self, target: impl Into<WatchTarget>) -> Result<Watch, Error> {
        let target = target.into();
        let hub = &self.inner.hub;
        let hold = Hold::new(hub, target.clone())?;
        if let WatchTarget::Service(key) = &target {
            hub.load(key).await;
        }
        let (queue, wake) = hub.shared.state.lock().add_queue(&target);
        Ok(Watch { hold, queue, wake })
    }
}

fn found(view: Arc<ServiceView>) -> Result<Arc<ServiceView>, Error> {
    let key = &view.key;
    match view.source {
        Source::Nothing => Err(Error::Unavailable {
            message: format!("no server answered for {key}, and there is no snapshot of it"),
        }),
        Source::Disk | Source::Cache | Source::Live if !view.exists => Err(Error::ServiceNotFound {
            service: key.to_string(),
            message: format!("service {key} was not found"),
        }),
        Source::Disk | Source::Cache | Source::Live => Ok(view),
    }
}

impl ServiceWatch {
    pub(crate) fn polled(key: ServiceKey, published: &Published, guard: Arc<crate::poll::Guard>) -> Self {
        Self {
            key,
            shown: published.subscribe(),
            _kept: Keep::Poll { _guard: guard },
        }
    }

    /// Which service.
    #[must_use]
    pub fn key(&self) -> &ServiceKey {
        &self.key
    }

    /// The view as it is now.
    #[must_use]
    pub fn view(&self) -> Arc<ServiceView> {
        Arc::clone(&self.shown.view.borrow())
    }

    /// Waits until the view is another one than when this was last called: other nodes or metadata, another word of
    /// the removal guard, or another source. That a server has confirmed it is none.
    /// `None`: nothing keeps it current any more.
    pub async fn changed(&mut self) -> Option<Arc<ServiceView>> {
        self.shown.view.changed().await.ok()?;
        Some(Arc::clone(&self.shown.view.borrow_and_update()))
    }

    /// Waits until a server has confirmed the view in this run, and a stream keeps it current (of a poll: until it was
    /// read at a server that knows how old its state is). No deadline; put it under one.
    ///
    /// # Errors
    /// What the servers say when they refuse it for good: an unknown token, a name that is none. It is asked for again all
    /// the same, now and then, since they may be told otherwise (a name that is none: on the next stream).
    /// [`Error::Closed`]: nothing keeps it current any more.
    pub async fn live(&mut self) -> Result<Arc<ServiceView>, Error> {
        loop {
            let view = Arc::clone(&self.shown.view.borrow_and_update());
            if view.source == Source::Live {
                return Ok(view);
            }
            if let Some(error) = &*self.shown.refusal.borrow_and_update() {
                return Err(Error::clone(error));
            }
            let changed = tokio::select! {
                changed = self.shown.view.changed() => changed,
                changed = self.shown.refusal.changed() => changed,
            };
            changed.map_err(|_| Error::Closed { what: "watch" })?;
        }
    }
}

impl Watch {
    /// What it follows.
    #[must_use]
    pub fn target(&self) -> &WatchTarget {
        &self.hold.target
    }

    /// All services as they are now. The events that are still to be read led here.
    #[must_use]
    pub fn views(&self) -> Vec<Arc<ServiceView>> {
        self.hold.hub.shared.state.lock().views(&self.hold.target)
    }

    /// The next event. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> WatchEvent {
        loop {
            if let Some(event) = self.hold.hub.shared.state.lock().take_event(self.queue) {
                return event;
            }
            self.wake.notified().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hold.hub.shared.state.lock().remove_queue(self.queue);
    }
}
