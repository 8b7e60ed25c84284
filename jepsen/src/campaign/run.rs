//! Runs it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::judge::{Ran, happened, judge};
use super::leaders;
use super::load::{LATE_MAX, Load};
use super::options::{Options, Workload};
use super::stall::StallWatch;
use crate::checker::{Finding, Verdict, floors};
use crate::history::{History, Record};
use crate::lab::{Cluster, ClusterOptions, Endpoints, Leading};
use crate::nemesis::{Kind, Nemesis, RESIZED_BY, Tally, schedule};
use crate::net::{HostRuntime, Net};
use crate::workload::{Stop, resumes, storm};

/// From the end of the last fault to readiness and, later, to equal state.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// Load without faults, before the end.
const PEACE: Duration = Duration::from_secs(3);
/// Hosts that workloads share.
const CLIENT_HOSTS: u64 = 2;
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
    let net = Arc::new(start_net(options)?);
    let mut cluster = start_cluster(options, &net).await?;
    let history = History::start(Some(&options.folder.join("history.jsonl")))?;
    let stalls = StallWatch::start(&history)?;
    let leading = Leading::default();
    // Also where a server may come to be.
    let everywhere: Vec<String> = net
        .hosts()
        .iter()
        .map(|host| Endpoints::on(&net, *host).client)
        .collect();
    let _leaders = leaders::watch(&everywhere, cluster.folder(), &history, &leading);
    let mut nemesis = Nemesis::new(Some(Arc::clone(&net)), history.clone(), leading)
        .upgrading_to(options.upgrade_to.clone());
    let mut possible = Vec::new();
    for kind in &options.kinds {
        match nemesis.can(*kind, &cluster) {
            Ok(()) => possible.push(*kind),
            Err(reason) => left_out.push(format!("{}: {reason}", kind.name())),
        }
    }
    for left_out in &left_out {
        println!("not possible here: {left_out}");
    }
    let hosts = client_hosts(&net)?;
    let stop = Stop::default();
    let load = Load::start(options, &cluster, &history, &stop, &hosts, &net).await?;
    let plan = schedule(options.seed, options.length, &possible);
    nemesis.run(&plan, &mut cluster).await?;
    tokio::time::sleep(options.length.saturating_sub(history.now())).await;
    let mut survival = Verdict {
        checker: "survival and equal state",
        ..Verdict::default()
    };
    for (at, what) in nemesis.broken() {
        survival.findings.push(Finding {
            what: what.clone(),
            at: *at,
        });
    }
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
    let followed = load.finish(RECOVERY_MAX).await;
    match cluster.wait_converged(RECOVERY_MAX).await {
        Ok(revision) => {
            survival.judged += cluster.ids().len();
            survival.figures.push(format!(
                "the same state hash on every server at revision {revision}"
            ));
        }
        Err(differ) => survival.findings.push(finding(&history, format!("{differ:#}"))),
    }
    survival.undecided.extend(history.undecided());
    survival
        .undecided
        .extend(nothing_bit(&options.kinds, nemesis.tally()));
    let panics = cluster.panics()?;
    survival.findings.extend(
        panics
            .into_iter()
            .map(|panic| finding(&history, format!("a task panicked: {panic}"))),
    );
    history.flush()?;
    let mut figures = vec![
        format!("the last term was {terms}"),
        format!("the harness itself was late by {:?} at worst", stalls.worst()),
    ];
    drop(stalls);
    let records = history.records();
    let ran = Ran {
        workloads: &options.workloads,
        servers: options.servers,
        late_max: LATE_MAX,
        ended: history.now(),
    };
    let mut verdicts = judge(&ran, &records, followed.as_ref(), &mut figures);
    let happened = happened(&ran, &records);
    if !happened.is_empty() {
        verdicts.push(floors::check(&happened));
    }
    verdicts.push(survival);
    figures.extend(faults_done(nemesis.tally()));
    figures.push(metered(&net));
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

