use bytes::Bytes;
use openraft::EntryPayload;
use openraft::storage::RaftLogStorageExt;

use super::super::record;
use super::super::shared::CACHE_BYTES_MAX;
use super::*;
use crate::ground::Family;
use crate::raft::types::{Batch, log_id};
use crate::store::engine::Sync;

fn entry(term: u64, index: u64, size: usize) -> Entry {
    let request = Bytes::from(vec![index as u8; size]);
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Batch::from_requests(&[request])),
    }
}

fn entries(term: u64, range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(|index| entry(term, index, 100)).collect()
}

fn open(folder: &Path) -> Result<OpenedLog, StoreError> {
    LogStore::open(folder, Arc::new(SpaceWatch::new(folder, 0)))
}

async fn filled(folder: &Path, count: u64) {
    let mut log = open(folder).unwrap().store;
    for index in 0..count {
        log.blocking_append([entry(1, index, 100)]).await.unwrap();
    }
    log.close().await;
}

fn wal_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder.join("log"))
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    files
}

/// The file that holds the entries, and its bytes.
fn wal(folder: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let path = wal_files(folder)
        .into_iter()
        .max_by_key(|path| path.metadata().unwrap().len())
        .expect("a write-ahead log");
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

#[tokio::test]
async fn whoever_waits_for_the_disk_is_told_once_entries_are_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path()).unwrap().store;
    let synced = log.synced();
    assert_eq!((log.last(), log.flushed()), (None, None));
    log.append(entries(1, 0..3), IOFlushed::noop()).await.unwrap();
    assert_eq!(log.last(), Some(log_id(1, 2)));
    let told = async {
        while log.flushed() < log.last() {
            synced.notified().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), told)
        .await
        .expect("the end of the sync is told");
    log.close().await;
}

#[tokio::test]
async fn what_was_synced_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path()).unwrap().store;
    log.blocking_append(entries(1, 0..10)).await.unwrap();
    log.save_vote(&Vote::new(3, 2)).await.unwrap();
    log.truncate_after(Some(log_id(1, 7))).await.unwrap();
    log.blocking_append(entries(2, 8..12)).await.unwrap();
    log.purge(log_id(1, 3)).await.unwrap();
    log.close().await;

    let opened = open(folder.path()).unwrap();
    let mut log = opened.store;
    assert_eq!(
        (opened.purged, opened.last, opened.pristine),
        (Some(log_id(1, 3)), Some(log_id(2, 11)), false)
    );
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 2)));
    let read = log.try_get_log_entries(..).await.unwrap();
    let ids: Vec<_> = read
        .iter()
        .map(|entry| (entry.log_id.leader_id.term, entry.log_id.index))
        .collect();
    assert_eq!(
        ids,
        [(1, 4), (1, 5), (1, 6), (1, 7), (2, 8), (2, 9), (2, 10), (2, 11)]
    );
    assert_eq!(read[4], entry(2, 8, 100));
    assert_eq!(opened.mark.log, Some(log_id(2, 11)));
    log.close().await;
}

/// RocksDB lets nobody else in before it has closed, and a process may not end before that.
#[tokio::test]
async fn the_last_handle_leaves_when_the_files_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..20 {
        let mut log = open(folder.path()).expect("nobody has it open").store;
        let another = log.clone();
        log.blocking_append([entry(1, index, 100)]).await.unwrap();
        drop(log);
        drop(another);
    }
}

#[tokio::test]
async fn appended_entries_are_readable_before_they_are_synced_and_after_eviction() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path()).unwrap().store;
    let big: Vec<_> = (0..40).map(|index| entry(1, index, 1 << 20)).collect();
    for chunk in big.chunks(4) {
        log.blocking_append(chunk.to_vec()).await.unwrap();
    }
    {
        let cache = log.shared.cache.lock();
        assert!(cache.bytes <= CACHE_BYTES_MAX && cache.first_index() > Some(0));
    }
    assert_eq!(log.try_get_log_entries(0..40).await.unwrap(), big);
    assert_eq!(log.try_get_log_entries(38..).await.unwrap(), big[38..]);
    assert_eq!(log.limited_get_log_entries(0, 40).await.unwrap().len(), 1);
    let streamed: Vec<_> = log
        .entries_stream(3..39)
        .await
        .map(Result::unwrap)
        .collect()
        .await;
    assert_eq!(streamed, big[3..39]);
    log.close().await;
}

#[tokio::test]
async fn a_hole_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path()).unwrap().store;
    log.blocking_append(entries(1, 0..3)).await.unwrap();
    assert!(log.append(entries(1, 4..5), IOFlushed::noop()).await.is_err());
    log.close().await;
}

#[tokio::test]
async fn a_snapshot_beyond_the_log_empties_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path()).unwrap().store;
    log.blocking_append(entries(1, 0..3)).await.unwrap();
    log.purge(log_id(5, 100)).await.unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(log_id(5, 100)), Some(log_id(5, 100)))
    );
    log.blocking_append(entries(5, 101..103)).await.unwrap();
    log.close().await;
    let opened = open(folder.path()).unwrap();
    assert_eq!(
        (opened.purged, opened.last),
        (Some(log_id(5, 100)), Some(log_id(5, 102)))
    );
    opened.store.close().await;
}

