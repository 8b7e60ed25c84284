//! Watch: one service and many watchers of it, on connections of their own; and many services watched over few
//! connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Ground, SERVICE_NODES, close_all, fill};
use crate::board::Board;
use crate::cluster::Cluster;
use crate::drive::{Keeper, Meter, Until, drive};
use crate::product::{Client, Dialect, Node, Ticket};
use crate::results::{Row, Run};

/// Connections of the shared kind.
const SHARED: usize = 8;
/// Watchers being started at a time.
const STARTING: usize = 64;
/// Until a change counts as not arrived.
const ARRIVAL_MAX: Duration = Duration::from_secs(60);
/// For what follows an arrival: acknowledgements, new watches.
const SETTLE: Duration = Duration::from_millis(50);
/// Connections are kept by a sign of life so often.
const KEEP_EVERY: Duration = Duration::from_secs(8);
/// Calls of the writer in flight during a burst.
const WRITING: usize = 16;

/// The provider whose nodes change.
struct Writer {
    client: Arc<dyn Client>,
    ticket: Ticket,
    nodes: Vec<Node>,
    mark: u64,
}

impl Writer {
    /// The next mark, and the node that will carry it, before and after. A burst never changes a node twice at a time.
    fn next(&mut self) -> (Node, Node) {
        self.mark += 1;
        let index = (self.mark % self.nodes.len() as u64) as usize;
        let old = self.nodes[index].clone();
        self.nodes[index] = old.marked(self.mark);
        (old, self.nodes[index].clone())
    }
}

/// All runs with so many watchers; `name` heads the workloads' names.
pub(crate) async fn watch_own(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
    name: &str,
    watchers: usize,
    burst: u64,
) -> Result<()> {
    let named = |what: &str| format!("{name}-{what}");
    if !ground.wants_any(&[&named("memory"), &named("one"), &named("burst")]) {
        return Ok(());
    }
    let services = Ground::services(1);
    dialect.prepare(&cluster.addresses(), &services).await?;
    let providers = cluster.connect_with_sessions(dialect, 1).await?;
    fill(ground, &providers, &services, SERVICE_NODES).await?;
    let (client, ticket) = providers[0].clone();
    let mut writer = Writer {
        client,
        ticket,
        nodes: ground.nodes(&services[0], 1, SERVICE_NODES),
        mark: 0,
    };
    let before = cluster.resident();
    let board = Board::new(watchers);
    let clients = cluster.connect(dialect, watchers).await?;
    start(&clients, |_| Arc::clone(&services[0]), 1, &board).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut memory = Run::default();
    memory.set(
        "bytes_each",
        cluster.resident().saturating_sub(before) as f64 / watchers as f64,
    );
    file(ground, cluster, dialect, &named("memory"), memory).await;
    let _kept = Keeper::keep(
        clients.iter().map(|client| (Arc::clone(client), None)).collect(),
        KEEP_EVERY,
    );

    let changes = ground.sizes.changes;
    let work =
        async |cluster: &mut Cluster, _run: usize| one(cluster, &mut writer, &board, watchers, changes).await;
    ground
        .measure(&named("one"), ground.sizes.runs, cluster, dialect.name(), work)
        .await;
    if burst > 0 {
        let work = async |cluster: &mut Cluster, _run: usize| {
            all(cluster, &mut writer, &board, watchers, burst).await
        };
        ground
            .measure(&named("burst"), ground.sizes.runs, cluster, dialect.name(), work)
            .await;
    }
    close_all(providers).await
}

async fn file(ground: &Ground, cluster: &Cluster, dialect: &Arc<dyn Dialect>, workload: &str, run: Run) {
    if ground.wants(workload) {
        let row = Row {
            workload: workload.to_owned(),
            servers: cluster.size(),
            product: cluster.product.name().to_owned(),
            dialect: dialect.name().to_owned(),
            runs: vec![run],
            note: None,
            load: crate::machine::load(),
        };
        ground.file(row).await;
    }
}

/// Each client follows `each` services.
async fn start(
    clients: &[Arc<dyn Client>],
    service: impl Fn(usize) -> Arc<str>,
    each: usize,
    board: &Arc<Board>,
) -> Result<()> {
    let watches: Vec<_> = (0..clients.len() * each)
        .map(|index| {
            (
                Arc::clone(&clients[index / each]),
                service(index),
                board.watcher(),
            )
        })
        .collect();
    let count = watches.len() as u64;
    let watches = Arc::new(watches);
    drive(STARTING, 1, Until::Calls(count), move |_lane, call| {
        let watches = Arc::clone(&watches);
        async move {
            let (client, service, watcher) = &watches[call as usize];
            client.watch(service, Arc::clone(watcher)).await
        }
    })
    .await?;
    Ok(())
}

/// Single changes, one after the other; figures of each on average, the slowest arrival at the median.
async fn one(
    cluster: &Cluster,
    writer: &mut Writer,
    board: &Board,
    watchers: usize,
    changes: u64,
) -> Result<Run> {
    let (mut cpu_ns, mut lasts, mut medians) = (0, Vec::new(), Vec::new());
    let mut run = Run::default();
    for _ in 0..changes {
        let (old, new) = writer.next();
        board.expect(new.mark);
        let meter = Meter::begin(cluster);
        let since = Instant::now();
        writer.client.replace(&writer.ticket, &old, &new).await?;
        let arrivals = board.arrivals(since, ARRIVAL_MAX).await;
        ensure!(
            arrivals.len() == watchers,
            "{} of {watchers} watchers saw a change",
            arrivals.len()
        );
        tokio::time::sleep(SETTLE).await;
        cpu_ns += meter.servers_ns(cluster);
        meter.tell(cluster, &mut run, 1);
        lasts.push(arrivals[watchers - 1].as_secs_f64() * 1e3);
        medians.push(arrivals[watchers / 2].as_secs_f64() * 1e3);
    }
    lasts.sort_by(f64::total_cmp);
    medians.sort_by(f64::total_cmp);
    run.set("server_cpu_ms", cpu_ns as f64 / 1e6 / changes as f64);
    run.set(
        "server_cpu_us",
        cpu_ns as f64 / 1e3 / changes as f64 / watchers as f64,
    );
    run.set("last_ms", lasts[lasts.len() / 2]);
    run.set("p50_ms", medians[medians.len() / 2]);
    Ok(run)
}