/// Hosts of their own for servers and clients; without root, or if it is wished so, loopback and a proxy.
fn start_net(options: &Options) -> anyhow::Result<Net> {
    let spare = if options.kinds.contains(&Kind::Resize) {
        RESIZED_BY
    } else {
        0
    };
    let (servers, seed) = (options.servers + spare, options.seed);
    let reason = match options.loopback {
        true => "so it was wished".to_owned(),
        false => match Net::start_with_clients(servers, CLIENT_HOSTS, seed) {
            Ok(net) => return Ok(net),
            Err(reason) => format!("{reason:#}"),
        },
    };
    println!("on loopback, behind a proxy in this process: {reason}");
    Net::start_on_loopback(servers, CLIENT_HOSTS, seed)
}

async fn start_cluster(options: &Options, net: &Arc<Net>) -> anyhow::Result<Cluster> {
    let mut cluster = ClusterOptions {
        name: "jepsen".into(),
        arguments: settings(options),
        binary: options.binary.clone(),
        own_clocks: true,
        ..ClusterOptions::servers(options.servers)
    };
    cluster.disk_bytes = (!net.is_on_loopback()).then_some(DISK_BYTES);
    Cluster::start_with(cluster.on(net))
        .await
        .context("starting the cluster")
}

/// What servers are started with, so that workloads meet bounds that they would not reach otherwise.
fn settings(options: &Options) -> Vec<String> {
    let mut settings = vec!["gossip.preset=local".to_owned(), RESERVE.to_owned()];
    if options.workloads.contains(&Workload::Resumes) {
        settings.push(format!("watch.retained_revisions={}", resumes::RETAINED));
    }
    if options.workloads.contains(&Workload::Storm) {
        settings.push(format!("storm.egress_bytes_per_second={}", storm::BUDGET));
    }
    settings
        .into_iter()
        .flat_map(|of| ["--set".to_owned(), of])
        .collect()
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

/// A fault counts only if it was seen to bite.
fn faults_done(tally: &Tally) -> Vec<String> {
    let counts: Vec<String> = tally
        .iter()
        .map(|(kind, (done, bit))| format!("{} {bit} of {done}", kind.name()))
        .collect();
    if counts.is_empty() {
        return Vec::new();
    }
    let done: u64 = tally.values().map(|(done, _)| done).sum();
    let bit: u64 = tally.values().map(|(_, bit)| bit).sum();
    vec![format!(
        "{bit} of {done} faults were seen to bite: {}",
        counts.join(", ")
    )]
}

/// Whether faults were asked for, and none did anything to anybody: then nothing was survived.
fn nothing_bit(asked: &[Kind], tally: &Tally) -> Option<String> {
    let done: u64 = tally.values().map(|(done, _)| done).sum();
    let bit: u64 = tally.values().map(|(_, bit)| bit).sum();
    (!asked.is_empty() && bit == 0).then(|| {
        format!(
            "{} kinds of faults were asked for, {done} faults were done, and none was seen to bite",
            asked.len()
        )
    })
}

/// Traffic of clients, counted by the switch.
fn metered(net: &Net) -> String {
    let clients = net.clients();
    let bytes = |from: &[u64], to: &[u64]| -> u64 {
        let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
        pairs.map(|(from, to)| net.bytes(from, to)).sum()
    };
    let (there, back) = (bytes(&clients, &net.hosts()), bytes(&net.hosts(), &clients));
    format!(
        "{} hosts of clients sent {} kB to the servers and were sent {} kB",
        clients.len(),
        there / 1_000,
        back / 1_000
    )
}

fn client_hosts(net: &Net) -> anyhow::Result<Vec<HostRuntime>> {
    net.clients().into_iter().map(|host| net.runtime(host)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_the_faults_that_were_asked_for_decides_nothing() {
        let of = |asked: &[Kind], bit: u64| {
            let tally = Tally::from_iter((bit < 3).then_some((Kind::Kill, (2, bit))));
            nothing_bit(asked, &tally)
        };
        assert_eq!(of(&[], 0), None, "none were asked for");
        assert_eq!(of(&[Kind::Kill, Kind::PowerLoss], 1), None);
        assert!(
            of(&[Kind::PowerLoss], 0)
                .unwrap()
                .contains("none was seen to bite")
        );
        assert!(of(&[Kind::PowerLoss], 9).unwrap().contains("0 faults were done"));
    }
}
