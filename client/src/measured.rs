//! What the benches repeat of the consumer's side. No part of the API: it changes as what it measures does.

use std::sync::Arc;

use prost::Message;
use rollcall_proto::v1;

use crate::view::{Confirmed, Counted, Heard, ServiceView};
use crate::watch::{Cached, Merged};

/// A service as the cache of a watch holds it.
#[derive(Debug)]
pub struct Held {
    cached: Cached,
    cluster: Arc<str>,
    heard: Arc<Heard>,
}

impl Held {
    /// With what a server has just said.
    #[must_use]
    pub fn given(view: v1::ServiceView) -> Self {
        Self {
            cached: Cached::of(ServiceView::given(view)),
            cluster: Arc::from(""),
            heard: Heard::now(),
        }
    }

    /// Takes in a frame as it came; whether it was a change of what is held.
    pub fn take(&mut self, frame: &[u8]) -> bool {
        let Ok(v1::WatchFrame {
            frame: Some(v1::watch_frame::Frame::Delta(delta)),
        }) = v1::WatchFrame::decode(frame)
        else {
            return false;
        };
        let counted = (&self.cluster, Counted::Cluster);
        let confirmed = Confirmed::Heard(Arc::clone(&self.heard));
        self.cached.take_delta(delta, counted, confirmed) == Merged::Changed
    }
}
