//! `rollcall bench renew`: heartbeats of many sessions over few connections.

use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use serde::Serialize;
use tokio::time::Instant;

use super::datagram::{Speaker, first_counter};
use super::driver::{StreamLoad, drive_stream, gather};
use super::load::{Load, positive};
use super::report::{Report, Tally};
use super::server_process::{Meter, ServerProcesses};
use super::stream::{SessionStream, unexpected};
use crate::context::Context;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::servers::way_to;
use crate::talk::say;

/// Streams on which sessions are opened that will do without.
const OPENING_STREAMS: usize = 16;
/// Sockets that introduce themselves at a time.
const GREETINGS: usize = 256;

/// Arguments of `rollcall bench renew`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RenewBench {
    #[command(flatten)]
    load: Load,
    /// Sessions in all
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = positive)]
    sessions: usize,
    /// Sessions that one heartbeat renews
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = positive)]
    batch: usize,
    /// By datagram: --connections are sockets then, sessions that each takes in turn, --batch of them in one datagram
    #[arg(long)]
    datagram: bool,
    #[command(flatten)]
    servers: ServerProcesses,
}

#[derive(Clone, Debug, Serialize)]
struct Settings {
    connections: usize,
    in_flight: usize,
    rate: Option<f64>,
    sessions: usize,
    batch: usize,
    transport: &'static str,
}

pub(crate) async fn run(context: &Context, bench: &RenewBench, interrupt: Interrupt) -> Result<(), Failure> {
    let settings = Settings {
        connections: bench.load.connections,
        in_flight: bench.load.in_flight_max(),
        rate: bench.load.rate,
        sessions: bench.sessions,
        batch: bench.batch,
        transport: if bench.datagram { "datagram" } else { "stream" },
    };
    let mut meter = bench.servers.meter()?;
    let tally = if bench.datagram {
        measure_datagrams(context, bench, &mut meter, interrupt).await?
    } else {
        measure(context, bench, &mut meter, interrupt).await?
    };
    Report::new("renew", bench.load.is_open(), "sessions", settings, &tally)
        .with_servers(&meter)
        .print(&context.printer)
}

async fn measure(
    context: &Context,
    bench: &RenewBench,
    meter: &mut Meter,
    mut interrupt: Interrupt,
) -> Result<Tally, Failure> {
    let timeout = context.servers.timeout();
    let lanes = bench.load.connections.min(bench.sessions);
    let opening = Progress::of(bench.sessions as u64, "opening sessions");
    let streams = (0..lanes).map(|index| {
        let addresses = context.servers.addresses();
        let address = &addresses[index % addresses.len()];
        let share = bench.sessions / lanes + usize::from(index < bench.sessions % lanes);
        let opening = &opening;
        async move { SessionStream::open(way_to(address, timeout)?, share, timeout, opening).await }
    });
    let streams = tokio::select! {
        opened = futures_util::future::try_join_all(streams) => opened?,
        () = interrupt.requested() => return Err(Failure::failed("interrupted while sessions were being opened")),
    };
    opening.finish();
    let progress = bench.load.progress("renewing");
    meter.begin()?;
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(lanes);
    for (index, mut stream) in streams.into_iter().enumerate() {
        let lane = bench.load.lane(index, lanes, start, timeout);
        let (progress, interrupt) = (progress.clone(), interrupt.clone());
        let sessions: Vec<u64> = stream.sessions().iter().map(|session| session.session).collect();
        let mut load = Heartbeats {
            batch: bench.batch.min(sessions.len()),
            sessions,
        };
        tasks.push(tokio::spawn(async move {
            let tally = drive_stream(&mut stream, lane, &mut load, &progress, interrupt).await;
            (tally, stream)
        }));
    }
    let (tally, streams) = gather(tasks).await?;
    meter.end()?;
    progress.finish();
    let closing = streams.into_iter().map(|stream| stream.close(timeout));
    for closed in futures_util::future::join_all(closing).await {
        if let Err(failure) = closed {
            say(format_args!("{failure}"));
        }
    }
    Ok(tally)
}

