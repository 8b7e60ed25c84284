//! Seeks them all.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use super::catalogue::{Catalogue, Sought};
use super::program::Program;
use super::table::{Caught, HEAD, Row};
use super::trial::{Found, Trial};

/// What to seek, and where to leave histories.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// The server.
    pub program: Program,
    /// Only these; empty: all.
    pub only: Vec<String>,
    /// At most so many seeds for each; `None`: as the catalogue says.
    pub seeds_max: Option<u64>,
    /// The first seed.
    pub first_seed: u64,
    /// A folder for histories.
    pub out: PathBuf,
}

/// Seeks them, telling how it goes, and prints the table. Whether all were caught, by trials that find nothing where nothing
/// is planted.
///
/// # Errors
/// The catalogue and the server do not name the same mutants, or one is asked for that is not there.
pub async fn hunt(hunt: &Hunt) -> anyhow::Result<bool> {
    let catalogue = Catalogue::of(&hunt.program.mutants()?)?;
    let sought = catalogue.only(&hunt.only)?;
    let began = Instant::now();
    let unclean = controls(hunt, &sought).await;
    println!(
        "the controls took {:?}; {} of them were not clean",
        began.elapsed(),
        unclean.len()
    );
    let mut rows = Vec::new();
    for of in &sought {
        let mut row = seek(hunt, of).await;
        row.unclean = unclean.get(&of.trial.describe()).cloned();
        let end = match &row.caught {
            // The rest is in the history's page.
            Some(caught) => format!("caught by {}: {}", caught.by.join(", "), first_line(&caught.what)),
            None => "ESCAPED".to_owned(),
        };
        println!("{}: {end}", of.name);
        rows.push(row);
    }
    println!("\n{HEAD}");
    for row in &rows {
        println!("{row}");
    }
    let caught = rows.iter().filter(|row| row.is_caught()).count();
    println!("\n{caught} of {} caught, in {:?}", rows.len(), began.elapsed());
    Ok(caught == rows.len())
}

fn first_line(what: &str) -> &str {
    what.lines().next().unwrap_or_default()
}

/// What each trial finds where nothing is planted, if it finds anything: then it proves nothing.
async fn controls(hunt: &Hunt, sought: &[Sought]) -> BTreeMap<String, String> {
    let trials: BTreeMap<String, Trial> = sought.iter().map(|of| (of.trial.describe(), of.trial)).collect();
    let mut unclean = BTreeMap::new();
    for (number, (name, trial)) in trials.iter().enumerate() {
        println!("control {} of {}: {name}", number + 1, trials.len());
        let found = trial
            .carry_out(
                &hunt.program,
                None,
                hunt.first_seed,
                &hunt.out.join(format!("control-{}", number + 1)),
            )
            .await;
        let why = match found {
            Ok(Found::Nothing) => continue,
            Ok(Found::Violation { by, what }) => format!("{}: {}", by.join(", "), first_line(&what)),
            Ok(Found::Undecided(why)) => why,
            Err(failed) => format!("{failed:#}"),
        };
        println!("NOT CLEAN: {name}: {why}");
        unclean.insert(name.clone(), why);
    }
    unclean
}

async fn seek(hunt: &Hunt, of: &Sought) -> Row {
    let began = Instant::now();
    let mut row = Row {
        mutant: of.name.clone(),
        breaks: of.breaks.clone(),
        trial: of.trial.describe(),
        caught: None,
        unclean: None,
        seeds: 0,
        took: began.elapsed(),
    };
    let seeds_max = hunt.seeds_max.unwrap_or(of.seeds_max).max(1);
    for seed in hunt.first_seed..hunt.first_seed.saturating_add(seeds_max) {
        println!("{}: seed {seed}, {}", of.name, row.trial);
        row.seeds += 1;
        let found = of
            .trial
            .carry_out(&hunt.program, Some(&of.name), seed, &hunt.out)
            .await;
        row.took = began.elapsed();
        match found {
            Ok(Found::Violation { by, what }) => {
                row.caught = Some(Caught { by, what });
                break;
            }
            Ok(Found::Nothing) => {}
            Ok(Found::Undecided(why)) => println!("{}: seed {seed} decided nothing: {why}", of.name),
            // A cluster with a bug may not even start; that is not what it is sought by.
            Err(failed) => println!("{}: seed {seed} was not carried out: {failed:#}", of.name),
        }
    }
    row
}
