//! Watching one service at one particular server, frame by frame.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, bail, ensure};
use prost::Message;
use rollcall_proto::v1::watch_client::WatchClient;
use rollcall_proto::v1::watch_frame::Frame;
use rollcall_proto::v1::watch_request::Request;
use rollcall_proto::v1::watch_target::Target;
use rollcall_proto::v1::{
    Node, ServiceDelta, ServiceKey, StartKind, Subscribe, WatchFrame, WatchRequest, WatchResponse,
    WatchTarget,
};
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Endpoint;

const SUBSCRIPTION: u64 = 1;

/// A stream of one server with one subscription on it.
#[derive(Debug)]
pub struct Watching {
    answers: Streaming<WatchResponse>,
    ready: VecDeque<Frame>,
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
        let subscribe = Subscribe {
            subscription: SUBSCRIPTION,
            target: Some(WatchTarget {
                target: Some(Target::Service(key)),
            }),
            after_revision,
            known: Vec::new(),
        };
        let (requests, outgoing) = mpsc::channel(4);
        requests
            .send(WatchRequest {
                request: Some(Request::Subscribe(subscribe)),
                client: "lab".into(),
            })
            .await
            .context("the stream's own queue is closed")?;
        // The channel carries no deadline of its own here: a watch lasts.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("connecting to {address}"))?;
        let mut client = WatchClient::new(channel).max_decoding_message_size(64 << 20);
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let answers = client.watch(outgoing).await?.into_inner();
        Ok(Self {
            answers,
            ready: VecDeque::new(),
            _requests: requests,
        })
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
            for encoded in answer.frames {
                let frame = WatchFrame::decode(encoded).context("a frame that cannot be read")?;
                self.ready.extend(frame.frame);
            }
        }
    }
}

/// What a watcher knows of one service, and every change it was told, checked as it comes: revisions only grow,
/// nothing is told twice, nothing before a resume point.
#[derive(Debug, Default)]
pub struct Mirror {
    /// The service's nodes, by id.
    pub nodes: BTreeMap<String, Node>,
    /// Everything up to here has been told.
    pub revision: u64,
    /// Each change told as a change: its revision, and the ids put and removed.
    pub deltas: Vec<(u64, Vec<String>, Vec<String>)>,
    /// How often the whole state was sent instead of changes.
    pub snapshots: u64,
}

impl Mirror {
    /// Takes in one frame.
    ///
    /// # Errors
    /// It breaks a guarantee of the watch; the message says which.
    pub fn take(&mut self, frame: Frame) -> anyhow::Result<()> {
        match frame {
            Frame::Started(started) => {
                if started.kind() == StartKind::Resumed {
                    ensure!(self.revision > 0, "resumed without a resume point");
                } else {
                    self.advance("a start", started.revision)?;
                }
            }
            Frame::Snapshot(snapshot) => {
                let view = snapshot.view.context("a snapshot without a view")?;
                self.advance("a snapshot", snapshot.revision)?;
                self.nodes = view
                    .nodes
                    .into_iter()
                    .map(|node| (node.id.clone(), node))
                    .collect();
                self.snapshots += 1;
            }
            Frame::Delta(delta) => self.change(delta)?,
            Frame::Bookmark(bookmark) => self.advance("a bookmark", bookmark.revision)?,
            Frame::Gone(gone) => {
                self.advance("the end of the service", gone.revision)?;
                self.nodes.clear();
            }
            Frame::Rejected(rejected) => bail!("the subscription was refused: {:?}", rejected.error),
            Frame::MoveOn(_) => {}
        }
        Ok(())
    }

    fn change(&mut self, delta: ServiceDelta) -> anyhow::Result<()> {
        ensure!(
            delta.revision > self.revision,
            "a change of revision {} came after revision {} had been told",
            delta.revision,
            self.revision
        );
        self.revision = delta.revision;
        let put: Vec<String> = delta.put.iter().map(|node| node.id.clone()).collect();
        let removed: Vec<String> = delta.removed.iter().map(|node| node.id.clone()).collect();
        for id in &removed {
            ensure!(
                self.nodes.remove(id).is_some(),
                "node {id} was removed, and was never told of"
            );
        }
        self.nodes
            .extend(delta.put.into_iter().map(|node| (node.id.clone(), node)));
        self.deltas.push((delta.revision, put, removed));
        Ok(())
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
        assert_eq!(mirror.nodes.keys().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn a_repeat_and_an_unknown_removal_are_noticed() {
        let mut mirror = Mirror::default();
        mirror.take(delta(3, &["a"], &[])).unwrap();
        assert!(mirror.take(delta(3, &["a"], &[])).is_err());
        assert!(mirror.take(delta(4, &[], &["z"])).is_err());
    }
}