/// The sessions are opened on a few streams that end before the load begins; afterwards they lapse.
async fn measure_datagrams(
    context: &Context,
    bench: &RenewBench,
    meter: &mut Meter,
    mut interrupt: Interrupt,
) -> Result<Tally, Failure> {
    let timeout = context.servers.timeout();
    let addresses = context.servers.addresses();
    let streams = OPENING_STREAMS.min(bench.sessions);
    let opening = Progress::of(bench.sessions as u64, "opening sessions");
    let opened = (0..streams).map(|index| {
        let address = &addresses[index % addresses.len()];
        let share = bench.sessions / streams + usize::from(index < bench.sessions % streams);
        let opening = &opening;
        async move {
            let stream = SessionStream::open(way_to(address, timeout)?, share, timeout, opening).await?;
            let sessions = stream.sessions().iter().cloned();
            Ok::<_, Failure>(sessions.map(|session| (address, session)).collect::<Vec<_>>())
        }
    });
    let opened = tokio::select! {
        opened = futures_util::future::try_join_all(opened) => opened?.concat(),
        () = interrupt.requested() => return Err(Failure::failed("interrupted while sessions were being opened")),
    };
    opening.finish();
    let lanes = bench.load.connections.min(opened.len());
    let speakers = (0..lanes).map(|index| {
        let (first, last) = (index * opened.len() / lanes, (index + 1) * opened.len() / lanes);
        let (server, session) = &opened[first];
        let sessions: Vec<_> = opened[first..last]
            .iter()
            .map(|(_, session)| session.clone())
            .collect();
        async move { Speaker::start(index, server, &session.heartbeat, &sessions, bench.batch).await }
    });
    let speakers = futures_util::stream::iter(speakers).buffered(GREETINGS);
    let speakers: Vec<Speaker> = speakers.try_collect().await?;
    let progress = bench.load.progress("renewing");
    meter.begin()?;
    let (start, base) = (Instant::now(), first_counter());
    let tasks = speakers.into_iter().enumerate().map(|(index, speaker)| {
        let lane = bench.load.lane(index, lanes, start, timeout);
        let (progress, interrupt) = (progress.clone(), interrupt.clone());
        tokio::spawn(async move { (speaker.drive(lane, base, &progress, interrupt).await, ()) })
    });
    let (tally, _) = gather(tasks.collect()).await?;
    meter.end()?;
    progress.finish();
    Ok(tally)
}

/// Takes the sessions of a stream in turn, so many at a time.
struct Heartbeats {
    sessions: Vec<u64>,
    batch: usize,
}

impl StreamLoad for Heartbeats {
    fn request(&mut self, call: u64) -> wire::SessionRequest {
        let count = self.sessions.len();
        let first = (call % count as u64) as usize * self.batch % count;
        let sessions: Vec<u64> = (0..self.batch)
            .map(|offset| self.sessions[(first + offset) % count])
            .collect();
        wire::SessionRequest {
            call,
            session: sessions[0],
            request: Some(Request::Renew(wire::Renew { sessions })),
        }
    }

    fn judge(&mut self, _: u64, response: Response) -> Result<u64, Failure> {
        match response {
            Response::Renewed(renewed) if renewed.not_found.is_empty() => Ok(self.batch as u64),
            Response::Renewed(_) => Err(wire::Error {
                code: wire::ErrorCode::SessionNotFound.into(),
                message: "a session of the bench has expired".into(),
                ..wire::Error::default()
            }
            .into()),
            Response::Error(error) => Err(error.into()),
            other => Err(unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_gets_its_turn() {
        let mut load = Heartbeats {
            sessions: vec![1, 2, 3, 4, 5],
            batch: 2,
        };
        let mut seen = std::collections::BTreeMap::new();
        for call in 0..5 {
            let Some(Request::Renew(renew)) = load.request(call).request else {
                panic!("not a renewal")
            };
            assert_eq!(renew.sessions.len(), 2);
            for session in renew.sessions {
                *seen.entry(session).or_insert(0) += 1;
            }
        }
        assert_eq!(
            seen.into_iter().collect::<Vec<_>>(),
            [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2)]
        );
    }

    #[test]
    fn a_dead_session_is_an_error_by_its_name() {
        let mut load = Heartbeats {
            sessions: vec![1],
            batch: 1,
        };
        let dead = wire::Renewed {
            sessions: vec![],
            not_found: vec![1],
        };
        assert_eq!(
            load.judge(0, Response::Renewed(dead)).unwrap_err().label(),
            "session_not_found"
        );
        let alive = wire::Renewed {
            sessions: vec![1],
            not_found: vec![],
        };
        assert_eq!(load.judge(0, Response::Renewed(alive)).unwrap(), 1);
    }
}
