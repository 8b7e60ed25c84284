//! The play: who starts, who dies, who sleeps, and when the next act may begin.

use std::time::{Duration, Instant};

use anyhow::Context;
use rollcall_client::v1::GroupSettings;
use rollcall_client::{Expected, Registry, RegistryConfig, WriteOptions};
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{Cluster, ClusterOptions, Timeline, WAIT_MAX, eventually};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::RunArguments;
use crate::consumer::{Consumed, Consumers};
use crate::follower::{self, Following};
use crate::services::Job;
use crate::stage::{GROUP, Instance};
use crate::truth::Truth;
use crate::verdict::Verdict;
use crate::witness::{QUIET_SERVICE, Witness, Witnessing};
use crate::writer::{Writers, WritersLedger};

/// Instances of each service at the start.
const INSTANCES: [(Job, u32); 4] = [
    (Job::Quotes, 3),
    (Job::Wordcount, 3),
    (Job::Checksum, 2),
    (Job::Factor, 2),
];
/// How long nobody may be able to write when the leader dies.
const FAILOVER_MAX: Duration = Duration::from_millis(1_500);
/// A dead client is struck off at the latest this long after its ttl.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Calls and writes before the first fault.
const WARM_UP_CALLS: u64 = 1_000;
const WARM_UP_WRITES: u64 = 200;

const DIRECTOR: &str = "director";

