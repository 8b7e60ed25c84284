//! What the machine says of processes: time on a processor, memory, bytes over loopback, load.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// A process's time on processors, thread by thread, in nanoseconds. Exact to the scheduler's clock, where the sum of
/// `/proc/PID/stat` counts in hundredths of a second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpu {
    threads: HashMap<u32, u64>,
    /// Of `/proc/PID/stat`: threads that have ended are in it.
    ticks: u64,
}

/// Of `/proc/PID/stat`, in nanoseconds; USER_HZ is 100 on Linux.
const TICK_NS: u64 = 10_000_000;

impl Cpu {
    pub(crate) fn of(pid: u32) -> Self {
        let mut cpu = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let said = fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
            let thread = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let nanos = said
                .split_whitespace()
                .next()
                .and_then(|nanos| nanos.parse().ok());
            if let (Some(thread), Some(nanos)) = (thread, nanos) {
                cpu.threads.insert(thread, nanos);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which may hold anything: fields 14 and 15 of proc(5), user and system time.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        cpu.ticks = fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        cpu
    }

    /// Nanoseconds since `before`.
    pub(crate) fn since(&self, before: &Self) -> u64 {
        let running: u64 = self
            .threads
            .iter()
            .map(|(thread, nanos)| nanos.saturating_sub(before.threads.get(thread).copied().unwrap_or(0)))
            .sum();
        // Threads that ended in between are missing above, and less than two ticks are within the rounding.
        let counted = self.ticks.saturating_sub(before.ticks) * TICK_NS;
        if counted > running + 2 * TICK_NS {
            counted
        } else {
            running
        }
    }
}

/// Resident memory in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let said = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = said.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Bytes sent over loopback since the system started.
pub(crate) fn loopback_bytes() -> u64 {
    let said = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let line = said.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    line.and_then(|line| line.split_whitespace().nth(8)?.parse().ok())
        .unwrap_or(0)
}

/// The load average of the last minute.
pub(crate) fn load() -> f64 {
    let said = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    said.split_whitespace()
        .next()
        .and_then(|load| load.parse().ok())
        .unwrap_or(0.0)
}

/// Time that all processors spent, and the part of it that they were busy, in ticks.
fn busy() -> (u64, u64) {
    let said = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = said
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    let all = fields.iter().take(8).sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    (all, all - idle)
}

/// How much of the machine others took while something was measured.
#[derive(Debug)]
pub(crate) struct Others {
    at: (u64, u64),
}

impl Others {
    pub(crate) fn begin() -> Self {
        Self { at: busy() }
    }

    /// The share of all processors that was busy with something else than these nanoseconds of ours.
    pub(crate) fn share(&self, ours_ns: u64) -> f64 {
        let now = busy();
        let all = (now.0 - self.at.0) * TICK_NS;
        let others = ((now.1 - self.at.1) * TICK_NS).saturating_sub(ours_ns);
        if all == 0 {
            0.0
        } else {
            (others as f64 / all as f64).min(1.0)
        }
    }
}

/// Where the figures come from.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processors: usize,
    pub(crate) model: String,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
}

impl Machine {
    pub(crate) fn here() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("no /proc: this harness needs Linux")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model
            .and_then(|line| line.split(": ").nth(1))
            .unwrap_or("unknown");
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: f64 = total
            .and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or(0.0);
        Ok(Self {
            processors: std::thread::available_parallelism()?.get(),
            model: model.to_owned(),
            memory_gib: (kib / f64::from(1 << 20) * 10.0).round() / 10.0,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
        })
    }
}
