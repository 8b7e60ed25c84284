//! Rows beside the log: what another shell keeps under keys of its own, in the log's RocksDB, so that both share
//! its one writer and its syncs.
//!
//! A row is the checksum of its key and value (crc32, little endian), then the value. What does not match is
//! never handed out.

use std::io;

use super::engine::{Batch, Engine};
use crate::ground::Family;

const CRC_BYTES: usize = 4;

/// Changes of rows that are written together, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowBatch {
    changes: Vec<Change>,
    bytes: usize,
    /// The answer is to wait for the disk.
    pub(crate) sync: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// The row is the checksum, then the value.
    Put {
        key: Vec<u8>,
        row: Vec<u8>,
    },
    Remove {
        key: Vec<u8>,
    },
}

impl RowBatch {
    /// Writes a row, in place of an earlier one with its key. Its value is these parts, one behind the other.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: &[&[u8]]) {
        let size = value.iter().map(|part| part.len()).sum::<usize>();
        let mut row = Vec::with_capacity(CRC_BYTES + size);
        row.extend_from_slice(&[0; CRC_BYTES]);
        value.iter().for_each(|part| row.extend_from_slice(part));
        let crc = checksum(&key, &row[CRC_BYTES..]);
        row[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.bytes += key.len() + size + 16;
        self.changes.push(Change::Put { key, row });
    }

    /// Removes a row.
    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.bytes += key.len() + 16;
        self.changes.push(Change::Remove { key });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// About how many bytes are to be written.
    pub(crate) fn size(&self) -> usize {
        self.bytes
    }
}

/// The rows cannot be read whole: which one, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RowsError(pub(crate) String);

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key);
    crc.update(value);
    crc.finalize()
}

pub(super) fn put_into(rows: &RowBatch, batch: &mut Batch<'_>) {
    for change in &rows.changes {
        match change {
            Change::Remove { key } => batch.remove(Family::Rows, key),
            Change::Put { key, row } => batch.put(Family::Rows, key, row),
        }
    }
}

pub(super) fn read(
    engine: &Engine,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
) -> Result<(), RowsError> {
    let unreadable = |error: io::Error| RowsError(error.to_string());
    for row in engine.rows_from(Family::Rows, &[]).map_err(unreadable)? {
        let (key, row) = row.map_err(unreadable)?;
        let damaged = |problem: &str| RowsError(format!("row {}: {problem}", String::from_utf8_lossy(&key)));
        let (crc, value) = row
            .split_first_chunk::<CRC_BYTES>()
            .ok_or_else(|| damaged("it is cut short"))?;
        if u32::from_le_bytes(*crc) != checksum(&key, value) {
            return Err(damaged("its checksum does not match"));
        }
        take(&key, value).map_err(|problem| damaged(&problem))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rocksdb::DB;

    use super::*;
    use crate::store::{LogStore, SpaceWatch};

    type Rows = Vec<(Vec<u8>, Vec<u8>)>;

    fn open(folder: &std::path::Path) -> LogStore {
        let space = Arc::new(SpaceWatch::new(folder, 0));
        LogStore::open(folder, space)
            .expect("the folder is new or ours")
            .store
    }

    fn rows(store: &LogStore) -> Result<Rows, RowsError> {
        let mut found = Vec::new();
        store.read_rows(|key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok(found)
    }

    fn expected(rows: &[(&str, &str)]) -> Rows {
        let bytes = |text: &str| text.as_bytes().to_vec();
        rows.iter()
            .map(|(key, value)| (bytes(key), bytes(value)))
            .collect()
    }

    fn put(rows: &[(&str, &str)]) -> RowBatch {
        let mut batch = RowBatch {
            sync: true,
            ..RowBatch::default()
        };
        for (key, value) in expected(rows) {
            batch.put(key, &[&value]);
        }
        batch
    }

    #[tokio::test]
    async fn rows_are_there_after_a_restart_and_go_when_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        store
            .write_rows(put(&[("a", "1"), ("b", "2"), ("c", "")]))
            .await
            .unwrap();
        let mut change = put(&[("b", "3")]);
        change.remove(b"a".to_vec());
        store.write_rows(change).await.unwrap();
        store.close().await;

        let store = open(folder.path());
        assert_eq!(rows(&store).unwrap(), expected(&[("b", "3"), ("c", "")]));
        store.close().await;
    }

    #[tokio::test]
    async fn rows_of_several_memtables_are_there_in_their_order_as_they_were_written_last() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let key = |index: u32| index.wrapping_mul(2_654_435_761).to_be_bytes().to_vec();
        let filler = [7; 1_000];
        // More than one memtable, each row three times; in the last round a third is removed.
        for round in 0..3_u8 {
            let mut batch = RowBatch {
                sync: round == 2,
                ..RowBatch::default()
            };
            for index in 0..2_500 {
                match round == 2 && index % 3 == 0 {
                    true => batch.remove(key(index)),
                    false => batch.put(key(index), &[&[round], &filler]),
                }
            }
            store.write_rows(batch).await.unwrap();
        }
        let mut expected: Vec<Vec<u8>> = (0..2_500).filter(|index| index % 3 != 0).map(key).collect();
        expected.sort();
        let check = |store: &LogStore| {
            let found = rows(store).unwrap();
            assert!(found.iter().map(|(key, _)| key).eq(&expected));
            assert!(
                found
                    .iter()
                    .all(|(_, value)| value[0] == 2 && value[1..] == filler)
            );
        };
        check(&store);
        store.close().await;
        let store = open(folder.path());
        check(&store);
        store.close().await;
    }

    #[tokio::test]
    async fn a_damaged_row_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        store
            .write_rows(put(&[("a", "1"), ("spoilt", "2")]))
            .await
            .unwrap();
        store.close().await;
        let families = ["default", "log", "meta", "rows"];
        let db = DB::open_cf(&rocksdb::Options::default(), folder.path().join("log"), families).unwrap();
        let family = db.cf_handle("rows").unwrap();
        db.put_cf(&family, b"spoilt", b"\0\0\0\x002").unwrap();
        drop(db);

        let store = open(folder.path());
        let problem = rows(&store).unwrap_err().to_string();
        assert_eq!(problem, "row spoilt: its checksum does not match");
        store.close().await;
    }
}
