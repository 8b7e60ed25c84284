//! A watcher of one CP service, which leaves its server now and then and resumes at another, and writes down every
//! word that it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rollcall_proto::v1::watch_frame::Frame;
use rollcall_proto::v1::{Node, NodeState, ServiceKey, ServiceView, StartKind};

use super::Stage;
use super::call::{ms, value_of};
use super::door::is_put_off;
use crate::checker::silences::TOLD_WITHIN;
use crate::history::{Following, Record, Shown};
use crate::lab::watching::Watching;
use crate::seed::Seeded;

const OPEN_MAX: Duration = Duration::from_secs(2);
/// A server that is silent for so long is left; bookmarks come every five seconds, if there is anything new.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(12);

/// Whom to follow, and how restlessly.
#[derive(Clone, Debug)]
pub(super) struct Follower {
    /// Its name in the history.
    pub(super) name: String,
    /// What it follows.
    pub(super) key: ServiceKey,
    /// The server that it begins at, counted from 0.
    pub(super) first: usize,
    /// It leaves its server after so many milliseconds, from and to.
    pub(super) stays: (u64, u64),
    /// And resumes after so many at most.
    pub(super) away_max: u64,
    /// Everything up to this revision has been told.
    pub(super) position: Arc<AtomicU64>,
}

impl Follower {
    /// Follows until it is dropped.
    pub(super) async fn follow(self, stage: Stage, mut random: Seeded) {
        let servers: Vec<(u64, String)> = stage
            .servers()
            .map(|(server, address)| (server, address.clone()))
            .collect();
        let mut at = self.first;
        loop {
            let (server, address) = &servers[at % servers.len()];
            let until = stage.history.now() + ms(random.between(self.stays.0, self.stays.1));
            self.stay(&stage, *server, address, until).await;
            let others = (servers.len() as u64).saturating_sub(1).max(1);
            at += usize::try_from(1 + random.below(others)).unwrap_or(1);
            tokio::time::sleep(ms(20 + random.below(self.away_max))).await;
        }
    }

    /// One stream, from the position on.
    async fn stay(&self, stage: &Stage, server: u64, address: &str, until: Duration) {
        let history = &stage.history;
        let from = self.position.load(Ordering::Acquire);
        let opening = Watching::service(address, &self.key.group, &self.key.service, from);
        let Ok(Ok(mut watching)) = tokio::time::timeout(OPEN_MAX, opening).await else {
            return;
        };
        let record = |line| history.record(Record::Following(line));
        record(Following::Open {
            watch: self.name.clone(),
            service: format!("{}/{}", self.key.group, self.key.service),
            server,
            from,
            time: history.now(),
        });
        loop {
            let since = history.now();
            let left = until.saturating_sub(since).min(SILENCE_MAX);
            let frame = match tokio::time::timeout(left, watching.next()).await {
                Ok(Ok(frame)) => frame,
                Err(_) if left >= TOLD_WITHIN => {
                    record(Following::Silent {
                        watch: self.name.clone(),
                        server,
                        since,
                        told: self.position.load(Ordering::Acquire),
                        time: history.now(),
                    });
                    break;
                }
                Ok(Err(_)) | Err(_) => break,
            };
            if is_put_off(&frame) || !self.take(frame, &record, history.now()) {
                break;
            }
        }
        record(Following::Close {
            watch: self.name.clone(),
            time: history.now(),
        });
    }

    /// Writes one frame down; `false`: leave.
    fn take(&self, frame: Frame, record: &impl Fn(Following), time: Duration) -> bool {
        let watch = self.name.clone();
        let event = |revision, whole, put, removed| Following::Event {
            watch: self.name.clone(),
            revision,
            whole,
            put,
            removed,
            time,
        };
        match frame {
            // Behind a resumption nothing is promised yet.
            Frame::Started(started) if started.kind() == StartKind::Resumed => {}
            Frame::Started(started) => self.at(started.revision, watch, record, time),
            Frame::Bookmark(bookmark) => self.at(bookmark.revision, watch, record, time),
            Frame::Snapshot(snapshot) => {
                let view = snapshot.view.unwrap_or_default();
                record(event(snapshot.revision, true, shown(&view), Vec::new()));
            }
            Frame::Delta(delta) => {
                let removed = delta.removed.into_iter().map(|gone| gone.id).collect();
                let put = delta.put.iter().map(shown_node).collect();
                record(event(delta.revision, false, put, removed));
                self.position.store(delta.revision, Ordering::Release);
            }
            Frame::Gone(gone) => {
                record(event(gone.revision, true, Vec::new(), Vec::new()));
                self.position.store(gone.revision, Ordering::Release);
            }
            Frame::MoveOn(_) => return false,
            Frame::KeepCache(_) | Frame::Rejected(_) => return false,
        }
        true
    }

    fn at(&self, revision: u64, watch: String, record: &impl Fn(Following), time: Duration) {
        record(Following::Bookmark {
            watch,
            revision,
            time,
        });
        self.position.store(revision, Ordering::Release);
    }
}

fn shown(view: &ServiceView) -> Vec<Shown> {
    view.nodes.iter().map(shown_node).collect()
}

fn shown_node(node: &Node) -> Shown {
    Shown {
        id: node.id.clone(),
        value: value_of(node),
        session: node.session,
        incarnation: node.incarnation,
        suspect: node.state() == NodeState::Suspect,
    }
}
