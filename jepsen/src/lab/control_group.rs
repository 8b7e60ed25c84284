//! Less of the machine for one process: control groups of the first version, as the kernel mounts them.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::net::{Claim, Duty};

const MOUNT: &str = "/sys/fs/cgroup";
const PERIOD_MICROS: u64 = 100_000;

/// What is made scarce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// The processor.
    Cpu,
    /// Memory.
    Memory,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

/// A group of its own for one process. Dropping it sends the process back where it is not limited.
#[derive(Debug)]
pub struct ControlGroup {
    path: PathBuf,
    _claim: Claim,
}

impl ControlGroup {
    /// Whether the machine has this controller, and lets groups be made.
    #[must_use]
    pub fn is_possible(controller: Controller) -> bool {
        rustix::process::geteuid().is_root()
            && Path::new(MOUNT)
                .join(controller.name())
                .join("cgroup.procs")
                .is_file()
    }

    /// At most so many hundredths of one processor.
    ///
    /// # Errors
    /// See [`Self::is_possible`]; or the process has ended.
    pub fn cpu(pid: u32, percent: u64) -> anyhow::Result<Self> {
        let group = Self::make(Controller::Cpu)?;
        group.write("cpu.cfs_period_us", PERIOD_MICROS)?;
        group.write("cpu.cfs_quota_us", (PERIOD_MICROS * percent / 100).max(1_000))?;
        group.write("cgroup.procs", pid.into())?;
        Ok(group)
    }

    /// At most so many bytes more than the process has now. When it wants more, the kernel ends it.
    ///
    /// # Errors
    /// See [`Self::is_possible`]; or the process has ended.
    pub fn memory(pid: u32, more: u64) -> anyhow::Result<Self> {
        let group = Self::make(Controller::Memory)?;
        // What a process had before it came is not counted here.
        group.write("memory.limit_in_bytes", more)?;
        group.write("cgroup.procs", pid.into())?;
        Ok(group)
    }

    fn make(controller: Controller) -> anyhow::Result<Self> {
        let mut claim = Claim::take()?;
        let path = Path::new(MOUNT)
            .join(controller.name())
            .join(format!("rc-{}", claim.number()));
        claim.promise(Duty::ControlGroup(path.clone()))?;
        std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path, _claim: claim })
    }

    /// How often the process had to wait for its share of the processor.
    #[must_use]
    pub fn throttled(&self) -> u64 {
        let stat = std::fs::read_to_string(self.path.join("cpu.stat")).unwrap_or_default();
        let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        line.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// How often there was no memory left for it.
    #[must_use]
    pub fn refused(&self) -> u64 {
        let count = std::fs::read_to_string(self.path.join("memory.failcnt")).unwrap_or_default();
        count.trim().parse().unwrap_or(0)
    }

    fn write(&self, file: &str, value: u64) -> anyhow::Result<()> {
        let path = self.path.join(file);
        std::fs::write(&path, value.to_string())
            .with_context(|| format!("writing {value} to {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn a_starved_process_waits_for_its_share_and_the_group_is_gone_afterwards() {
        if !ControlGroup::is_possible(Controller::Cpu) {
            return eprintln!("skipped: no control groups for the processor");
        }
        let mut busy = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let group = ControlGroup::cpu(busy.id(), 5).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while group.throttled() < 2 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let (throttled, path) = (group.throttled(), group.path.clone());
        drop(group);
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(throttled >= 2, "{throttled}");
        assert!(!path.exists());
    }
}
