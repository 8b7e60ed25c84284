//! A replica whose state was changed behind the log's back is found out and stops serving.

use std::time::Duration;

use rollcall_core::ids::{LogIndex, LogPosition, Term};
use tokio::time::Instant;

use super::servers_test::{leader_of, put_group, soon, start, write};
use super::{Freshness, ProposeError, ReadError};

#[tokio::test]
async fn a_replica_that_differs_stops_serving() {
    let folder = tempfile::tempdir().unwrap();
    let all = start(folder.path(), 3, |options| options.compare_every = 4).await;
    let servers: Vec<_> = all.iter().map(|server| &server.consensus).collect();
    for number in 0..10 {
        write(servers[0], number).await;
    }
    let leader = leader_of(&all).await;
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
    all.into_iter()
        .map(super::servers_test::Server::kill)
        .for_each(drop);
}