/// Plays the demo. `false`: a promise broke.
///
/// # Errors
/// The demo itself could not go on: nothing starts, say.
pub(crate) async fn run(arguments: &RunArguments) -> anyhow::Result<bool> {
    let timeline = Timeline::start(true);
    let mut stop = Stop::listen()?;
    let mut play = tokio::select! {
        prepared = Play::prepare(arguments.ttl, timeline.clone()) => prepared?,
        // What was started so far ends with the preparation.
        () = stop.asked() => anyhow::bail!("interrupted"),
    };
    let played = tokio::select! {
        played = play.acts() => played,
        () = stop.asked() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(failed) = &played {
        eprintln!("the play stopped: {failed:#}\n{}", play.cluster.log_tails());
    }
    let kept = played.is_ok() && play.verdict.all_kept();
    println!("\n{}", play.verdict.render());
    if arguments.keep || !kept {
        println!(
            "data and logs are kept in {}",
            play.cluster.keep_folder().display()
        );
    }
    if let Some(path) = &arguments.json {
        let json = serde_json::json!({
            "kept": kept,
            "promises": play.verdict.promises,
            "figures": play.verdict.figures.iter().cloned().collect::<serde_json::Map<_, _>>(),
            "timeline": timeline.to_json(),
        });
        std::fs::write(path, serde_json::to_vec_pretty(&json)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    played?;
    println!(
        "{}",
        if kept {
            "every promise was kept"
        } else {
            "A PROMISE WAS BROKEN"
        }
    );
    Ok(kept)
}

/// Ctrl-C, and what a service manager sends.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

struct Play {
    ttl: Duration,
    timeline: Timeline,
    truth: Truth,
    verdict: Verdict,
    instances: Vec<Instance>,
    next_number: u32,
    witnesses: Vec<Witness>,
    _witnessing: Vec<Witnessing>,
    _following: Following,
    consumers: Consumers,
    writers: Writers,
    cluster: Cluster,
}

impl Play {
    async fn prepare(ttl: Duration, timeline: Timeline) -> anyhow::Result<Self> {
        let options = ClusterOptions {
            name: "demo".into(),
            ..ClusterOptions::servers(3)
        };
        let mut cluster = Cluster::start_with(options).await?;
        let leader = cluster.leader(WAIT_MAX).await?;
        timeline.note(
            DIRECTOR,
            format!("three servers are ready, server {leader} leads"),
        );
        let addresses = cluster.addresses();

        let registry =
            Registry::connect(RegistryConfig::new(addresses.clone()).client_name("demo director"))?;
        let settings = GroupSettings {
            auto_create: true,
            ..GroupSettings::default()
        };
        registry
            .put_group(GROUP, settings, Expected::Any, WriteOptions::default())
            .await?;

        let truth = Truth::default();
        let mut witnesses = Vec::new();
        let mut witnessing = Vec::new();
        for server in cluster.servers() {
            let address = server.address().to_owned();
            let (witness, task) =
                Witness::start(server.id(), address, GROUP, truth.clone(), timeline.clone());
            witnesses.push(witness);
            witnessing.push(task);
        }
        let following = follower::start(&addresses, truth.clone(), timeline.clone()).await?;
        let consumers = Consumers::new(&addresses)?;
        let writers = Writers::new(&addresses, ttl, truth.clone());
        Ok(Self {
            ttl,
            timeline,
            truth,
            verdict: Verdict::default(),
            instances: Vec::new(),
            next_number: 1,
            witnesses,
            _witnessing: witnessing,
            _following: following,
            consumers,
            writers,
            cluster,
        })
    }

    async fn acts(&mut self) -> anyhow::Result<()> {
        self.overture().await?;
        self.kill_a_service().await?;
        self.drain_a_service().await?;
        self.kill_the_leader().await?;
        self.pause_a_follower().await?;
        self.pause_the_leader().await?;
        self.pause_everybody().await?;
        self.finale().await
    }

    fn say(&self, what: impl Into<String>) {
        self.timeline.note(DIRECTOR, what);
    }

    /// Services, consumers and writers begin; nothing fails.
    async fn overture(&mut self) -> anyhow::Result<()> {
        for (job, count) in INSTANCES {
            for _ in 0..count {
                self.start_instance(job)?;
            }
        }
        for instance in self.instances.iter().map(Instance::key).collect::<Vec<_>>() {
            self.wait_listed(&instance).await?;
        }
        self.say(format!(
            "{} services run as processes of their own, all are listed",
            self.instances.len()
        ));
        self.consumers.start();
        self.writers.start().await?;
        eventually("a warm-up of calls and writes", WAIT_MAX, || async {
            (self.consumers.calls() >= WARM_UP_CALLS && self.writers.acknowledged() >= WARM_UP_WRITES)
                .then_some(())
        })
        .await?;
        let failed = self.consumers.failed();
        self.say(format!(
            "warm: {} calls, {} acknowledged writes",
            self.consumers.calls(),
            self.writers.acknowledged()
        ));
        self.verdict.promise(
            "calls failed while nothing was wrong",
            failed.to_string(),
            "0",
            failed == 0,
        );
        Ok(())
    }

    async fn kill_a_service(&mut self) -> anyhow::Result<()> {
        self.consumers.phase("a service was killed");
        let mut victim = self.take_instance(Job::Quotes)?;
        let key = victim.key();
        let failed_before = self.consumers.failed();
        self.truth.killed(&key);
        let killed_at = Instant::now();
        victim.process.kill9().await?;
        self.say(format!("kill -9 {}", victim.id));
        let gone_after = self.wait_removed(&key, killed_at).await?;
        self.verdict.promise(
            "a killed service is off every list",
            seconds(gone_after),
            format!("within ttl + 1 s ({})", seconds(self.ttl + LATE_MAX)),
            gone_after <= self.ttl + LATE_MAX,
        );
        // Calls that were under way when the last list changed still come in.
        self.consumers.rounds(4).await?;
        let failed = self.consumers.failed();
        let strangers = self
            .consumers
            .failed_at_others(&victim.id, "a service was killed");
        self.say(format!(
            "{} calls failed at {} until consumers knew; each was tried again at another instance",
            failed - failed_before,
            victim.id
        ));
        self.verdict
            .figure("calls failed at the killed service", failed - failed_before);
        self.verdict.promise(
            "calls failed at other services meanwhile",
            strangers.to_string(),
            "0",
            strangers == 0,
        );
        self.consumers.rounds(20).await?;
        let after = self.consumers.failed() - failed;
        self.verdict.promise(
            "calls failed after it was struck off",
            after.to_string(),
            "0",
            after == 0,
        );
        self.start_instance(Job::Quotes)?;
        let replacement = self
            .instances
            .last()
            .map(Instance::key)
            .context("an instance was just started")?;
        self.wait_listed(&replacement).await?;
        self.say("a replacement was started and is listed");
        Ok(())
    }

    async fn drain_a_service(&mut self) -> anyhow::Result<()> {
        self.consumers.phase("a service was drained");
        let mut leaver = self.take_instance(Job::Wordcount)?;
        let key = leaver.key();
        let failed_before = self.consumers.failed();
        self.truth.leaving(&key);
        let told_at = Instant::now();
        self.say(format!(
            "SIGTERM to {}: it drains, deregisters and ends",
            leaver.id
        ));
        let status = leaver.process.stop(WAIT_MAX).await?;
        self.wait_removed(&key, told_at).await?;
        self.consumers.rounds(20).await?;
        let failed = self.consumers.failed() - failed_before;
        self.say(format!(
            "{} ended with {status}; {failed} calls failed",
            leaver.id
        ));
        self.verdict.promise(
            "calls failed because a service was drained",
            failed.to_string(),
            "0",
            failed == 0,
        );
        Ok(())
    }

    async fn kill_the_leader(&mut self) -> anyhow::Result<()> {
        self.consumers.phase("the leader was killed");
        let leader = self.cluster.leader(WAIT_MAX).await?;
        let acknowledged = self.writers.acknowledged();
        let killed_at = Instant::now();
        self.cluster.server(leader).kill9().await?;
        self.say(format!("kill -9 server {leader}, the leader"));
        let next = self.cluster.leader_other_than(leader, WAIT_MAX).await?;
        self.say(format!(
            "server {next} leads, {} after the kill",
            seconds(killed_at.elapsed())
        ));
        self.writers_go_on(acknowledged).await?;
        let gap = self.writers.longest_gap_since(killed_at);
        let alone = self.writers.longest_gap_of_one_since(killed_at);
        self.say(format!("writes go on; nobody could write for {}", seconds(gap)));
        self.verdict.promise(
            "time without acknowledged writes, leader killed",
            seconds(gap),
            format!("below {}", seconds(FAILOVER_MAX)),
            gap < FAILOVER_MAX,
        );
        self.verdict
            .figure("the same, worst single writer", seconds(alone));
        let restarted_at = Instant::now();
        self.cluster.server(leader).restart().await?;
        self.say(format!(
            "server {leader} was restarted, ready after {}",
            seconds(restarted_at.elapsed())
        ));
        self.settle().await
    }

    async fn pause_a_follower(&mut self) -> anyhow::Result<()> {
        self.consumers.phase("a follower was paused");
        let leader = self.cluster.leader(WAIT_MAX).await?;
        let statuses = self.cluster.statuses().await;
        let followers = statuses.iter().filter(|(id, _)| *id != leader);
        let (follower, held) = followers
            .map(|(id, status)| (*id, status.sessions_held))
            .max_by_key(|(_, held)| *held)
            .context("a cluster of three has followers")?;
        self.pause(
            &[follower],
            &format!("server {follower}, a follower that holds {held} sessions"),
        )
        .await
    }

    async fn pause_the_leader(&mut self) -> anyhow::Result<()> {
        self.consumers.phase("the leader was paused");
        let leader = self.cluster.leader(WAIT_MAX).await?;
        let paused_at = Instant::now();
        self.pause(&[leader], &format!("server {leader}, the leader"))
            .await?;
        let gap = self.writers.longest_gap_since(paused_at);
        self.verdict
            .figure("time without acknowledged writes, leader paused", seconds(gap));
        Ok(())
    }

    async fn pause_everybody(&mut self) -> anyhow::Result<()> {
        self.consumers.phase("every server was paused");
        let all = self.cluster.ids();
        self.pause(&all, "all servers at once").await
    }

    /// SIGSTOP for longer than the ttl, SIGCONT, and then long enough for a wrong removal to show.
    async fn pause(&mut self, servers: &[u64], who: &str) -> anyhow::Result<()> {
        let wrong_before = self.truth.wrong_count();
        let pause = self.ttl * 7 / 4;
        for id in servers {
            self.cluster.server(*id).pause().await?;
        }
        self.say(format!(
            "SIGSTOP {who}, for {} (the ttl is {})",
            seconds(pause),
            seconds(self.ttl)
        ));
        tokio::time::sleep(pause).await;
        let acknowledged = self.writers.acknowledged();
        for id in servers {
            self.cluster.server(*id).resume()?;
        }
        self.say(format!("SIGCONT {who}"));
        self.writers_go_on(acknowledged).await?;
        self.settle().await?;
        // What the pause may have set in motion would show by now: a whole ttl and the usual lateness.
        tokio::time::sleep(self.ttl + LATE_MAX).await;
        let wrong = self.truth.wrong_count() - wrong_before;
        self.say(format!("{wrong} nodes were wrongly removed"));
        self.verdict.promise(
            format!(
                "nodes wrongly removed, {} paused",
                if servers.len() > 1 {
                    "all servers"
                } else {
                    who_short(who)
                }
            ),
            wrong.to_string(),
            "0",
            wrong == 0,
        );
        Ok(())
    }

    /// Compares what every server holds with what was acknowledged.
    async fn finale(&mut self) -> anyhow::Result<()> {
        self.consumers.phase("the end");
        let consumed = self.consumers.stop().await;
        let written = self.writers.stop().await;
        let revision = self.cluster.wait_converged(WAIT_MAX).await?;
        self.say(format!(
            "everybody stopped; all servers hold the same state at revision {revision}"
        ));

        self.compare_servers(&written, revision).await?;
        self.compare_watchers(revision).await?;
        self.judge_consumers(&consumed);
        self.note_figures(&consumed, &written);
        Ok(())
    }

    /// What the servers list, against what they acknowledged and against each other.
    async fn compare_servers(&mut self, written: &WritersLedger, revision: u64) -> anyhow::Result<()> {
        let expected = written.must_be_listed();
        let mut lost = 0;
        let mut revived = 0;
        let mut signs = Vec::new();
        for server in self.cluster.servers() {
            let view = local_view(server.address(), GROUP, QUIET_SERVICE, revision).await?;
            let view = view.context("the ledger is not there")?;
            let listed: std::collections::BTreeSet<_> =
                view.nodes.iter().map(|node| node.id.clone()).collect();
            lost += expected.iter().filter(|id| !listed.contains(*id)).count();
            revived += written
                .must_be_gone()
                .iter()
                .filter(|id| listed.contains(*id))
                .count();
            signs.push(self.signs_of(server.address(), revision).await?);
        }
        let signs_equal = signs.windows(2).all(|pair| pair[0] == pair[1]);
        let verdict = &mut self.verdict;
        verdict.promise(
            "acknowledged registrations lost, at any server",
            lost.to_string(),
            "0",
            lost == 0,
        );
        verdict.promise(
            "acknowledged deregistrations undone",
            revived.to_string(),
            "0",
            revived == 0,
        );
        verdict.promise(
            "signs and state equal on all servers",
            yes(signs_equal),
            "yes",
            signs_equal,
        );
        Ok(())
    }

    /// What the watchers saw on their way, and list at the end.
    async fn compare_watchers(&mut self, revision: u64) -> anyhow::Result<()> {
        for witness in &self.witnesses {
            witness.wait_revision(revision, WAIT_MAX).await?;
        }
        let mut same_lists = true;
        for (job, _) in INSTANCES {
            let mut running: Vec<_> = self
                .instances
                .iter()
                .filter(|of| of.job == job)
                .map(|of| of.id.clone())
                .collect();
            running.sort();
            let service = format!("{GROUP}/{}", job.name());
            same_lists &= self
                .witnesses
                .iter()
                .all(|witness| witness.listed(&service) == running);
        }
        let verdict = &mut self.verdict;
        verdict.promise(
            "watchers list exactly the running services",
            yes(same_lists),
            "yes",
            same_lists,
        );
        let testimonies = self.witnesses.iter().map(Witness::testimony);
        let broken: Vec<_> = testimonies.flat_map(|of| of.broken_guarantees).collect();
        verdict.promise(
            "gaps, repeats or reversals seen by watchers",
            broken.len().to_string(),
            "0",
            broken.is_empty(),
        );
        Ok(())
    }

    /// What users had to suffer, and which nodes were taken from them for no reason.
    fn judge_consumers(&mut self, consumed: &Consumed) {
        let verdict = &mut self.verdict;
        let wrong = self.truth.wrongly_removed();
        verdict.promise(
            "nodes wrongly removed, in all",
            wrong.len().to_string(),
            "0",
            wrong.is_empty(),
        );
        for (node, why) in wrong {
            verdict.figure(format!("wrongly removed {node}"), why);
        }
        verdict.promise(
            "calls that failed for a user (after retries)",
            consumed.user_visible_failures.to_string(),
            "0",
            consumed.user_visible_failures == 0,
        );
        verdict.promise(
            "wrong answers",
            consumed.wrong_answers.to_string(),
            "0",
            consumed.wrong_answers == 0,
        );
    }

    fn note_figures(&mut self, consumed: &Consumed, written: &WritersLedger) {
        let verdict = &mut self.verdict;
        verdict.figure("calls made", consumed.calls);
        verdict.figure("calls failed (each retried at another instance)", consumed.failed);
        for ((instance, phase), count) in &consumed.failures {
            verdict.figure(format!("  of these at {instance}, when {phase}"), *count);
        }
        verdict.figure("registrations acknowledged", written.registered);
        verdict.figure("writes acknowledged", written.acknowledged);
        verdict.figure("writes with unknown outcome", written.unknown);
        verdict.figure("writes refused or not sent", written.failed);
        for of in self.witnesses.iter().map(Witness::testimony) {
            verdict.figure(
                format!("watcher {}", of.server),
                format!(
                    "{} changes, {} streams lost and resumed, {} states instead of changes",
                    of.changes, of.reopened, of.states_instead_of_changes
                ),
            );
        }
    }

    async fn signs_of(&self, address: &str, revision: u64) -> anyhow::Result<Vec<Option<(u64, u64)>>> {
        let mut signs = Vec::new();
        let names = Job::ALL.iter().map(|job| job.name()).chain([QUIET_SERVICE]);
        for service in names {
            let view = local_view(address, GROUP, service, revision).await?;
            signs.push(view.and_then(|view| view.sign).map(|sign| (sign.high, sign.low)));
        }
        Ok(signs)
    }

    fn start_instance(&mut self, job: Job) -> anyhow::Result<()> {
        let logs = self
            .cluster
            .folder()
            .context("the folder was given away")?
            .to_owned();
        // Each instance begins at another server.
        let mut servers = self.cluster.addresses();
        let first = self.next_number as usize % servers.len();
        servers.rotate_left(first);
        let instance = Instance::start(job, self.next_number, &servers, self.ttl, &logs)?;
        self.next_number += 1;
        self.truth.alive(&instance.key());
        self.instances.push(instance);
        Ok(())
    }

    fn take_instance(&mut self, job: Job) -> anyhow::Result<Instance> {
        let index = self
            .instances
            .iter()
            .position(|of| of.job == job)
            .context("there is an instance of each job")?;
        Ok(self.instances.remove(index))
    }

    async fn wait_listed(&self, key: &str) -> anyhow::Result<()> {
        for witness in &self.witnesses {
            witness.wait_listed(key, WAIT_MAX).await?;
        }
        Ok(())
    }

    /// Until every watcher has seen it; returns how long after `since` the last of them did.
    async fn wait_removed(&self, key: &str, since: Instant) -> anyhow::Result<Duration> {
        let mut last = since;
        for witness in &self.witnesses {
            last = last.max(witness.wait_removed(key, WAIT_MAX).await?);
        }
        Ok(last - since)
    }

    /// Until a good number of further writes were acknowledged.
    async fn writers_go_on(&self, acknowledged: u64) -> anyhow::Result<()> {
        eventually("further acknowledged writes", WAIT_MAX, || async {
            (self.writers.acknowledged() >= acknowledged + 50).then_some(())
        })
        .await?;
        Ok(())
    }

    /// Until all servers are ready and every watcher is told of what is written now.
    async fn settle(&mut self) -> anyhow::Result<()> {
        self.cluster.wait_ready(WAIT_MAX).await?;
        let revision = self
            .cluster
            .statuses()
            .await
            .iter()
            .map(|(_, of)| of.revision)
            .max()
            .unwrap_or(0);
        for witness in &self.witnesses {
            witness.wait_revision(revision, WAIT_MAX).await?;
        }
        Ok(())
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn yes(holds: bool) -> &'static str {
    if holds { "yes" } else { "no" }
}

fn who_short(who: &str) -> &str {
    if who.contains("leader") {
        "the leader"
    } else {
        "a follower"
    }
}
