//! One way to seek a mutant.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rollcall_proto::v1::ReadMode;

use super::program::{Program, workspace};
use crate::campaign::{Findings, Options, Workload, run};
use crate::nemesis::Kind;

/// One way to seek.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// A run of the lab: anew with every seed.
    Lab(Lab),
    /// A test of real processes, which has no seed: anew, as often.
    Test(ServerTest),
}

/// The smallest workload and nemesis that should show a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lab {
    /// What runs.
    pub workloads: &'static [Workload],
    /// What is done to it.
    pub kinds: &'static [Kind],
    /// How registers are read.
    pub reads: ReadMode,
    /// How many servers.
    pub servers: u64,
    /// Clients of each workload.
    pub clients: u64,
    /// Of sessions, in seconds.
    pub ttl: u64,
    /// How long faults and load go on.
    pub seconds: u64,
}

/// Three servers, calm, for ten seconds.
pub(super) const CALM: Lab = Lab {
    workloads: &[],
    kinds: &[],
    reads: ReadMode::Linearizable,
    servers: 3,
    clients: 6,
    ttl: 2,
    seconds: 10,
};

/// One test of `rollcall-server` that starts real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerTest {
    /// The file under `server/tests`.
    pub file: &'static str,
    /// The test in it.
    pub name: &'static str,
}

/// What a trial found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Violations: by whom they were found, and the first.
    Violation {
        /// Checkers, or the test.
        by: Vec<String>,
        /// In words.
        what: String,
    },
    /// It says nothing either way.
    Undecided(String),
}

impl Trial {
    /// How to name it: who is to find something, and under what.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Lab(lab) => {
                let names = |names: Vec<&str>| match names.is_empty() {
                    true => "no faults".to_owned(),
                    false => names.join(", "),
                };
                let workloads: Vec<&str> = lab.workloads.iter().map(|of| of.name()).collect();
                let reads = match lab.reads {
                    ReadMode::Leased => ", leased",
                    ReadMode::Local => ", local",
                    ReadMode::Linearizable | ReadMode::Unspecified => "",
                };
                let servers = match lab.servers {
                    3 => String::new(),
                    1 => ", 1 server".to_owned(),
                    servers => format!(", {servers} servers"),
                };
                let kinds = names(lab.kinds.iter().map(|of| of.name()).collect());
                format!("lab: {}{reads}{servers}; {kinds}", workloads.join(", "))
            }
            Self::Test(test) => format!("server/tests/{}.rs", test.file),
        }
    }

    /// Seeks once.
    ///
    /// # Errors
    /// The trial could not be carried out.
    pub async fn carry_out(
        &self,
        program: &Program,
        mutant: Option<&str>,
        seed: u64,
        out: &Path,
    ) -> anyhow::Result<Found> {
        match self {
            Self::Lab(lab) => {
                let binary = program.with(mutant)?;
                let folder = out.join(format!("{}-{seed}", mutant.unwrap_or("none")));
                std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
                let options = Options {
                    seed,
                    length: Duration::from_secs(lab.seconds),
                    servers: lab.servers,
                    workloads: lab.workloads.to_vec(),
                    kinds: lab.kinds.to_vec(),
                    reads: lab.reads,
                    clients: lab.clients,
                    ttl: Duration::from_secs(lab.ttl),
                    keep: false,
                    folder,
                    binary: Some(binary),
                    upgrade_to: None,
                    loopback: false,
                };
                let findings = run(&options).await?;
                let lacking: Vec<&str> = lab.kinds.iter().map(|kind| kind.name()).collect();
                Ok(judged(&findings, &lacking))
            }
            Self::Test(test) => {
                let (test, binary) = (*test, program.with(mutant)?);
                tokio::task::spawn_blocking(move || test.run(&binary)).await?
            }
        }
    }
}

fn judged(findings: &Findings, kinds: &[&str]) -> Found {
    let violated: Vec<_> = findings
        .verdicts
        .iter()
        .filter(|verdict| !verdict.findings.is_empty())
        .collect();
    if let Some(first) = violated.first().and_then(|verdict| verdict.findings.first()) {
        return Found::Violation {
            by: violated
                .iter()
                .map(|verdict| verdict.checker.to_owned())
                .collect(),
            what: first.what.clone(),
        };
    }
    // A trial without its faults is another one.
    let missing: Vec<&String> = findings
        .left_out
        .iter()
        .filter(|left_out| kinds.iter().any(|kind| left_out.contains(kind)) || left_out.contains("network"))
        .collect();
    if !kinds.is_empty() && !missing.is_empty() {
        return Found::Undecided(format!("not possible here: {missing:?}"));
    }
    match findings.verdicts.iter().find(|verdict| !verdict.is_good()) {
        Some(verdict) => Found::Undecided(format!(
            "{} judged {}, undecided {:?}",
            verdict.checker, verdict.judged, verdict.undecided
        )),
        None => Found::Nothing,
    }
}

impl ServerTest {
    fn cargo(self) -> Command {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(workspace())
            .args([
                "test",
                "--quiet",
                "--package",
                "rollcall-server",
                "--test",
                self.file,
            ])
            .stdin(Stdio::null());
        cargo
    }

    fn run(self, binary: &Path) -> anyhow::Result<Found> {
        // So that one that does not build is not taken for one that found something.
        let built = self.cargo().arg("--no-run").output().context("starting cargo")?;
        ensure!(
            built.status.success(),
            "server/tests/{}.rs does not build:\n{}",
            self.file,
            String::from_utf8_lossy(&built.stderr)
        );
        let mut test = self.cargo();
        test.args(["--", "--exact", self.name]).env("ROLLCALLD", binary);
        let ended = test.output().context("starting cargo")?;
        let said =
            String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
        if ended.status.success() {
            let ran = said.contains("1 passed");
            ensure!(ran, "server/tests/{}.rs has no test {}", self.file, self.name);
            return Ok(Found::Nothing);
        }
        let mut lines = said.lines();
        let panic = lines.find(|line| line.contains("panicked at"));
        let what = panic.and_then(|_| lines.next()).unwrap_or("the test failed");
        Ok(Found::Violation {
            by: vec![self.name.replace('_', " ")],
            what: what.trim().to_owned(),
        })
    }
}
