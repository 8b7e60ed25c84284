//! One run: a world that follows from a seed, its load, the end in peace, and the judges.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_jepsen::checker::{Verdict, ap, linear, revisions, sessions, takeover, watches};
use rollcall_jepsen::history::{Fault, Heartbeats, Operation, Outcome, Record, pair};
use rollcall_jepsen::seed::Seeded;
use rollcall_jepsen::workload;
use rollcall_proto::v1::ReadMode;
use rollcall_server::ground;

use crate::boundary;
use crate::disk::{self, Disks, Ground};
use crate::load::{self, LATE_MAX, LoadOptions, Progress, RECOVERY_MAX, Workload};
use crate::network::Traffic;
use crate::schedule::{KINDS, Planned, schedule};
use crate::server::{Tuning, client_address};
use crate::time::{SECOND, nanoseconds};
use crate::world::{Done, World};

/// What may be chosen about a run; all else follows from the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long faults and load go on; the end in peace comes on top.
    pub length: Duration,
    /// How many servers; `None`: the seed decides between 3 and 5.
    pub servers: Option<usize>,
    /// Clients of each workload.
    pub clients: u64,
    /// Names of workloads; `None`: registers, heartbeats, followers.
    pub workloads: Option<Vec<String>>,
    /// Kinds of faults; `None`: the seed chooses some.
    pub kinds: Option<Vec<String>>,
    /// Only these faults of the plan, by number; `None`: all of them.
    pub faults: Option<Vec<usize>>,
    /// How registers are read: `linearizable`, `leased` or `local`; `None`: the seed chooses one of the first two. Local
    /// reads do not keep what the judges ask for, which shows that these see.
    pub reads: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            length: Duration::from_secs(15),
            servers: None,
            clients: 2,
            workloads: None,
            kinds: None,
            faults: None,
            reads: None,
        }
    }
}

impl Options {
    /// The command that runs this again.
    #[must_use]
    pub fn command_line(&self, seed: u64) -> String {
        let mut line = format!(
            "rollcall-sim --seed {seed} --length-ms {}",
            self.length.as_millis()
        );
        let default = Self::default();
        if let Some(servers) = self.servers {
            line += &format!(" --servers {servers}");
        }
        if self.clients != default.clients {
            line += &format!(" --clients {}", self.clients);
        }
        if let Some(workloads) = &self.workloads {
            line += &format!(" --workload {}", workloads.join(","));
        }
        if let Some(kinds) = &self.kinds {
            line += &format!(" --nemesis {}", kinds.join(","));
        }
        if let Some(reads) = &self.reads {
            line += &format!(" --reads {reads}");
        }
        if let Some(faults) = &self.faults {
            let numbers: Vec<_> = faults.iter().map(ToString::to_string).collect();
            let numbers = if numbers.is_empty() {
                "none".to_owned()
            } else {
                numbers.join(",")
            };
            line += &format!(" --faults {numbers}");
        }
        line
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The seed.
    pub seed: u64,
    /// What the judges said.
    pub verdicts: Vec<Verdict>,
    /// Violations, as sentences: of the judges and of the invariants.
    pub violations: Vec<String>,
    /// What could not be decided.
    pub undecided: Vec<String>,
    /// The faults, as sentences, with their numbers.
    pub plan: Vec<(usize, String)>,
    /// Faults done, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Equal for runs in which the same happened at the same times.
    pub digest: u64,
    /// How much was taken into the digest.
    pub events: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Figures for readers, by name.
    pub figures: BTreeMap<&'static str, u64>,
}

impl Findings {
    /// Whether nothing was violated.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Runs a seed on a thread of its own.
///
/// # Errors
/// The run could not be carried out. A violation is no error: see [`Findings::is_good`].
pub fn run(seed: u64, options: &Options) -> anyhow::Result<Findings> {
    let options = options.clone();
    let thread = std::thread::Builder::new()
        .name(format!("seed-{seed}"))
        .stack_size(16 << 20)
        .spawn(move || run_here(seed, &options))?;
    match thread.join() {
        Ok(findings) => findings,
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|what| (*what).to_owned()));
            Ok(Findings {
                seed,
                violations: vec![format!("a panic: {}", what.unwrap_or_default())],
                ..Findings::default()
            })
        }
    }
}

struct Setting {
    tuning: Tuning,
    plan: Vec<Planned>,
    load: LoadOptions,
}

