//! How records lie on disk: a row for each, under its key, and one row about this server's life.
//!
//! A record's row is its number in this server's log (little endian, 0 if another server wrote it) and the record
//! as it travels. Rows have checksums ([`crate::store`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall_core::ap::{Key, Record, Seq, Stamp, Stored};
use rollcall_core::ids::ServerId;
use serde::{Deserialize, Serialize};

use crate::store::{LogStore, RowBatch, RowsError};

const LIFE_KEY: &[u8] = b"\0life";
const LIFE_VERSION: u8 = 1;
const RECORD_PREFIX: u8 = 1;
/// Most keys fit into it.
const ROW_KEY_ROOM: usize = 128;

/// What a server must know of itself when it starts again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Life {
    /// The name of its log, drawn when that was begun.
    pub(super) log: u64,
    /// The last number given out.
    pub(super) head: Seq,
    /// The last stamp given out or heard.
    pub(super) latest: Stamp,
    /// When it was alive for sure, by its wall clock.
    pub(super) alive_ms: u64,
    /// How far the others' logs are followed.
    pub(super) followed: BTreeMap<ServerId, Followed>,
}

/// How far a server's log is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Followed {
    /// The name of the log.
    pub(super) log: u64,
    /// Up to this number.
    pub(super) through: Seq,
}

/// A record, with its number if this server wrote it.
pub(super) type Numbered = (Arc<Record>, Option<Seq>);

/// What was found on disk.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) life: Option<Life>,
    pub(super) records: Vec<Numbered>,
}

impl Found {
    /// Reads it all. Blocks.
    ///
    /// # Errors
    /// A row is damaged, or not what its key says.
    pub(super) fn read(store: &LogStore) -> Result<Self, RowsError> {
        let mut found = Self::default();
        store.read_rows(|key, value| {
            match key {
                LIFE_KEY => found.life = Some(life(value)?),
                [RECORD_PREFIX, ..] => found.records.push(record(key, value)?),
                _ => return Err("no such kind of row is known".into()),
            }
            Ok(())
        })?;
        Ok(found)
    }
}

fn life(value: &[u8]) -> Result<Life, String> {
    let (version, body) = value.split_first().ok_or("it is empty")?;
    if *version != LIFE_VERSION {
        return Err(format!(
            "it is of version {version}, this program knows {LIFE_VERSION}"
        ));
    }
    postcard::from_bytes(body).map_err(|error| error.to_string())
}

fn record(key: &[u8], value: &[u8]) -> Result<Numbered, String> {
    let (seq, bytes) = value.split_first_chunk::<8>().ok_or("it is cut short")?;
    let record = Record::decode(bytes).map_err(|error| error.to_string())?;
    if !record.is_sound() || row_key(&record.key) != key {
        return Err("its record is another's".into());
    }
    let seq = Seq(u64::from_le_bytes(*seq));
    Ok((record.into(), (seq.0 > 0).then_some(seq)))
}

fn row_key(key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ROW_KEY_ROOM);
    bytes.push(RECORD_PREFIX);
    postcard::to_extend(key, bytes).expect("plain keys always encode")
}

pub(super) fn put_record(rows: &mut RowBatch, stored: &Stored) {
    let seq = stored.seq.map_or(0, |seq| seq.0).to_le_bytes();
    rows.put(row_key(&stored.record.key), &[&seq, &stored.bytes]);
}

pub(super) fn remove_record(rows: &mut RowBatch, key: &Key) {
    rows.remove(row_key(key));
}

pub(super) fn put_life(rows: &mut RowBatch, life: &Life) {
    let value = postcard::to_extend(life, vec![LIFE_VERSION]).expect("plain values always encode");
    rows.put(LIFE_KEY.to_vec(), &[&value]);
}