/// Many changes at once, then one more: who has seen that has seen all.
async fn all(
    cluster: &Cluster,
    writer: &mut Writer,
    board: &Board,
    watchers: usize,
    burst: u64,
) -> Result<Run> {
    let changes: Arc<Vec<_>> = Arc::new((1..burst).map(|_| writer.next()).collect());
    let (old, new) = writer.next();
    board.expect(new.mark);
    let (client, ticket) = (Arc::clone(&writer.client), writer.ticket.clone());
    let meter = Meter::begin(cluster);
    let since = Instant::now();
    let writing = async {
        // Changes of one node, `nodes` apart, never overlap: the window is smaller.
        let lanes = WRITING.min(writer.nodes.len() / 2).max(1);
        drive(
            lanes,
            1,
            Until::Calls(changes.len() as u64),
            move |_lane, call| {
                let (client, ticket, changes) = (Arc::clone(&client), ticket.clone(), Arc::clone(&changes));
                async move {
                    let (old, new) = &changes[call as usize];
                    client.replace(&ticket, old, new).await
                }
            },
        )
        .await?;
        writer.client.replace(&writer.ticket, &old, &new).await?;
        let written = since.elapsed();
        let arrivals = board.arrivals(since, ARRIVAL_MAX).await;
        anyhow::Ok((written, arrivals))
    };
    let mut peak = 0;
    let sampling = async {
        loop {
            peak = peak.max(cluster.resident());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (written, arrivals) = tokio::select! {
        done = writing => done?,
        () = sampling => anyhow::bail!("sampling does not end"),
    };
    ensure!(
        arrivals.len() == watchers,
        "{} of {watchers} watchers are current",
        arrivals.len()
    );
    tokio::time::sleep(SETTLE).await;
    let mut run = Run::default();
    meter.tell(cluster, &mut run, burst * watchers as u64);
    run.set("server_cpu_s", meter.servers_ns(cluster) as f64 / 1e9);
    run.set("written_s", written.as_secs_f64());
    run.set("current_s", arrivals[watchers - 1].as_secs_f64());
    run.set("peak_mib", peak as f64 / f64::from(1 << 20));
    Ok(run)
}

/// As many subscriptions, each to a service of its own, over few connections; one change in each service.
pub(crate) async fn watch_shared(
    ground: &Ground,
    cluster: &mut Cluster,
    dialect: &Arc<dyn Dialect>,
) -> Result<()> {
    if !ground.wants_any(&["watch-shared-memory", "watch-shared-one"]) {
        return Ok(());
    }
    let each = ground.sizes.watchers / SHARED;
    let watchers = each * SHARED;
    let services = Ground::services(watchers as u64);
    dialect.prepare(&cluster.addresses(), &services).await?;
    let providers = cluster.connect_with_sessions(dialect, 1).await?;
    let (client, ticket) = providers[0].clone();
    let nodes: Vec<_> = services
        .iter()
        .flat_map(|service| ground.nodes(service, 1, 1))
        .collect();
    for node in &nodes {
        client.register(&ticket, std::slice::from_ref(node)).await?;
    }
    let clients = cluster.connect(dialect, SHARED).await?;
    let board = Board::new(watchers);
    let before = cluster.resident();
    start(&clients, |index| Arc::clone(&services[index]), each, &board).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut memory = Run::default();
    memory.set(
        "bytes_each",
        cluster.resident().saturating_sub(before) as f64 / watchers as f64,
    );
    file(ground, cluster, dialect, "watch-shared-memory", memory).await;

    let mut mark = 0;
    let work = async |cluster: &mut Cluster, _run: usize| {
        let before = mark;
        mark += 1;
        board.expect(mark);
        let nodes = nodes.clone();
        let (client, ticket) = (Arc::clone(&client), ticket.clone());
        let meter = Meter::begin(cluster);
        let since = Instant::now();
        drive(
            WRITING,
            1,
            Until::Calls(nodes.len() as u64),
            move |_lane, call| {
                let (client, ticket) = (Arc::clone(&client), ticket.clone());
                let node = nodes[call as usize].clone();
                async move {
                    client
                        .replace(&ticket, &node.marked(before), &node.marked(before + 1))
                        .await
                }
            },
        )
        .await?;
        let arrivals = board.arrivals(since, ARRIVAL_MAX).await;
        ensure!(
            arrivals.len() == watchers,
            "{} of {watchers} watchers saw their change",
            arrivals.len()
        );
        tokio::time::sleep(SETTLE).await;
        let mut run = Run::default();
        meter.tell(cluster, &mut run, watchers as u64);
        run.set("last_ms", arrivals[watchers - 1].as_secs_f64() * 1e3);
        Ok(run)
    };
    ground
        .measure(
            "watch-shared-one",
            ground.sizes.runs,
            cluster,
            dialect.name(),
            work,
        )
        .await;
    close_all(providers).await
}
