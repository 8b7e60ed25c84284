//! A replica whose state was changed behind the log's back is found out and stops serving, also after a restart.

use std::time::Duration;

use rollcall_core::ids::{LogIndex, LogPosition, Term};
use tokio::time::Instant;

use super::servers_test::{Server, put_group, soon, start, start_on, steady_leader_of, write};
use super::{Freshness, ProposeError, ReadError, ReplicationOptions};
use crate::store::divergence;

#[tokio::test]
async fn a_replica_that_differs_stops_serving() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |options: &mut ReplicationOptions| options.compare_every = 4;
    let mut all = start(folder.path(), 3, tune).await;
    let servers: Vec<_> = all.iter().map(|server| &server.consensus).collect();
    for number in 0..10 {
        write(servers[0], number).await;
    }
    let leader = steady_leader_of(&all).await;
    let odd = servers[(leader + 1) % 3];
    let rogue = LogPosition {
        term: Term(1),
        index: LogIndex(1),
    };
    odd.directory()
        .write()
        .apply(rogue, &put_group(1_000))
        .result
        .unwrap();
    let mut number = 10;
    let deadline = soon();
    while !odd.status().diverged {
        assert!(Instant::now() < deadline, "the difference was not noticed");
        write(servers[leader], number).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let read = odd.confirm(Freshness::Linearizable, soon()).await;
    assert!(matches!(read, Err(ReadError::Diverged)), "{read:?}");
    assert!(matches!(
        odd.propose(put_group(9), soon()).await,
        Err(ProposeError::Unavailable { .. })
    ));
    let well = servers[(leader + 2) % 3];
    well.confirm(Freshness::Linearizable, soon()).await.unwrap();
    assert!(!well.status().diverged && !servers[leader].status().diverged);
    // Its snapshot holds what is wrong, and nothing else on its disk would tell.
    odd.take_snapshot().await.unwrap();
    let id = odd.status().server.0;
    let data = folder.path().join(id.to_string());
    let noted = async {
        while !divergence::is_noted(&data).unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout_at(soon(), noted).await.expect("it is noted");
    let port = all.remove(id as usize - 1).end().await;
    let again = start_on(port, folder.path(), id, tune, |routes| routes).await;
    assert!(again.consensus.is_diverged());
    let read = again.consensus.confirm(Freshness::Linearizable, soon()).await;
    assert!(matches!(read, Err(ReadError::Diverged)), "{read:?}");
    all.into_iter().chain([again]).map(Server::kill).for_each(drop);
}
