//! A child process: its signals, its log, its end.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::wait::{WAIT_MAX, eventually};

/// A running (or ended) child. Dropping it ends it, also when it is paused.
///
/// Signals go to the child's own pid. The child is reaped only here, so the pid cannot have passed to another
/// process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    paused: bool,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`. Its output is appended to `log`; its standard input stays open until it is dropped, so
    /// a child may read it to learn that its parent is gone.
    ///
    /// # Errors
    /// The log cannot be opened, or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening the log {}", log.display()))?;
        command
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self {
            name: name.into(),
            child,
            log: log.into(),
            paused: false,
            ended: None,
        })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output is.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it is stopped by [`Self::pause`].
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Whether it has not ended; a paused process runs.
    pub fn is_running(&mut self) -> bool {
        self.exit_status().is_none()
    }

    /// SIGKILL; returns when it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn kill9(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_end(WAIT_MAX).await?;
        Ok(())
    }

    /// SIGTERM; returns how it ended.
    ///
    /// # Errors
    /// It had ended before, or is still there after `bound`.
    pub async fn stop(&mut self, bound: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_end(bound).await
    }

    /// SIGTERM, without waiting.
    ///
    /// # Errors
    /// It had ended before.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGSTOP; returns when the kernel has stopped it.
    ///
    /// # Errors
    /// It had ended before, or does not stop.
    pub async fn pause(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        let stat = format!("/proc/{}/stat", self.pid());
        eventually(&format!("the stop of {}", self.name), WAIT_MAX, || async {
            let stat = std::fs::read_to_string(&stat).ok()?;
            // The state follows the command's name, which stands in parentheses and may contain anything.
            let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
            (state == 'T').then_some(())
        })
        .await?;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It had ended before.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It is still there after `bound`.
    pub async fn wait_end(&mut self, bound: Duration) -> anyhow::Result<ExitStatus> {
        let started = std::time::Instant::now();
        loop {
            if let Some(status) = self.exit_status() {
                return Ok(status);
            }
            if started.elapsed() > bound {
                bail!(
                    "{} (pid {}) is still there after {bound:?}",
                    self.name,
                    self.pid()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The last `lines` lines of its output.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if let Some(status) = self.exit_status() {
            bail!("{} has ended before: {status}", self.name);
        }
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("signal {signal:?} to {} (pid {})", self.name, self.child.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let pid = Pid::from_child(&self.child);
            // SIGKILL ends a stopped process too; SIGCONT lets it go at once on every kernel.
            let _ = kill_process(pid, Signal::KILL);
            let _ = kill_process(pid, Signal::CONT);
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Process {
        let mut command = Command::new("sleep");
        command.arg("600");
        Process::spawn("sleeper", command, &folder.join("log")).unwrap()
    }

    #[tokio::test]
    async fn a_paused_process_is_ended_on_drop() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = sleeper(folder.path());
        let pid = process.pid();
        process.pause().await.unwrap();
        assert!(process.is_running());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn signals_to_an_ended_process_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = sleeper(folder.path());
        process.kill9().await.unwrap();
        assert!(process.stop(WAIT_MAX).await.is_err());
        assert!(process.resume().is_err());
    }
}
