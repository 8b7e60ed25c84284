//! What the servers' processes spend meanwhile, read from `/proc`: the figure that holds on a noisy machine.

use clap::Args;
use serde::Serialize;

use crate::exit::Failure;

/// Ticks of `/proc/PID/stat` in a second. The kernel's interface has it at 100 on every machine that the servers
/// run on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Times in `/proc/PID/stat`, counted behind the name: user and system.
const CPU_FIELDS: [usize; 2] = [11, 12];

/// Which processes to look at.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Servers")]
pub(crate) struct ServerProcesses {
    /// Process of a server on this machine, as often as there are servers: the report tells what they spent, added up
    #[arg(long, value_name = "PID")]
    server_pid: Vec<u32>,
}

/// What the servers spent, added up.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Spent {
    /// On what came before the load: connections, sessions, nodes to read.
    pub(crate) cpu_before_s: f64,
    /// On the load.
    pub(crate) cpu_s: f64,
    pub(crate) cpu_us_per_call: f64,
    pub(crate) cpu_us_per_item: f64,
    /// Resident memory when the bench began.
    pub(crate) rss_before_bytes: u64,
    /// The same when all connections and sessions stood.
    pub(crate) rss_ready_bytes: u64,
    /// The same when the load was over.
    pub(crate) rss_after_bytes: u64,
}

/// Looks at the processes three times: when it is made, when the load begins, when it is over.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    pids: Vec<u32>,
    began: Reading,
    ready: Reading,
    ended: Reading,
}

#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    cpu_s: f64,
    rss_bytes: u64,
}

impl ServerProcesses {
    /// Begins to measure; a process that is not there is a mistake in the call.
    pub(crate) fn meter(&self) -> Result<Meter, Failure> {
        let began = read_all(&self.server_pid)?;
        Ok(Meter {
            pids: self.server_pid.clone(),
            began,
            ready: began,
            ended: began,
        })
    }
}

impl Meter {
    /// Everything is prepared, the load begins.
    pub(crate) fn begin(&mut self) -> Result<(), Failure> {
        self.ready = read_all(&self.pids)?;
        Ok(())
    }

    /// The load is over.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        self.ended = read_all(&self.pids)?;
        Ok(())
    }

    /// What was spent; nothing to tell if no process was named.
    pub(crate) fn spent(&self, calls: u64, items: u64) -> Option<Spent> {
        if self.pids.is_empty() {
            return None;
        }
        let cpu_s = self.ended.cpu_s - self.ready.cpu_s;
        Some(Spent {
            cpu_before_s: thousandths(self.ready.cpu_s - self.began.cpu_s),
            cpu_s: thousandths(cpu_s),
            cpu_us_per_call: micros_each(cpu_s, calls),
            cpu_us_per_item: micros_each(cpu_s, items),
            rss_before_bytes: self.began.rss_bytes,
            rss_ready_bytes: self.ready.rss_bytes,
            rss_after_bytes: self.ended.rss_bytes,
        })
    }
}

impl Spent {
    /// A line of the table.
    pub(crate) fn text(&self, item: &str) -> String {
        format!(
            "{:.3} s CPU (before: {:.3} s), {:.2} us a call, {:.2} us of {item}; memory {:.1}, {:.1}, {:.1} MiB",
            self.cpu_s,
            self.cpu_before_s,
            self.cpu_us_per_call,
            self.cpu_us_per_item,
            mebibytes(self.rss_before_bytes),
            mebibytes(self.rss_ready_bytes),
            mebibytes(self.rss_after_bytes),
        )
    }
}

fn read_all(pids: &[u32]) -> Result<Reading, Failure> {
    let mut all = Reading::default();
    for pid in pids {
        let one =
            read(*pid).ok_or_else(|| Failure::usage(format!("process {pid} (--server-pid) is not there")))?;
        all.cpu_s += one.cpu_s;
        all.rss_bytes += one.rss_bytes;
    }
    Ok(all)
}

fn read(pid: u32) -> Option<Reading> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Reading {
        cpu_s: cpu_seconds(&stat)?,
        rss_bytes: resident_bytes(&status)?,
    })
}

/// The name is in parentheses and may hold anything, so fields are counted behind the last of them.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = CPU_FIELDS.map(|field| fields.get(field)?.parse::<u64>().ok());
    let [Some(user), Some(system)] = ticks else {
        return None;
    };
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1_024)
}

fn thousandths(seconds: f64) -> f64 {
    (seconds * 1_000.0).round() / 1_000.0
}

fn micros_each(seconds: f64, count: u64) -> f64 {
    if count == 0 {
        return 0.0;
    }
    (seconds * 1e8 / count as f64).round() / 100.0
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_times() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 100 1000 200";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (cut"), None);
        assert_eq!(cpu_seconds("7 (short) S 1 7"), None);
    }

    #[test]
    fn memory_is_told_in_kibibytes() {
        let status = "Name:\trollcalld\nVmPeak:\t  900 kB\nVmRSS:\t   12 kB\n";
        assert_eq!(resident_bytes(status), Some(12 * 1_024));
        assert_eq!(resident_bytes("Name:\tkthread\n"), None);
    }

    #[test]
    fn this_process_can_be_read_and_a_missing_one_is_told() {
        let processes = |pid| ServerProcesses {
            server_pid: vec![pid],
        };
        let meter = processes(std::process::id()).meter().unwrap();
        let spent = meter.spent(1, 1).unwrap();
        assert!(spent.rss_before_bytes > 0);
        assert!(processes(u32::MAX).meter().is_err());
        let none = ServerProcesses {
            server_pid: Vec::new(),
        };
        assert!(none.meter().unwrap().spent(1, 1).is_none());
    }
}
