//! Applies committed entries to the directory, and makes and installs its snapshots.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};
use rollcall_core::directory::{ChangeLogBounds, Directory, LoggedRequest};
use rollcall_core::mutants::{Mutant, every};
use tokio::sync::watch;

use super::checkpoint::Checkpoints;
use super::contract::{AppliedHead, SharedDirectory};
use super::types::{BatchResults, Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, position};
use crate::store::{SnapshotFile, SnapshotStore, SpaceWatch, Trouble};

/// Entries applied under one hold of the directory's lock.
const ENTRIES_PER_LOCK_MAX: usize = 64;
/// How long a snapshot that found no room waits.
const RETRY_FULL: Duration = Duration::from_secs(1);

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// The directory as Raft sees it. In memory; on a restart it is rebuilt from snapshot and log.
pub(crate) struct StateMachine {
    parts: Parts,
    head: watch::Sender<AppliedHead>,
    applied: Option<LogId>,
    membership: StoredMembership,
    change_log: ChangeLogBounds,
}

/// What the state machine shares with the rest of the server.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) directory: Arc<SharedDirectory>,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) space: Arc<SpaceWatch>,
}

impl StateMachine {
    pub(crate) fn new(parts: Parts, head: watch::Sender<AppliedHead>, change_log: ChangeLogBounds) -> Self {
        Self {
            parts,
            head,
            applied: None,
            membership: StoredMembership::default(),
            change_log,
        }
    }

    fn apply_chunk(&mut self, chunk: &[(Entry, Vec<LoggedRequest>)]) -> Vec<BatchResults> {
        let mut all = Vec::with_capacity(chunk.len());
        let mut directory = self.parts.directory.write();
        for (entry, requests) in chunk {
            let at = position(&entry.log_id);
            let mut results = Vec::with_capacity(requests.len());
            for request in requests {
                if !every(Mutant::DivergentApply, 50) {
                    results.push(directory.apply_logged(at, request).result);
                }
            }
            all.push(BatchResults(results));
            if let EntryPayload::Membership(membership) = &entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
            if self.parts.checkpoints.is_due(entry.log_id.index) {
                directory.settle();
                self.parts
                    .checkpoints
                    .record(entry.log_id.index, directory.state_hash());
            }
            self.applied = Some(entry.log_id);
        }
        let head = AppliedHead {
            revision: directory.revision(),
            position: self.applied.as_ref().map(position),
        };
        self.parts.directory.place(&directory, head.position);
        drop(directory);
        self.head.send_replace(head);
        all
    }
}

/// Requests were checked when they were proposed, so one that cannot be read comes from a newer server, or
/// memory is damaged. Guessing would part this replica from the others.
fn requests_of(entry: &Entry) -> io::Result<Vec<LoggedRequest>> {
    let EntryPayload::Normal(batch) = &entry.payload else {
        return Ok(Vec::new());
    };
    let mut requests = Vec::with_capacity(batch.len());
    for bytes in batch.requests() {
        requests.push(LoggedRequest::decode(&bytes).map_err(|error| {
            io::Error::other(format!(
                "RC-113: log entry {} holds a request that this version cannot read ({error}); install the newer version",
                entry.log_id
            ))
        })?);
    }
    Ok(requests)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(ENTRIES_PER_LOCK_MAX);
        while let Some(chunk) = chunks.next().await {
            let mut entries = Vec::with_capacity(chunk.len());
            let mut responders = Vec::with_capacity(chunk.len());
            for item in chunk {
                let (entry, responder) = item?;
                let requests = requests_of(&entry)?;
                entries.push((entry, requests));
                responders.push(responder);
            }
            let results = self.apply_chunk(&entries);
            for (responder, results) in responders.into_iter().zip(results) {
                if let Some(responder) = responder {
                    responder.send(results);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        };
        // Cheap: it shares everything. The encoding happens outside of the lock, on another thread.
        let directory = self.parts.directory.read().clone();
        SnapshotBuilder {
            meta,
            directory,
            parts: self.parts.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let snapshots = self.parts.snapshots.clone();
        let expected = meta.clone();
        let read = move || {
            let (found, body) = snapshot.load().map_err(io::Error::other)?;
            if found.last_log_id != expected.last_log_id {
                return Err(io::Error::other(
                    "the snapshot's head and its file tell of different positions",
                ));
            }
            let directory = Directory::decode_snapshot(&body).map_err(io::Error::other)?;
            snapshots.install(&expected, &snapshot)?;
            Ok(directory)
        };
        let directory = crate::ground::spawn_blocking(read)
            .await
            .map_err(io::Error::other)??;
        let directory = directory.with_change_log(self.change_log);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.parts.checkpoints.clear();
        let head = AppliedHead {
            revision: directory.revision(),
            position: self.applied.as_ref().map(position),
        };
        {
            let mut shared = self.parts.directory.write();
            *shared = directory;
            self.parts.directory.place(&shared, head.position);
        }
        self.head.send_replace(head);
        tracing::info!(revision = head.revision.0, "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        Ok(self
            .parts
            .snapshots
            .current()
            .map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes one snapshot of the directory as it was when this was made.
pub(crate) struct SnapshotBuilder {
    meta: SnapshotMeta,
    directory: Directory,
    parts: Parts,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        let directory = self.directory.clone();
        let encode = move || Bytes::from(directory.encode_snapshot());
        let body = crate::ground::spawn_blocking(encode)
            .await
            .map_err(io::Error::other)?;
        let waits = Trouble::default();
        loop {
            let (parts, meta, body) = (self.parts.clone(), self.meta.clone(), body.clone());
            let write = move || match parts.space.has_room_for(body.len() as u64) {
                true => parts.snapshots.write(&meta, &body),
                false => Err(io::ErrorKind::StorageFull.into()),
            };
            match crate::ground::spawn_blocking(write)
                .await
                .map_err(io::Error::other)?
            {
                Ok(snapshot) => {
                    if waits.ends() {
                        tracing::info!("the snapshot that waited is taken");
                    }
                    return Ok(Snapshot {
                        meta: self.meta.clone(),
                        snapshot,
                    });
                }
                Err(error) if crate::store::is_full(&error) => {
                    if waits.begins() {
                        tracing::warn!("no room for a snapshot, it waits");
                    }
                    tokio::time::sleep(RETRY_FULL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
