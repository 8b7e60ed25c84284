//! Streams that are told past their tasks: over real sockets, with clients that look at every revision.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body::Frame as Part;
use prost::Message;
use rollcall_core::ids::ServiceKey;
use rollcall_proto::prefix::{PREFIX_BYTES, prefixed};
use rollcall_proto::upgrade::{Limits as Allowed, Sending};
use rollcall_proto::v1::{self, watch_frame::Frame};
use rustix::net::sockopt;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use super::world::{World, follow, key};
use crate::config::WatchConfig;
use crate::raft::AppliedHead;
use crate::watch::{Line, StreamHandle, Subscription, Target, WatchStream};
const PATIENCE: Duration = Duration::from_secs(20);

/// What a stream says, as its handler lays it out.
struct Said(Pin<Box<dyn Stream<Item = Bytes> + Send>>);

impl Said {
    fn by(stream: WatchStream) -> Self {
        Self(Box::pin(futures_util::stream::unfold(
            stream,
            |mut stream| async move {
                let message = stream.next().await?.unwrap();
                Some((prefixed(&message), stream))
            },
        )))
    }
}

impl http_body::Body for Said {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Part<Bytes>, Status>>> {
        let next = self.0.as_mut().poll_next(cx);
        next.map(|said| said.map(|bytes| Ok(Part::data(bytes))))
    }
}

/// A client of one service, of which every revision is a change.
struct Watcher {
    socket: TcpStream,
    came: BytesMut,
    messages: usize,
    /// Up to where it knows the service.
    seen: u64,
    started: usize,
    deltas: usize,
    bookmarks: usize,
}

impl Watcher {
    async fn message(&mut self) {
        loop {
            if let Some((prefix, rest)) = self.came.split_first_chunk::<PREFIX_BYTES>() {
                let [0, length @ ..] = *prefix else {
                    panic!("no message begins with {prefix:?}")
                };
                let length = u32::from_be_bytes(length) as usize;
                if rest.len() >= length {
                    let message = self.came.split_to(PREFIX_BYTES + length).split_off(PREFIX_BYTES);
                    let message = v1::WatchResponse::decode(message).unwrap();
                    assert_eq!(
                        message.cluster.is_empty(),
                        self.messages > 0,
                        "the first names it"
                    );
                    self.messages += 1;
                    return message.frames.into_iter().for_each(|frame| self.take(frame));
                }
            }
            assert!(self.socket.read_buf(&mut self.came).await.unwrap() > 0);
        }
    }

    fn take(&mut self, frame: Bytes) {
        match v1::WatchFrame::decode(frame).unwrap().frame.unwrap() {
            Frame::Snapshot(snapshot) => {
                assert!(snapshot.revision >= self.seen);
                self.seen = snapshot.revision;
            }
            Frame::Delta(delta) => {
                assert_eq!(delta.revision, self.seen + 1, "a gap, or a repetition");
                self.seen += 1;
                self.deltas += 1;
            }
            Frame::Bookmark(bookmark) => {
                assert_eq!(bookmark.revision, self.seen);
                self.bookmarks += 1;
            }
            Frame::Started(started) => {
                assert_eq!(started.revision, self.seen);
                self.started += 1;
            }
            other => panic!("{other:?}"),
        }
    }

    async fn until(&mut self, what: impl Fn(&Self) -> bool) {
        while !what(self) {
            tokio::time::timeout(PATIENCE, self.message()).await.unwrap();
        }
    }
}

/// A stream by a line of its own, what carries it, and its client.
async fn by_line(world: &World) -> (StreamHandle, Line, Sending<Body, OwnedWriteHalf>, Watcher) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(dialled, listener.accept());
    let (socket, accepted) = (dialled.unwrap(), accepted.unwrap().0);
    // Small, so that what is sent often does not fit.
    sockopt::set_socket_send_buffer_size(&accepted, 4_096).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 4_096).unwrap();
    let header = v1::ResponseHeader {
        cluster: "test".into(),
        ..v1::ResponseHeader::default()
    };
    let stream = world.hub.open("test", header, CancellationToken::new()).unwrap();
    let (handle, line) = (stream.handle(), Line::default());
    stream.has_line(&line);
    let (_reading, writing) = accepted.into_split();
    let sending = Sending::new(Body::new(Said::by(stream)), writing, None, Allowed::default());
    let watcher = Watcher {
        socket,
        came: BytesMut::new(),
        messages: 0,
        seen: 0,
        started: 0,
        deltas: 0,
        bookmarks: 0,
    };
    (handle, line, sending, watcher)
}

