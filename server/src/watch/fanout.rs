//! One change, many watchers: those of them who wait for nothing else are told at once, with the same bytes.
//!
//! Some at a time, so that what else there is to do has its turn, and on all processors. What cannot leave like this is
//! left to the stream's own task, with what stands before it and behind it: all that is ever said is taken from the
//! backlog, in its order, by whoever holds the [line](Line).

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rollcall_proto::prefix::prefixed;
use rollcall_proto::v1::WatchResponse;

use super::backlog::Run;
use super::frame;
use super::hub::WatchHub;
use super::line::Line;
use super::stream::Shared;

/// Streams that are told in one turn.
const STREAMS_PER_TURN: usize = 16;

/// How a stream is told of changes past its task.
pub(crate) struct Outlet {
    line: Line,
    mode: i32,
    epoch: u64,
}

impl Outlet {
    pub(crate) fn new(line: Line, mode: i32, epoch: u64) -> Self {
        Self { line, mode, epoch }
    }
}

/// The last message that was laid out: most streams that are told of its changes are told nothing else.
#[derive(Default)]
pub(crate) struct LastMessage(Mutex<Option<Arc<LaidOut>>>);

struct LaidOut {
    run: Run,
    mode: i32,
    epoch: u64,
    bytes: Bytes,
}

fn frames(run: &Run) -> Vec<Bytes> {
    let changes = run
        .changes
        .iter()
        .flat_map(|change| change.frames.iter().cloned());
    changes.chain(run.bookmark.map(frame::bookmark)).collect()
}

impl LaidOut {
    fn new(run: Run, outlet: &Outlet) -> Self {
        let message = WatchResponse {
            frames: frames(&run),
            mode: outlet.mode,
            epoch: outlet.epoch,
            cluster: String::new(),
        };
        Self {
            run,
            mode: outlet.mode,
            epoch: outlet.epoch,
            bytes: prefixed(&message),
        }
    }

    fn says(&self, run: &Run, outlet: &Outlet) -> bool {
        let (ours, theirs) = (&self.run.changes, &run.changes);
        self.run.bookmark == run.bookmark
            && (self.mode, self.epoch) == (outlet.mode, outlet.epoch)
            && ours.len() == theirs.len()
            && ours
                .iter()
                .zip(theirs)
                .all(|(our, their)| Arc::ptr_eq(our, their))
    }
}

impl LastMessage {
    fn bytes_of(&self, run: Run, outlet: &Outlet) -> Bytes {
        let last = self.0.lock().clone();
        if let Some(last) = last.filter(|last| last.says(&run, outlet)) {
            return last.bytes.clone();
        }
        let new = LaidOut::new(run, outlet);
        let bytes = new.bytes.clone();
        *self.0.lock() = Some(Arc::new(new));
        bytes
    }
}

impl WatchHub {
    /// Tells streams what waits for them.
    pub(super) fn tell(&self, woken: Vec<Arc<Shared>>) {
        let mut direct = Vec::new();
        for stream in woken {
            match stream.outlet.get() {
                Some(_) => direct.push(stream),
                None => stream.wake.notify_one(),
            }
        }
        if direct.len() <= STREAMS_PER_TURN {
            return self.take_turn(&direct);
        }
        let mut direct = direct.into_iter();
        while !direct.as_slice().is_empty() {
            let turn: Vec<_> = direct.by_ref().take(STREAMS_PER_TURN).collect();
            let hub = self.clone();
            tokio::spawn(async move { hub.take_turn(&turn) });
        }
    }

    fn take_turn(&self, streams: &[Arc<Shared>]) {
        for stream in streams {
            let said = stream.outlet.get().is_some_and(|outlet| self.say(stream, outlet));
            if !said {
                stream.wake.notify_one();
            }
        }
    }

    /// Whether all that waits for a stream has left.
    fn say(&self, stream: &Shared, outlet: &Outlet) -> bool {
        let mut all = false;
        let left = outlet.line.pass(|| {
            let wanted = self.limits().response_bytes;
            let (run, last) = stream.backlog.lock().take_run(self.settled(), wanted)?;
            all = last;
            let messages = self.last_message().bytes_of(run, outlet);
            self.count_response(messages.len());
            Some(messages)
        });
        left && all
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use rollcall_core::ids::{Revision, ServiceKey};
    use rollcall_proto::prefix::PREFIX_BYTES;

    use super::super::backlog::ChangeFrames;
    use super::*;

    fn change(byte: u8) -> Arc<ChangeFrames> {
        let key = ServiceKey {
            group: "a".parse().unwrap(),
            service: "one".parse().unwrap(),
        };
        Arc::new(ChangeFrames::new(key, vec![Bytes::from(vec![byte; 4])]))
    }

    fn run(changes: &[&Arc<ChangeFrames>], bookmark: Option<u64>) -> Run {
        Run {
            changes: changes.iter().copied().cloned().collect(),
            bookmark: bookmark.map(Revision),
        }
    }

    #[test]
    fn who_is_told_the_same_is_told_the_same_bytes_and_nobody_else() {
        let (one, like_one, other) = (change(1), change(1), change(2));
        let last = LastMessage::default();
        let outlet = |mode, epoch| Outlet::new(Line::default(), mode, epoch);
        let here = outlet(1, 7);
        let said = last.bytes_of(run(&[&one], Some(9)), &here);
        let again = last.bytes_of(run(&[&one], Some(9)), &here);
        assert_eq!(said.as_ptr(), again.as_ptr());
        for (changes, bookmark, there) in [
            (&[&other][..], Some(9), outlet(1, 7)),
            (&[&like_one], Some(9), outlet(1, 7)),
            (&[&one, &other], Some(9), outlet(1, 7)),
            (&[], Some(9), outlet(1, 7)),
            (&[&one], Some(8), outlet(1, 7)),
            (&[&one], None, outlet(1, 7)),
            (&[&one], Some(9), outlet(2, 7)),
            (&[&one], Some(9), outlet(1, 8)),
        ] {
            let said = last.bytes_of(run(&[&one], Some(9)), &here);
            let bytes = last.bytes_of(run(changes, bookmark), &there);
            assert_ne!(said.as_ptr(), bytes.as_ptr());
            let message = WatchResponse::decode(&bytes[PREFIX_BYTES..]).unwrap();
            let expected = WatchResponse {
                frames: frames(&run(changes, bookmark)),
                mode: there.mode,
                epoch: there.epoch,
                cluster: String::new(),
            };
            assert_eq!(message, expected);
            assert_eq!(
                message.frames.len(),
                changes.len() + usize::from(bookmark.is_some())
            );
        }
    }
}
