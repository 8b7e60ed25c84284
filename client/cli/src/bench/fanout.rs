//! `rollcall bench watch`: from a write to the last of its watchers.
//!
//! Each change carries its number in the node's metadata, so a watcher knows which change a frame brings without
//! knowing its revision. A watcher that is sent the current state instead of every change has seen all numbers up
//! to the one it finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use hdrhistogram::Histogram;
use prost::Message;
use rollcall_client::ServiceKey;
use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use rollcall_proto::v1::watch_client::WatchClient;
use rollcall_proto::v1::watch_frame::Frame;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::driver::{StreamLoad, drive_stream};
use super::ground::{FILLER_KEY, Ground, filler, metadata_bytes};
use super::lane::{Lane, Pace};
use super::load::{positive, rate};
use super::report::{Percentiles, Tally, errors_text, histogram, per_second, percentiles_text, record};
use super::server_process::{Meter, ServerProcesses, Spent};
use super::stream::{SessionStream, written};
use crate::context::Context;
use crate::exit::{Failure, Nature, failure_of};
use crate::interrupt::Interrupt;
use crate::output::table::Table;
use crate::progress::Progress;
use crate::servers::{ANSWER_BYTES_MAX, client_name, shared_way_to, way_to, wire_write_options};
use crate::talk::say;

pub(crate) const METHOD: &str = "\
Each watcher is a watch stream of its own. One node of one service is changed again and again; for each change
the time until the last watcher has it is taken, from its sending and from its answer (0 if the last watcher had
it before the writer had its answer). Without --rate the next change goes out when every watcher has the last
one; with --rate changes are due at fixed times, and count from when they were due.

Everything is made in a group of its own (bench-...), deleted at the end, also after Ctrl-C.";

/// The metadata that tells a change's number.
const CHANGE_KEY: &str = "change";
/// Changes under way in an open loop.
const IN_FLIGHT_MAX: usize = 1_024;

/// Arguments of `rollcall bench watch`.
#[derive(Args, Clone, Debug)]
pub(crate) struct WatchBench {
    /// Watch streams
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = positive)]
    watchers: usize,
    /// TCP connections they share, spread over the servers of --addr
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = positive)]
    connections: usize,
    /// Changes
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = positive)]
    changes: usize,
    /// Changes per second: an open loop
    #[arg(long, value_name = "PER-SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of metadata of the node that changes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = metadata_bytes)]
    metadata_bytes: usize,
    #[command(flatten)]
    servers: ServerProcesses,
}

#[derive(Clone, Debug, Serialize)]
struct Settings {
    watchers: usize,
    connections: usize,
    changes: usize,
    rate: Option<f64>,
    metadata_bytes: usize,
    group: String,
}

#[derive(Clone, Debug, Serialize)]
struct FanoutReport {
    bench: &'static str,
    r#loop: &'static str,
    settings: Settings,
    elapsed_s: f64,
    changes: ChangeCounts,
    deliveries: u64,
    deliveries_per_s: f64,
    /// Watchers that were sent the current state because they could not keep up.
    lagged_snapshots: u64,
    /// Watch streams that ended too early.
    watchers_lost: u64,
    errors: std::collections::BTreeMap<String, u64>,
    /// A change's sending (or due time) to its answer.
    write_ms: Percentiles,
    /// A change's sending (or due time) to the last watcher; one value a change.
    last_watcher_from_send_ms: Percentiles,
    /// A change's answer to the last watcher; one value a change.
    last_watcher_from_answer_ms: Percentiles,
    /// A change's sending (or due time) to a watcher; one value a delivery.
    each_watcher_from_send_ms: Percentiles,
    /// What the servers spent on it, if their processes were named; a call is a change, an item a delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    servers: Option<Spent>,
}

#[derive(Clone, Debug, Serialize)]
struct ChangeCounts {
    wanted: u64,
    sent: u64,
    answered: u64,
    /// Seen by every watcher.
    complete: u64,
    late: u64,
    unsent: u64,
}

/// What the writer and the watchers know of the changes. Times are nanoseconds since the bench began, 0: not yet.
#[derive(Debug)]
struct Board {
    began: Instant,
    changes: Vec<ChangeRecord>,
    /// Changes that every watcher has.
    complete: AtomicUsize,
    completed: Notify,
    lagged: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug)]
struct ChangeRecord {
    due: AtomicU64,
    answered: AtomicU64,
    last_seen: AtomicU64,
    to_come: AtomicUsize,
}

