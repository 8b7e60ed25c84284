//! The regression gate: how many instructions the hot paths take, against recorded budgets. Times are noisy, counts are
//! not. `scripts/gate.sh` builds and runs it; callgrind counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use rollcall_benches::{Case, cases, counted};

/// Above the budget by more than this fails.
const WORSE_MAX: f64 = 0.05;
/// Below it by more than this wants to be recorded, so that it cannot be lost again unseen.
const BETTER_MAX: f64 = 0.05;

const USAGE: &str =
    "rollcall-gate check|record BUDGETS [BEGINNING OF A CASE'S NAME]...\n       rollcall-gate list";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["list"] => {
            cases().iter().for_each(|case| println!("{}", case.name));
            Ok(true)
        }
        ["run", name] => run(name).map(|()| true),
        ["check", budgets, chosen @ ..] => check(Path::new(budgets), chosen),
        ["record", budgets, chosen @ ..] => record(Path::new(budgets), chosen).map(|()| true),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The case itself, as it runs under callgrind.
fn run(name: &str) -> Result<()> {
    let all = cases();
    let case = all.iter().find(|case| case.name == name);
    let case = case.with_context(|| format!("there is no case {name}"))?;
    let mut operation = (case.make)();
    counted(&mut *operation, case.times);
    Ok(())
}

/// Instructions of one operation.
fn count(case: &Case) -> Result<f64> {
    let out = PathBuf::from(format!(
        "{}/callgrind.{}",
        std::env::temp_dir().display(),
        std::process::id()
    ));
    let status = Command::new("valgrind")
        .args([
            "--quiet",
            "--tool=callgrind",
            "--toggle-collect=*rollcall_benches*counted*",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["run", case.name])
        .stdout(Stdio::null())
        .status()
        .context("valgrind is not there: scripts/setup.sh installs it")?;
    ensure!(status.success(), "{} ended with {status}", case.name);
    let said = std::fs::read_to_string(&out).with_context(|| format!("{}", out.display()))?;
    std::fs::remove_file(&out)?;
    let total = said
        .lines()
        .find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    let total: u64 = total.context("callgrind gave no total")?.trim().parse()?;
    ensure!(total > 0, "{}: nothing was counted", case.name);
    Ok(total as f64 / case.times as f64)
}

/// At least one.
fn chosen(names: &[&str]) -> Result<Vec<Case>> {
    let wanted = |case: &Case| names.is_empty() || names.iter().any(|name| case.name.starts_with(name));
    let chosen: Vec<_> = cases().into_iter().filter(wanted).collect();
    ensure!(!chosen.is_empty(), "there is no case whose name begins like this");
    Ok(chosen)
}

type Budgets = BTreeMap<String, u64>;

fn read(path: &Path) -> Result<Budgets> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds no budgets", path.display()))
}

/// Whether all keep to their budgets.
fn check(path: &Path, names: &[&str]) -> Result<bool> {
    let budgets = read(path)?;
    let (mut kept, mut stale) = (true, false);
    println!(
        "{:<46} {:>12} {:>12} {:>8}",
        "instructions of", "budget", "now", ""
    );
    for case in chosen(names)? {
        let now = count(&case)?;
        let Some(budget) = budgets.get(case.name) else {
            println!("{:<46} {:>12} {now:>12.0} {:>8}  NO BUDGET", case.name, "-", "");
            kept = false;
            continue;
        };
        let change = now / *budget as f64 - 1.0;
        let verdict = if change > WORSE_MAX {
            kept = false;
            "TOO MANY"
        } else if change < -BETTER_MAX {
            stale = true;
            "fewer: record it"
        } else {
            ""
        };
        println!(
            "{:<46} {budget:>12} {now:>12.0} {:>7.1}%  {verdict}",
            case.name,
            change * 100.0
        );
    }
    if stale {
        println!("some paths take fewer instructions: `scripts/gate.sh record` keeps them from growing back");
    }
    if !kept {
        println!("FAILED: make them as short as they were, or record them and say why in the commit");
    }
    Ok(kept)
}

/// Writes what is counted now; cases that are not counted keep their budget, those that are no more lose it.
fn record(path: &Path, names: &[&str]) -> Result<()> {
    let mut budgets = if path.exists() {
        read(path)?
    } else {
        Budgets::new()
    };
    let counted = chosen(names)?;
    for case in &counted {
        let now = count(case)?;
        println!("{:<46} {now:>12.0}", case.name);
        budgets.insert(case.name.to_owned(), now.round() as u64);
    }
    if cfg!(feature = "compare") {
        let known: Vec<_> = cases().iter().map(|case| case.name).collect();
        budgets.retain(|name, _| known.contains(&name.as_str()));
    }
    std::fs::write(path, serde_json::to_string_pretty(&budgets)? + "\n")?;
    Ok(())
}
