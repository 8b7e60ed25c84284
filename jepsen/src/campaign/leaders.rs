//! Who leads, seen from outside.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rollcall_proto::v1::MemberRole;
use tokio::task::JoinSet;

use crate::history::{Heartbeats, History, Record};
use crate::lab::status_of;

/// How often each server is asked.
const EVERY: Duration = Duration::from_millis(200);

/// Asks every server by itself, so that one that does not answer delays no word of the others; writes down each
/// term's leader once. Dropping it ends it.
pub(super) fn watch(addresses: &[String], history: &History) -> JoinSet<()> {
    let latest = Arc::new(Mutex::new(0));
    let mut asking = JoinSet::new();
    for (server, address) in (1..).zip(addresses) {
        asking.spawn(ask(server, address.clone(), history.clone(), Arc::clone(&latest)));
    }
    asking
}

async fn ask(server: u64, address: String, history: History, latest: Arc<Mutex<u64>>) {
    loop {
        let status = status_of(&address).await.ok();
        if let Some(status) = status.filter(|status| status.role() == MemberRole::Leader) {
            let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
            if status.term > *latest {
                *latest = status.term;
                history.record(Record::Heartbeats(Heartbeats::Leads {
                    server,
                    term: status.term,
                    time: history.now(),
                }));
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}
