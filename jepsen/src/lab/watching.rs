//! Watching one service at one particular server, frame by frame.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use prost::Message;
use rollcall_proto::v1::watch_client::WatchClient;
use rollcall_proto::v1::watch_frame::Frame;
use rollcall_proto::v1::watch_request::Request;
use rollcall_proto::v1::watch_target::Target;
use rollcall_proto::v1::{
    GroupMode, Node, RemovalCause, ServiceDelta, ServiceKey, ServiceSnapshot, StartKind, Subscribe,
    WatchFrame, WatchRequest, WatchResponse, WatchTarget,
};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::reading::way_to;

const SUBSCRIPTION: u64 = 1;
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// A stream of one server with one subscription on it.
#[derive(Debug)]
pub struct Watching {
    answers: Streaming<WatchResponse>,
    ready: VecDeque<Frame>,
    mode: GroupMode,
    cp_only: bool,
    // The stream ends when this is dropped.
    _requests: mpsc::Sender<WatchRequest>,
}

impl Watching {
    /// Subscribes to a service at the server at `address`, behind `after_revision` (0: from the current state).
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn service(
        address: &str,
        group: &str,
        service: &str,
        after_revision: u64,
    ) -> anyhow::Result<Self> {
        let key = ServiceKey {
            group: group.into(),
            service: service.into(),
        };
        Self::open(address, Target::Service(key), after_revision).await
    }

    /// Subscribes to everything below a group, in the same way. Only groups in mode cp are told of: the revisions of
    /// others count something else.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn group(address: &str, group: &str, after_revision: u64) -> anyhow::Result<Self> {
        let watching = Self::open(address, Target::GroupPrefix(group.into()), after_revision).await?;
        Ok(Self {
            cp_only: true,
            ..watching
        })
    }

    async fn open(address: &str, target: Target, after_revision: u64) -> anyhow::Result<Self> {
        let subscribe = Subscribe {
            subscription: SUBSCRIPTION,
            target: Some(WatchTarget { target: Some(target) }),
            after_revision,
            ..Subscribe::default()
        };
        let (requests, outgoing) = mpsc::channel(4);
        requests
            .send(WatchRequest {
                request: Some(Request::Subscribe(subscribe)),
                client: "lab".into(),
                ..WatchRequest::default()
            })
            .await
            .context("the stream's own queue is closed")?;
        // No deadline for the call: a watch lasts. Signs of life notice a server that stands still.
        let channel = way_to(address, CONNECT_MAX, CONNECT_MAX * 15)?;
        let mut client = WatchClient::new(channel).max_decoding_message_size(64 << 20);
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let answers = client
            .watch(outgoing)
            .await
            .with_context(|| format!("watching at {address}"))?
            .into_inner();
        Ok(Self {
            answers,
            ready: VecDeque::new(),
            mode: GroupMode::Unspecified,
            cp_only: false,
            _requests: requests,
        })
    }

    /// The mode of the groups that the last frame was about.
    #[must_use]
    pub fn mode(&self) -> GroupMode {
        self.mode
    }

    /// The next frame.
    ///
    /// # Errors
    /// The stream ended or broke.
    pub async fn next(&mut self) -> anyhow::Result<Frame> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(frame);
            }
            let answer = self
                .answers
                .message()
                .await?
                .context("the server ended the stream")?;
            if self.cp_only && answer.mode() == GroupMode::Ap {
                continue;
            }
            self.mode = answer.mode();
            for encoded in answer.frames {
                let frame = WatchFrame::decode(encoded).context("a frame that cannot be read")?;
                self.ready.extend(frame.frame);
            }
        }
    }
}

/// One change that a watcher was told of.
#[derive(Clone, Debug)]
pub struct Told {
    /// Of which service.
    pub service: String,
    /// At which revision.
    pub revision: u64,
    /// The nodes that are there, and like this.
    pub put: Vec<Node>,
    /// The nodes that are gone; the cause is not known when the whole state was sent instead of changes.
    pub removed: Vec<(String, Option<RemovalCause>)>,
    /// Whether it came as a change; otherwise it was found by comparing states.
    pub as_delta: bool,
}