#[tokio::test]
async fn a_torn_tail_is_recovered_and_the_mark_tells_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 50).await;
    let (path, bytes) = wal(folder.path());
    std::fs::write(&path, &bytes[..bytes.len() - 60]).unwrap();
    let opened = open(folder.path()).unwrap();
    assert_eq!(opened.last, Some(log_id(1, 48)));
    assert_eq!(opened.mark.log, Some(log_id(1, 49)));
    opened.store.close().await;
}

#[tokio::test]
async fn damage_in_the_middle_is_refused_with_the_folder_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 200).await;
    let (path, bytes) = wal(folder.path());
    for at in [bytes.len() / 3, bytes.len() / 2, bytes.len() * 2 / 3] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        damaged[at + 1] ^= 0xff;
        std::fs::write(&path, &damaged).unwrap();
        let error = open(folder.path()).err().expect("damage is refused").to_string();
        assert!(
            error.contains("RC-104") && error.contains("log") && error.contains("new id"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_entry_that_is_missing_or_changed_in_the_store_is_refused() {
    for damage in ["missing", "changed", "misplaced"] {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 20).await;
        {
            let engine = Engine::open(&folder.path().join("log")).unwrap();
            let mut batch = engine.batch().unwrap();
            let key = record::key(7);
            match damage {
                "missing" => batch.remove(Family::Log, &key),
                "changed" => {
                    let mut value = engine.value(Family::Log, &key).unwrap().unwrap();
                    *value.last_mut().unwrap() ^= 1;
                    batch.put(Family::Log, &key, value);
                }
                _ => batch.put(Family::Log, &key, record::encode(&entry(1, 8, 100))),
            }
            engine.write(batch, Sync::Now).unwrap();
        }
        let error = open(folder.path()).err().expect("damage is refused").to_string();
        assert!(
            error.contains("RC-104") && error.contains('7'),
            "{damage}: {error}"
        );
    }
}

#[tokio::test]
async fn a_forgotten_vote_is_restored_from_the_mark() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path()).unwrap().store;
    log.blocking_append(entries(1, 0..3)).await.unwrap();
    log.save_vote(&Vote::new(9, 2)).await.unwrap();
    log.close().await;
    let (path, bytes) = wal(folder.path());
    std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    let mut log = open(folder.path()).unwrap().store;
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(9, 2)));
    log.close().await;
}

/// A small file system of our own; `None` where we may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => {
                eprintln!("skipped: mounting a small disk needs root");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

/// Writes 12 MB while the disk is full but for `left` bytes; gives room back when that has stood still.
async fn write_through_a_full_disk(
    disk: &SmallDisk,
    data: &Path,
    reserve: u64,
    left: u64,
) -> (LogStore, Result<(), openraft::StorageError<TypeConfig>>) {
    std::fs::create_dir(data).unwrap();
    let mut log = LogStore::open(data, Arc::new(SpaceWatch::new(data, reserve)))
        .unwrap()
        .store;
    log.blocking_append(entries(1, 0..10)).await.unwrap();
    let ballast = disk.0.path().join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length - left).unwrap();
    drop(file);

    let mut writing = log.clone();
    let mut write = tokio::spawn(async move {
        for index in 10..70 {
            writing.blocking_append([entry(1, index, 200_000)]).await?;
        }
        Ok(())
    });
    let stuck = tokio::time::timeout(std::time::Duration::from_secs(2), &mut write).await;
    assert!(stuck.is_err(), "the write must wait for room, got {stuck:?}");
    assert!(log.shared.space.is_full());
    assert!(log.shared.fault().is_none());

    std::fs::remove_file(&ballast).unwrap();
    let outcome = tokio::time::timeout(std::time::Duration::from_secs(60), write)
        .await
        .expect("room again");
    (log, outcome.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_writes_up_and_recovers_by_itself() {
    let Some(disk) = SmallDisk::mount("128m") else {
        return;
    };
    let data = disk.0.path().join("data");
    let (log, outcome) = write_through_a_full_disk(&disk, &data, 32 << 20, 0).await;
    outcome.unwrap();
    log.shared.space.check();
    assert!(!log.shared.space.is_full());
    log.close().await;

    let opened = open(&data).unwrap();
    assert_eq!(opened.last, Some(log_id(1, 69)));
    let mut log = opened.store;
    assert_eq!(
        log.try_get_log_entries(10..11).await.unwrap(),
        [entry(1, 10, 200_000)]
    );
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_met_by_rocksdb_itself_ends_the_store_once_there_is_room() {
    let Some(disk) = SmallDisk::mount("128m") else {
        return;
    };
    let data = disk.0.path().join("data");
    let (log, outcome) = write_through_a_full_disk(&disk, &data, 0, 1 << 20).await;
    assert!(outcome.is_err());
    assert!(
        log.shared
            .fault()
            .is_some_and(|fault| fault.starts_with("RC-111"))
    );
    log.close().await;
}
