//! `rollcall bench register`: writes on session streams, or as unary calls for comparison.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rollcall_client::ServiceKey;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::driver::{StreamLoad, drive_calls, drive_stream, gather};
use super::ground::{FILLER_KEY, Ground, filler, metadata_bytes};
use super::lane::Lane;
use super::load::{Load, positive};
use super::report::{Report, Tally};
use super::server_process::{Meter, ServerProcesses};
use super::stream::{SessionStream, written};
use crate::context::Context;
use crate::exit::{Failure, Nature, failure_of};
use crate::flags::Mode;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::servers::{way_to, wire_write_options};
use crate::talk::say;

/// Weights a node goes through, so that each registration changes something.
const WEIGHTS: u64 = 60_000;
/// Most nodes of one call (design section 11).
const BATCH_MAX: usize = 1_000;

/// Arguments of `rollcall bench register`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RegisterBench {
    #[command(flatten)]
    load: Load,
    /// Different nodes; when each is registered, they are registered again with another weight
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = positive)]
    nodes: usize,
    /// Services the nodes are spread over
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = positive)]
    services: usize,
    /// Bytes of metadata of each node
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = metadata_bytes)]
    metadata_bytes: usize,
    /// Nodes of one call
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = batch)]
    batch: usize,
    /// How the group is replicated in which the nodes are registered
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// A unary call for each write, instead of the session stream
    #[arg(long)]
    unary: bool,
    #[command(flatten)]
    servers: ServerProcesses,
}

/// Nodes of one call, within the servers' bound.
pub(crate) fn batch(text: &str) -> Result<usize, String> {
    match positive(text)? {
        count if count <= BATCH_MAX => Ok(count),
        count => Err(format!(
            "{count} are too many, at most {BATCH_MAX} go in one call"
        )),
    }
}

#[derive(Clone, Debug, Serialize)]
struct Settings {
    connections: usize,
    in_flight: usize,
    rate: Option<f64>,
    nodes: usize,
    services: usize,
    metadata_bytes: usize,
    batch: usize,
    mode: &'static str,
    transport: &'static str,
    group: String,
}

pub(crate) async fn run(
    context: &Context,
    bench: &RegisterBench,
    interrupt: Interrupt,
) -> Result<(), Failure> {
    // The shares of the connections are rounded up, and shares go unevenly to services.
    let room = (bench.nodes / bench.services + 1) * 2 + bench.load.connections * bench.batch + BATCH_MAX;
    let mut meter = bench.servers.meter()?;
    let ground = Ground::lay_in(bench.mode, context, bench.services, room).await?;
    let settings = Settings {
        connections: bench.load.connections,
        in_flight: bench.load.in_flight_max(),
        rate: bench.load.rate,
        nodes: bench.nodes,
        services: bench.services,
        metadata_bytes: bench.metadata_bytes,
        batch: bench.batch,
        mode: bench.mode.word(),
        transport: if bench.unary { "unary" } else { "stream" },
        group: ground.group().to_owned(),
    };
    let measured = measure(context, bench, &ground, &mut meter, interrupt).await;
    ground.clear_up().await;
    Report::new("register", bench.load.is_open(), "nodes", settings, &measured?)
        .with_servers(&meter)
        .print(&context.printer)
}

async fn measure(
    context: &Context,
    bench: &RegisterBench,
    ground: &Ground,
    meter: &mut Meter,
    interrupt: Interrupt,
) -> Result<Tally, Failure> {
    let timeout = context.servers.timeout();
    let lanes = bench.load.connections;
    let opening = Progress::of(lanes as u64, "opening sessions");
    let mut streams = Vec::with_capacity(lanes);
    for index in 0..lanes {
        let addresses = context.servers.addresses();
        let channel = way_to(&addresses[index % addresses.len()], timeout)?;
        streams.push((
            channel.clone(),
            SessionStream::open(channel, 1, timeout, &opening).await?,
        ));
    }
    opening.finish();
    let progress = bench.load.progress("registering");
    meter.begin()?;
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(lanes);
    for (index, (channel, stream)) in streams.into_iter().enumerate() {
        let lane = bench.load.lane(index, lanes, start, timeout);
        let nodes = Nodes::new(bench, ground.services(), index, timeout);
        let (progress, interrupt) = (progress.clone(), interrupt.clone());
        tasks.push(tokio::spawn(async move {
            if nodes.unary {
                register_by_calls(channel, stream, lane, nodes, progress, interrupt).await
            } else {
                register_on_stream(stream, lane, nodes, progress, interrupt).await
            }
        }));
    }
    let (tally, streams) = gather(tasks).await?;
    meter.end()?;
    progress.finish();
    for stream in streams {
        if let Err(failure) = stream.close(timeout).await {
            say(format_args!("{failure}"));
        }
    }
    Ok(tally)
}

/// What one connection registers.
#[derive(Debug)]
struct Nodes {
    services: Vec<wire::ServiceKey>,
    lane: usize,
    /// Different nodes of this connection.
    count: u64,
    batch: u64,
    filler: String,
    timeout: Duration,
    unary: bool,
}

impl Nodes {
    fn new(bench: &RegisterBench, services: &[ServiceKey], lane: usize, timeout: Duration) -> Self {
        Self {
            services: services.iter().map(wire::ServiceKey::from).collect(),
            lane,
            count: (bench.nodes.div_ceil(bench.load.connections)).max(bench.batch) as u64,
            batch: bench.batch as u64,
            filler: filler(bench.metadata_bytes),
            timeout,
            unary: bench.unary,
        }
    }

