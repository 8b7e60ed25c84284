//! Syncs that fail: strace answers them in the kernel's place.
//!
//! Those of whole files: a sync of a range that is empty and waits for nothing, as RocksDB tries one on each file it
//! opens, does nothing in any kernel and cannot fail for the disk's sake; RocksDB ends the process if it does.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::deed::{Deed, Effect, Ground, reason, start_if_ended};
use crate::lab::Process;
use crate::net::run;

/// How long a server may take to end after a failed sync, on a busy machine.
const END_MAX: Duration = Duration::from_secs(20);
/// How long strace may take to let go.
const DETACH_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct SyncErrors {
    id: u64,
    strace: Process,
    calls: PathBuf,
    log_length: u64,
    /// When strace was told to let go.
    ended_at: Option<Instant>,
}

impl SyncErrors {
    pub(super) fn is_possible() -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("answering in the kernel's place needs root".into());
        }
        run("strace", &["-V"], "")
            .map(drop)
            .map_err(|reason| format!("{reason:#}"))
    }

    pub(super) fn begin(id: u64, ground: &mut Ground<'_>) -> anyhow::Result<Self> {
        let server = ground.cluster.server(id);
        let calls = server.data().with_extension("syncs");
        let pid = server.process().map_or(0, |process| process.pid());
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-y", "-e", "trace=fsync,fdatasync"]);
        command.args(["-e", "inject=fsync,fdatasync:error=EIO"]);
        command.arg("-o").arg(&calls).args(["-p", &pid.to_string()]);
        let log_length = server.log_length();
        let strace = Process::spawn("strace", command, &calls.with_extension("strace"))?;
        Ok(Self {
            id,
            strace,
            calls,
            log_length,
            ended_at: None,
        })
    }
}

#[tonic::async_trait]
impl Deed for SyncErrors {
    fn what(&self) -> String {
        format!("sync-errors: {}", self.id)
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        if self.strace.is_running() {
            self.strace.stop(DETACH_MAX).await?;
        }
        let calls = std::fs::read_to_string(&self.calls).unwrap_or_default();
        let failed: Vec<&str> = calls.lines().filter(|line| line.contains("INJECTED")).collect();
        // The mark beside the log is a second word; without it the server rests on the log alone.
        let of_log = failed.iter().filter(|line| line.contains(".log>")).count();
        let failed = failed.len();
        let server = ground.cluster.server(self.id);
        let said = reason(&server.log_since(self.log_length)).unwrap_or_else(|| "nothing".into());
        let ended = start_if_ended(server)?;
        let since = self.ended_at.get_or_insert_with(Instant::now).elapsed();
        if of_log > 0 && ended.is_none() && since < END_MAX {
            return Ok(None);
        }
        if of_log > 0 && ended.is_none() {
            // What the disk holds is not known after a failed sync; going on as if nothing was is the old mistake.
            let ran = format!("server {} ran on after {of_log} failed syncs of its log", self.id);
            return Ok(Some(Effect::broken(ran)));
        }
        if let Some(signal) = ended.as_ref().filter(|ended| ended.contains("signal")) {
            let torn = format!(
                "server {} ended by {signal} after a failed sync, and said: {said}",
                self.id
            );
            return Ok(Some(Effect::broken(torn)));
        }
        let ended = ended.unwrap_or_else(|| "nothing".into());
        let seen = format!(
            "{failed} syncs failed, {of_log} of the log; the server ended by {ended} and said: {said}"
        );
        Ok(Some(Effect::seen(failed > 0, seen)))
    }
}
