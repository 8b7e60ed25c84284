//! A replica whose state was changed behind the log's back is found out and stops serving.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_core::directory::{Command, Expected, GroupSettings, Request};
use rollcall_core::ids::{LogIndex, LogPosition, RequestId, ServerId, Term};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;

use super::types::PeerAddresses;
use super::{Consensus, Freshness, ProposeError, ReadError, ReplicationOptions};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn put_group(number: u64) -> Request {
    let group = format!("group-{number}").parse().unwrap();
    let command = Command::PutGroup {
        group,
        settings: GroupSettings::default(),
        expected: Expected::Any,
    };
    Request {
        id: RequestId(u128::from(number)),
        command,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_stops_serving() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = BTreeMap::new();
    let mut servers = Vec::new();
    for id in 1..=3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer_address = listener.local_addr().unwrap().to_string();
        let addresses = PeerAddresses {
            peer_address,
            ..PeerAddresses::default()
        };
        members.insert(ServerId(id), addresses.clone());
        let data = folder.path().join(id.to_string());
        let mut options = ReplicationOptions::new("test", ServerId(id), addresses, data);
        options.disk_reserve = 0;
        options.compare_every = 4;
        let consensus = Consensus::start(options).await.unwrap();
        let service = tonic::transport::Server::builder().add_service(consensus.peer_service());
        tokio::spawn(service.serve_with_incoming(TcpListenerStream::new(listener)));
        servers.push(consensus);
    }
    let starts = servers.iter().map(|server| server.initialize(members.clone()));
    futures_util::future::join_all(starts).await;
    let write = async |server: &Consensus, number| loop {
        match server.propose(put_group(number), soon()).await {
            Ok(_) => return,
            Err(ProposeError::Unknown { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    for number in 0..10 {
        write(&servers[0], number).await;
    }
    let leader = servers
        .iter()
        .position(|server| server.leadership().borrow().leading)
        .unwrap();
    let odd = &servers[(leader + 1) % 3];
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
        write(&servers[leader], number).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let read = odd.confirm(Freshness::Linearizable, soon()).await;
    assert!(matches!(read, Err(ReadError::Diverged)), "{read:?}");
    assert!(matches!(
        odd.propose(put_group(9), soon()).await,
        Err(ProposeError::Unavailable { .. })
    ));
    let well = &servers[(leader + 2) % 3];
    well.confirm(Freshness::Linearizable, soon()).await.unwrap();
    assert!(!well.status().diverged && !servers[leader].status().diverged);
    for server in &servers {
        server.halt().await;
    }
}
