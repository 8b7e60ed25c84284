//! A client that builds its picture from frames alone, and checks the guarantees as they come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use prost::Message;
use rollcall_core::directory::Sign;
use rollcall_core::ids::ServiceKey;
use rollcall_proto::v1::{self, watch_frame::Frame};

use super::world::Picture;
use crate::grpc::convert;
use crate::watch::{KnownSigns, StreamHandle, Subscription, WatchStream};

/// One service, as a client holds it.
#[derive(Clone, Default)]
pub(super) struct Held {
    pub(super) sign: Sign,
    pub(super) nodes: BTreeMap<String, v1::Node>,
    pub(super) guard: Option<v1::GuardStatus>,
}

/// A client's picture, built from frames alone; it checks the guarantees as they come.
pub(super) struct Client {
    pub(super) stream: WatchStream,
    pub(super) handle: StreamHandle,
    pub(super) services: BTreeMap<ServiceKey, Held>,
    /// Up to where each service is known.
    pub(super) seen: BTreeMap<ServiceKey, u64>,
    /// The last of all frames.
    pub(super) last: u64,
    /// From where this client may resume.
    pub(super) resume: u64,
    pub(super) log: Vec<&'static str>,
    pub(super) rejected: Vec<v1::Rejected>,
    pub(super) kept: Vec<v1::KeepCache>,
    /// Changes may come merged: nodes that came and went in between are said to be gone.
    pub(super) merged: bool,
}

fn key_from(key: Option<v1::ServiceKey>) -> ServiceKey {
    convert::service_key_from("key", key.as_ref()).unwrap()
}

impl Client {
    pub(super) fn new(stream: WatchStream) -> Self {
        let handle = stream.handle();
        Self {
            stream,
            handle,
            services: BTreeMap::new(),
            seen: BTreeMap::new(),
            last: 0,
            resume: 0,
            log: Vec::new(),
            rejected: Vec::new(),
            kept: Vec::new(),
            merged: false,
        }
    }

    pub(super) fn follow(&self, subscription: Subscription) {
        self.handle.subscribe(subscription).unwrap();
    }

    /// Reads one message, if one is ready.
    pub(super) fn read(&mut self) -> bool {
        let next = tokio::task::unconstrained(self.stream.next()).now_or_never();
        let Some(Some(response)) = next else { return false };
        for bytes in response.unwrap().frames {
            let frame = v1::WatchFrame::decode(bytes).unwrap().frame.unwrap();
            self.take(frame);
        }
        if self.log.last() == Some(&"delta") {
            // Messages end where revisions end.
            self.resume = self.last;
        }
        true
    }

    /// Reads on until there is a change more.
    pub(super) async fn read_until_delta(&mut self) {
        let before = self.deltas();
        while self.deltas() == before {
            let next = tokio::time::timeout(Duration::from_secs(10), self.stream.next());
            for bytes in next.await.unwrap().unwrap().unwrap().frames {
                self.take(v1::WatchFrame::decode(bytes).unwrap().frame.unwrap());
            }
        }
    }

    pub(super) fn deltas(&self) -> usize {
        self.log.iter().filter(|what| **what == "delta").count()
    }

    pub(super) fn read_all(&mut self) {
        while self.read() {}
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Started(started) => {
                self.log.push(if started.kind() == v1::StartKind::Resumed {
                    "resumed"
                } else {
                    "current"
                });
                self.in_order(started.revision);
                self.resume = started.revision;
                let exist: Vec<ServiceKey> = started
                    .services
                    .into_iter()
                    .map(|key| key_from(Some(key)))
                    .collect();
                assert!(
                    exist.iter().all(|key| self.services.contains_key(key)),
                    "a service is missing at its start"
                );
                // What went while changes were lost is told by its absence here.
                self.services.retain(|key, _| exist.contains(key));
                // An equal sign says nothing of the guards.
                self.services.values_mut().for_each(|held| held.guard = None);
                for guard in started.guards {
                    let held = self.services.get_mut(&key_from(guard.key)).unwrap();
                    held.guard = guard.guard;
                }
            }
            Frame::Snapshot(snapshot) => {
                self.log.push(if snapshot.lagged { "lagged" } else { "snapshot" });
                self.in_order(snapshot.revision);
                let view = snapshot.view.unwrap();
                let key = key_from(view.key);
                self.seen.insert(key.clone(), snapshot.revision);
                let nodes = view
                    .nodes
                    .into_iter()
                    .map(|node| (node.id.clone(), node))
                    .collect();
                let held = Held {
                    sign: convert::sign_from(&view.sign.unwrap()),
                    nodes,
                    guard: view.guard,
                };
                self.services.insert(key, held);
            }
            Frame::Delta(delta) => {
                self.log.push("delta");
                self.in_order(delta.revision);
                let key = key_from(delta.key);
                let seen = self.seen.insert(key.clone(), delta.revision).unwrap_or(0);
                assert!(
                    delta.revision > seen,
                    "revision {} of {key} came after {seen}",
                    delta.revision
                );
                if delta.created {
                    assert!(!self.services.contains_key(&key));
                    self.services.insert(key.clone(), Default::default());
                }
                let held = self
                    .services
                    .get_mut(&key)
                    .expect("a delta for an unknown service");
                for removed in delta.removed {
                    assert!(held.nodes.remove(&removed.id).is_some() || self.merged);
                }
                let put = delta.put.into_iter().map(|node| (node.id.clone(), node));
                held.nodes.extend(put);
                held.sign = convert::sign_from(&delta.sign.unwrap());
                if let Some(guard) = delta.guard {
                    held.guard = (guard.held_since > 0 || guard.window_began > 0).then_some(guard);
                }
            }
            Frame::Gone(gone) => {
                self.log.push("gone");
                self.in_order(gone.revision);
                self.services.remove(&key_from(gone.key));
            }
            Frame::Bookmark(bookmark) => {
                self.log.push("bookmark");
                self.in_order(bookmark.revision);
                self.resume = bookmark.revision;
            }
            Frame::Rejected(rejected) => self.rejected.push(rejected),
            Frame::KeepCache(keep) => self.kept.push(keep),
            Frame::MoveOn(_) => self.log.push("move on"),
        }
    }

    fn in_order(&mut self, revision: u64) {
        assert!(
            revision >= self.last,
            "revision {revision} came after {}",
            self.last
        );
        self.last = revision;
    }

    pub(super) fn picture(&self) -> Picture {
        self.services
            .iter()
            .map(|(key, held)| (key.clone(), (held.sign, held.nodes.len(), held.guard)))
            .collect()
    }

    pub(super) fn known(&self) -> KnownSigns {
        let held = self.services.iter();
        Arc::new(held.map(|(key, held)| (key.clone(), held.sign)).collect())
    }
}