impl Setting {
    fn new(seed: u64, options: &Options) -> anyhow::Result<Self> {
        let mut random = Seeded::fork(seed, 1);
        // Drawn in any case, so that choosing one thing moves no other.
        let drawn_servers = if random.chance(0.3) { 5 } else { 3 };
        let snapshot_after = [100, 250, 100_000][usize::try_from(random.below(3)).unwrap_or(0)];
        let retained_revisions = [20, 200, 10_000][usize::try_from(random.below(3)).unwrap_or(0)];
        let ttl = Duration::from_millis(random.between(2_000, 4_000));
        let reads = match random.below(3) {
            0 => ReadMode::Leased,
            _ => ReadMode::Linearizable,
        };
        let reads = match options.reads.as_deref() {
            None => reads,
            Some("linearizable") => ReadMode::Linearizable,
            Some("leased") => ReadMode::Leased,
            Some("local") => ReadMode::Local,
            Some(other) => {
                anyhow::bail!("registers are not read {other}; there are: linearizable, leased, local")
            }
        };
        let mut drawn_kinds: Vec<&'static str> = KINDS.to_vec();
        random.shuffle(&mut drawn_kinds);
        drawn_kinds.truncate(usize::try_from(random.between(2, 8)).unwrap_or(2));
        let servers = options.servers.unwrap_or(drawn_servers);
        anyhow::ensure!(
            (1..=7).contains(&servers),
            "{servers} servers are not simulated, 1 to 7 are"
        );
        let kinds = match &options.kinds {
            None => drawn_kinds,
            Some(names) => {
                let known = |name: &String| KINDS.into_iter().find(|kind| kind == name);
                let kinds = names.iter().map(|name| {
                    known(name).ok_or_else(|| {
                        anyhow::anyhow!("no fault is called {name}; there are: {}", KINDS.join(", "))
                    })
                });
                kinds.collect::<anyhow::Result<_>>()?
            }
        };
        let workloads = match &options.workloads {
            None => Workload::USUAL.to_vec(),
            Some(names) => {
                let known =
                    |name: &String| Workload::ALL.into_iter().find(|workload| workload.name() == name);
                let all: Vec<_> = Workload::ALL.iter().map(|of| of.name()).collect();
                let chosen = names.iter().map(|name| {
                    known(name).ok_or_else(|| {
                        anyhow::anyhow!("no workload is called {name}; there are: {}", all.join(", "))
                    })
                });
                chosen.collect::<anyhow::Result<_>>()?
            }
        };
        let mut plan = schedule(
            &mut Seeded::fork(seed, 3),
            servers,
            nanoseconds(options.length),
            &kinds,
        );
        if let Some(chosen) = &options.faults {
            plan.retain(|planned| chosen.contains(&planned.number));
        }
        Ok(Self {
            tuning: Tuning {
                servers,
                snapshot_after,
                retained_revisions,
            },
            plan,
            load: LoadOptions {
                addresses: (0..servers).map(client_address).collect(),
                workloads,
                seed,
                clients: options.clients,
                ttl,
                reads,
                horizon: options.length,
            },
        })
    }
}

fn run_here(seed: u64, options: &Options) -> anyhow::Result<Findings> {
    let Setting { tuning, plan, load } = Setting::new(seed, options)?;
    let entered = boundary::enter(seed, disk::on_sync);
    let disks = Disks::new(tuning.servers, Seeded::fork(seed, 4))?;
    ground::simulate(Ground::new(disks.clone()));
    let sentences = plan
        .iter()
        .map(|planned| (planned.number, planned.to_string()))
        .collect();
    let mut world = World::new(entered, tuning, plan, disks, seed)?;
    let carried_out = carry_out(&mut world, load, options.length);
    world.end_all();
    Disks::leave();
    let mut findings = carried_out?;
    findings.seed = seed;
    findings.plan = sentences;
    Ok(findings)
}

fn carry_out(world: &mut World, load: LoadOptions, length: Duration) -> anyhow::Result<Findings> {
    let servers = world.tuning.servers;
    let workloads = load.workloads.clone();
    for server in 0..servers {
        world.start_server(server)?;
    }
    let progress = Progress::default();
    let (history, ttl) = (world.history.clone(), load.ttl);
    world.start_clients(load::run(load, history, progress.clone()))?;
    let horizon = nanoseconds(length);
    world.run(horizon, || false)?;
    world.heal()?;
    let healed = world.now;
    let bound = nanoseconds(RECOVERY_MAX * 3 + ttl) + 20 * SECOND;
    let over = progress.clone();
    if !world.run(healed + bound, || over.is_over())? {
        world.invariants.find("the load did not come to its end".into());
    }
    let failed = progress.lock().failed.take();
    if let Some(failed) = failed {
        world
            .invariants
            .find(format!("the load could not be carried out: {failed}"));
    }
    agree(world)?;
    Ok(judge(world, &workloads, &progress))
}

