//! What a seed decides before anything runs, and what was chosen in its place.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use rollcall_jepsen::campaign::Workload;
use rollcall_jepsen::seed::Seeded;
use rollcall_proto::v1::ReadMode;

use crate::load::LoadOptions;
use crate::options::Options;
use crate::schedule::{KINDS, Planned, schedule};
use crate::server::{Tuning, client_address};
use crate::time::nanoseconds;

/// What always runs, unless something else was chosen: cheap, and each judge of what servers promise above all.
const ALWAYS: [Workload; 3] = [Workload::Registers, Workload::Heartbeats, Workload::Followers];
/// What the seed adds.
const SOMETIMES: [Workload; 9] = [
    Workload::Ap,
    Workload::Guard,
    Workload::Takeover,
    Workload::ModeSwitch,
    Workload::Resumes,
    Workload::Batches,
    Workload::Retries,
    Workload::Racers,
    Workload::Ages,
];
/// How many of them at most.
const MORE_MAX: u64 = 3;
/// How often it is a storm instead, which runs alone.
const STORMS: f64 = 0.04;

/// Everything about a run that is known before it begins.
pub(crate) struct Setting {
    pub(crate) tuning: Tuning,
    pub(crate) plan: Vec<Planned>,
    pub(crate) load: LoadOptions,
}

impl Setting {
    pub(crate) fn new(seed: u64, options: &Options) -> anyhow::Result<Self> {
        let mut random = Seeded::fork(seed, 1);
        // Drawn in any case, so that choosing one thing moves no other.
        let drawn_servers = if random.chance(0.3) { 5 } else { 3 };
        let snapshot_after = [100, 250, 100_000][usize::try_from(random.below(3)).unwrap_or(0)];
        let retained_revisions = [20, 200, 10_000][usize::try_from(random.below(3)).unwrap_or(0)];
        let ttl = Duration::from_millis(random.between(2_000, 4_000));
        let drawn_reads = match random.below(3) {
            0 => ReadMode::Leased,
            _ => ReadMode::Linearizable,
        };
        let mut drawn_kinds: Vec<&'static str> = KINDS.to_vec();
        random.shuffle(&mut drawn_kinds);
        drawn_kinds.truncate(usize::try_from(random.between(2, 8)).unwrap_or(2));
        let servers = options.servers.unwrap_or(drawn_servers);
        ensure!(
            (1..=7).contains(&servers),
            "{servers} servers are not simulated, 1 to 7 are"
        );
        let kinds = match &options.kinds {
            None => drawn_kinds,
            Some(names) => kinds(names)?,
        };
        let workloads = match &options.workloads {
            None => drawn_workloads(&mut Seeded::fork(seed, 5)),
            Some(names) => workloads(names)?,
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
                storm: workloads.contains(&Workload::Storm),
            },
            plan,
            load: LoadOptions {
                addresses: (0..servers).map(client_address).collect(),
                workloads,
                seed,
                clients: options.clients,
                ttl,
                reads: reads(options.reads.as_deref())?.unwrap_or(drawn_reads),
                horizon: options.length,
            },
        })
    }
}

fn drawn_workloads(random: &mut Seeded) -> Vec<Workload> {
    if random.chance(STORMS) {
        return vec![Workload::Storm];
    }
    let mut more = SOMETIMES.to_vec();
    random.shuffle(&mut more);
    more.truncate(usize::try_from(random.below(MORE_MAX + 1)).unwrap_or(0));
    let mut chosen: Vec<Workload> = ALWAYS.into_iter().chain(more).collect();
    // In the order in which chosen ones start: the same by name is the same run.
    chosen.sort_unstable();
    chosen
}

fn workloads(names: &[String]) -> anyhow::Result<Vec<Workload>> {
    let mut chosen: Vec<Workload> = Vec::new();
    for name in names.iter().filter(|name| *name != "none") {
        match name.as_str() {
            "all" => chosen.extend(Workload::TOGETHER),
            name => chosen.push(name.parse().map_err(anyhow::Error::msg)?),
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

fn kinds(names: &[String]) -> anyhow::Result<Vec<&'static str>> {
    let known = |name: &String| KINDS.into_iter().find(|kind| kind == name);
    let names = names.iter().filter(|name| *name != "none");
    names
        .map(|name| {
            known(name).ok_or_else(|| anyhow!("no fault is called {name}; there are: {}", KINDS.join(", ")))
        })
        .collect()
}

fn reads(name: Option<&str>) -> anyhow::Result<Option<ReadMode>> {
    Ok(Some(match name {
        None => return Ok(None),
        Some("linearizable") => ReadMode::Linearizable,
        Some("leased") => ReadMode::Leased,
        Some("local") => ReadMode::Local,
        Some(other) => {
            anyhow::bail!("registers are not read {other}; there are: linearizable, leased, local")
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_cover_all_workloads_and_a_storm_runs_alone() {
        let mut seen = std::collections::BTreeMap::new();
        for seed in 0..1_000 {
            let drawn = Setting::new(seed, &Options::default()).unwrap().load.workloads;
            assert!(
                drawn == [Workload::Storm] || drawn.starts_with(&ALWAYS),
                "{drawn:?}"
            );
            for workload in drawn {
                *seen.entry(workload).or_insert(0) += 1;
            }
        }
        assert!(Workload::ALL.iter().all(|of| seen[of] > 20), "{seen:?}");
    }

    #[test]
    fn what_is_chosen_moves_nothing_else() {
        let of = |options: &Options| Setting::new(11, options).unwrap();
        let drawn = of(&Options::default());
        let chosen = of(&Options {
            workloads: Some(vec!["ap".into(), "racers".into(), "ap".into()]),
            reads: Some("local".into()),
            ..Options::default()
        });
        assert_eq!(chosen.load.workloads, [Workload::Ap, Workload::Racers]);
        assert_eq!(chosen.plan, drawn.plan);
        assert_eq!(chosen.load.ttl, drawn.load.ttl);
        let calm = of(&Options {
            kinds: Some(vec!["none".into()]),
            ..Options::default()
        });
        assert!(calm.plan.is_empty());
        let unknown = |options: Options| Setting::new(11, &options).err().map(|error| error.to_string());
        let names = Some(vec!["apes".to_owned()]);
        let workloads = Options {
            workloads: names.clone(),
            ..Options::default()
        };
        assert!(unknown(workloads).is_some_and(|error| error.contains("mode-switch")));
        let kinds = Options {
            kinds: names,
            ..Options::default()
        };
        assert!(unknown(kinds).is_some_and(|error| error.contains("power-all")));
    }
}
