//! The engine under the log: RocksDB, or in a simulation a [`Table`].

use std::io;
use std::path::Path;
use std::sync::Arc;

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Direction, IteratorMode,
    LogLevel, MemtableFactory, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::direct::takes_direct_writes;
use super::error::StoreError;
use crate::ground::{self, Change, Family, Table};

const CF_DEFAULT: &str = "default";
pub(crate) const CF_LOG: &str = "log";
pub(crate) const CF_META: &str = "meta";
pub(crate) const CF_ROWS: &str = "rows";

/// Whether what is written is synced before the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Now,
    Later,
}

/// An open engine.
pub(crate) enum Engine {
    RocksDb(DB),
    Simulated(Arc<dyn Table>),
}

/// Changes to be made together.
pub(crate) enum Batch<'a> {
    RocksDb {
        families: [&'a ColumnFamily; 3],
        batch: WriteBatch,
    },
    Simulated(Vec<Change>),
}

type Found<'a> = Box<dyn Iterator<Item = io::Result<(Box<[u8]>, Box<[u8]>)>> + 'a>;

impl Engine {
    /// Opens what is in a folder; a new one is made if there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        match ground::simulated(|simulation| simulation.open_table(path)) {
            None => open_rocksdb(path).map(Self::RocksDb),
            Some(Ok(table)) => Ok(Self::Simulated(table)),
            Some(Err(error)) => Err(StoreError::folder(path, error)),
        }
    }

    pub(crate) fn batch(&self) -> io::Result<Batch<'_>> {
        Ok(match self {
            Self::RocksDb(db) => Batch::RocksDb {
                families: [
                    family_of(db, Family::Log)?,
                    family_of(db, Family::Meta)?,
                    family_of(db, Family::Rows)?,
                ],
                batch: WriteBatch::default(),
            },
            Self::Simulated(_) => Batch::Simulated(Vec::new()),
        })
    }

    /// Makes the changes of a batch of this engine.
    pub(crate) fn write(&self, batch: Batch<'_>, sync: Sync) -> io::Result<()> {
        match (self, batch) {
            (Self::RocksDb(db), Batch::RocksDb { batch, .. }) => {
                let mut options = WriteOptions::default();
                options.set_sync(sync == Sync::Now);
                db.write_opt(batch, &options).map_err(io_error)
            }
            (Self::Simulated(table), Batch::Simulated(changes)) => {
                table.write(changes)?;
                match sync {
                    Sync::Now => table.sync(),
                    Sync::Later => Ok(()),
                }
            }
            (Self::RocksDb(_) | Self::Simulated(_), _) => {
                Err(io::Error::other("the batch is of another engine"))
            }
        }
    }

    /// Makes what was written survive a crash.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match self {
            Self::RocksDb(_) => self.write(self.batch()?, Sync::Now),
            Self::Simulated(table) => table.sync(),
        }
    }

    pub(crate) fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::RocksDb(db) => db.get_cf(family_of(db, family)?, key).map_err(io_error),
            Self::Simulated(table) => table.value(family, key),
        }
    }

    /// The rows of a family from a key on, in the order of their keys.
    pub(crate) fn rows_from(&self, family: Family, key: &[u8]) -> io::Result<Found<'_>> {
        Ok(match self {
            Self::RocksDb(db) => {
                // Rows are read from one end to the other and seldom twice: kept blocks would only take up memory.
                let mut options = ReadOptions::default();
                options.fill_cache(false);
                let rows = db.iterator_cf_opt(
                    family_of(db, family)?,
                    options,
                    IteratorMode::From(key, Direction::Forward),
                );
                Box::new(rows.map(|row| row.map_err(io_error)))
            }
            Self::Simulated(table) => {
                let rows = table.rows_from(family, key)?.into_iter();
                Box::new(rows.map(|(key, value)| Ok((key.into_boxed_slice(), value.into_boxed_slice()))))
            }
        })
    }
}

impl Batch<'_> {
    pub(crate) fn put(&mut self, family: Family, key: &[u8], value: impl AsRef<[u8]>) {
        match self {
            Self::RocksDb { families, batch } => batch.put_cf(families[family as usize], key, value),
            Self::Simulated(changes) => changes.push(Change::Put {
                family,
                key: key.to_vec(),
                value: value.as_ref().to_vec(),
            }),
        }
    }

    pub(crate) fn remove(&mut self, family: Family, key: &[u8]) {
        match self {
            Self::RocksDb { families, batch } => batch.delete_cf(families[family as usize], key),
            Self::Simulated(changes) => changes.push(Change::Remove {
                family,
                key: key.to_vec(),
            }),
        }
    }

    /// Removes what is from one key up to another, which stays.
    pub(crate) fn remove_range(&mut self, family: Family, from: &[u8], to: &[u8]) {
        match self {
            Self::RocksDb { families, batch } => {
                batch.delete_range_cf(families[family as usize], from, to);
            }
            Self::Simulated(changes) => changes.push(Change::RemoveRange {
                family,
                from: from.to_vec(),
                to: to.to_vec(),
            }),
        }
    }
}

fn family_of(db: &DB, family: Family) -> io::Result<&ColumnFamily> {
    let name = match family {
        Family::Log => CF_LOG,
        Family::Meta => CF_META,
        Family::Rows => CF_ROWS,
    };
    db.cf_handle(name)
        .ok_or_else(|| io::Error::other(format!("the column family {name} is missing")))
}

fn open_rocksdb(path: &Path) -> Result<DB, StoreError> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // The default would silently drop everything behind damage in the middle of the log.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // There is one writer, and not every kind of memtable would take several.
    options.set_allow_concurrent_memtable_write(false);
    options.set_max_total_wal_size(64 << 20);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(4);
    // RocksDB's journal is on the same disk. When that fails, so does the note of the failure, and a build with
    // assertions, like Debian's, ends the process over it before the server can say why.
    options.set_log_level(LogLevel::Fatal);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_open_files(128);
    // A log's tables are written, and before they are read they are mostly gone.
    options.set_use_direct_io_for_flush_and_compaction(takes_direct_writes(path));
    // After a full disk RocksDB waits until there is room for its largest memtable; hence the small default.
    let families = [
        (CF_DEFAULT, 64 << 10),
        (CF_LOG, 4 << 20),
        (CF_META, 256 << 10),
        (CF_ROWS, 4 << 20),
    ];
    let families = families.map(|(name, memtable)| {
        let mut family = Options::default();
        family.set_compression_type(DBCompressionType::None);
        family.set_write_buffer_size(memtable);
        family.set_max_write_buffer_number(3);
        if name == CF_ROWS {
            // Keys come in no order, and nobody looks for one: sorting them once, when a memtable is full, is a fraction of
            // keeping each in its place.
            family.set_memtable_factory(MemtableFactory::Vector);
        }
        ColumnFamilyDescriptor::new(name, family)
    });
    DB::open_cf_descriptors(&options, path, families).map_err(|error| match error.kind() {
        rocksdb::ErrorKind::Corruption => StoreError::LogDamaged {
            path: path.to_owned(),
            problem: error.into_string(),
        },
        _ => StoreError::folder(path, io_error(error)),
    })
}

/// RocksDB tells of a full disk in words only.
fn io_error(error: rocksdb::Error) -> io::Error {
    let text = error.into_string();
    let full = [
        "No space left on device",
        "Disk quota exceeded",
        "NoSpace",
        "Max allowed space was reached",
    ];
    match full.iter().any(|words| text.contains(words)) {
        true => io::Error::new(io::ErrorKind::StorageFull, text),
        false => io::Error::other(text),
    }
}
