//! `rollcall bench discover`: queries of services, answers decoded as a consumer would.

use std::sync::Arc;

use clap::Args;
use prost::Message;
use rollcall_proto::upgrade::Channel;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::registry_client::RegistryClient;
use serde::Serialize;
use tokio::time::Instant;

use super::driver::{drive_calls, gather};
use super::ground::{Ground, filler, metadata_bytes};
use super::load::{Load, positive};
use super::query_stream::QueryStream;
use super::report::{Report, Tally};
use super::server_process::{Meter, ServerProcesses};
use crate::context::Context;
use crate::exit::{Failure, Nature, failure_of};
use crate::flags::{ReadMode, Reading};
use crate::interrupt::Interrupt;
use crate::servers::{ANSWER_BYTES_MAX, way_to};

/// Arguments of `rollcall bench discover`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DiscoverBench {
    #[command(flatten)]
    load: Load,
    /// Services to ask for, in turn
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = positive)]
    services: usize,
    /// Nodes of each service
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = positive)]
    nodes: usize,
    /// Bytes of metadata of each node
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = metadata_bytes)]
    metadata_bytes: usize,
    /// Send the sign that is known, so that the answer is only that it still holds
    #[arg(long)]
    known_sign: bool,
    /// A call for each query, instead of one stream of queries for each connection
    #[arg(long)]
    unary: bool,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    servers: ServerProcesses,
}

#[derive(Clone, Debug, Serialize)]
struct Settings {
    connections: usize,
    in_flight: usize,
    rate: Option<f64>,
    services: usize,
    nodes: usize,
    metadata_bytes: usize,
    known_sign: bool,
    transport: &'static str,
    read: &'static str,
    group: String,
}

pub(crate) async fn run(
    context: &Context,
    bench: &DiscoverBench,
    interrupt: Interrupt,
) -> Result<(), Failure> {
    let mut meter = bench.servers.meter()?;
    let ground = Ground::lay(context, bench.services, bench.nodes).await?;
    let settings = Settings {
        connections: bench.load.connections,
        in_flight: bench.load.in_flight_max(),
        rate: bench.load.rate,
        services: bench.services,
        nodes: bench.nodes,
        metadata_bytes: bench.metadata_bytes,
        known_sign: bench.known_sign,
        transport: if bench.unary { "unary" } else { "stream" },
        read: match bench.reading.read {
            ReadMode::Linearizable => "linearizable",
            ReadMode::Leased => "leased",
            ReadMode::Local => "local",
        },
        group: ground.group().to_owned(),
    };
    let measured = measure(context, bench, &ground, &mut meter, interrupt).await;
    ground.clear_up().await;
    Report::new("discover", bench.load.is_open(), "nodes", settings, &measured?)
        .with_servers(&meter)
        .print(&context.printer)
}

async fn measure(
    context: &Context,
    bench: &DiscoverBench,
    ground: &Ground,
    meter: &mut Meter,
    mut interrupt: Interrupt,
) -> Result<Tally, Failure> {
    let timeout = context.servers.timeout();
    let metadata = filler(bench.metadata_bytes);
    tokio::select! {
        filled = ground.fill(bench.nodes, &metadata) => filled?,
        () = interrupt.requested() => return Err(Failure::failed("interrupted while nodes were being registered")),
    }
    let questions = Arc::new(questions(context, bench, ground).await?);
    let lanes = bench.load.connections;
    let mut askers = Vec::with_capacity(lanes);
    for index in 0..lanes {
        let addresses = context.servers.addresses();
        let channel = way_to(&addresses[index % addresses.len()], timeout)?;
        askers.push(if bench.unary {
            Asker::Unary(channel)
        } else {
            Asker::Stream(QueryStream::open(channel, timeout).await?)
        });
    }
    let progress = bench.load.progress("asking");
    meter.begin()?;
    let start = Instant::now();
    let tasks = askers.into_iter().enumerate().map(|(index, asker)| {
        let lane = bench.load.lane(index, lanes, start, timeout);
        let (questions, progress, interrupt) = (Arc::clone(&questions), progress.clone(), interrupt.clone());
        tokio::spawn(async move {
            let call = |call: u64| {
                let question = questions[(call % questions.len() as u64) as usize].clone();
                ask(asker.clone(), question)
            };
            (drive_calls(lane, call, &progress, interrupt).await, ())
        })
    });
    let (tally, _) = gather(tasks.collect()).await?;
    meter.end()?;
    progress.finish();
    Ok(tally)
}

async fn questions(
    context: &Context,
    bench: &DiscoverBench,
    ground: &Ground,
) -> Result<Vec<wire::QueryRequest>, Failure> {
    let read = wire::ReadOptions {
        mode: match bench.reading.read {
            ReadMode::Linearizable => wire::ReadMode::Linearizable,
            ReadMode::Leased => wire::ReadMode::Leased,
            ReadMode::Local => wire::ReadMode::Local,
        }
        .into(),
        max_age_ms: bench
            .reading
            .max_age
            .map_or(0, |age| crate::names::millis(age).max(1)),
        ..wire::ReadOptions::default()
    };
    let mut questions = Vec::with_capacity(ground.services().len());
    for service in ground.services() {
        let known_sign = if bench.known_sign {
            context
                .servers
                .registry()
                .query_wire(service, rollcall_client::ReadOptions::default())
                .await?
                .value
                .sign
        } else {
            None
        };
        questions.push(wire::QueryRequest {
            key: Some(service.into()),
            read: Some(read),
            known_sign,
            ..wire::QueryRequest::default()
        });
    }
    Ok(questions)
}

/// How a connection asks.
#[derive(Clone)]
enum Asker {
    Stream(QueryStream),
    Unary(Channel),
}

/// How many nodes came.
async fn ask(asker: Asker, question: wire::QueryRequest) -> Result<u64, Failure> {
    let answer = match asker {
        Asker::Stream(stream) => stream.ask(question).await?,
        Asker::Unary(channel) => RegistryClient::new(channel)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .query(question)
            .await
            .map_err(|status| failure_of(&status, Nature::Read))?
            .into_inner(),
    };
    match answer.view {
        None if answer.unchanged => Ok(0),
        None => Err(Failure::failed("the answer holds no view")),
        Some(view) => wire::ServiceView::decode(view)
            .map(|view| view.nodes.len() as u64)
            .map_err(|e| Failure::failed(format!("the view cannot be read: {e}"))),
    }
}
