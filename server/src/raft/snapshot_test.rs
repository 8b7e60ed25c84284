//! Snapshots on their way from one server to another.

use std::time::Duration;

use rollcall_proto::v1::SnapshotChunk;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::network::Peers;
use super::servers_test::{Server, soon, start, start_apart, write};
use super::types::{SnapshotMeta, Vote};
use super::wire;

/// Whoever sends a snapshot and then stands still keeps no later leader from sending its own.
#[tokio::test]
async fn a_later_leaders_snapshot_takes_the_place_of_one_that_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let from = start(&folder.path().join("from"), 1, |_| {}).await;
    write(&from[0].consensus, 1).await;
    from[0].consensus.take_snapshot().await.unwrap();
    let (meta, file) = from[0].consensus.inner.snapshots.current().unwrap();
    let to = start_apart(&folder.path().join("to"), 1, |_| {}, |routes| routes).await;
    let to = to.into_iter().next().unwrap();

    let send = async |term: u64, whole: bool| {
        let peers = Peers::new("test".into(), 2);
        let data = file.chunk(0, usize::MAX).unwrap();
        let chunk = SnapshotChunk {
            cluster: "test".into(),
            from: 2,
            to: 1,
            head: wire::encode_snapshot_head(&(Vote::new_committed(term, 2), meta.clone())),
            crc: crc32fast::hash(&data),
            data,
            last: whole,
            length: file.length(),
        };
        let (chunks, queue) = mpsc::channel(1);
        chunks.send(chunk).await.unwrap();
        let mut client = peers.client(1, &to.addresses.peer_address).unwrap();
        let answer = client.install_snapshot(ReceiverStream::new(queue)).await;
        drop(chunks);
        answer.map(drop)
    };
    let term = meta.last_log_id.unwrap().leader_id.term;
    let stalled = send(term + 1, false);
    let later = async {
        let mut begun = to.consensus.inner.snapshot_term.subscribe();
        begun.wait_for(|begun| *begun == term + 1).await.unwrap();
        while to.consensus.inner.receiving.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        send(term + 2, true).await
    };
    let both = tokio::time::timeout_at(soon(), async { tokio::join!(stalled, later) });
    let (stalled, later) = both.await.expect("neither waits for the other");
    assert_eq!(stalled.unwrap_err().code(), tonic::Code::Aborted);
    later.unwrap();
    let head = *to.consensus.applied_head().borrow();
    assert_eq!(head.position.unwrap().index.0, meta.last_log_id.unwrap().index);
    from.into_iter().chain([to]).map(Server::kill).for_each(drop);
}

/// Raft takes a file in its own time: a sender that hangs up meanwhile takes nothing away from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_hangs_up_while_its_snapshot_is_installed_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let from = start(&folder.path().join("from"), 1, |_| {}).await;
    write(&from[0].consensus, 1).await;
    from[0].consensus.take_snapshot().await.unwrap();
    let (meta, file) = from[0].consensus.inner.snapshots.current().unwrap();
    let index = meta.last_log_id.unwrap().index;
    let to = start_apart(&folder.path().join("to"), 1, |_| {}, |routes| routes).await;
    let to = to.into_iter().next().unwrap();
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, until) = std::sync::mpsc::channel();
    let snapshots = to.consensus.inner.snapshots.clone();
    let holding = std::thread::spawn(move || snapshots.hold(&held, &until));
    is_held.recv().unwrap();

    let data = file.chunk(0, usize::MAX).unwrap();
    let term = meta.last_log_id.unwrap().leader_id.term;
    let chunk = SnapshotChunk {
        cluster: "test".into(),
        from: 2,
        to: 1,
        head: wire::encode_snapshot_head(&(Vote::new_committed(term + 1, 2), meta)),
        crc: crc32fast::hash(&data),
        data,
        last: true,
        length: file.length(),
    };
    let address = to.addresses.peer_address.clone();
    let sending = tokio::spawn(async move {
        let peers = Peers::new("test".into(), 2);
        let (chunks, queue) = mpsc::channel(1);
        chunks.send(chunk).await.unwrap();
        let mut client = peers.client(1, &address).unwrap();
        client.install_snapshot(ReceiverStream::new(queue)).await
    });
    let receiving = to.consensus.inner.receiving.clone();
    let taken = async {
        // Raft has the vote of who sends, and so the snapshot.
        let has_it = |term_now: u64| term_now > term;
        while !has_it(to.consensus.term().0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout_at(soon(), taken).await.expect("it is taken");
    sending.abort();
    // Time for the server to notice; whether it lets anything go is the question.
    let _noticed = tokio::time::timeout(Duration::from_secs(1), receiving.lock()).await;
    release.send(()).unwrap();
    let mut head = to.consensus.applied_head();
    let installed = head.wait_for(|head| head.position.is_some_and(|position| position.index.0 == index));
    let installed = tokio::time::timeout_at(soon(), installed).await;
    installed.expect("it is installed all the same").unwrap();
    assert!(to.consensus.status().stopped.is_none());
    holding.join().unwrap();
    from.into_iter().chain([to]).map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn a_snapshot_that_finds_no_room_is_refused_before_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let to = start_apart(folder.path(), 1, |_| {}, |routes| routes).await;
    let vast = SnapshotChunk {
        cluster: "test".into(),
        from: 2,
        to: 1,
        head: wire::encode_snapshot_head(&(Vote::new_committed(1, 2), SnapshotMeta::default())),
        length: u64::MAX / 2,
        ..SnapshotChunk::default()
    };
    let peers = Peers::new("test".into(), 2);
    let mut client = peers.client(1, &to[0].addresses.peer_address).unwrap();
    let (chunks, queue) = mpsc::channel(1);
    chunks.send(vast).await.unwrap();
    let refused = client.install_snapshot(ReceiverStream::new(queue));
    let refused = tokio::time::timeout_at(soon(), refused)
        .await
        .expect("it is answered");
    assert_eq!(refused.unwrap_err().code(), tonic::Code::ResourceExhausted);
    to.into_iter().map(Server::kill).for_each(drop);
}

#[tokio::test]
async fn a_snapshot_wished_for_while_an_earlier_one_is_taken_is_taken_too() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start(folder.path(), 1, |_| {}).await;
    let server = &servers[0].consensus;
    write(server, 1).await;
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, until) = std::sync::mpsc::channel();
    let snapshots = server.inner.snapshots.clone();
    let holding = std::thread::spawn(move || snapshots.hold(&held, &until));
    is_held.recv().unwrap();
    server.inner.raft.trigger().snapshot().await.unwrap();
    write(server, 2).await;
    let wanted = server.applied_head().borrow().position.unwrap().index;
    let released = async {
        // Raft's own task has heard of the wish.
        server.inner.raft.with_raft_state(|_| ()).await.unwrap();
        release.send(()).unwrap();
    };
    let both = async { tokio::join!(biased; server.take_snapshot(), released).0 };
    let taken = tokio::time::timeout_at(soon(), both).await.expect("in time");
    taken.unwrap();
    assert!(server.status().snapshot_index >= Some(wanted));
    holding.join().unwrap();
    servers.into_iter().map(Server::kill).for_each(drop);
}
