//! Runs it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::leaders;
use super::options::{Options, Workload};
use super::stall::StallWatch;
use crate::checker::{Finding, Verdict, linear, revisions, sessions, watches};
use crate::history::{Fault, Heartbeats, History, Operation, Outcome, Record, pair};
use crate::lab::{Cluster, ClusterOptions};
use crate::nemesis::{Nemesis, Planned, schedule};
use crate::net::Net;
use crate::workload::followers::{Followed, Followers};
use crate::workload::heartbeats::Fleet;
use crate::workload::registers::Registers;
use crate::workload::{Stop, followers, heartbeats, put_group, registers};

/// From the end of the last fault to readiness and, later, to equal state.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// Load without faults, before the end.
const PEACE: Duration = Duration::from_secs(3);
/// How late an expiry may be where nothing excuses it: a tick, a commit, a watch, and a busy machine.
const LATE_MAX: Duration = Duration::from_secs(3);
const DISK_BYTES: u64 = 256 << 20;
/// With disks this small the usual reserve would be a large part of them.
const RESERVE: &str = "storage.reserve_bytes=16777216";
/// Lines of a server's log that explain its unasked end.
const LOG_LINES: usize = 5;

/// What came of a run.
#[derive(Debug)]
pub struct Findings {
    /// What the judges said.
    pub verdicts: Vec<Verdict>,
    /// Everything that was written down.
    pub records: Vec<Record>,
    /// Figures of the run.
    pub figures: Vec<String>,
    /// Kinds that could not be done here, and why.
    pub left_out: Vec<String>,
}

impl Findings {
    /// Whether every judge judged something, decided everything and found nothing.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.verdicts.iter().all(Verdict::is_good)
    }
}

/// Runs it and judges it.
///
/// # Errors
/// The run could not be carried out. A violation is no error: see [`Findings::is_good`].
pub async fn run(options: &Options) -> anyhow::Result<Findings> {
    let mut left_out = Vec::new();
    let net = match Net::start_seeded(options.servers, options.seed) {
        Ok(net) => Some(Arc::new(net)),
        Err(reason) => {
            left_out.push(format!("everything done to the network: {reason:#}"));
            None
        }
    };
    let mut cluster = start_cluster(options, net.as_ref()).await?;
    let history = History::start(Some(&options.folder.join("history.jsonl")))?;
    let stalls = StallWatch::start(&history)?;
    let _leaders = leaders::watch(&cluster.addresses(), &history);
    let mut nemesis = Nemesis::new(net.clone(), history.clone());
    let (possible, impossible) = options
        .kinds
        .iter()
        .partition(|kind| nemesis.can(**kind, &cluster));
    let possible: Vec<_> = possible;
    let impossible: Vec<_> = impossible;
    left_out.extend(
        impossible
            .iter()
            .map(|kind: &crate::nemesis::Kind| kind.name().to_owned()),
    );

    let stop = Stop::default();
    let load = Load::start(options, &cluster, &history, &stop).await?;
    let plan = schedule(options.seed, options.length, &possible);
    nemesis.run(&plan, &mut cluster).await?;
    tokio::time::sleep(options.length.saturating_sub(history.now())).await;
    let mut survival = Verdict {
        checker: "survival and equal state",
        ..Verdict::default()
    };
    recover(&mut cluster, &history, &mut survival).await?;
    let terms = cluster
        .statuses()
        .await
        .iter()
        .map(|(_, status)| status.term)
        .max()
        .unwrap_or(0);
    tokio::time::sleep(PEACE).await;
    stop.stop();
    let followed = load.finish(options).await;
    match cluster.wait_converged(RECOVERY_MAX).await {
        Ok(revision) => {
            survival.judged += cluster.ids().len();
            survival.figures.push(format!(
                "the same state hash on every server at revision {revision}"
            ));
        }
        Err(differ) => survival.findings.push(finding(&history, format!("{differ:#}"))),
    }
    history.flush()?;
    let mut figures = vec![
        format!("{} faults; the last term was {terms}", plan.len()),
        format!("the harness itself was late by {:?} at worst", stalls.worst()),
    ];
    drop(stalls);
    let records = history.records();
    let mut verdicts = judge(options, &records, followed, history.now(), &mut figures);
    verdicts.push(survival);
    figures.extend(kinds_done(&plan));
    if options.keep && !verdicts.iter().all(Verdict::is_good) {
        let kept = cluster.keep_folder();
        figures.push(format!(
            "the servers' data and logs are kept in {}",
            kept.display()
        ));
    }
    Ok(Findings {
        verdicts,
        records,
        figures,
        left_out,
    })
}

async fn start_cluster(options: &Options, net: Option<&Arc<Net>>) -> anyhow::Result<Cluster> {
    let mut cluster = ClusterOptions {
        name: "jepsen".into(),
        arguments: ["--set", "gossip.preset=local", "--set", RESERVE]
            .map(str::to_owned)
            .to_vec(),
        binary: options.binary.clone(),
        own_clocks: true,
        ..ClusterOptions::servers(options.servers)
    };
    if let Some(net) = net {
        cluster = cluster.on(net);
        cluster.disk_bytes = Some(DISK_BYTES);
    }
    Cluster::start_with(cluster).await.context("starting the cluster")
}

