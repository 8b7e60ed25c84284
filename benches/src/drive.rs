//! The load: closed loops over connections, and what they cost.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::cluster::Cluster;
use crate::machine::{self, Cpu, Others};
use crate::product::{Client, Ticket};
use crate::results::Run;

/// A call may take so long before it counts as failed.
const CALL_MAX: Duration = Duration::from_secs(30);

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Calls(u64),
    Time(Duration),
}

/// What a load did.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) calls: u64,
    pub(crate) took: Duration,
    latency: Histogram<u64>,
}

impl Load {
    /// Adds rate and latencies; `items` were done by each call.
    pub(crate) fn tell(&self, run: &mut Run, items: u64) {
        let seconds = self.took.as_secs_f64().max(1e-9);
        run.set("rate_per_s", (self.calls * items) as f64 / seconds);
        run.set("p50_ms", self.latency.value_at_quantile(0.5) as f64 / 1e6);
        run.set("p99_ms", self.latency.value_at_quantile(0.99) as f64 / 1e6);
    }
}

/// Lanes share so many: a histogram of each call in flight is memory that lies in no cache.
const HISTOGRAMS: usize = 16;

/// When the call in flight was asked for, in milliseconds since the start; [`IDLE`]: there is none.
type Asked = Arc<AtomicU64>;
const IDLE: u64 = u64::MAX;

/// Lanes with so many calls in flight each, as fast as answers come. `call` is told the lane and the call's number. The
/// first call that fails ends it all: a product that refuses some work is not measured by the rest.
pub(crate) async fn drive<C, F>(lanes: usize, depth: usize, until: Until, call: C) -> Result<Load>
where
    C: Fn(usize, u64) -> F + Send + Sync + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let call = Arc::new(call);
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut latencies = Vec::new();
    for _ in 0..HISTOGRAMS.min(lanes) {
        latencies.push(Arc::new(Mutex::new(Histogram::<u64>::new(3)?)));
    }
    let mut asked: Vec<Asked> = Vec::new();
    let mut tasks = JoinSet::new();
    for lane in (0..lanes).flat_map(|lane| std::iter::repeat_n(lane, depth)) {
        let (call, next) = (Arc::clone(&call), Arc::clone(&next));
        let latency = Arc::clone(&latencies[lane % latencies.len()]);
        let in_flight = Arc::new(AtomicU64::new(IDLE));
        asked.push(Arc::clone(&in_flight));
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let since = started.elapsed();
                let over = match until {
                    Until::Calls(calls) => number >= calls,
                    Until::Time(window) => since >= window,
                };
                if over {
                    in_flight.store(IDLE, Ordering::Relaxed);
                    return anyhow::Ok(());
                }
                in_flight.store(millis(since), Ordering::Relaxed);
                call(lane, number)
                    .await
                    .with_context(|| format!("call {number}"))?;
                let took = started.elapsed() - since;
                latency.lock().record(u64::try_from(took.as_nanos())?)?;
            }
        });
    }
    tokio::select! {
        done = join_all(&mut tasks) => done?,
        () = overdue(started, &asked) => bail!("a call was not answered within {CALL_MAX:?}"),
    }
    let took = started.elapsed();
    let mut latency = Histogram::<u64>::new(3)?;
    for lanes in latencies {
        latency.add(&*lanes.lock())?;
    }
    Ok(Load {
        calls: latency.len(),
        took,
        latency,
    })
}

fn millis(since: Duration) -> u64 {
    u64::try_from(since.as_millis()).unwrap_or(IDLE - 1)
}

async fn join_all(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(lane) = tasks.join_next().await {
        lane??;
    }
    Ok(())
}

/// Ends when a call was in flight for too long. One look for all: a timer for each call costs more than some calls do.
async fn overdue(started: Instant, asked: &[Asked]) {
    let mut looks = tokio::time::interval(Duration::from_secs(1));
    loop {
        looks.tick().await;
        let oldest = asked.iter().map(|asked| asked.load(Ordering::Relaxed)).min();
        if oldest.is_some_and(|oldest| millis(started.elapsed()) >= oldest.saturating_add(millis(CALL_MAX))) {
            return;
        }
    }
}

/// What is spent from now on, by the servers and by this process.
#[derive(Debug)]
pub(crate) struct Meter {
    servers: Vec<Cpu>,
    own: Cpu,
    bytes: u64,
    others: Others,
}

impl Meter {
    pub(crate) fn begin(cluster: &Cluster) -> Self {
        Self {
            others: Others::begin(),
            bytes: machine::loopback_bytes(),
            own: Cpu::of(std::process::id()),
            servers: cluster.cpu(),
        }
    }

    /// Nanoseconds of all servers since then.
    pub(crate) fn servers_ns(&self, cluster: &Cluster) -> u64 {
        cluster
            .cpu()
            .iter()
            .zip(&self.servers)
            .map(|(now, then)| now.since(then))
            .sum()
    }

    /// Adds what each of so many operations cost.
    pub(crate) fn tell(&self, cluster: &Cluster, run: &mut Run, operations: u64) {
        let servers = self.servers_ns(cluster);
        let own = Cpu::of(std::process::id()).since(&self.own);
        let operations = operations.max(1) as f64;
        run.set("server_cpu_us", servers as f64 / 1e3 / operations);
        run.set("load_cpu_us", own as f64 / 1e3 / operations);
        run.set(
            "wire_bytes",
            (machine::loopback_bytes() - self.bytes) as f64 / operations,
        );
        run.set("others_share", self.others.share(servers + own));
    }
}

/// Keeps connections and their sessions while something else is measured on them, as their owners would.
#[derive(Debug)]
pub(crate) struct Keeper(JoinHandle<()>);

impl Keeper {
    /// A heartbeat each so often; without a ticket, whatever the connection itself needs.
    pub(crate) fn keep(clients: Vec<(Arc<dyn Client>, Option<Ticket>)>, every: Duration) -> Self {
        Self(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                for (client, ticket) in &clients {
                    let _lost = match ticket {
                        Some(ticket) => client.renew(ticket).await,
                        None => client.idle().await,
                    };
                }
            }
        }))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}
