//! A share of what a nightly run does, within a few minutes; and that what is planted is found.

use std::path::PathBuf;
use std::time::Duration;

use rollcall_sim::{Alone, Options, Totals, campaign, shrink};

/// As many seeds as fit into a few minutes on two cores: of a program that was built as tests are, and of an optimized one.
const SEEDS: u64 = 30;
const SEEDS_OPTIMIZED: u64 = 400;
const JOBS: usize = 2;

/// An optimized program, which `ROLLCALL_SIM` names: twenty times as fast.
fn optimized() -> Option<PathBuf> {
    std::env::var_os("ROLLCALL_SIM").map(PathBuf::from)
}

fn alone() -> Alone {
    let program = optimized().unwrap_or_else(|| env!("CARGO_BIN_EXE_rollcall-sim").into());
    Alone::new(program, Duration::from_secs(600))
}

fn short() -> Options {
    Options {
        length: Duration::from_secs(4),
        clients: 1,
        ..Options::default()
    }
}

/// `ROLLCALL_SIM_SEEDS`, if it says how many.
fn seeds() -> u64 {
    let asked = std::env::var("ROLLCALL_SIM_SEEDS").ok();
    let usual = if optimized().is_some() {
        SEEDS_OPTIMIZED
    } else {
        SEEDS
    };
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(usual)
}

#[test]
fn short_runs_of_many_seeds_keep_every_promise() {
    let options = short();
    let mut totals = Totals::default();
    let seeds: Vec<u64> = (1..=seeds()).collect();
    campaign(&seeds, JOBS, &options, &alone(), |findings| {
        totals.add(findings);
        let replay = options.command_line(findings.seed);
        let (violations, undecided) = (&findings.violations, &findings.undecided);
        anyhow::ensure!(
            findings.is_good(),
            "{replay}\n{violations:#?}\nundecided: {undecided:#?}"
        );
        Ok(())
    })
    .unwrap();
    assert!(totals.figures["operations"] > 20 * totals.seeds, "{totals:?}");
    assert!(
        totals.figures["states compared"] > 100 * totals.seeds,
        "{totals:?}"
    );
    assert!(totals.idle().is_empty(), "nothing to judge: {:?}", totals.idle());
    // A judge that has nothing to judge finds nothing; among a few seeds a kind of work may be missing.
    if totals.seeds >= SEEDS_OPTIMIZED {
        assert!(totals.judged.len() >= 12, "{:?}", totals.judged);
    }
}

/// Each of these found something once, in the server (200008: who missed a move of a group showed it empty; 300989 and
/// 302102: a move whose coordinator lost its power kept its group frozen) or in a judge (1083: a leader that came just before
/// a session stopped; 301685: a node that lapsed while its deregistration was under way).
#[test]
fn seeds_that_found_something_find_nothing_any_more() {
    let options = Options {
        length: Duration::from_secs(5),
        ..short()
    };
    for seed in [200_008, 300_989, 302_102, 1_083, 301_685] {
        let findings = alone().run(seed, &options).unwrap();
        assert!(
            findings.is_good(),
            "{}\n{:#?}",
            options.command_line(seed),
            findings.violations
        );
    }
}

/// What a process counts for all its threads (ids of tasks, say) goes on from seed to seed, so each has a process of its
/// own, and is the same beside others as alone.
#[test]
fn a_seed_replays_to_the_last_byte() {
    let options = Options {
        length: Duration::from_secs(3),
        ..short()
    };
    let mut together = Vec::new();
    campaign(&[3, 4, 3], 3, &options, &alone(), |findings| {
        together.push((findings.seed, findings.digest.clone(), findings.events));
        Ok(())
    })
    .unwrap();
    let by_itself = alone().run(3, &options).unwrap();
    assert!(by_itself.events > 1_000, "{by_itself:?}");
    for (seed, digest, events) in together {
        let same = (digest, events) == (by_itself.digest.clone(), by_itself.events);
        assert_eq!(same, seed == 3);
    }
}

/// Local reads behind a partition are stale. If nobody found that, the judges would be blind.
#[test]
fn stale_reads_are_found_and_the_plan_shrinks() {
    let options = Options {
        reads: Some("local".into()),
        workloads: Some(vec!["registers".into()]),
        kinds: Some(vec!["single".into(), "slow".into()]),
        servers: Some(3),
        clients: 3,
        ..short()
    };
    let alone = alone();
    let failing = (1..20)
        .map(|seed| alone.run(seed, &options).unwrap())
        .find(|findings| !findings.is_good())
        .expect("one of them reads what is stale");
    let faults = failing.plan.len();
    let smaller = shrink(failing, &options, &alone, 12).unwrap();
    assert!(!smaller.findings.is_good());
    assert!(smaller.findings.plan.len() <= faults);
}

#[test]
fn a_seed_that_does_not_end_and_one_that_cannot_run_are_no_successes() {
    let hurried = Alone {
        took_max: Duration::from_millis(50),
        ..alone()
    };
    let findings = hurried.run(3, &short()).unwrap();
    assert_eq!(findings.finders(), ["the real clock"]);
    let unknown = Options {
        workloads: Some(vec!["apes".into()]),
        ..short()
    };
    let refused = alone().run(3, &unknown).unwrap_err().to_string();
    assert!(refused.contains("no workload is called apes"), "{refused}");
}
