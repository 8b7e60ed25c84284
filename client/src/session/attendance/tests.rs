//! What is sent, and when the task wakes, without a server.

use tonic::codec::{DecodeBuf, Decoder};

use super::ownership::Listed;
use super::writes::Step;
use super::*;
use crate::key::NodeKey;
use crate::node::{Entry, Expected, Registration, Removal};

/// Reads nothing.
struct Silence;

impl Decoder for Silence {
    type Item = v1::SessionResponse;
    type Error = Status;

    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        Ok(None)
    }
}

/// Attached, with room for so many messages on the stream, which nobody reads.
fn attached(room: usize) -> (Attendance, mpsc::Receiver<v1::SessionRequest>) {
    let config = Arc::new(RegistryConfig::new(["127.0.0.1:1"]));
    let endpoints = Arc::new(Endpoints::new(&config).expect("an address"));
    let shared = Arc::new(Shared::new());
    let (_, commands) = mpsc::channel(1);
    let (opened, _) = oneshot::channel();
    let later = Instant::now() + Duration::from_secs(60);
    let options = SessionOptions::ttl(Duration::from_secs(60));
    let mut attendance = Attendance::new(
        config,
        Arc::clone(&endpoints),
        options,
        shared,
        commands,
        (opened, later),
    );
    attendance.opening = None;
    attendance.lease = Some(Lease {
        session: 1,
        secret: bytes::Bytes::new(),
        ttl: Duration::from_secs(60),
        opened_at: Instant::now(),
        records_alone: false,
    });
    let (outgoing, requests) = mpsc::channel(room);
    attendance.link = Link::Up(Box::new(Up {
        endpoint: endpoints.pick(),
        _connection: None,
        outgoing,
        incoming: Streaming::new_empty(Silence, tonic::body::Body::empty()),
        heartbeat_at: later,
        heartbeat: None,
        move_at: None,
    }));
    (attendance, requests)
}

fn ask(attendance: &mut Attendance, purpose: Purpose) {
    let removal = Removal {
        key: NodeKey::new("g", "s", format!("n{}", attendance.next_call)),
        expected: Expected::Any,
    };
    let operation = Operation::Deregister(vec![removal]);
    attendance.add_pending(operation, RequestId::random(), 0, purpose);
}

fn caller() -> Purpose {
    let (reply, _) = oneshot::channel();
    let deadline = Instant::now() + Duration::from_secs(60);
    let place = Arc::new(tokio::sync::Semaphore::new(1))
        .try_acquire_owned()
        .expect("it is free");
    Purpose::Caller {
        deadline,
        reply,
        _place: place,
    }
}

#[tokio::test]
async fn what_did_not_go_is_not_taken_for_sent() {
    let (mut attendance, _requests) = attached(1);
    (0..3).for_each(|_| ask(&mut attendance, caller()));
    attendance.send_pending(Instant::now());
    assert!(
        matches!(attendance.link, Link::Down { .. }),
        "there is no room for the second"
    );
    let pending: Vec<_> = attendance
        .pending
        .values()
        .map(|pending| (pending.sent_at, pending.outcome_unknown))
        .collect();
    assert_eq!(pending, [(None, true), (None, false), (None, false)]);
}

#[tokio::test]
async fn a_write_that_waits_for_nodes_to_be_registered_again_wakes_nobody() {
    let (mut attendance, _requests) = attached(384);
    ask(&mut attendance, Purpose::Restore(Step::Write));
    attendance.send_pending(Instant::now());
    ask(&mut attendance, caller());
    let now = Instant::now();
    for pending in attendance.pending.values_mut().filter(|one| !one.is_restore()) {
        pending.not_before = Some(now);
    }
    attendance.send_pending(now);
    assert!(attendance.wake_at() > now + Duration::from_secs(1));
}

/// The room of a stream with 256 writes in flight.
#[tokio::test]
async fn however_much_is_registered_again_the_stream_is_not_given_up() {
    let (mut attendance, mut requests) = attached(384);
    (0..500).for_each(|_| ask(&mut attendance, Purpose::Restore(Step::Write)));
    let now = Instant::now();
    for pending in attendance.pending.values_mut() {
        pending.not_before = Some(now);
    }
    let mut gone = 0;
    while gone < 500 {
        attendance.send_pending(now);
        assert!(matches!(attendance.link, Link::Up(_)), "after {gone}");
        assert!(attendance.wake_at() > now + Duration::from_secs(1));
        let before = gone;
        while requests.try_recv().is_ok() {
            gone += 1;
        }
        assert!(gone > before && gone - before <= 64, "{before} to {gone}");
    }
}

#[tokio::test]
async fn what_is_asked_about_stays_in_its_order_until_the_answer_comes() {
    let (mut attendance, _requests) = attached(384);
    let service = crate::key::ServiceKey::new("g", "s");
    let entry = |port| Entry::new(service.clone(), Registration::new("http", "h", port));
    // Both were asked to go meanwhile: the roll has neither.
    attendance.add_restore(vec![entry(1), entry(2)]);
    for step in [Step::Asked, Step::Ask] {
        for pending in attendance.pending.values_mut() {
            pending.purpose = Purpose::Restore(step);
        }
        attendance.take_back_restores();
        let nodes = attendance.pending.values().map(|one| one.operation.keys().len());
        assert_eq!(nodes.sum::<usize>(), if step == Step::Asked { 2 } else { 0 });
    }
}

fn entry(port: u16) -> Entry {
    let service = crate::key::ServiceKey::new("g", "s");
    Entry::new(service, Registration::new("http", "h", port))
}

fn written() -> Written {
    Written {
        revision: 1,
        repeated: false,
        changed: true,
        server: 1,
        mode: v1::GroupMode::Cp,
        epoch: 0,
        acks: 0,
    }
}

/// It was asked to go while it was asked whose it is, and it was there after all.
#[tokio::test]
async fn what_is_ours_and_was_asked_to_go_is_taken_out() {
    let (mut attendance, _requests) = attached(384);
    let call = attendance.next_call;
    attendance.add_restore(vec![entry(1), entry(2)]);
    attendance.shared.roll.lock().enter(&entry(2), &written());
    let own = || Listed::Under {
        session: 1,
        revision: 9,
    };
    attendance.on_listed(call, vec![own(), own()]);
    let operations: Vec<_> = attendance.pending.values().map(|one| &one.operation).collect();
    assert!(
        matches!(operations[..], [Operation::Deregister(out)] if out[0].key == entry(1).key() && out.len() == 1),
        "{operations:?}"
    );
}

/// The room of a stream takes 64 of them at once.
#[tokio::test]
async fn registering_much_again_looks_at_each_node_a_few_times() {
    const NODES: u16 = 30_000;
    let (mut attendance, mut requests) = attached(384);
    for port in 0..NODES {
        attendance.shared.roll.lock().enter(&entry(port), &written());
    }
    attendance.lost.push_back(7);
    attendance.restore();
    attendance.shared.roll.lock().lookups.set(0);
    while attendance.is_restoring() {
        attendance.send_pending(Instant::now());
        let mut calls = Vec::new();
        while let Ok(request) = requests.try_recv() {
            calls.push(request.call);
        }
        assert!(!calls.is_empty() && calls.len() <= 64, "{}", calls.len());
        for call in calls {
            attendance.on_answer(call, Ok(written()));
            attendance.wake_at();
            attendance.send_pending(Instant::now());
        }
    }
    let lookups = attendance.shared.roll.lock().lookups.get();
    assert!(lookups <= 3 * usize::from(NODES), "{lookups}");
    assert_eq!(attendance.groups_gathered.get(), 0, "nobody's write waits");
}
