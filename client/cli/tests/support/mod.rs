//! Runs the `rollcall` that belongs to these tests.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "shared by tests, each of which uses a part; a test ends where its program does"
)]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The longest any condition is waited for.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

/// A command line against these servers.
#[derive(Clone, Debug)]
pub(crate) struct Rollcall {
    servers: String,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Rollcall {
    pub(crate) fn at(addresses: &[String]) -> Self {
        Self {
            servers: addresses.join(","),
        }
    }

    /// A command with its words separated by blanks.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command
            .args(words.split_whitespace())
            .env("ROLLCALL_ADDR", &self.servers)
            .env_remove("ROLLCALL_LOG");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, words: &str) -> Ended {
        self.command(words).output().unwrap().into()
    }

    /// Runs it and wants it to succeed; gives stdout.
    #[track_caller]
    pub(crate) fn ok(&self, words: &str) -> String {
        let ended = self.run(words);
        assert_eq!(ended.code, Some(0), "rollcall {words}: {ended:?}");
        ended.stdout
    }

    /// Runs it with `-o json` and wants it to succeed.
    #[track_caller]
    pub(crate) fn json(&self, words: &str) -> serde_json::Value {
        let stdout = self.ok(&format!("{words} -o json"));
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("rollcall {words}: {e}: {stdout}"))
    }

    /// Runs it and wants this code.
    #[track_caller]
    pub(crate) fn fails(&self, words: &str, code: i32) -> String {
        let ended = self.run(words);
        assert_eq!(ended.code, Some(code), "rollcall {words}: {ended:?}");
        assert!(
            ended.stderr.starts_with("rollcall: ") || code == 2,
            "rollcall {words}: {ended:?}"
        );
        ended.stderr
    }

    /// Starts it and goes on.
    pub(crate) fn start(&self, words: &str) -> Running {
        let mut child = self.command(words).stderr(Stdio::inherit()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A command that runs on. Killed if the test ends before it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// The next line on stdout.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "stdout ended: {line:?}");
        line
    }

    /// The next line as JSON.
    #[track_caller]
    pub(crate) fn json_line(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// It takes nothing in until [`Self::resume`].
    pub(crate) fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn code(mut self) -> Option<i32> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                None => panic!("it did not end within {WAIT_MAX:?}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until the condition holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {WAIT_MAX:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