    fn request(&self, call: u64, proof: Option<wire::SessionProof>) -> wire::RegisterRequest {
        let first = call * self.batch;
        wire::RegisterRequest {
            options: Some(wire_write_options(self.timeout)),
            proof,
            nodes: (first..first + self.batch)
                .map(|sequence| self.node(sequence))
                .collect(),
        }
    }

    fn node(&self, sequence: u64) -> wire::RegisterNode {
        let (index, round) = (sequence % self.count, sequence / self.count);
        let service = &self.services[(index % self.services.len() as u64) as usize];
        let host = format!("10.{}.{}.{}", self.lane & 0xff, index >> 8 & 0xff, index & 0xff);
        let mut metadata = std::collections::BTreeMap::new();
        if !self.filler.is_empty() {
            metadata.insert(FILLER_KEY.to_owned(), self.filler.clone());
        }
        wire::RegisterNode {
            key: Some(service.clone()),
            registration: Some(wire::Registration {
                id: format!("node-{}-{index}", self.lane),
                addresses: vec![wire::Address {
                    name: "http".into(),
                    host,
                    port: 8080,
                }],
                weight: Some(u32::try_from(1 + round % WEIGHTS).unwrap_or(1)),
                metadata,
                kind: wire::NodeKind::Ephemeral.into(),
                state: wire::NodeState::Up.into(),
                ..wire::Registration::default()
            }),
            expected: None,
        }
    }
}

struct OnStream {
    nodes: Nodes,
    session: u64,
}

impl StreamLoad for OnStream {
    fn request(&mut self, call: u64) -> wire::SessionRequest {
        wire::SessionRequest {
            call,
            session: self.session,
            request: Some(Request::Register(self.nodes.request(call, None))),
        }
    }

    fn judge(&mut self, _: u64, response: Response) -> Result<u64, Failure> {
        written(response).map(|_| self.nodes.batch)
    }
}

async fn register_on_stream(
    mut stream: SessionStream,
    lane: Lane,
    nodes: Nodes,
    progress: Progress,
    interrupt: Interrupt,
) -> (Tally, SessionStream) {
    let session = stream.sessions().first().map_or(0, |session| session.session);
    let mut load = OnStream { nodes, session };
    let tally = drive_stream(&mut stream, lane, &mut load, &progress, interrupt).await;
    (tally, stream)
}

async fn register_by_calls(
    channel: rollcall_proto::upgrade::Channel,
    stream: SessionStream,
    lane: Lane,
    nodes: Nodes,
    progress: Progress,
    interrupt: Interrupt,
) -> (Tally, SessionStream) {
    let proof = stream.sessions().first().map(|session| wire::SessionProof {
        session: session.session,
        secret: session.secret.clone(),
    });
    let (stop, stopped) = oneshot::channel();
    let keeper = tokio::spawn(keep(stream, stopped));
    let nodes = Arc::new(nodes);
    let call = |call| {
        let mut registry = RegistryClient::new(channel.clone());
        let request = nodes.request(call, proof.clone());
        let batch = nodes.batch;
        async move {
            let done = registry.register(request).await;
            done.map(|_| batch)
                .map_err(|status| failure_of(&status, Nature::Write))
        }
    };
    let tally = drive_calls(lane, call, &progress, interrupt).await;
    // The keeper ends when it is told to, or when this end is dropped.
    let _ = stop.send(());
    match keeper.await {
        Ok(stream) => (tally, stream),
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

/// Keeps the stream's sessions alive while writes travel elsewhere.
async fn keep(mut stream: SessionStream, mut stopped: oneshot::Receiver<()>) -> SessionStream {
    loop {
        let renew_at = stream.renew_at();
        let kept = tokio::select! {
            _ = &mut stopped => return stream,
            incoming = stream.next() => incoming.map(|_| ()),
            () = tokio::time::sleep_until(renew_at) => stream.keep_alive(),
        };
        if let Err(failure) = kept {
            say(format_args!("a session stream broke off: {failure}"));
            return stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64, batch: u64) -> Nodes {
        Nodes {
            services: (0..3)
                .map(|index| wire::ServiceKey {
                    group: "g".into(),
                    service: format!("s{index}"),
                })
                .collect(),
            lane: 2,
            count,
            batch,
            filler: filler(128),
            timeout: Duration::from_secs(1),
            unary: false,
        }
    }

    #[test]
    fn each_registration_changes_its_node() {
        let nodes = nodes(5, 1);
        let (first, again) = (
            nodes.node(3).registration.unwrap(),
            nodes.node(8).registration.unwrap(),
        );
        assert_eq!(first.id, again.id);
        assert_ne!(first.weight, again.weight);
        assert_eq!(
            nodes.node(3).key,
            nodes.node(8).key,
            "a node stays in its service"
        );
    }

    #[test]
    fn a_batch_holds_different_nodes() {
        let nodes = nodes(10, 10);
        let request = nodes.request(7, None);
        let ids: std::collections::BTreeSet<String> = request
            .nodes
            .iter()
            .map(|node| node.registration.clone().unwrap().id)
            .collect();
        assert_eq!(ids.len(), 10);
        assert_eq!(request.options.unwrap().request_id.len(), 16);
    }

    #[test]
    fn batches_are_bounded() {
        assert!(batch("1001").is_err() && batch("0").is_err());
        assert_eq!(batch("1000"), Ok(1_000));
    }
}