#[tokio::test]
async fn a_change_leaves_though_the_streams_task_is_not_woken() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let service = key("a", "one");
    world.put(&service, "n", 1);
    let (handle, line, sending, mut watcher) = by_line(&world).await;
    handle
        .subscribe(follow(1, Target::Service(service.clone())))
        .unwrap();
    let mut carrying = pin!(line.carry(sending));
    // Before its first message is out there is more to say than a change.
    world.put(&service, "n", 2);
    world.pull();
    let revision = world.hub.settled().0;
    tokio::select! {
        _ = &mut carrying => panic!("it does not end"),
        () = watcher.until(|watcher| watcher.seen == revision) => {}
    }
    assert_eq!((watcher.started, watcher.deltas), (1, 1));
    assert!(futures_util::poll!(&mut carrying).is_pending());
    // Nobody looks at its task any more.
    for weight in 3..6 {
        world.put(&service, "n", weight);
        world.put(&service, "m", weight);
        world.pull();
        let revision = world.hub.settled().0;
        watcher.until(|watcher| watcher.seen == revision).await;
    }
    world.hub.bookmark();
    watcher.until(|watcher| watcher.bookmarks == 1).await;
    // What only the task can say is not overtaken.
    let nothing = Target::Service(key("a", "nothing"));
    handle.subscribe(follow(2, nothing)).unwrap();
    world.put(&service, "n", 9);
    world.pull();
    let early = tokio::time::timeout(Duration::from_millis(50), watcher.message());
    assert!(
        early.await.is_err(),
        "a change has overtaken the start of a subscription"
    );
    let revision = world.hub.settled().0;
    tokio::select! {
        _ = &mut carrying => panic!("it does not end"),
        () = watcher.until(|watcher| watcher.seen == revision) => {}
    }
    assert_eq!((watcher.started, watcher.deltas), (2, 8));
    // Nor is anything said behind a stream's end, or kept.
    handle.close();
    assert!(carrying.await.is_some());
    world.put(&service, "n", 10);
    world.pull();
    assert_eq!(Arc::strong_count(&handle.shared), 1, "the handle's");
}

/// Its task carries it, and has nothing to do.
async fn carried(world: &World, service: &ServiceKey) -> (StreamHandle, Watcher) {
    let (handle, line, sending, mut watcher) = by_line(world).await;
    tokio::spawn(async move { line.carry(sending).await });
    handle
        .subscribe(follow(1, Target::Service(service.clone())))
        .unwrap();
    watcher.until(|watcher| watcher.started == 1).await;
    while !handle.shared.backlog.lock().parked {
        tokio::task::yield_now().await;
    }
    (handle, watcher)
}

/// A message holds only so much, and a socket takes only so much. What has not left is left to the task, and not to the next
/// change.
#[tokio::test]
async fn what_does_not_leave_at_once_leaves_behind_it() {
    let small_messages = WatchConfig {
        response_bytes: 600,
        ..WatchConfig::default()
    };
    for limits in [small_messages, WatchConfig::default()] {
        let mut world = World::new(limits, 10_000);
        let service = key("a", "one");
        let node = "n".repeat(100);
        world.put(&service, &node, 1);
        let (_handle, mut watcher) = carried(&world, &service).await;
        for weight in 2..250 {
            world.put(&service, &node, weight);
        }
        assert!(!world.hub.pull(), "another round would tell it of the rest");
        let revision = world.hub.settled().0;
        watcher.until(|watcher| watcher.seen == revision).await;
        assert_eq!(watcher.deltas, 248);
    }
}

/// What a socket does not take stays in the backlog, which is bounded.
#[tokio::test]
async fn who_does_not_read_lags_like_any_other() {
    let limits = WatchConfig {
        backlog_frames: 8,
        ..WatchConfig::default()
    };
    let mut world = World::new(limits, 10_000);
    let service = key("a", "one");
    world.put(&service, "n", 1);
    let (handle, mut watcher) = carried(&world, &service).await;
    let mut weight = 1;
    while !handle.shared.backlog.lock().lagging() {
        weight += 1;
        assert!(weight < 5_000, "all of that waits for the socket");
        world.put(&service, "n", weight);
        world.pull();
    }
    let revision = world.hub.settled().0;
    watcher.until(|watcher| watcher.seen == revision).await;
}

