//! What came of an attack.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::shot::Tally;

/// How long something took, over many times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// How often.
    pub count: usize,
    /// Half took longer.
    pub median: Duration,
    /// One in a hundred took longer.
    pub p99: Duration,
    /// The longest.
    pub slowest: Duration,
}

impl Latencies {
    /// Of these.
    #[must_use]
    pub fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |share: usize| {
            let index = all.len() * share / 100;
            all.get(index.min(all.len().saturating_sub(1)))
                .copied()
                .unwrap_or_default()
        };
        Self {
            count: all.len(),
            median: at(50),
            p99: at(99),
            slowest: at(100),
        }
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{}, median {:.1} ms, p99 {:.1} ms, slowest {:.1} ms",
            self.count,
            ms(self.median),
            ms(self.p99),
            ms(self.slowest)
        )
    }
}

/// What one server made of it.
#[derive(Clone, Debug, Default)]
pub struct ServerReport {
    /// Its gossip address.
    pub address: String,
    /// Bad packets thrown at it that it must drop.
    pub sent: u64,
    /// Packets it counted as dropped meanwhile, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Packets that its kernel dropped before it could see them.
    pub lost: Option<u64>,
    /// Memory in bytes when it was warm, at the end, and at most.
    pub resident: Option<[u64; 3]>,
    /// Suspicions it held meanwhile.
    pub suspicions: u64,
}

/// What came of an attack.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed of every packet.
    pub seed: u64,
    /// How long it went.
    pub time: Duration,
    /// Whether the servers have a key.
    pub sealed: bool,
    /// Whether packets were forged that only a member can make.
    pub insider: bool,
    /// What was thrown.
    pub tally: Tally,
    /// What each server made of it.
    pub servers: Vec<ServerReport>,
    /// Looks at the members, and how many were not answered.
    pub looks: [u64; 2],
    /// In these looks: suspects, members down, and new lives.
    pub seen: [u64; 3],
    /// Strangers that were taken for members.
    pub strangers: u64,
    /// Heartbeats that were acknowledged.
    pub beats: Latencies,
    /// Writes that were acknowledged.
    pub writes: Latencies,
    /// Sessions lost, and streams that broke.
    pub sessions: [u64; 2],
    /// From the last packet until all members were alive again.
    pub healed_after: Option<Duration>,
    /// What must not be, and was. Empty: all was kept.
    pub broken: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.sealed { "sealed" } else { "plain" };
        let insider = if self.insider { ", from within" } else { "" };
        writeln!(
            f,
            "seed {}: {} s against {} {kind} servers{insider}",
            self.seed,
            self.time.as_secs(),
            self.servers.len()
        )?;
        for (class, sent) in &self.tally.by_class {
            writeln!(f, "  {:<14} {sent:>9}", class.name())?;
        }
        for server in &self.servers {
            let counted: u64 = server.dropped.values().sum();
            write!(
                f,
                "{}: {} bad packets, {counted} counted as dropped",
                server.address, server.sent
            )?;
            if let Some(lost) = server.lost {
                write!(f, ", {lost} lost in the kernel")?;
            }
            if let Some([warm, end, most]) = server.resident {
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                write!(
                    f,
                    "; memory {:.1} MiB warm, {:.1} at the end, {:.1} at most",
                    mib(warm),
                    mib(end),
                    mib(most)
                )?;
            }
            writeln!(f)?;
            let reasons = server.dropped.iter().filter(|(_, count)| **count > 0);
            let reasons: Vec<String> = reasons
                .map(|(reason, count)| format!("{reason} {count}"))
                .collect();
            writeln!(f, "  {}", reasons.join(", "))?;
        }
        let [looks, unanswered] = self.looks;
        let [suspects, downs, lives] = self.seen;
        let suspicions: u64 = self.servers.iter().map(|server| server.suspicions).sum();
        writeln!(
            f,
            "members: {looks} looks, {unanswered} unanswered; {downs} down, {suspects} suspect ({suspicions} \
             suspicions), {lives} new lives, {} strangers",
            self.strangers
        )?;
        if let Some(after) = self.healed_after {
            writeln!(f, "all alive {:.1} s after the last packet", after.as_secs_f64())?;
        }
        let [lost, broken] = self.sessions;
        writeln!(f, "heartbeats: {}", self.beats)?;
        writeln!(f, "writes: {}", self.writes)?;
        writeln!(f, "sessions: {lost} lost, {broken} streams broken")?;
        match self.broken.as_slice() {
            [] => write!(f, "all was kept"),
            broken => write!(f, "BROKEN:\n  {}", broken.join("\n  ")),
        }
    }
}
