//! A group that moves between Raft and gossip, again and again, while it is written to, watched, and lived in.

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::watch_frame::Frame;
use rollcall_proto::v1::{GroupMode, SetGroupModeRequest};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use super::Stage;
use super::ap::{SERVICE, Writers, unguarded};
use super::call::ms;
use super::door::put_group_as;
use super::follower::SILENCE_MAX;
use crate::history::{Ap, Following, Record};
use crate::lab::watching::Watching;
use crate::seed::Seeded;

/// The group.
pub const GROUP: &str = "moving";
/// How long servers may take to be ready for a move.
const READY_MS: u32 = 8_000;
/// Of a group that was never moved before the end.
const ATTEMPTS_IN_PEACE: u32 = 3;
const ANSWER_MAX: Duration = Duration::from_secs(15);
const OPEN_MAX: Duration = Duration::from_secs(2);

/// Writers, watchers and a mover at work.
#[derive(Debug)]
pub struct Moving {
    writers: Writers,
    mover: JoinSet<()>,
    watchers: JoinSet<()>,
}

impl Moving {
    /// Makes the group.
    ///
    /// # Errors
    /// No server takes it in time.
    pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
        put_group_as(&stage.addresses, GROUP, GroupMode::Cp, unguarded()).await
    }

    /// Starts them.
    #[must_use]
    pub fn start(stage: &Stage) -> Self {
        let writers = Writers::begin(stage, GROUP, GroupMode::Unspecified);
        let (mut mover, mut watchers) = (JoinSet::new(), JoinSet::new());
        mover.spawn(to_and_fro(stage.clone(), Seeded::fork(stage.seed, 50_000)));
        for (server, address) in stage.servers() {
            watchers.spawn(watch(stage.clone(), server, address.clone()));
        }
        Self {
            writers,
            mover,
            watchers,
        }
    }

    /// Waits until the last move and the last write have ended, then until all servers show the same.
    pub async fn finish(mut self) {
        while self.mover.join_next().await.is_some() {}
        self.writers.finish().await;
        self.watchers.abort_all();
        while self.watchers.join_next().await.is_some() {}
    }
}

async fn to_and_fro(stage: Stage, mut random: Seeded) {
    let mut mode = GroupMode::Ap;
    let (mut moved, mut not_moved) = (0, 0);
    let mut in_peace = 0;
    // Whatever happened meanwhile, in peace it can be moved.
    while stage.goes_on() || moved == 0 && in_peace < ATTEMPTS_IN_PEACE {
        in_peace += u32::from(!stage.goes_on());
        let until = stage.history.now() + ms(random.between(2_000, 6_000));
        while stage.goes_on() && stage.history.now() < until {
            tokio::time::sleep(ms(50)).await;
        }
        let (server, address) = stage.any_server(&mut random);
        let answer = tokio::time::timeout(ANSWER_MAX, set_mode(&address, mode)).await;
        match answer {
            Ok(Ok(frozen_ms)) => {
                moved += 1;
                stage.history.record(Record::Ap(Ap::Moved {
                    group: GROUP.into(),
                    ap: mode == GroupMode::Ap,
                    time: stage.history.now(),
                }));
                stage.history.note(format!(
                    "server {server} moved {GROUP} to {mode:?}, without writes for {frozen_ms} ms"
                ));
                mode = if mode == GroupMode::Ap {
                    GroupMode::Cp
                } else {
                    GroupMode::Ap
                };
            }
            Ok(Err(why)) => {
                not_moved += 1;
                stage.history.note(format!(
                    "server {server} did not move {GROUP} to {mode:?}: {why:#}"
                ));
            }
            // It may have, and if so the next attempt finds that there is nothing to do.
            Err(_) => not_moved += 1,
        }
    }
    stage.history.note(format!(
        "{GROUP} was moved {moved} times, and {not_moved} times it was not"
    ));
}

async fn set_mode(address: &str, mode: GroupMode) -> anyhow::Result<u64> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(OPEN_MAX);
    let mut registry = RegistryClient::new(endpoint.connect().await?);
    let request = SetGroupModeRequest {
        group: GROUP.into(),
        mode: mode.into(),
        timeout_ms: READY_MS,
    };
    Ok(registry.set_group_mode(request).await?.into_inner().frozen_ms)
}

/// Follows the group at one server for good, through all its moves, and says what it was told to be gone.
async fn watch(stage: Stage, server: u64, address: String) {
    let mut told = Told {
        stage,
        server,
        known: BTreeSet::new(),
        position: 0,
    };
    loop {
        let opening = Watching::service(&address, GROUP, SERVICE, told.position);
        if let Ok(Ok(mut watching)) = tokio::time::timeout(OPEN_MAX, opening).await {
            told.follow(&mut watching).await;
        }
        tokio::time::sleep(ms(100)).await;
    }
}

struct Told {
    stage: Stage,
    server: u64,
    known: BTreeSet<String>,
    /// Of the replicated directory: no server that has not come so far is to answer.
    position: u64,
}

impl Told {
    async fn follow(&mut self, watching: &mut Watching) {
        let mut listed = false;
        loop {
            let since = self.stage.history.now();
            let frame = match tokio::time::timeout(SILENCE_MAX, watching.next()).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(_)) => return,
                Err(_) => return self.left_silent(watching, since),
            };
            let is_ap = watching.mode() == GroupMode::Ap;
            let mut at = |revision: u64| {
                if !is_ap {
                    self.position = self.position.max(revision);
                }
            };
            match frame {
                Frame::Snapshot(snapshot) => {
                    listed = true;
                    let nodes = snapshot.view.unwrap_or_default().nodes;
                    self.replace(nodes.into_iter().map(|node| node.id).collect());
                }
                Frame::Delta(delta) => {
                    at(delta.revision);
                    for gone in delta.removed {
                        self.gone(gone.id);
                    }
                    self.known.extend(delta.put.into_iter().map(|node| node.id));
                }
                Frame::Started(started) => {
                    at(started.revision);
                    self.position = self.position.max(started.directory_revision);
                    // It says that there is no such service.
                    if !listed && started.kind() == rollcall_proto::v1::StartKind::Current {
                        self.replace(BTreeSet::new());
                    }
                }
                Frame::Bookmark(bookmark) => at(bookmark.revision),
                Frame::Gone(gone) => {
                    at(gone.revision);
                    self.replace(BTreeSet::new());
                }
                Frame::KeepCache(keep) => {
                    tokio::time::sleep(ms(keep.retry_after_ms.into())).await;
                    return;
                }
                Frame::Rejected(_) | Frame::MoveOn(_) => return,
            }
        }
    }

    /// It leaves. What its server has come to is known only of the replicated directory.
    fn left_silent(&self, watching: &Watching, since: Duration) {
        if watching.mode() != GroupMode::Ap {
            let silent = Following::Silent {
                watch: format!("{GROUP}-{}", self.server),
                server: self.server,
                since,
                told: self.position,
                time: self.stage.history.now(),
            };
            self.stage.history.record(Record::Following(silent));
        }
    }

    fn replace(&mut self, now: BTreeSet<String>) {
        let before = std::mem::replace(&mut self.known, now);
        for id in before {
            if !self.known.contains(&id) {
                self.gone(id);
            }
        }
    }

    fn gone(&mut self, id: String) {
        self.known.remove(&id);
        self.stage.history.record(Record::Ap(Ap::Removed {
            group: GROUP.into(),
            server: self.server,
            id,
            time: self.stage.history.now(),
        }));
    }
}