/// In the end all servers serve and are in the same state.
fn agree(world: &mut World) -> anyhow::Result<()> {
    let deadline = world.now + nanoseconds(RECOVERY_MAX);
    let mut last = String::new();
    while world.now < deadline {
        let serving = world.serving();
        let states: Vec<_> = serving
            .iter()
            .map(|(server, handles)| {
                let directory = handles.consensus.directory().read();
                (server + 1, directory.revision().0, directory.state_hash())
            })
            .collect();
        let all = states.len() == world.tuning.servers;
        if all
            && states
                .windows(2)
                .all(|pair| (pair[0].1, pair[0].2) == (pair[1].1, pair[1].2))
        {
            return Ok(());
        }
        last = states
            .iter()
            .map(|(server, revision, hash)| format!("server {server} is at {revision} ({hash:032x})"))
            .collect::<Vec<_>>()
            .join(", ");
        world.run(world.now + SECOND / 4, || false)?;
    }
    world
        .invariants
        .find(format!("servers do not come to the same state: {last}"));
    Ok(())
}

fn judge(world: &World, workloads: &[Workload], progress: &Progress) -> Findings {
    let mut operations: Vec<Operation> = Vec::new();
    let mut lines: Vec<Heartbeats> = Vec::new();
    let mut faults: Vec<Fault> = Vec::new();
    let (mut aps, mut ownership, mut following) = (Vec::new(), Vec::new(), Vec::new());
    let mut findings = Findings {
        simulated: Duration::from_nanos(world.now),
        digest: world.trace.digest(),
        events: world.trace.length,
        violations: world.invariants.findings.clone(),
        ..Findings::default()
    };
    for record in world.history.records() {
        match record {
            Record::Operation(operation) => operations.push(operation),
            Record::Heartbeats(line) => lines.push(line),
            Record::Fault(fault) => faults.push(fault),
            Record::Ap(line) => aps.push(line),
            Record::Ownership(line) => ownership.push(line),
            Record::Following(line) => following.push(line),
            Record::Broken(at, what) => findings.violations.push(format!("{at:?}: {what}")),
            _ => {}
        }
    }
    let ended = Duration::from_nanos(world.now);
    let mut verdicts = Vec::new();
    if workloads.contains(&Workload::Registers) {
        verdicts.push(linear::check(&operations));
        verdicts.push(revisions::check(&operations));
    }
    if workloads.contains(&Workload::Heartbeats) {
        verdicts.push(sessions::check(&lines, &faults, LATE_MAX, ended));
    }
    if let Some(followed) = &progress.lock().followed {
        verdicts.push(watches::check(&followed.seen, &followed.acknowledged, ended));
    }
    if workloads.contains(&Workload::Ap) {
        verdicts.push(ap::check(&aps, workload::ap::GROUP, &faults));
    }
    if workloads.contains(&Workload::Takeover) {
        verdicts.push(takeover::check(&ownership, &following));
    }
    for verdict in &verdicts {
        let of = |finding: &rollcall_jepsen::checker::Finding| {
            format!("{}: at {:?}: {}", verdict.checker, finding.at, finding.what)
        };
        findings.violations.extend(verdict.findings.iter().map(of));
        findings.undecided.extend(
            verdict
                .undecided
                .iter()
                .map(|what| format!("{}: {what}", verdict.checker)),
        );
        if verdict.judged == 0 {
            findings
                .undecided
                .push(format!("{}: there was nothing to judge", verdict.checker));
        }
    }
    findings.verdicts = verdicts;
    let Done {
        faults,
        starts,
        ended_by_disk,
        steps,
    } = world.done.clone();
    findings.faults = faults;
    let paired = pair(&operations);
    let count =
        |wanted: fn(&Outcome) -> bool| paired.iter().filter(|(_, outcome)| wanted(outcome)).count() as u64;
    let (
        Traffic {
            packets,
            lost,
            repeated,
            connections,
        },
        syncs,
        lost_batches,
        lost_files,
    ) = world.figures();
    let session_lines = lines
        .iter()
        .filter(|line| matches!(line, Heartbeats::Beat { .. }))
        .count() as u64;
    findings.figures = BTreeMap::from([
        ("operations", paired.len() as u64),
        ("ok", count(|outcome| matches!(outcome, Outcome::Ok { .. }))),
        ("unknown", count(|outcome| matches!(outcome, Outcome::Unknown))),
        ("heartbeats", session_lines),
        ("starts", starts),
        ("ended by their disk", ended_by_disk),
        ("steps", steps),
        ("packets", packets),
        ("packets lost", lost),
        ("packets repeated", repeated),
        ("connections", connections),
        ("syncs", syncs),
        ("batches lost", lost_batches),
        ("disks set back", lost_files),
        ("terms with a leader", world.invariants.terms() as u64),
        ("highest term", world.invariants.term()),
        ("states compared", world.invariants.compared),
    ]);
    findings
}
