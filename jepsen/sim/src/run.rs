//! One run: a world that follows from a seed, its load, the end in peace, and the judges.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rollcall_jepsen::campaign::{self, Ran, Workload};
use rollcall_jepsen::history::{Heartbeats, History, Operation, Outcome, Record, pair};
use rollcall_jepsen::seed::Seeded;
use rollcall_server::ground;
use tempfile::TempDir;

use crate::boundary;
use crate::disk::{self, Disks, Ground};
use crate::findings::{Findings, Violation};
use crate::load::{self, LATE_MAX, LoadOptions, Progress, RECOVERY_MAX};
use crate::network::Traffic;
use crate::options::Options;
use crate::panics;
use crate::setting::Setting;
use crate::time::{MILLISECOND, SECOND, nanoseconds};
use crate::words;
use crate::world::{Done, World};

/// From the end of the last fault to the end of the load: longer than any workload takes for its last words.
const ENDING_MAX: Duration = Duration::from_secs(150);

/// Runs a seed on a thread of its own. Only the first run of a process is the one that a replay repeats: see
/// [`crate::Alone`]. Its history goes to the file `history`, too, if there is one.
///
/// # Errors
/// The run could not be carried out. A violation is no error: see [`Findings::is_good`].
///
/// # Panics
/// Something in the run did.
pub fn run(seed: u64, options: &Options, history: Option<&Path>) -> anyhow::Result<Findings> {
    let (options, history) = (options.clone(), history.map(Path::to_owned));
    words::listen();
    panics::listen();
    let folder = disk::folder()?;
    let thread = std::thread::Builder::new()
        .name(format!("seed-{seed}"))
        .stack_size(16 << 20)
        .spawn(move || run_here(seed, &options, folder, history.as_deref()))?;
    match thread.join() {
        Ok(findings) => findings,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(feature = "mutants")]
fn plant(options: &Options) -> anyhow::Result<()> {
    let mutant = options.mutant.as_deref().map(str::parse).transpose()?;
    rollcall_core::mutants::plant(mutant);
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn plant(options: &Options) -> anyhow::Result<()> {
    anyhow::ensure!(
        options.mutant.is_none(),
        "mutants are not in this program; build it with --features mutants"
    );
    Ok(())
}

fn run_here(
    seed: u64,
    options: &Options,
    folder: TempDir,
    history: Option<&Path>,
) -> anyhow::Result<Findings> {
    let Setting { tuning, plan, load } = Setting::new(seed, options)?;
    let entered = boundary::enter(seed, disk::on_sync);
    plant(options)?;
    let disks = Disks::new(folder, tuning.servers, Seeded::fork(seed, 4));
    ground::simulate(Ground::new(disks.clone()));
    let sentences = plan
        .iter()
        .map(|planned| (planned.number, planned.to_string()))
        .collect();
    let history = History::start(history)?;
    let mut world = World::new(entered, tuning, plan, disks, seed, history);
    let carried_out = carry_out(&mut world, load, options.length);
    world.end_all();
    Disks::leave();
    world.history.flush()?;
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
    let history = world.history.clone();
    world.start_clients(load::run(load, history, progress.clone()))?;
    let horizon = nanoseconds(length);
    world.run(horizon, || false)?;
    world.heal()?;
    let healed = world.now;
    let over = progress.clone();
    if !world.run(healed + nanoseconds(ENDING_MAX), || over.is_over())? {
        world.invariants.find("the load did not come to its end".into());
    }
    let failed = progress.lock().failed.take();
    if let Some(failed) = failed {
        world
            .invariants
            .find(format!("the load could not be carried out: {failed}"));
    }
    agree(world)?;
    world.hear_panics();
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
    let ended = Duration::from_nanos(world.now);
    let records = world.history.records();
    let mut findings = Findings {
        simulated_ms: world.now / MILLISECOND,
        digest: format!("{:016x}", world.trace.digest()),
        events: world.trace.length,
        workloads: workloads.iter().map(|of| of.name().to_owned()).collect(),
        violations: world
            .invariants
            .findings
            .iter()
            .map(|what| Violation::seen(what))
            .collect(),
        figures: figures(world, &records),
        undecided: world.history.undecided().into_iter().collect(),
        ..Findings::default()
    };
    let ran = Ran {
        workloads,
        servers: world.tuning.servers as u64,
        late_max: LATE_MAX,
        ended,
    };
    let followed = progress.lock().followed.take();
    for verdict in campaign::judge(&ran, &records, followed.as_ref(), &mut Vec::new()) {
        findings.take(&verdict);
    }
    for of in campaign::happened(&ran, &records) {
        findings.take_happened(&of);
    }
    for (kind, count) in &world.done.faults {
        findings.faults.insert((*kind).to_owned(), *count);
    }
    findings
}

fn figures(world: &World, records: &[Record]) -> BTreeMap<String, u64> {
    let operations: Vec<Operation> = records
        .iter()
        .filter_map(|record| match record {
            Record::Operation(operation) => Some(operation.clone()),
            _ => None,
        })
        .collect();
    let paired = pair(&operations);
    let outcomes =
        |wanted: fn(&Outcome) -> bool| paired.iter().filter(|(_, outcome)| wanted(outcome)).count() as u64;
    let lines = |wanted: fn(&Record) -> bool| records.iter().filter(|record| wanted(record)).count() as u64;
    let Done {
        starts,
        ended_by_disk,
        steps,
        ..
    } = world.done;
    let (traffic, syncs, lost_batches, lost_files) = world.figures();
    let Traffic {
        packets,
        lost,
        repeated,
        connections,
    } = traffic;
    let figures = [
        ("operations", paired.len() as u64),
        ("ok", outcomes(|outcome| matches!(outcome, Outcome::Ok { .. }))),
        ("unknown", outcomes(|outcome| matches!(outcome, Outcome::Unknown))),
        (
            "heartbeats",
            lines(|record| matches!(record, Record::Heartbeats(Heartbeats::Beat { .. }))),
        ),
        ("lines of history", records.len() as u64),
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
    ];
    figures
        .into_iter()
        .map(|(name, figure)| (name.to_owned(), figure))
        .collect()
}
