//! A share of what a nightly run does, within a few minutes; and that what is planted is found.

use std::time::Duration;

use rollcall_sim::{Options, campaign, run, shrink};

fn short() -> Options {
    Options {
        length: Duration::from_secs(4),
        clients: 1,
        ..Options::default()
    }
}

/// How many seeds: `ROLLCALL_SIM_SEEDS`, or as many as fit into a few minutes on two cores without optimization.
fn seeds() -> u64 {
    let asked = std::env::var("ROLLCALL_SIM_SEEDS").ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(30)
}

#[test]
fn short_runs_of_many_seeds_keep_every_promise() {
    let options = short();
    let totals = campaign(1, seeds(), 2, &options, |findings, _| {
        assert!(
            findings.is_good(),
            "{}\n{:#?}",
            options.command_line(findings.seed),
            findings.violations
        );
    })
    .expect("the runs can be carried out");
    assert!(totals.figures["ok"] > 20 * totals.seeds, "{:?}", totals.figures);
    assert!(totals.figures["states compared"] > 100 * totals.seeds);
}

#[test]
fn a_seed_replays_to_the_last_byte() {
    for seed in [3, 4] {
        let first = run(seed, &short()).expect("the run can be carried out");
        let second = run(seed, &short()).expect("the run can be carried out");
        assert_eq!((first.digest, first.events), (second.digest, second.events));
        let other = run(seed + 100, &short()).expect("the run can be carried out");
        assert_ne!(first.digest, other.digest);
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
    let failing = (1..20)
        .map(|seed| run(seed, &options).expect("the run can be carried out"))
        .find(|findings| !findings.is_good())
        .expect("one of them reads what is stale");
    let faults = failing.plan.len();
    let smaller = shrink(failing, &options, 12).expect("the runs can be carried out");
    assert!(!smaller.findings.is_good());
    assert!(smaller.findings.plan.len() <= faults);
    let again = run(smaller.findings.seed, &smaller.options).expect("the run can be carried out");
    assert_eq!(again.violations, smaller.findings.violations);
}
