//! The processes of the demo's services.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rollcall_jepsen::lab::Process;

use crate::services::Job;

pub(crate) const GROUP: &str = "demo";

/// A running instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) job: Job,
    pub(crate) id: String,
    pub(crate) process: Process,
}

impl Instance {
    /// Starts `rollcall-demo service` as a process of its own.
    pub(crate) fn start(
        job: Job,
        number: u32,
        servers: &[String],
        ttl: Duration,
        logs: &Path,
    ) -> anyhow::Result<Self> {
        let id = format!("{}-{number}", job.name());
        let program: PathBuf = std::env::current_exe().context("the demo's own path is unknown")?;
        let mut command = Command::new(program);
        command.args([
            "service",
            job.name(),
            "--with-parent",
            "--instance",
            &id,
            "--group",
            GROUP,
        ]);
        command.args(["--ttl", &format!("{}ms", ttl.as_millis())]);
        for server in servers {
            command.args(["--registry", server]);
        }
        let process = Process::spawn(&id, command, &logs.join(format!("{id}.log")))?;
        Ok(Self { job, id, process })
    }

    /// `group/service/id`.
    pub(crate) fn key(&self) -> String {
        format!("{GROUP}/{}/{}", self.job.name(), self.id)
    }
}
