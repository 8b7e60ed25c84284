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
    let mut under_way = shared.loads.under_way.lock();
    if let Some(ended) = under_way.get(key) {
        return ended.clone();
    }
    let (ends, ended) = watch::channel(());
    if under_way.len() < WAITING_MAX {
        under_way.insert(key.clone(), ended.clone());
        let (shared, key) = (Arc::clone(shared), key.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = read(&shared, folder, &key) => {}
                () = shared.wait_until_closed() => {}
            }
            shared.loads.under_way.lock().remove(&key);
            drop(ends);
        });
    }
    ended
}

async fn read(shared: &Arc<Shared>, folder: SnapshotFolder, key: &ServiceKey) {
    let Ok(place) = Arc::clone(&shared.loads.places).acquire_owned().await else {
        return;
    };
    if !shared.state.lock().knows_nothing_of(key) {
        return;
    }
    let (shared, key) = (Arc::clone(shared), key.clone());
    let reading = tokio::task::spawn_blocking(move || {
        if let Some(view) = folder.load(&key) {
            shared.state.lock().offer(view);
        }
        drop(place);
    });
    // It fails only while the runtime is closing.
    let _ = reading.await;
}
