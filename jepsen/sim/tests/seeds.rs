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

/// The digest of a seed, from a process of its own: what a process counts for all its threads (ids of tasks, say) goes on
/// from seed to seed, so that only the first run of a process is the one that a replay repeats.
fn digest(seed: &str) -> String {
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_rollcall-sim"))
        .args([
            "--seed",
            seed,
            "--length-ms",
            "3000",
            "--clients",
            "1",
            "--no-shrink",
        ])
        .output()
        .expect("the program can be run");
    let printed = String::from_utf8_lossy(&run.stdout).into_owned();
    let line = printed.lines().find(|line| line.starts_with("digest"));
    let words = line.unwrap_or_default().split_whitespace();
    words.take(5).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_seed_replays_to_the_last_byte() {
    let first = digest("3");
    assert!(first.contains(" events"), "{first:?}");
    assert_eq!(first, digest("3"));
    assert_ne!(first, digest("4"));
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
}