impl Board {
    fn new(changes: usize, watchers: usize) -> Self {
        let record = || ChangeRecord {
            due: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            last_seen: AtomicU64::new(0),
            to_come: AtomicUsize::new(watchers),
        };
        Self {
            began: Instant::now(),
            changes: (0..changes).map(|_| record()).collect(),
            complete: AtomicUsize::new(0),
            completed: Notify::new(),
            lagged: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// The change (from 1) is due, or sent, at this moment.
    fn on_due(&self, change: u64, at: Instant) {
        if let Some(record) = self.record(change) {
            record.due.store(self.nanos(at), Ordering::Release);
        }
    }

    fn on_answered(&self, change: u64, at: Instant) {
        if let Some(record) = self.record(change) {
            record.answered.store(self.nanos(at), Ordering::Release);
        }
    }

    /// A watcher that had seen everything up to `before` has now seen `change`. Gives how long each of these took.
    fn on_seen(&self, before: u64, change: u64, at: Instant) -> impl Iterator<Item = Duration> + '_ {
        let at = self.nanos(at);
        (before + 1..=change).filter_map(move |change| {
            let record = self.record(change)?;
            record.last_seen.fetch_max(at, Ordering::AcqRel);
            let due = record.due.load(Ordering::Acquire);
            if record.to_come.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.complete.fetch_add(1, Ordering::AcqRel);
                self.completed.notify_waiters();
            }
            Some(Duration::from_nanos(at.saturating_sub(due)))
        })
    }

    fn record(&self, change: u64) -> Option<&ChangeRecord> {
        usize::try_from(change)
            .ok()?
            .checked_sub(1)
            .and_then(|index| self.changes.get(index))
    }

    fn is_complete(&self, change: u64) -> bool {
        self.record(change)
            .is_none_or(|record| record.to_come.load(Ordering::Acquire) == 0)
    }

    /// Waits until every watcher has the change.
    async fn wait_for(&self, change: u64) {
        loop {
            let completed = self.completed.notified();
            tokio::pin!(completed);
            // Listens from here on, so that nothing between the look and the wait is missed.
            completed.as_mut().enable();
            if self.is_complete(change) {
                return;
            }
            completed.await;
        }
    }

    /// One value a change that every watcher has: from its due time, and from its answer.
    fn last_watcher(&self) -> (Histogram<u64>, Histogram<u64>) {
        let (mut from_send, mut from_answer) = (histogram(), histogram());
        for change in &self.changes {
            if change.to_come.load(Ordering::Acquire) > 0 {
                continue;
            }
            let seen = change.last_seen.load(Ordering::Acquire);
            let due = change.due.load(Ordering::Acquire);
            record(&mut from_send, Duration::from_nanos(seen.saturating_sub(due)));
            let answered = change.answered.load(Ordering::Acquire);
            if answered > 0 {
                record(
                    &mut from_answer,
                    Duration::from_nanos(seen.saturating_sub(answered)),
                );
            }
        }
        (from_send, from_answer)
    }
}

pub(crate) async fn run(context: &Context, bench: &WatchBench, interrupt: Interrupt) -> Result<(), Failure> {
    let mut meter = bench.servers.meter()?;
    let ground = Ground::lay(context, 1, 1).await?;
    let measured = measure(context, bench, &ground, &mut meter, interrupt).await;
    let group = ground.group().to_owned();
    ground.clear_up().await;
    let measured = measured?;
    let report = report(bench, group, &measured, &meter);
    context.printer.print(&report, || table(&report))?;
    if report.changes.complete == 0 {
        return Err(Failure::failed(format!(
            "no change reached every watcher: {}",
            errors_text(&report.errors, 0)
        )));
    }
    Ok(())
}

struct Measured {
    board: Arc<Board>,
    tally: Tally,
    each: Histogram<u64>,
    elapsed: Duration,
}

async fn measure(
    context: &Context,
    bench: &WatchBench,
    ground: &Ground,
    meter: &mut Meter,
    mut interrupt: Interrupt,
) -> Result<Measured, Failure> {
    let timeout = context.servers.timeout();
    let service = ground
        .services()
        .first()
        .ok_or_else(|| Failure::failed("the bench has no service"))?;
    let address = context
        .servers
        .addresses()
        .first()
        .ok_or_else(|| Failure::usage("--addr names no server"))?;
    let opening = Progress::counting("opening the writer's session");
    let mut stream = SessionStream::open(way_to(address, timeout)?, 1, timeout, &opening).await?;
    opening.finish();
    let measured = measure_with(context, bench, service, &mut stream, meter, &mut interrupt).await;
    if let Err(failure) = stream.close(timeout).await {
        say(format_args!("{failure}"));
    }
    measured
}

