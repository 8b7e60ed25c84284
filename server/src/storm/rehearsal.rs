//! What this server would send if something happened: counted from the streams that are open, sending nothing.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rollcall_core::directory::{Directory, GroupMode, Node, NodeView, Service};
use rollcall_core::ids::{NodeId, Revision, ServiceKey};
use rollcall_proto::v1::{self, watch_frame::Frame};

use crate::grpc::convert;
use crate::watch::Watches;

/// The label by which a zone is known.
const ZONE: &str = "zone";
/// What a frame's place in a message costs besides the frame.
const FRAME_OVERHEAD: u64 = 6;

/// To whom it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// All nodes of a service.
    Service(ServiceKey),
    /// The nodes whose label `zone` has this value, in every service.
    Zone(String),
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The nodes leave.
    Loss,
    /// They leave and come back.
    Restart,
    /// Every watcher asks for full lists.
    Refetch,
}

/// Frames and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// What would be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prediction {
    pub(crate) services: u64,
    pub(crate) nodes: u64,
    /// Streams that follow any of them.
    pub(crate) watchers: u64,
    /// With the switch off.
    pub(crate) off: Sent,
    /// With the switch on.
    pub(crate) on: Sent,
    /// Over at least so long, if the switch is on.
    pub(crate) spread_on: Duration,
}

/// How the switch paces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pacing {
    /// How long changes wait for more of their service.
    pub(crate) delay_max: Duration,
    /// In how much time everyone gets full lists.
    pub(crate) round: Duration,
}

/// A service that would change.
struct Affected {
    service: Arc<Service>,
    nodes: Vec<NodeId>,
}

/// The services of groups of this mode to look at. Cheap: what takes time is done behind the directory's lock.
pub(crate) fn candidates(directory: &Directory, mode: GroupMode, subject: &Subject) -> Vec<Arc<Service>> {
    match subject {
        Subject::Service(key) => {
            let group = directory.group(&key.group);
            let there = group.is_some_and(|group| group.settings.mode == mode);
            let service = directory.service(key).filter(|_| there);
            service.cloned().into_iter().collect()
        }
        Subject::Zone(_) => directory
            .groups()
            .filter(|group| group.settings.mode == mode)
            .flat_map(|group| group.services.values().cloned())
            .collect(),
    }
}

/// Counts what would be sent.
pub(crate) fn predict(
    candidates: Vec<Arc<Service>>,
    subject: &Subject,
    event: Event,
    watches: &Watches,
    pacing: Pacing,
) -> Prediction {
    let affected: Vec<Affected> = candidates
        .into_iter()
        .filter_map(|service| Affected::of(service, subject))
        .collect();
    let keys: Vec<ServiceKey> = affected.iter().map(|one| one.service.key.clone()).collect();
    let mut prediction = Prediction {
        services: affected.len() as u64,
        nodes: affected.iter().map(|one| one.nodes.len() as u64).sum(),
        watchers: followers(watches, &keys),
        spread_on: match event {
            Event::Loss => pacing.delay_max,
            Event::Restart => pacing.delay_max * 2,
            Event::Refetch => pacing.round,
        },
        ..Prediction::default()
    };
    for one in &affected {
        let followers = followers(watches, std::slice::from_ref(&one.service.key));
        if followers > 0 {
            let (off, on) = one.cost(event);
            prediction.off.add(off, followers);
            prediction.on.add(on, followers);
        }
    }
    prediction
}

/// Streams that follow any of these: everyone has acknowledged revision 0.
fn followers(watches: &Watches, keys: &[ServiceKey]) -> u64 {
    let keys: Vec<_> = keys.iter().map(|key| (key.clone(), Revision(0))).collect();
    watches.convergence(&keys, &keys).subscribers as u64
}

impl Sent {
    fn frame(bytes: usize) -> Self {
        Self {
            frames: 1,
            bytes: bytes as u64 + FRAME_OVERHEAD,
        }
    }

    fn add(&mut self, other: Self, times: u64) {
        self.frames = self.frames.saturating_add(other.frames.saturating_mul(times));
        self.bytes = self.bytes.saturating_add(other.bytes.saturating_mul(times));
    }
}

impl Affected {
    fn of(service: Arc<Service>, subject: &Subject) -> Option<Self> {
        let nodes: Vec<NodeId> = match subject {
            Subject::Service(_) => service.nodes.keys().cloned().collect(),
            Subject::Zone(zone) => service
                .nodes
                .iter()
                .filter(|(id, node)| {
                    let view = view(&service, id, node);
                    view.labels().get(ZONE).is_some_and(|value| value == zone)
                })
                .map(|(id, _)| id.clone())
                .collect(),
        };
        let concerned = match subject {
            // Its watchers may ask for a list without nodes.
            Subject::Service(_) => true,
            Subject::Zone(_) => !nodes.is_empty(),
        };
        concerned.then_some(Self { service, nodes })
    }

    /// What one watcher is sent, with the switch off and on.
    fn cost(&self, event: Event) -> (Sent, Sent) {
        let (mut off, mut on) = (Sent::default(), Sent::default());
        match event {
            Event::Loss => {
                self.add_change(&mut off, &mut on, |delta, id, _| delta.removed.push(removed(id)));
            }
            Event::Restart => {
                self.add_change(&mut off, &mut on, |delta, id, _| delta.removed.push(removed(id)));
                self.add_change(&mut off, &mut on, |delta, _, node| {
                    delta.put.push(convert::node(node))
                });
            }
            Event::Refetch => {
                let snapshot = Frame::Snapshot(v1::ServiceSnapshot {
                    view: Some(convert::service_view(&self.service)),
                    revision: u64::MAX >> 32,
                    lagged: false,
                });
                let list = Sent::frame(
                    v1::WatchFrame {
                        frame: Some(snapshot),
                    }
                    .encoded_len(),
                );
                off.add(list, 1);
                on.add(list, 1);
            }
        }
        (off, on)
    }

    /// One change of every node: each in a frame of its own, and all in one.
    fn add_change(
        &self,
        off: &mut Sent,
        on: &mut Sent,
        change: impl Fn(&mut v1::ServiceDelta, &NodeId, NodeView<'_>),
    ) {
        let empty = || v1::ServiceDelta {
            key: Some(convert::service_key(&self.service.key)),
            revision: self.service.modified.0,
            sign: Some(convert::sign(self.service.sign)),
            ..v1::ServiceDelta::default()
        };
        let sent = |delta: v1::ServiceDelta| {
            let frame = Some(Frame::Delta(delta));
            Sent::frame(v1::WatchFrame { frame }.encoded_len())
        };
        let mut together = empty();
        for id in &self.nodes {
            let Some(node) = self.service.nodes.get(id) else {
                continue;
            };
            let view = view(&self.service, id, node);
            let mut alone = empty();
            change(&mut alone, id, view);
            off.add(sent(alone), 1);
            change(&mut together, id, view);
        }
        if !self.nodes.is_empty() {
            on.add(sent(together), 1);
        }
    }
}

fn view<'a>(service: &'a Service, id: &NodeId, node: &'a Node) -> NodeView<'a> {
    NodeView::new(node, service.overrides.get(id).map(AsRef::as_ref))
}

fn removed(id: &NodeId) -> v1::RemovedNode {
    v1::RemovedNode {
        id: id.as_str().into(),
        cause: v1::RemovalCause::Expired.into(),
        incarnation: 1,
    }
}
