//! What earlier runs wrote to disk is read, a few files at a time. The folder may be another machine's, and may hang.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::hub::Shared;
use crate::key::ServiceKey;
use crate::snapshot::SnapshotFolder;

/// Most snapshots that are read at once, each on a thread that a folder which hangs does not give back.
const PLACES: usize = 32;
/// Most that wait for their turn. Of more nothing is read: a folder so far behind is of no use to them.
const WAITING_MAX: usize = 10_000;

/// Reads that are under way, or wait for their turn. Whoever waited for one and gave up has it all the same, a while later.
#[derive(Debug)]
pub(super) struct Loads {
    places: Arc<Semaphore>,
    under_way: Mutex<BTreeMap<ServiceKey, watch::Receiver<()>>>,
}

impl Loads {
    pub(super) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PLACES)),
            under_way: Mutex::default(),
        }
    }
}

/// Offers what the folder has of a service. The answer is disconnected when that is done.
pub(super) fn begin(shared: &Arc<Shared>, folder: SnapshotFolder, key: &ServiceKey) -> watch::Receiver<()> {
    let (ends, ended) = watch::channel(());
    {
        let mut under_way = shared.loads.under_way.lock();
        if let Some(ended) = under_way.get(key) {
            return ended.clone();
        }
        if under_way.len() >= WAITING_MAX {
            return ended;
        }
        under_way.insert(key.clone(), ended.clone());
    }
    let turn = Turn {
        shared: Arc::clone(shared),
        key: key.clone(),
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tokio::select! {
            () = read(&shared, folder, turn) => {}
            () = shared.wait_until_closed() => {}
        }
        drop(ends);
    });
    ended
}

/// Waits for its turn, also for those who come later, until it is dropped.
struct Turn {
    shared: Arc<Shared>,
    key: ServiceKey,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.loads.under_way.lock().remove(&self.key);
    }
}

async fn read(shared: &Arc<Shared>, folder: SnapshotFolder, turn: Turn) {
    let Ok(place) = Arc::clone(&shared.loads.places).acquire_owned().await else {
        return;
    };
    let (shared, key) = (Arc::clone(shared), turn.key.clone());
    // Whoever comes from now on may be too late for what this one finds.
    drop(turn);
    if !shared.state.lock().knows_nothing_of(&key) {
        return;
    }
    let reading = tokio::task::spawn_blocking(move || {
        if let Some(view) = folder.load(&key) {
            shared.state.lock().offer(view);
        }
        drop(place);
    });
    // It fails only while the runtime is closing.
    let _ = reading.await;
}
