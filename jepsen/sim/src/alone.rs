//! A seed in a process of its own.
//!
//! Some libraries count for the whole process, so only its first run is one that a replay repeats. And whatever a seed
//! does to its process (a crash, memory that is not given back, a loop without end) concerns that seed alone.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::disk;
use crate::findings::{Findings, Violation};
use crate::options::Options;

/// How often a process is asked whether it has ended.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// The last words of a process that are kept.
const TAIL_BYTES: usize = 4_000;
/// Who finds what does not come to an end.
const CLOCK: &str = "the real clock";
/// Who finds that a process ended before it had a result.
const CRASH: &str = "the system";

/// Runs seeds, each in a process of its own.
#[derive(Clone, Debug)]
pub struct Alone {
    /// The program `rollcall-sim`.
    pub program: PathBuf,
    /// For how long a seed may run, in real time.
    pub took_max: Duration,
    /// Whether the words of the process go to standard error, and `RUST_LOG` is heeded.
    pub speaks: bool,
    /// Where the history of a seed goes, if it is kept.
    pub history: Option<PathBuf>,
}

impl Alone {
    /// With this program, quietly.
    #[must_use]
    pub fn new(program: PathBuf, took_max: Duration) -> Self {
        Self {
            program,
            took_max,
            speaks: false,
            history: None,
        }
    }

    /// Runs a seed. A process that crashes, or takes too long, is a finding.
    ///
    /// # Errors
    /// The process could not be started, or refused its arguments.
    pub fn run(&self, seed: u64, options: &Options) -> anyhow::Result<Findings> {
        let began = Instant::now();
        let mut command = Command::new(&self.program);
        command
            .args(["--seed", &seed.to_string()])
            .args(options.arguments())
            .args(["--json", "--ends-with-parent"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(history) = &self.history {
            command.arg("--history").arg(history);
        }
        if !self.speaks {
            command.env_remove("RUST_LOG");
        }
        let child = command.spawn();
        let mut child = child.with_context(|| format!("starting {}", self.program.display()))?;
        let id = child.id();
        let said = child.stdout.take().map(|pipe| read(pipe, usize::MAX, false));
        let words = child
            .stderr
            .take()
            .map(|pipe| read(pipe, TAIL_BYTES, self.speaks));
        let ended = wait(&mut child, began + self.took_max)?;
        let (said, words) = (told(said), told(words));
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let lost = |by: &str, what: String| Findings {
            seed,
            took_ms,
            violations: vec![Violation { by: by.into(), what }],
            ..Findings::default()
        };
        // What it left behind, if it could not clear up.
        disk::clear(id);
        match ended {
            None => Ok(lost(
                CLOCK,
                format!(
                    "the seed took longer than {:?}; its last words:\n{words}",
                    self.took_max
                ),
            )),
            Some(status) => match serde_json::from_str::<Findings>(&said) {
                Ok(findings) if status.success() => Ok(Findings { took_ms, ..findings }),
                _ if status.code() == Some(REFUSED) => anyhow::bail!("seed {seed} is not run: {words}"),
                _ => Ok(lost(
                    CRASH,
                    format!("the process ended with {status}; its last words:\n{words}"),
                )),
            },
        }
    }
}

/// The exit code of a process that did not run anything: its arguments are wrong. As clap has it.
pub const REFUSED: i32 = 2;

/// Until the process ends; `None`: it did not in time, and was killed.
fn wait(child: &mut Child, until: Instant) -> io::Result<Option<std::process::ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(ASK_EVERY);
    }
}

/// Reads everything, and keeps the last part of it.
fn read(mut pipe: impl Read + Send + 'static, kept_max: usize, echoed: bool) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut piece = [0; 8 << 10];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            if echoed {
                // Nobody may be there to read it.
                let _ = io::stderr().write_all(&piece[..length]);
            }
            kept.extend_from_slice(&piece[..length]);
            let surplus = kept.len().saturating_sub(kept_max);
            kept.drain(..surplus);
        }
        kept
    })
}

fn told(reading: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = reading
        .and_then(|reading| reading.join().ok())
        .unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}
