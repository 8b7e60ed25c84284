//! How records lie on disk: a row for each, under its key, and one row about this server's life.
//!
//! A record's row is its number in this server's log (little endian, 0 if another server wrote it) and the record
//! as it travels. Rows have checksums ([`crate::store`]).

use std::collections::{BTreeMap, BTreeSet};
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

/// What a server remembers of what has ended. Behind [`Life`] in its row. Earlier programs wrote none, and pass over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// No tombstone since then was forgotten.
    pub(super) forgot_before_ms: u64,
    /// None is forgotten until then.
    pub(super) keeps_until_ms: u64,
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
    pub(super) memory: Option<Memory>,
    /// Groups of which there may be a part only. Behind [`Memory`], if there are any; earlier programs pass over it.
    pub(super) missed: BTreeSet<String>,
    /// It was about to be removed from the cluster. Behind those; earlier programs pass over it.
    pub(super) retired: bool,
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
                LIFE_KEY => {
                    let records = std::mem::take(&mut found.records);
                    found = Self {
                        records,
                        ..life(value)?
                    };
                }
                [RECORD_PREFIX, ..] => found.records.push(record(key, value)?),
                _ => return Err("no such kind of row is known".into()),
            }
            Ok(())
        })?;
        Ok(found)
    }
}

fn life(value: &[u8]) -> Result<Found, String> {
    let (version, body) = value.split_first().ok_or("it is empty")?;
    if *version != LIFE_VERSION {
        return Err(format!(
            "it is of version {version}, this program knows {LIFE_VERSION}"
        ));
    }
    let read = || {
        let mut found = Found::default();
        let (life, rest) = postcard::take_from_bytes(body)?;
        found.life = Some(life);
        if rest.is_empty() {
            return Ok(found);
        }
        let (memory, rest) = postcard::take_from_bytes(rest)?;
        found.memory = Some(memory);
        if rest.is_empty() {
            return Ok(found);
        }
        let (missed, rest) = postcard::take_from_bytes(rest)?;
        found.missed = missed;
        if !rest.is_empty() {
            found.retired = postcard::from_bytes(rest)?;
        }
        Ok(found)
    };
    read().map_err(|error: postcard::Error| error.to_string())
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

pub(super) fn put_life(
    rows: &mut RowBatch,
    life: &Life,
    memory: Memory,
    missed: &BTreeSet<String>,
    retired: bool,
) {
    rows.put(LIFE_KEY.to_vec(), &[&life_row(life, memory, missed, retired)]);
}

fn life_row(life: &Life, memory: Memory, missed: &BTreeSet<String>, retired: bool) -> Vec<u8> {
    let row = postcard::to_extend(&(life, memory), vec![LIFE_VERSION]);
    let row = row.and_then(|row| match (missed.is_empty(), retired) {
        (true, false) => Ok(row),
        (false, false) => postcard::to_extend(missed, row),
        (_, true) => postcard::to_extend(&(missed, true), row),
    });
    row.expect("plain values always encode")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the program wrote it that knew of no memory.
    const BEFORE: &[u8] = &[1, 7, 3, 232, 7, 2, 1, 208, 15, 1, 2, 9, 5];

    fn example() -> Life {
        let followed = Followed {
            log: 9,
            through: Seq(5),
        };
        Life {
            log: 7,
            head: Seq(3),
            latest: Stamp {
                millis: 1_000,
                counter: 2,
                server: ServerId(1),
            },
            alive_ms: 2_000,
            followed: [(ServerId(2), followed)].into(),
        }
    }

    #[test]
    fn the_row_of_a_life_is_read_by_earlier_programs_and_theirs_is_read_here() {
        let read = |row: &[u8]| {
            life(row).map(|found| (found.life.unwrap(), found.memory, found.missed, found.retired))
        };
        let none = BTreeSet::new();
        assert_eq!(read(BEFORE), Ok((example(), None, none.clone(), false)));
        let memory = Memory {
            forgot_before_ms: 1,
            keeps_until_ms: 300,
        };
        let mut row = life_row(&example(), memory, &none, false);
        assert_eq!(row, [BEFORE, &[1, 172, 2]].concat());
        assert_eq!(read(&row), Ok((example(), Some(memory), none.clone(), false)));
        assert_eq!(postcard::from_bytes(&row[1..]), Ok(example()), "as they read it");
        for end in BEFORE.len() + 1..row.len() {
            assert!(life(&row[..end]).is_err(), "it is cut short");
        }
        for (missed, retired) in [
            (none, true),
            (["edge".to_owned()].into(), false),
            (["edge".to_owned()].into(), true),
        ] {
            let longer = life_row(&example(), memory, &missed, retired);
            assert_eq!(read(&longer), Ok((example(), Some(memory), missed, retired)));
            assert_eq!(longer[..row.len()], row, "earlier programs read as much");
            if !retired {
                for end in row.len() + 1..longer.len() {
                    assert!(life(&longer[..end]).is_err(), "it is cut short");
                }
                row = longer;
            }
        }
    }
}