struct Load {
    registers: Option<Registers>,
    fleet: Option<Fleet>,
    followers: Option<Followers>,
}

impl Load {
    async fn start(
        options: &Options,
        cluster: &Cluster,
        history: &History,
        stop: &Stop,
    ) -> anyhow::Result<Self> {
        let addresses = cluster.addresses();
        for group in [registers::GROUP, heartbeats::GROUP, followers::GROUP] {
            put_group(&addresses, group, 10_000).await?;
        }
        let has = |workload| options.workloads.contains(&workload);
        let (seed, clients) = (options.seed, options.clients);
        let registers = || Registers::start(&addresses, history, stop, options.reads, seed, clients);
        let fleet = || Fleet::start(&addresses, history, stop, seed, clients * 3, options.ttl);
        let followers = || Followers::start(&addresses, stop, seed, clients.div_ceil(2));
        Ok(Self {
            registers: has(Workload::Registers).then(registers),
            fleet: has(Workload::Heartbeats).then(fleet),
            followers: has(Workload::Followers).then(followers),
        })
    }

    async fn finish(self, options: &Options) -> Option<Followed> {
        if let Some(registers) = self.registers {
            registers.finish().await;
        }
        let followed = match self.followers {
            Some(followers) => Some(followers.finish(RECOVERY_MAX).await),
            None => None,
        };
        if let Some(fleet) = self.fleet {
            fleet
                .finish(options.ttl + LATE_MAX + Duration::from_secs(2))
                .await;
        }
        followed
    }
}

fn finding(history: &History, what: String) -> Finding {
    Finding {
        what,
        at: history.now(),
    }
}

/// Starts whoever ended by itself (which is a finding), and waits until all are ready.
async fn recover(cluster: &mut Cluster, history: &History, survival: &mut Verdict) -> anyhow::Result<()> {
    for server in cluster.servers_mut() {
        if !server.is_running() {
            let what = format!(
                "server {} ended by itself; its last words:\n{}",
                server.id(),
                server.log_tail(LOG_LINES)
            );
            survival.findings.push(finding(history, what));
            server.start()?;
        }
    }
    let healed = history.now();
    match cluster.wait_ready(RECOVERY_MAX).await {
        Ok(()) => {
            let took = history.now().saturating_sub(healed);
            survival
                .figures
                .push(format!("all ready, one leading, {took:?} after the last fault"));
        }
        Err(late) => survival
            .findings
            .push(finding(history, format!("no recovery: {late:#}"))),
    }
    Ok(())
}

fn judge(
    options: &Options,
    records: &[Record],
    followed: Option<Followed>,
    ended: Duration,
    figures: &mut Vec<String>,
) -> Vec<Verdict> {
    let mut operations: Vec<Operation> = Vec::new();
    let mut lines: Vec<Heartbeats> = Vec::new();
    let mut faults: Vec<Fault> = Vec::new();
    let mut broken = Vec::new();
    for record in records {
        match record {
            Record::Operation(operation) => operations.push(operation.clone()),
            Record::Heartbeats(line) => lines.push(line.clone()),
            Record::Fault(fault) => faults.push(fault.clone()),
            Record::Broken(at, what) => broken.push((*at, what.clone())),
            Record::Note(..) => {}
        }
    }
    let mut verdicts = Vec::new();
    if options.workloads.contains(&Workload::Registers) {
        verdicts.push(linear::check(&operations));
        verdicts.push(revisions::check(&operations));
        figures.push(shares(&operations, ended));
    }
    if options.workloads.contains(&Workload::Heartbeats) {
        let mut verdict = sessions::check(&lines, &faults, LATE_MAX, ended);
        for (at, what) in broken {
            verdict.findings.push(Finding { what, at });
        }
        verdicts.push(verdict);
    }
    if let Some(followed) = followed {
        verdicts.push(watches::check(&followed.seen, &followed.acknowledged, ended));
    }
    verdicts
}

/// A run counts only with its load shown.
fn shares(operations: &[Operation], ended: Duration) -> String {
    let paired = pair(operations);
    let count = |wanted: fn(&Outcome) -> bool| paired.iter().filter(|(_, outcome)| wanted(outcome)).count();
    let ok = count(|outcome| matches!(outcome, Outcome::Ok { .. }));
    let fail = count(|outcome| matches!(outcome, Outcome::Fail));
    let unknown = count(|outcome| matches!(outcome, Outcome::Unknown));
    let rate = ok as u64 / ended.as_secs().max(1);
    let percent = 100 * unknown / paired.len().max(1);
    format!(
        "{} operations: {ok} ok ({rate} a second), {fail} failed for certain, {unknown} of unknown outcome ({percent} %)",
        paired.len()
    )
}

fn kinds_done(plan: &[Planned]) -> Vec<String> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for planned in plan {
        *counts.entry(planned.kind.name()).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    if counts.is_empty() {
        Vec::new()
    } else {
        vec![format!("faults by kind: {}", counts.join(", "))]
    }
}
