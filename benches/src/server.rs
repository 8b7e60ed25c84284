//! Servers as processes: how to start one, and one that runs.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Ports of servers: below those that the system gives to clients.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerPlan {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Its own: data and log.
    pub(crate) folder: PathBuf,
    /// Where clients find it.
    pub(crate) address: String,
    /// Not before the first server of the cluster is ready.
    pub(crate) after_the_first: bool,
}

impl ServerPlan {
    pub(crate) fn new(program: PathBuf, folder: &Path) -> Self {
        Self {
            program,
            folder: folder.to_owned(),
            ..Self::default()
        }
    }

    /// Starts it. It ends with this process, however that ends, where the system has `setpriv`.
    pub(crate) fn start(&self) -> Result<Server> {
        std::fs::create_dir_all(&self.folder)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))?;
        let mut command = if Path::new(SETPRIV).exists() {
            let mut command = Command::new(SETPRIV);
            command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        let child = command
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        Ok(Server { child })
    }
}

const SETPRIV: &str = "/usr/bin/setpriv";

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Hands out ports that are free now, each once in this process's life.
#[derive(Debug)]
pub(crate) struct Ports(());

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

impl Ports {
    pub(crate) fn new() -> Self {
        Self(())
    }

    pub(crate) fn free(&mut self) -> Result<u16> {
        let mut given = GIVEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for port in PORTS {
            if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
                given.insert(port);
                return Ok(port);
            }
        }
        anyhow::bail!("no free port in {PORTS:?}")
    }
}

/// The first line that a program prints; an error if it is not there.
pub(crate) fn first_line(program: &Path, arguments: &[&str]) -> Result<String> {
    let said = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{} is not there", program.display()))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Ok(said.lines().next().unwrap_or_default().to_owned())
}