/// What a watcher knows of the services it follows, checked frame by frame: revisions only grow, no change is
/// told twice, nothing unknown is removed.
#[derive(Debug, Default)]
pub struct Mirror {
    services: BTreeMap<String, Mirrored>,
    revision: u64,
    snapshots: u64,
}

#[derive(Debug, Default)]
struct Mirrored {
    nodes: BTreeMap<String, Node>,
    revision: u64,
    /// Its state of this revision came, and its stream broke before the revision was announced: whoever resumes behind
    /// what was announced is told again of what is in that state.
    again_up_to: Option<u64>,
}

impl Mirror {
    /// Everything up to here has been told: resume behind it.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How often the whole state of a service was sent instead of changes.
    #[must_use]
    pub fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// The nodes of a service (named `group/service`), by id.
    pub fn nodes(&self, service: &str) -> impl Iterator<Item = &Node> {
        self.services
            .get(service)
            .into_iter()
            .flat_map(|of| of.nodes.values())
    }

    /// Takes in one frame; gives back what it told, if it told of a change.
    ///
    /// # Errors
    /// It breaks a guarantee of the watch; the message says which.
    pub fn take(&mut self, frame: Frame) -> anyhow::Result<Option<Told>> {
        match frame {
            Frame::Started(started) => {
                if started.kind() == StartKind::Resumed {
                    ensure!(self.revision > 0, "resumed without a resume point");
                    let announced = self.revision;
                    for of in self.services.values_mut() {
                        of.again_up_to = (of.revision > announced).then_some(of.revision);
                    }
                } else {
                    self.advance("a start", started.revision)?;
                }
                Ok(None)
            }
            Frame::Bookmark(bookmark) => self.advance("a bookmark", bookmark.revision).map(|()| None),
            Frame::Snapshot(snapshot) => self.replace(snapshot).map(Some),
            Frame::Delta(delta) => self.change(delta),
            Frame::Gone(gone) => {
                self.advance("the end of a service", gone.revision)?;
                let service = name(gone.key)?;
                let before = self.services.remove(&service).unwrap_or_default();
                let removed = before.nodes.into_keys().map(|id| (id, None)).collect();
                Ok(Some(Told {
                    service,
                    revision: gone.revision,
                    put: Vec::new(),
                    removed,
                    as_delta: false,
                }))
            }
            Frame::Rejected(rejected) => bail!("the subscription was refused: {:?}", rejected.error),
            Frame::KeepCache(keep) => bail!("the subscription was put off: {keep:?}"),
            Frame::MoveOn(_) => Ok(None),
        }
    }

    fn replace(&mut self, snapshot: ServiceSnapshot) -> anyhow::Result<Told> {
        // States of several services come one after the other, before the revision they show is announced.
        let view = snapshot.view.context("a snapshot without a view")?;
        let service = name(view.key)?;
        let of = self.services.entry(service.clone()).or_default();
        ensure!(
            snapshot.revision >= of.revision,
            "{service}: a snapshot of revision {} came after {}",
            snapshot.revision,
            of.revision
        );
        of.revision = snapshot.revision;
        let now: BTreeMap<String, Node> = view
            .nodes
            .into_iter()
            .map(|node| (node.id.clone(), node))
            .collect();
        let before = std::mem::replace(&mut of.nodes, now);
        let removed = before.keys().filter(|id| !of.nodes.contains_key(*id));
        let removed = removed.map(|id| (id.clone(), None)).collect();
        let put = of
            .nodes
            .values()
            .filter(|node| before.get(&node.id) != Some(node))
            .cloned()
            .collect();
        self.snapshots += 1;
        Ok(Told {
            service,
            revision: snapshot.revision,
            put,
            removed,
            as_delta: false,
        })
    }

