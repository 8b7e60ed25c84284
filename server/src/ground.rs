//! What servers stand on: threads for work that blocks, and the tables that keep their logs.
//!
//! That is the system, and RocksDB. A simulation puts every server that it starts on a thread on ground of its
//! own, where nothing runs beside that thread: blocking work becomes a task that takes simulated time, and the
//! tables lie in memory and lose, in a simulated crash, what was not synced. Sockets, clocks and randomness need no
//! place here: a simulation has those of the C library.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

/// A part of a table, with keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Log entries.
    Log,
    /// The vote and how far things are.
    Meta,
    /// What other shells keep beside the log.
    Rows,
}

/// A change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a row.
    Put {
        /// Where.
        family: Family,
        /// Under which key.
        key: Vec<u8>,
        /// What.
        value: Vec<u8>,
    },
    /// Removes a row.
    Remove {
        /// Where.
        family: Family,
        /// Which.
        key: Vec<u8>,
    },
    /// Removes all rows from one key up to and without another.
    RemoveRange {
        /// Where.
        family: Family,
        /// The first key that goes.
        from: Vec<u8>,
        /// The first key behind it that stays.
        to: Vec<u8>,
    },
}

/// A row: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// What keeps a log in a simulation. Rows are ordered by their keys.
pub trait Table: Send + Sync {
    /// Makes changes together. A crash before the next sync may lose them together with whatever was written later.
    ///
    /// # Errors
    /// The simulated disk failed.
    fn write(&self, changes: Vec<Change>) -> io::Result<()>;

    /// Makes what was written survive any crash.
    ///
    /// # Errors
    /// The simulated disk failed.
    fn sync(&self) -> io::Result<()>;

    /// The value of a row.
    ///
    /// # Errors
    /// The simulated disk failed.
    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// The rows of a family from a key on.
    ///
    /// # Errors
    /// The simulated disk failed.
    fn rows_from(&self, family: Family, key: &[u8]) -> io::Result<Vec<Row>>;
}

/// The ground that a simulation offers to the servers that it starts.
pub trait Simulation {
    /// The table in this folder; it is there from an earlier start, or empty.
    ///
    /// # Errors
    /// The simulated disk failed.
    fn open_table(&self, folder: &Path) -> io::Result<Arc<dyn Table>>;

    /// How long the next piece of blocking work takes.
    fn work_takes(&self) -> Duration;

    /// How long the next sync takes.
    fn sync_takes(&self) -> Duration;
}

thread_local! {
    static SIMULATION: RefCell<Option<Rc<dyn Simulation>>> = const { RefCell::new(None) };
}

/// From now on servers on this thread stand on simulated ground. They must run on runtimes of a single thread.
pub fn simulate(simulation: Rc<dyn Simulation>) {
    SIMULATION.with(|current| *current.borrow_mut() = Some(simulation));
}

/// Asks the simulation, if there is one.
pub(crate) fn simulated<T>(ask: impl FnOnce(&dyn Simulation) -> T) -> Option<T> {
    let simulation = SIMULATION.with(|current| current.borrow().clone());
    simulation.map(|simulation| ask(&*simulation))
}

/// Does work that blocks where it holds nobody up.
pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match simulated(|simulation| simulation.work_takes()) {
        None => tokio::task::spawn_blocking(work),
        Some(takes) => tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            work()
        }),
    }
}