/// With the writer's stream, which is closed whatever comes of this.
async fn measure_with(
    context: &Context,
    bench: &WatchBench,
    service: &ServiceKey,
    stream: &mut SessionStream,
    meter: &mut Meter,
    interrupt: &mut Interrupt,
) -> Result<Measured, Failure> {
    let timeout = context.servers.timeout();
    let mut writer = Writer::new(stream, service, bench, timeout);
    // The node exists before anybody watches: a watcher's first snapshot holds change 0.
    written(stream.ask(writer.session, writer.register(0), timeout).await?)?;

    let board = Arc::new(Board::new(bench.changes, bench.watchers));
    let (stops, watchers) = tokio::select! {
        started = start_watchers(context, bench, service, &board, timeout) => started?,
        () = interrupt.requested() => return Err(Failure::failed("interrupted while watchers were being started")),
    };
    let progress = Progress::of(bench.changes as u64, "changing");
    meter.begin()?;
    let start = Instant::now();
    writer.board = Some(Arc::clone(&board));
    let tally = match bench.rate {
        Some(rate) => {
            let every = Duration::from_secs_f64(1.0 / rate);
            let pace = Pace::Open {
                first: Duration::ZERO,
                every,
            };
            writer.schedule = Some((start, every));
            let lane = Lane::new(
                start,
                pace,
                Some(bench.changes as u64),
                None,
                IN_FLIGHT_MAX,
                timeout,
            );
            drive_stream(stream, lane, &mut writer, &progress, interrupt.clone()).await
        }
        None => change_one_by_one(stream, &mut writer, bench, timeout, &progress, interrupt).await,
    };
    // The last changes may still be on their way.
    let all_here = async {
        for change in 1..=bench.changes as u64 {
            if board
                .record(change)
                .is_some_and(|record| record.answered.load(Ordering::Acquire) > 0)
            {
                board.wait_for(change).await;
            }
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(timeout, all_here) => {}
        () = interrupt.requested() => {}
    }
    let elapsed = start.elapsed();
    meter.end()?;
    progress.finish();
    for stop in stops {
        // A watcher task that has ended needs no stop.
        let _ = stop.send(());
    }
    let mut each = histogram();
    for watcher in watchers {
        let seen = watcher
            .await
            .map_err(|e| Failure::failed(format!("a watcher's task broke down: {e}")))?;
        each.add(&seen)
            .map_err(|e| Failure::failed(format!("histograms do not add up: {e}")))?;
    }
    Ok(Measured {
        board,
        tally,
        each,
        elapsed,
    })
}

/// The closed loop: the next change when every watcher has the last.
async fn change_one_by_one(
    stream: &mut SessionStream,
    writer: &mut Writer,
    bench: &WatchBench,
    timeout: Duration,
    progress: &Progress,
    interrupt: &mut Interrupt,
) -> Tally {
    let mut tally = Tally::new();
    for change in 1..=bench.changes as u64 {
        if interrupt.is_requested() {
            break;
        }
        let Some(board) = writer.board.clone() else { break };
        let request = writer.register(change);
        let sent = Instant::now();
        board.on_due(change, sent);
        tally.sent += 1;
        let answer = stream
            .ask(writer.session, request, timeout)
            .await
            .and_then(written);
        let now = Instant::now();
        match answer {
            Ok(_) => {
                board.on_answered(change, now);
                tally.answered(now - sent, now - sent, 1);
            }
            Err(failure) => {
                tally.failed(failure.label());
                if failure.exit == crate::exit::Exit::Unavailable && failure.code.is_none() {
                    say(format_args!("the writer's connection broke off: {failure}"));
                    break;
                }
                continue;
            }
        }
        progress.add(1);
        tokio::select! {
            seen = tokio::time::timeout(timeout, board.wait_for(change)) => if seen.is_err() {
                tally.failed("not_seen_in_time".into());
            },
            () = interrupt.requested() => break,
        }
    }
    tally
}

/// Changes the one node.
struct Writer {
    session: u64,
    service: ServiceKey,
    filler: String,
    timeout: Duration,
    board: Option<Arc<Board>>,
    /// Start and distance of an open loop.
    schedule: Option<(Instant, Duration)>,
}

impl Writer {
    fn new(stream: &SessionStream, service: &ServiceKey, bench: &WatchBench, timeout: Duration) -> Self {
        Self {
            session: stream.sessions().first().map_or(0, |session| session.session),
            service: service.clone(),
            filler: filler(bench.metadata_bytes.saturating_sub(CHANGE_KEY.len() + 8)),
            timeout,
            board: None,
            schedule: None,
        }
    }

    fn register(&self, change: u64) -> Request {
        let mut metadata = std::collections::BTreeMap::from([(CHANGE_KEY.to_owned(), change.to_string())]);
        if !self.filler.is_empty() {
            metadata.insert(FILLER_KEY.to_owned(), self.filler.clone());
        }
        Request::Register(wire::RegisterRequest {
            options: Some(wire_write_options(self.timeout)),
            proof: None,
            nodes: vec![wire::RegisterNode {
                key: Some((&self.service).into()),
                registration: Some(wire::Registration {
                    id: "changing".into(),
                    addresses: vec![wire::Address {
                        name: "http".into(),
                        host: "10.0.0.1".into(),
                        port: 80,
                    }],
                    metadata,
                    kind: wire::NodeKind::Ephemeral.into(),
                    state: wire::NodeState::Up.into(),
                    ..wire::Registration::default()
                }),
                expected: None,
            }],
        })
    }
}

impl StreamLoad for Writer {
    fn request(&mut self, call: u64) -> wire::SessionRequest {
        let change = call + 1;
        if let (Some(board), Some((start, every))) = (&self.board, self.schedule) {
            board.on_due(
                change,
                start + Duration::from_secs_f64(every.as_secs_f64() * call as f64),
            );
        }
        wire::SessionRequest {
            call,
            session: self.session,
            request: Some(self.register(change)),
        }
    }

    fn judge(&mut self, call: u64, response: Response) -> Result<u64, Failure> {
        let answer = written(response)?;
        if let Some(board) = &self.board {
            board.on_answered(call + 1, Instant::now());
        }
        Ok(u64::from(answer.changed))
    }
}

type Watchers = (
    Vec<oneshot::Sender<()>>,
    Vec<tokio::task::JoinHandle<Histogram<u64>>>,
);

/// All watch streams, each past its start; one task a connection.
async fn start_watchers(
    context: &Context,
    bench: &WatchBench,
    service: &ServiceKey,
    board: &Arc<Board>,
    timeout: Duration,
) -> Result<Watchers, Failure> {
    let progress = Progress::of(bench.watchers as u64, "starting watchers");
    let connections = bench.connections.min(bench.watchers);
    let addresses = context.servers.addresses();
    let mut stops = Vec::with_capacity(connections);
    let mut tasks = Vec::with_capacity(connections);
    for index in 0..connections {
        let share = bench.watchers / connections + usize::from(index < bench.watchers % connections);
        let address = &addresses[index % addresses.len()];
        let channel = match share {
            1 => way_to(address, timeout)?,
            _ => shared_way_to(address, timeout)?,
        };
        let mut watchers = Vec::with_capacity(share);
        for number in 0..share {
            let starting = Watcher::start(channel.clone(), service);
            let watcher = tokio::time::timeout(timeout, starting).await.map_err(|_| {
                Failure::timeout(format!(
                    "watcher {number} of a connection did not start in time; servers bound the streams of a \
                     connection: try more --connections"
                ))
            })??;
            watchers.push(watcher);
            progress.add(1);
        }
        let (stop, stopped) = oneshot::channel();
        stops.push(stop);
        tasks.push(tokio::spawn(watch(watchers, Arc::clone(board), stopped)));
    }
    progress.finish();
    Ok((stops, tasks))
}

/// One watch stream that has started.
struct Watcher {
    frames: Streaming<wire::WatchResponse>,
    /// Held open: a stream whose requests end may be ended by the server.
    requests: mpsc::Sender<wire::WatchRequest>,
    seen: u64,
}

impl Watcher {
    async fn start(channel: Channel, service: &ServiceKey) -> Result<Self, Failure> {
        let (requests, outgoing) = mpsc::channel(4);
        let target = wire::WatchTarget {
            target: Some(wire::watch_target::Target::Service(service.into())),
        };
        let subscribe = wire::Subscribe {
            subscription: 1,
            target: Some(target),
            ..wire::Subscribe::default()
        };
        let first = wire::WatchRequest {
            client: client_name(),
            request: Some(wire::watch_request::Request::Subscribe(subscribe)),
            ..wire::WatchRequest::default()
        };
        requests
            .send(first)
            .await
            .map_err(|_| Failure::unavailable("the watch stream was closed"))?;
        let mut frames = WatchClient::new(channel)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .watch(ReceiverStream::new(outgoing))
            .await
            .map_err(|status| failure_of(&status, Nature::Read))?
            .into_inner();
        loop {
            let message = frames
                .message()
                .await
                .map_err(|status| failure_of(&status, Nature::Read))?;
            let message = message.ok_or_else(|| Failure::unavailable("the watch stream was closed"))?;
            for frame in &message.frames {
                match decode(frame)? {
                    Some(Frame::Started(_)) => {
                        return Ok(Self {
                            frames,
                            requests,
                            seen: 0,
                        });
                    }
                    Some(Frame::Rejected(rejected)) => {
                        return Err(rejected.error.unwrap_or_default().into());
                    }
                    _ => {}
                }
            }
        }
    }
}

fn decode(frame: &[u8]) -> Result<Option<Frame>, Failure> {
    wire::WatchFrame::decode(frame)
        .map(|frame| frame.frame)
        .map_err(|e| Failure::failed(format!("a watch frame cannot be read: {e}")))
}

/// Reads the watchers of one connection until it is told to stop; gives how long each delivery took.
async fn watch(
    watchers: Vec<Watcher>,
    board: Arc<Board>,
    mut stopped: oneshot::Receiver<()>,
) -> Histogram<u64> {
    let mut each = histogram();
    let mut seen: Vec<u64> = Vec::with_capacity(watchers.len());
    let mut held = Vec::with_capacity(watchers.len());
    let mut streams = SelectAll::new();
    for (index, watcher) in watchers.into_iter().enumerate() {
        seen.push(watcher.seen);
        held.push(watcher.requests);
        let end = futures_util::stream::once(async { Err(tonic::Status::aborted("ended")) });
        streams.push(
            watcher
                .frames
                .chain(end)
                .map(move |message| (index, message))
                .boxed(),
        );
    }
    loop {
        let (index, message) = tokio::select! {
            _ = &mut stopped => break,
            next = streams.next() => match next {
                Some(next) => next,
                None => break,
            },
        };
        let now = Instant::now();
        let Ok(message) = message else {
            board.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        for frame in &message.frames {
            let Ok(frame) = decode(frame) else {
                board.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (nodes, lagged) = match frame {
                Some(Frame::Delta(delta)) => (delta.put, false),
                Some(Frame::Snapshot(snapshot)) => (
                    snapshot.view.map(|view| view.nodes).unwrap_or_default(),
                    snapshot.lagged,
                ),
                _ => continue,
            };
            board.lagged.fetch_add(lagged.into(), Ordering::Relaxed);
            for change in nodes.iter().filter_map(change_of) {
                if change > seen[index] {
                    board
                        .on_seen(seen[index], change, now)
                        .for_each(|took| record(&mut each, took));
                    seen[index] = change;
                }
            }
        }
    }
    drop(held);
    each
}

fn change_of(node: &wire::Node) -> Option<u64> {
    node.metadata.get(CHANGE_KEY)?.parse().ok()
}

fn report(bench: &WatchBench, group: String, measured: &Measured, meter: &Meter) -> FanoutReport {
    let Measured {
        board,
        tally,
        each,
        elapsed,
    } = measured;
    let (from_send, from_answer) = board.last_watcher();
    FanoutReport {
        bench: "watch",
        r#loop: if bench.rate.is_some() { "open" } else { "closed" },
        settings: Settings {
            watchers: bench.watchers,
            connections: bench.connections.min(bench.watchers),
            changes: bench.changes,
            rate: bench.rate,
            metadata_bytes: bench.metadata_bytes,
            group,
        },
        elapsed_s: (elapsed.as_secs_f64() * 1e6).round() / 1e6,
        changes: ChangeCounts {
            wanted: bench.changes as u64,
            sent: tally.sent,
            answered: tally.answered,
            complete: board.complete.load(Ordering::Acquire) as u64,
            late: tally.late,
            unsent: tally.unsent,
        },
        deliveries: each.len(),
        deliveries_per_s: per_second(each.len(), elapsed.as_secs_f64()),
        lagged_snapshots: board.lagged.load(Ordering::Relaxed),
        watchers_lost: board.lost.load(Ordering::Relaxed),
        errors: tally.errors.clone(),
        write_ms: (&tally.latency).into(),
        last_watcher_from_send_ms: (&from_send).into(),
        last_watcher_from_answer_ms: (&from_answer).into(),
        each_watcher_from_send_ms: each.into(),
        servers: meter.spent(board.complete.load(Ordering::Acquire) as u64, each.len()),
    }
}

fn table(report: &FanoutReport) -> Table {
    let changes = &report.changes;
    let mut fields = vec![
        ("bench", format!("watch, {} loop", report.r#loop)),
        (
            "watchers",
            format!(
                "{} on {} connections",
                report.settings.watchers, report.settings.connections
            ),
        ),
        ("elapsed", format!("{:.3} s", report.elapsed_s)),
        (
            "changes",
            format!(
                "{} sent, {} answered, {} seen by all",
                changes.sent, changes.answered, changes.complete
            ),
        ),
        (
            "deliveries",
            format!("{}, {:.1}/s", report.deliveries, report.deliveries_per_s),
        ),
    ];
    if report.r#loop == "open" {
        fields.push((
            "schedule",
            format!("{} late, {} never sent", changes.late, changes.unsent),
        ));
    }
    if !report.errors.is_empty() {
        fields.push(("errors", errors_text(&report.errors, 0)));
    }
    if report.lagged_snapshots + report.watchers_lost > 0 {
        fields.push((
            "laggards",
            format!(
                "{} snapshots for want of pace, {} streams lost",
                report.lagged_snapshots, report.watchers_lost
            ),
        ));
    }
    fields.push(("write", percentiles_text(&report.write_ms)));
    fields.push((
        "last watcher, from send",
        percentiles_text(&report.last_watcher_from_send_ms),
    ));
    fields.push((
        "last watcher, from answer",
        percentiles_text(&report.last_watcher_from_answer_ms),
    ));
    fields.push((
        "each watcher, from send",
        percentiles_text(&report.each_watcher_from_send_ms),
    ));
    if let Some(spent) = &report.servers {
        fields.push(("servers", spent.text("deliveries")));
    }
    Table::fields(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_last_watcher_counts() {
        let board = Board::new(2, 3);
        let at = |ms: u32| board.began + MS * ms;
        board.on_due(1, at(10));
        board.on_answered(1, at(14));
        let took: Vec<Duration> = [12, 13, 20]
            .iter()
            .flat_map(|ms| board.on_seen(0, 1, at(*ms)))
            .collect();
        assert_eq!(took, [MS * 2, MS * 3, MS * 10]);
        assert!(board.is_complete(1) && !board.is_complete(2));
        let (from_send, from_answer) = board.last_watcher();
        assert_eq!(from_send.len(), 1);
        assert!((9_900_000..=10_100_000).contains(&from_send.max()));
        assert!((5_900_000..=6_100_000).contains(&from_answer.max()));
    }

    #[test]
    fn a_watcher_that_skipped_changes_has_seen_them_all() {
        let board = Board::new(3, 1);
        for change in 1..=3 {
            board.on_due(change, board.began + MS);
        }
        assert_eq!(board.on_seen(0, 3, board.began + MS * 2).count(), 3);
        assert_eq!(board.complete.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_change_from_elsewhere_is_not_ours() {
        let board = Board::new(1, 1);
        assert_eq!(board.on_seen(1, 9, board.began).count(), 0);
        assert!(!board.is_complete(1));
    }

    #[test]
    fn a_watcher_before_the_answer_waits_zero_from_it() {
        let board = Board::new(1, 1);
        board.on_due(1, board.began + MS);
        assert_eq!(board.on_seen(0, 1, board.began + MS * 2).count(), 1);
        board.on_answered(1, board.began + MS * 3);
        let (_, from_answer) = board.last_watcher();
        assert!(from_answer.max() <= 1);
    }

    #[tokio::test]
    async fn waiting_for_a_change_ends_with_its_last_watcher() {
        let board = Arc::new(Board::new(1, 2));
        let waiting = tokio::spawn({
            let board = Arc::clone(&board);
            async move { board.wait_for(1).await }
        });
        assert_eq!(board.on_seen(0, 1, Instant::now()).count(), 1);
        assert!(!waiting.is_finished());
        assert_eq!(board.on_seen(0, 1, Instant::now()).count(), 1);
        waiting.await.unwrap();
    }
}