    fn change(&mut self, delta: ServiceDelta) -> anyhow::Result<Option<Told>> {
        let revision = delta.revision;
        self.advance("a change", revision)?;
        let service = name(delta.key)?;
        let of = self.services.entry(service.clone()).or_default();
        if of.again_up_to.is_some_and(|state| revision <= state) {
            return Ok(None);
        }
        ensure!(
            revision > of.revision,
            "{service}: a change of revision {revision} came after revision {} had been told",
            of.revision
        );
        of.revision = revision;
        let mut removed = Vec::new();
        for gone in delta.removed {
            let known = of.nodes.remove(&gone.id).is_some();
            ensure!(
                known,
                "{service}: node {} was removed, and was never told of",
                gone.id
            );
            let cause = gone.cause();
            removed.push((gone.id, Some(cause)));
        }
        of.nodes
            .extend(delta.put.iter().map(|node| (node.id.clone(), node.clone())));
        Ok(Some(Told {
            service,
            revision,
            put: delta.put,
            removed,
            as_delta: true,
        }))
    }

    fn advance(&mut self, what: &str, revision: u64) -> anyhow::Result<()> {
        ensure!(
            revision >= self.revision,
            "{what} of revision {revision} came after {}",
            self.revision
        );
        self.revision = revision;
        Ok(())
    }
}

fn name(key: Option<ServiceKey>) -> anyhow::Result<String> {
    let key = key.context("a frame that does not name its service")?;
    Ok(format!("{}/{}", key.group, key.service))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(revision: u64, put: &[&str], removed: &[&str]) -> Frame {
        let node = |id: &&str| Node {
            id: (*id).into(),
            ..Node::default()
        };
        let gone = |id: &&str| rollcall_proto::v1::RemovedNode {
            id: (*id).into(),
            ..Default::default()
        };
        Frame::Delta(ServiceDelta {
            key: Some(ServiceKey {
                group: "g".into(),
                service: "s".into(),
            }),
            revision,
            put: put.iter().map(node).collect(),
            removed: removed.iter().map(gone).collect(),
            ..ServiceDelta::default()
        })
    }

    #[test]
    fn a_mirror_follows_changes() {
        let mut mirror = Mirror::default();
        mirror.take(delta(3, &["a", "b"], &[])).unwrap();
        mirror.take(delta(5, &["c"], &["a"])).unwrap();
        assert_eq!(
            mirror
                .nodes("g/s")
                .map(|node| node.id.as_str())
                .collect::<Vec<_>>(),
            ["b", "c"]
        );
        assert_eq!(mirror.revision(), 5);
    }

    /// Seed 700725 of the simulation.
    #[test]
    fn who_resumes_behind_a_state_that_was_not_announced_is_told_again() {
        let started = |kind: StartKind, revision| {
            let mut started = rollcall_proto::v1::Started {
                revision,
                ..Default::default()
            };
            started.set_kind(kind);
            Frame::Started(started)
        };
        let state = Frame::Snapshot(ServiceSnapshot {
            revision: 9,
            view: Some(rollcall_proto::v1::ServiceView {
                key: Some(ServiceKey {
                    group: "g".into(),
                    service: "s".into(),
                }),
                ..Default::default()
            }),
            lagged: true,
        });
        let mut mirror = Mirror::default();
        mirror.take(delta(3, &["a"], &[])).unwrap();
        mirror.take(state).unwrap();
        assert_eq!(mirror.revision(), 3, "the state's revision was not announced");
        mirror.take(started(StartKind::Resumed, 3)).unwrap();
        assert!(mirror.take(delta(5, &["b"], &[])).unwrap().is_none());
        assert!(mirror.take(delta(9, &[], &["a", "b"])).unwrap().is_none());
        assert!(mirror.take(delta(10, &["c"], &[])).unwrap().is_some());
        assert!(mirror.take(delta(10, &["c"], &[])).is_err(), "once is enough");
    }

    #[test]
    fn a_repeat_and_an_unknown_removal_are_noticed() {
        let mut mirror = Mirror::default();
        mirror.take(delta(3, &["a"], &[])).unwrap();
        assert!(mirror.take(delta(3, &["a"], &[])).is_err());
        assert!(mirror.take(delta(4, &[], &["z"])).is_err());
    }
}
