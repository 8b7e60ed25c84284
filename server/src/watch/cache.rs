//! Encoded services and encoded changes, kept for the next reader.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use parking_lot::Mutex;
use rollcall_core::directory::{RevisionChanges, Service};
use rollcall_core::ids::{Revision, ServiceKey};

use super::frame;

/// Encoded services. Bounded in bytes; when full, those not used for longest go, several at a time, so that a hit
/// costs no more than the look.
pub(crate) struct ViewCache {
    bytes_max: usize,
    views: Mutex<Views>,
}

#[derive(Default)]
struct Views {
    by_key: HashMap<ServiceKey, View>,
    clock: u64,
    bytes: usize,
}

struct View {
    /// A service's content, its removal guard's word included, is known by when it last changed.
    modified: Revision,
    used: u64,
    bytes: Bytes,
}

impl ViewCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            views: Mutex::default(),
        }
    }

    /// The encoded [`rollcall_proto::v1::ServiceView`].
    pub(crate) fn view(&self, service: &Service) -> Bytes {
        if let Some(bytes) = self.views.lock().find(&service.key, service.modified) {
            return bytes;
        }
        let bytes = frame::view(service);
        // One service may not push all others out.
        if bytes.len() <= self.bytes_max / 4 {
            self.views.lock().keep(service, bytes.clone(), self.bytes_max);
        }
        bytes
    }
}

impl Views {
    fn find(&mut self, key: &ServiceKey, modified: Revision) -> Option<Bytes> {
        let view = self
            .by_key
            .get_mut(key)
            .filter(|view| view.modified == modified)?;
        self.clock += 1;
        view.used = self.clock;
        Some(view.bytes.clone())
    }

    fn keep(&mut self, service: &Service, bytes: Bytes, bytes_max: usize) {
        if self
            .by_key
            .get(&service.key)
            .is_some_and(|view| view.modified > service.modified)
        {
            return;
        }
        self.drop_view(&service.key);
        self.clock += 1;
        self.bytes += bytes.len();
        self.by_key.insert(
            service.key.clone(),
            View {
                modified: service.modified,
                used: self.clock,
                bytes,
            },
        );
        if self.bytes > bytes_max {
            self.make_room(bytes_max - bytes_max / 8);
        }
    }

    fn make_room(&mut self, bytes_wanted: usize) {
        let mut by_use: Vec<(u64, ServiceKey)> = self
            .by_key
            .iter()
            .map(|(key, view)| (view.used, key.clone()))
            .collect();
        by_use.sort_unstable_by_key(|(used, _)| *used);
        for (_, oldest) in by_use {
            if self.bytes <= bytes_wanted {
                break;
            }
            self.drop_view(&oldest);
        }
    }

    fn drop_view(&mut self, key: &ServiceKey) {
        if let Some(view) = self.by_key.remove(key) {
            self.bytes -= view.bytes.len();
        }
    }
}

/// Encoded changes, by revision and place in it. Bounded in bytes; when full, the oldest revisions go.
pub(crate) struct FrameCache {
    bytes_max: usize,
    frames: Mutex<Frames>,
}

#[derive(Default)]
struct Frames {
    by_place: BTreeMap<(Revision, usize), Bytes>,
    bytes: usize,
}

impl FrameCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            frames: Mutex::default(),
        }
    }

    /// The encoded frame of `changes.services[place]`.
    pub(crate) fn frame(&self, changes: &RevisionChanges, place: usize) -> Bytes {
        let at = (changes.revision, place);
        if let Some(bytes) = self.frames.lock().by_place.get(&at) {
            return bytes.clone();
        }
        let bytes = frame::change(&changes.services[place], changes.revision);
        let mut frames = self.frames.lock();
        frames.bytes += bytes.len();
        if let Some(raced) = frames.by_place.insert(at, bytes.clone()) {
            frames.bytes -= raced.len();
        }
        while frames.bytes > self.bytes_max {
            let Some((_, oldest)) = frames.by_place.pop_first() else {
                break;
            };
            frames.bytes -= oldest.len();
        }
        bytes
    }
}