/// It says more than the changes in it.
#[tokio::test]
async fn the_first_message_is_left_to_the_task() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let service = key("a", "one");
    let seen = world.put(&service, "n", 1);
    world.put(&service, "n", 2);
    let (handle, line, sending, mut watcher) = by_line(&world).await;
    let mut carrying = pin!(line.carry(sending));
    assert!(futures_util::poll!(&mut carrying).is_pending());
    watcher.seen = seen.0;
    let resumed = Subscription {
        after: seen,
        ..follow(1, Target::Service(service.clone()))
    };
    handle.subscribe(resumed).unwrap();
    world.put(&service, "n", 3);
    world.pull();
    let early = tokio::time::timeout(Duration::from_millis(50), watcher.message());
    assert!(early.await.is_err(), "a change has overtaken it");
    let revision = world.hub.settled().0;
    tokio::select! {
        _ = &mut carrying => panic!("it does not end"),
        () = watcher.until(|watcher| watcher.seen == revision) => {}
    }
    assert_eq!((watcher.started, watcher.deltas), (1, 2));
}

/// The stream knows the line that carries it, and is not kept by that.
#[tokio::test]
async fn a_stream_goes_with_its_connection() {
    let mut world = World::new(WatchConfig::default(), 1_000);
    let service = key("a", "one");
    world.put(&service, "n", 1);
    let (handle, line, sending, _watcher) = by_line(&world).await;
    let mut carrying = Box::pin(line.carry(sending));
    assert!(futures_util::poll!(&mut carrying).is_pending());
    drop(carrying);
    assert_eq!(world.hub.streams(), 0);
    assert_eq!(Arc::strong_count(&handle.shared), 1, "the handle's");
    assert!(!line.pass(|| panic!("there is nobody to tell")));
}

/// Many watchers, some of whom read slowly, and take in all that comes in the meantime; and who is told past his task is
/// told the same as who is told by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_says_it_every_revision_is_said_once_and_in_order() {
    const WRITES: u16 = 2_000;
    let limits = WatchConfig {
        // They would make up for whoever was not told.
        bookmark_interval: PATIENCE * 100,
        ..WatchConfig::default()
    };
    let mut world = World::new(limits, 10_000);
    let service = key("a", "one");
    world.put(&service, "n", 1);
    let last = world.hub.inner.directory.read().revision().0 + u64::from(WRITES);
    let (head, applied) = watch::channel(AppliedHead::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.hub.clone().run(applied, stop.clone()));
    let mut readers = Vec::new();
    for number in 0..40_u64 {
        let (handle, line, sending, mut watcher) = by_line(&world).await;
        let target = Target::Service(service.clone());
        tokio::spawn(async move { line.carry(sending).await });
        readers.push(tokio::spawn(async move {
            handle.subscribe(follow(1, target)).unwrap();
            let mut messages = 0_u64;
            while watcher.seen < last {
                let before = watcher.seen;
                tokio::time::timeout(PATIENCE, watcher.message()).await.unwrap();
                assert!(watcher.seen >= before);
                messages += 1;
                if number % 4 == 0 && messages.is_multiple_of(16) {
                    // Something that changes cannot overtake.
                    let nothing = Target::Service(key("a", &format!("nothing-{messages}")));
                    handle.subscribe(follow(1 + messages, nothing)).unwrap();
                }
                tokio::time::sleep(Duration::from_micros(number % 5 * 300)).await;
            }
            watcher
        }));
    }
    let writing = tokio::task::spawn_blocking(move || {
        for write in 0..WRITES {
            let revision = world.put(&service, "n", write + 2);
            head.send_replace(AppliedHead {
                revision,
                position: None,
            });
            if write % 20 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        (world, head)
    });
    let kept = writing.await.unwrap();
    for reader in readers {
        let watcher = reader.await.unwrap();
        assert_eq!(watcher.seen, last);
        assert!(watcher.deltas > 0);
    }
    stop.cancel();
    running.await.unwrap();
    drop(kept);
}
