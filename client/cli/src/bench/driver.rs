//! Drives a lane: over a session stream, or as separate calls. One task a connection.

use std::future::Future;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::session_response::Response;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::lane::Lane;
use super::report::Tally;
use super::stream::{Incoming, SessionStream};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::talk::say;

/// What is sent on a session stream, and what its answers mean.
pub(crate) trait StreamLoad {
    /// The request of a call; its number is filled in by the driver.
    fn request(&mut self, call: u64) -> wire::SessionRequest;

    /// How many items the call did.
    fn judge(&mut self, call: u64, response: Response) -> Result<u64, Failure>;
}

/// Drives a lane over a stream until it is done, the stream breaks, or the interrupt comes.
pub(crate) async fn drive_stream(
    stream: &mut SessionStream,
    mut lane: Lane,
    load: &mut impl StreamLoad,
    progress: &Progress,
    mut interrupt: Interrupt,
) -> Tally {
    let base = stream.first_free_call();
    let mut highest = base;
    let mut interrupted = interrupt.is_requested();
    let broken = loop {
        if interrupted {
            lane.stop();
        }
        let blocked = match send_due(stream, &mut lane, load, base, &mut highest) {
            Ok(blocked) => blocked,
            Err(failure) => break Some(failure),
        };
        let now = Instant::now();
        if lane.is_done(now) {
            break None;
        }
        // Without room, no clock makes a call leave.
        let wake = if blocked {
            lane.deadline()
        } else {
            lane.next_wake(now)
        };
        let wake = wake.map_or(stream.renew_at(), |wake| wake.min(stream.renew_at()));
        let requests = stream.requests().clone();
        tokio::select! {
            incoming = stream.next() => match incoming {
                Ok(Incoming::Answer { call, response }) => take(&mut lane, load, call.wrapping_sub(base), response, progress),
                Ok(Incoming::Other) => {}
                Err(failure) => break Some(failure),
            },
            // The connection is not taking more at the moment.
            room = requests.reserve(), if blocked => drop(room),
            () = tokio::time::sleep_until(wake) => {}
            () = interrupt.requested(), if !interrupted => interrupted = true,
        }
        if let Err(failure) = stream.keep_alive() {
            break Some(failure);
        }
    };
    if let Some(failure) = broken {
        say(format_args!("a connection broke off: {failure}"));
        lane.break_off(&failure.label());
    }
    stream.skip_calls_to(highest + 1);
    lane.into_tally(Instant::now())
}

/// Sends what is due; true: something is due, but the connection has no room.
fn send_due(
    stream: &SessionStream,
    lane: &mut Lane,
    load: &mut impl StreamLoad,
    base: u64,
    highest: &mut u64,
) -> Result<bool, Failure> {
    loop {
        let now = Instant::now();
        if !lane.is_due(now) {
            return Ok(false);
        }
        let permit = match stream.requests().try_reserve() {
            Ok(permit) => permit,
            Err(TrySendError::Full(())) => return Ok(true),
            Err(TrySendError::Closed(())) => {
                return Err(Failure::unavailable(
                    "the session stream was closed by the server",
                ));
            }
        };
        if let Some(departure) = lane.take_due(now) {
            let call = base + departure.call;
            *highest = (*highest).max(call);
            permit.send(wire::SessionRequest {
                call,
                ..load.request(departure.call)
            });
        }
    }
}

fn take(lane: &mut Lane, load: &mut impl StreamLoad, call: u64, response: Response, progress: &Progress) {
    let now = Instant::now();
    let result = load.judge(call, response).map_err(|failure| failure.label());
    lane.on_answer(call, result, now);
    progress.add(1);
}

/// Drives a lane as separate calls: `call` makes the one with this number and says how many items it did.
pub(crate) async fn drive_calls<C, F>(
    mut lane: Lane,
    call: C,
    progress: &Progress,
    mut interrupt: Interrupt,
) -> Tally
where
    C: Fn(u64) -> F,
    F: Future<Output = Result<u64, Failure>>,
{
    let mut under_way = FuturesUnordered::new();
    let mut interrupted = interrupt.is_requested();
    loop {
        if interrupted {
            lane.stop();
        }
        while let Some(departure) = lane.take_due(Instant::now()) {
            let asked = call(departure.call);
            under_way.push(async move { (departure.call, asked.await, Instant::now()) });
        }
        let now = Instant::now();
        if lane.is_done(now) {
            break;
        }
        let wake = lane.next_wake(now);
        tokio::select! {
            Some((call, result, at)) = under_way.next(), if !under_way.is_empty() => {
                lane.on_answer(call, result.map_err(|failure| failure.label()), at);
                progress.add(1);
            }
            () = sleep_until(wake) => {}
            () = interrupt.requested(), if !interrupted => interrupted = true,
        }
    }
    lane.into_tally(Instant::now())
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// Adds up what tasks return; a task that panicked is a bug of ours and ends the bench.
pub(crate) async fn gather<T>(
    tasks: Vec<tokio::task::JoinHandle<(Tally, T)>>,
) -> Result<(Tally, Vec<T>), Failure> {
    let mut all = Tally::new();
    let mut rest = Vec::with_capacity(tasks.len());
    for task in tasks {
        let (tally, kept) = task
            .await
            .map_err(|e| Failure::failed(format!("a connection's task broke down: {e}")))?;
        all.merge(&tally);
        rest.push(kept);
    }
    Ok((all, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lane::Pace;
    use std::time::Duration;

    #[tokio::test]
    async fn a_closed_loop_of_calls_keeps_its_count() {
        let lane = Lane::new(
            Instant::now(),
            Pace::Closed,
            Some(100),
            None,
            8,
            Duration::from_secs(60),
        );
        let progress = Progress::counting("test");
        let tally = drive_calls(
            lane,
            |call| async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if call % 10 == 0 {
                    Err(Failure::unavailable("refused"))
                } else {
                    Ok(2)
                }
            },
            &progress,
            Interrupt::never(),
        )
        .await;
        assert_eq!((tally.sent, tally.answered, tally.items), (100, 90, 180));
        assert_eq!(tally.errors["unreachable"], 10);
    }

    #[tokio::test]
    async fn an_open_loop_charges_a_stall_to_the_calls_that_waited() {
        let pace = Pace::Open {
            first: Duration::ZERO,
            every: Duration::from_millis(1),
        };
        let lane = Lane::new(Instant::now(), pace, Some(200), None, 1, Duration::from_secs(60));
        let progress = Progress::counting("test");
        let tally = drive_calls(
            lane,
            |call| async move {
                if call == 0 {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Ok(1)
            },
            &progress,
            Interrupt::never(),
        )
        .await;
        assert_eq!((tally.sent, tally.answered), (200, 200));
        assert!(tally.latency.value_at_quantile(0.5) > 50_000_000);
        assert!(tally.late > 150);
    }

    #[tokio::test]
    async fn calls_without_answer_end_with_patience() {
        let lane = Lane::new(
            Instant::now(),
            Pace::Closed,
            Some(3),
            None,
            3,
            Duration::from_millis(20),
        );
        let progress = Progress::counting("test");
        let never = |_| std::future::pending::<Result<u64, Failure>>();
        let tally = drive_calls(lane, never, &progress, Interrupt::never()).await;
        assert_eq!((tally.sent, tally.answered, tally.unanswered), (3, 0, 3));
    }
}
