//! Who leads, seen from outside, and when a leader began anew.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_proto::v1::MemberRole;
use tokio::task::JoinSet;

use super::elections::Elections;
use crate::history::{Heartbeats, History, Record};
use crate::lab::{Leading, Led, status_of};

/// How often each server is asked.
const EVERY: Duration = Duration::from_millis(200);
/// What a leader says that lost its quorum, found it again in the same term, and gives everybody more time, after a long
/// silence a full ttl as a new one does. Nothing but its log tells.
const ANEW: &str = "this leader had lost its quorum";
/// Most of a log that is read at a time.
const LOG_MAX: u64 = 4 << 20;

/// Asks every server by itself, so that one that does not answer delays no word of the others; writes down each
/// term's leader once, and tells `leading`. The servers' logs are in the folder `logs`. Dropping it ends it.
pub(super) fn watch(
    addresses: &[String],
    logs: Option<&Path>,
    history: &History,
    leading: &Leading,
) -> JoinSet<()> {
    let mut asking = JoinSet::new();
    if let Some(logs) = logs {
        asking.spawn(read(logs.to_owned(), history.clone(), leading.clone()));
    }
    let elections = Elections::default();
    for address in addresses {
        asking.spawn(ask(
            address.clone(),
            history.clone(),
            leading.clone(),
            elections.clone(),
        ));
    }
    asking
}

async fn ask(address: String, history: History, leading: Leading, elections: Elections) {
    loop {
        let status = status_of(&address).await.ok();
        let broken = status.as_ref().and_then(|status| {
            let server = status.header.as_ref()?.server;
            elections.note(server, status.term, status.role() == MemberRole::Leader)
        });
        if let Some(broken) = broken {
            history.record(Record::Broken(history.now(), broken));
        }
        if let Some(status) = status.filter(|status| status.role() == MemberRole::Leader) {
            let (server, term) = (status.leader, status.term);
            if leading.note(Led { server, term }) {
                history.record(Record::Heartbeats(Heartbeats::Leads {
                    server,
                    term,
                    time: history.now(),
                }));
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn read(folder: PathBuf, history: History, leading: Leading) {
    let mut read_to: BTreeMap<PathBuf, u64> = BTreeMap::new();
    loop {
        for path in logs_in(&folder) {
            let from = read_to.entry(path.clone()).or_default();
            let Ok(news) = read_from(&path, *from) else {
                continue;
            };
            // A line that is not yet whole is read again.
            let whole = news
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            *from += whole as u64;
            for _ in String::from_utf8_lossy(&news[..whole])
                .lines()
                .filter(|line| line.contains(ANEW))
            {
                let led = leading.latest();
                history.record(Record::Heartbeats(Heartbeats::Leads {
                    server: led.server,
                    term: led.term,
                    time: history.now(),
                }));
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn logs_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|of| of == "log"))
        .collect()
}

fn read_from(path: &Path, from: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut news = Vec::new();
    file.take(LOG_MAX).read_to_end(&mut news)?;
    Ok(news)
}
