//! Encoded services and encoded changes, kept for the next reader.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;

use bytes::Bytes;
use parking_lot::Mutex;
use rollcall_core::directory::{RevisionChanges, Service};
use rollcall_core::ids::{Revision, ServiceKey};

use super::frame;

/// So many services are known to have been asked for once; 16 bytes each.
const ASKED_MAX: usize = 65_536;
/// Larger views are kept from the first time on: there are few, each costs much to encode again, and a watcher's stream asks
/// twice, for its size and when its turn has come.
const SMALL_BYTES: usize = 32 << 10;

/// Encoded services; small ones are kept from the second time on that somebody asks for them: very many are asked for once, by
/// their one watcher or by one who lists them all. Bounded in bytes; when full, those not used for longest go, several at a time, so that a hit
/// costs no more than the look.
pub(crate) struct ViewCache {
    bytes_max: usize,
    views: Mutex<Views>,
}

#[derive(Default)]
struct Views {
    by_key: HashMap<ServiceKey, View>,
    /// Hashes of services that were asked for once and are not kept. Two of one hash do no harm.
    asked: HashSet<u64>,
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
        if bytes.len() <= SMALL_BYTES && !self.is_wanted(&service.key) {
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

    /// Whether the service was asked for before; it is now.
    fn is_wanted(&mut self, key: &ServiceKey) -> bool {
        let hash = self.by_key.hasher().hash_one(key);
        if self.by_key.contains_key(key) || self.asked.remove(&hash) {
            return true;
        }
        if self.asked.len() >= ASKED_MAX {
            self.asked.clear();
        }
        self.asked.insert(hash);
        false
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

#[cfg(test)]
mod tests {
    use rollcall_core::directory::{
        Command, Directory, Expected, GroupSettings, Limits, Request, ServiceSettings,
    };
    use rollcall_core::ids::{LogIndex, LogPosition, RequestId, Term};

    use super::*;

    struct Ground {
        directory: Directory,
        index: u64,
    }

    impl Ground {
        fn apply(&mut self, command: Command) {
            self.index += 1;
            let at = LogPosition {
                term: Term(1),
                index: LogIndex(self.index),
            };
            let id = RequestId(self.index.into());
            self.directory.apply(at, &Request { id, command }).result.unwrap();
        }

        fn put(&mut self, number: usize, nodes_max: u32) {
            let key = key(number);
            let expected = Expected::Any;
            let settings = ServiceSettings {
                nodes_max,
                ..ServiceSettings::default()
            };
            self.apply(Command::PutService {
                key,
                settings: Some(settings),
                expected,
            });
        }

        fn service(&self, number: usize) -> &Service {
            self.directory.service(&key(number)).unwrap()
        }
    }

    fn key(number: usize) -> ServiceKey {
        ServiceKey {
            group: "test".parse().unwrap(),
            service: format!("service-{number}").parse().unwrap(),
        }
    }

    fn ground(services: usize) -> Ground {
        let mut ground = Ground {
            directory: Directory::new(Limits::default()),
            index: 0,
        };
        ground.apply(Command::PutGroup {
            group: "test".parse().unwrap(),
            settings: GroupSettings::default(),
            expected: Expected::Any,
        });
        (0..services).for_each(|number| ground.put(number, 7));
        ground
    }

    fn kept(cache: &ViewCache) -> (usize, usize) {
        let views = cache.views.lock();
        let bytes: usize = views.by_key.values().map(|view| view.bytes.len()).sum();
        assert_eq!(views.bytes, bytes);
        (views.by_key.len(), views.asked.len())
    }

    #[test]
    fn what_is_asked_for_once_is_not_kept() {
        let mut ground = ground(3);
        let cache = ViewCache::new(1 << 20);
        for number in 0..3 {
            assert_eq!(
                cache.view(ground.service(number)),
                frame::view(ground.service(number))
            );
        }
        assert_eq!(kept(&cache), (0, 3));
        let again = cache.view(ground.service(1));
        assert_eq!(kept(&cache), (1, 2));
        assert_eq!(
            cache.view(ground.service(1)).as_ptr(),
            again.as_ptr(),
            "it is shared"
        );
        // Who follows it wants it as it is now.
        ground.put(1, 8);
        let changed = cache.view(ground.service(1));
        assert_eq!(changed, frame::view(ground.service(1)));
        assert_ne!(changed, again);
        assert_eq!(
            cache.view(ground.service(1)).as_ptr(),
            changed.as_ptr(),
            "it is shared"
        );
        assert_eq!(kept(&cache), (1, 2));
    }

    #[test]
    fn what_is_large_is_kept_at_once_and_a_list_of_a_hundred_nodes_is_not() {
        const HUNDRED_NODES_BYTES: usize = 27 << 10;
        let ground = ground(2);
        let cache = ViewCache::new(1 << 20);
        let keep = |number, bytes| {
            let bytes = Bytes::from(vec![0; bytes]);
            cache.views.lock().keep(ground.service(number), bytes, 1 << 20);
        };
        keep(0, HUNDRED_NODES_BYTES);
        assert_eq!(kept(&cache), (0, 1));
        keep(1, SMALL_BYTES + 1);
        assert_eq!(kept(&cache), (1, 1));
        keep(0, HUNDRED_NODES_BYTES);
        assert_eq!(kept(&cache), (2, 0));
    }

    #[test]
    fn what_is_known_of_services_asked_for_once_is_bounded() {
        let ground = ground(3);
        let cache = ViewCache::new(1 << 20);
        cache.views.lock().asked = (0..ASKED_MAX as u64 - 1).collect();
        cache.view(ground.service(0));
        assert_eq!(kept(&cache), (0, ASKED_MAX));
        cache.view(ground.service(1));
        assert_eq!(kept(&cache), (0, 1));
    }
}
