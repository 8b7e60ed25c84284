//! The goals: what Rollcall wants to reach, as ratios to the best peer in the same run.

use crate::results::Results;

/// Whether a goal is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    Yes,
    No,
    /// Not measured.
    Open,
}

/// Compared with whom.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    /// The best of these in this run; of all, if none is named.
    Best(&'static [&'static str]),
    /// A bound that does not depend on others.
    Bound(f64),
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    pub(super) title: &'static str,
    pub(super) workload: &'static str,
    pub(super) servers: usize,
    /// Rollcall's.
    pub(super) dialect: &'static str,
    pub(super) metric: &'static str,
    /// From the metric's unit to the title's.
    pub(super) scale: f64,
    /// More is better, as of rates.
    more: bool,
    to: To,
    /// To a peer: the ratio that is wanted. Not a number: no goal is set.
    wanted: f64,
    pub(super) target: &'static str,
    plot: Plot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plot {
    Cost,
    Rate,
    Memory,
    Time,
    None,
}

impl Goal {
    /// The ratio to the peer it is compared with, and whether that will do.
    pub(super) fn judge(&self, results: &Results) -> (Option<(f64, String)>, Reached) {
        let median = |product: &str, dialect: &str| {
            let row = results.row(self.workload, self.servers, product, dialect)?;
            Some(row.spread(self.metric)?.median)
        };
        let Some(own) = median("Rollcall", self.dialect) else {
            return (None, Reached::Open);
        };
        let among: &[&str] = match self.to {
            To::Best(named) => named,
            To::Bound(_) => &[],
        };
        let peers = results
            .entrants
            .iter()
            .map(|entrant| entrant.product.as_str())
            .filter(|name| *name != "Rollcall" && (among.is_empty() || among.contains(name)));
        let mut best: Option<(f64, &str)> = None;
        for peer in peers {
            if let Some(value) = median(peer, "") {
                let better = best.is_none_or(|(best, _)| if self.more { value > best } else { value < best });
                if better {
                    best = Some((value, peer));
                }
            }
        }
        let ratio = best
            .filter(|(value, _)| *value > 0.0)
            .map(|(value, peer)| (own / value, peer.to_owned()));
        let reached = match (self.to, &ratio) {
            (To::Bound(bound), _) => Self::reached(own * self.scale <= bound),
            (To::Best(_), Some((ratio, _))) if self.wanted.is_finite() => Self::reached(if self.more {
                *ratio >= self.wanted
            } else {
                *ratio <= self.wanted
            }),
            (To::Best(_), _) => Reached::Open,
        };
        (ratio, reached)
    }

    fn reached(yes: bool) -> Reached {
        if yes { Reached::Yes } else { Reached::No }
    }
}

/// The goals of a plot, and its name.
pub(super) fn plotted() -> Vec<(&'static str, &'static str, Vec<&'static Goal>)> {
    let of = |plot| GOALS.iter().filter(|goal| goal.plot == plot).collect();
    vec![
        ("cost.svg", "Server CPU: less is better", of(Plot::Cost)),
        ("rate.svg", "Rates: more is better", of(Plot::Rate)),
        ("time.svg", "Times: less is better", of(Plot::Time)),
        ("memory.svg", "Memory: less is better", of(Plot::Memory)),
    ]
}

/// Where a workload stands in the table.
pub(super) fn order(workload: &str) -> usize {
    GOALS
        .iter()
        .position(|goal| goal.workload == workload)
        .unwrap_or(GOALS.len())
}

const fn goal(title: &'static str, workload: &'static str, servers: usize, metric: &'static str) -> Goal {
    Goal {
        title,
        workload,
        servers,
        dialect: "",
        metric,
        scale: 1.0,
        more: false,
        to: To::Best(&[]),
        wanted: f64::NAN,
        target: "",
        plot: Plot::None,
    }
}

const CPU: &str = "server_cpu_us";
const RATE: &str = "rate_per_s";
/// Those that, as Rollcall's CP groups, acknowledge what a quorum has on disk.
const CP: To = To::Best(&["etcd", "ZooKeeper"]);
const KIB: f64 = 1.0 / 1024.0;

/// In the order of the table. Ratios are the figures for Rollcall over its figures for the best peer.
pub(super) const GOALS: &[Goal] = &[
    Goal {
        wanted: 30.0 / 100.0,
        target: "<= 0.30 of the best (30 us of 100)",
        plot: Plot::Cost,
        ..goal("register, 1 server: server CPU us a node", "register", 1, CPU)
    },
    Goal {
        more: true,
        to: To::Best(&["ZooKeeper"]),
        wanted: 3.0,
        target: ">= 3 x ZooKeeper's",
        plot: Plot::Rate,
        ..goal("register, 1 server: nodes a second", "register", 1, RATE)
    },
    Goal {
        plot: Plot::Cost,
        ..goal(
            "the same, 16 calls in flight a connection: CPU us",
            "register-deep",
            1,
            CPU,
        )
    },
    Goal {
        more: true,
        plot: Plot::Rate,
        ..goal(
            "the same, 16 calls in flight a connection: nodes a second",
            "register-deep",
            1,
            RATE,
        )
    },
    Goal {
        dialect: "unary",
        ..goal("register, 1 server, unary calls: CPU us", "register", 1, CPU)
    },
    Goal {
        to: CP,
        wanted: 45.0 / 364.0,
        target: "<= 0.12 of the best CP (45 us of 364)",
        plot: Plot::Cost,
        ..goal("register, 3 servers: CPU us", "register", 3, CPU)
    },
    Goal {
        dialect: "unary",
        to: CP,
        wanted: 75.0 / 364.0,
        target: "<= 0.21 of the best CP (75 us of 364)",
        ..goal("register, 3 servers, unary calls: CPU us", "register", 3, CPU)
    },
    Goal {
        more: true,
        to: To::Best(&["etcd"]),
        wanted: 6.0,
        target: ">= 6 x etcd's",
        plot: Plot::Rate,
        ..goal("register, 3 servers: nodes a second", "register", 3, RATE)
    },
    Goal {
        to: CP,
        plot: Plot::Cost,
        ..goal(
            "register, 3 servers, 16 calls in flight a connection: CPU us",
            "register-deep",
            3,
            CPU,
        )
    },
    Goal {
        more: true,
        to: To::Best(&["etcd"]),
        plot: Plot::Rate,
        ..goal(
            "register, 3 servers, 16 calls in flight a connection: nodes a second",
            "register-deep",
            3,
            RATE,
        )
    },
    Goal {
        dialect: "AP",
        to: To::Best(&["r-nacos"]),
        wanted: 35.0 / 246.0,
        target: "<= 0.14 of r-nacos (35 us of 246)",
        plot: Plot::Cost,
        ..goal("register, 3 servers, AP group: CPU us", "register", 3, CPU)
    },
    Goal {
        to: To::Bound(6.0),
        target: "<= 6 us",
        plot: Plot::Cost,
        ..goal(
            "register, 3 servers, 100 nodes a call: CPU us a node",
            "register-batch",
            3,
            CPU,
        )
    },
    Goal {
        wanted: 120.0 / 250.0,
        target: "<= 0.48 of the best (120 us of 250)",
        plot: Plot::Cost,
        ..goal("join, a process: CPU us", "join", 1, CPU)
    },
    Goal {
        wanted: 12.0 / 30.0,
        target: "<= 0.40 of the best (12 us of 30)",
        plot: Plot::Cost,
        ..goal("renew, closed loop: CPU us", "renew", 1, CPU)
    },
    Goal {
        more: true,
        plot: Plot::Rate,
        ..goal("renew, closed loop: a second", "renew", 1, RATE)
    },
    Goal {
        wanted: 12.0 / 30.0,
        target: "<= 0.40 of the best",
        plot: Plot::Cost,
        ..goal(
            "the same, 16 in flight a connection: CPU us",
            "renew-deep",
            1,
            CPU,
        )
    },
    Goal {
        more: true,
        plot: Plot::Rate,
        ..goal(
            "the same, 16 in flight a connection: a second",
            "renew-deep",
            1,
            RATE,
        )
    },
    Goal {
        dialect: "UDP",
        to: To::Bound(2.5),
        target: "<= 2.5 us",
        plot: Plot::Cost,
        ..goal(
            "the same by UDP, a session a datagram: CPU us",
            "renew-deep",
            1,
            CPU,
        )
    },
    Goal {
        more: true,
        dialect: "UDP",
        to: To::Best(&["ZooKeeper"]),
        wanted: 8.0,
        target: ">= 8 x ZooKeeper's",
        plot: Plot::Rate,
        ..goal(
            "the same by UDP, a session a datagram: a second",
            "renew-deep",
            1,
            RATE,
        )
    },
    Goal {
        wanted: 12.0 / 30.0,
        target: "<= 0.40 of the best",
        plot: Plot::Cost,
        ..goal(
            "renew, 16 sessions of a connection a call: CPU us a session",
            "renew-batch",
            1,
            CPU,
        )
    },
    Goal {
        more: true,
        plot: Plot::Rate,
        ..goal(
            "renew, 16 sessions of a connection a call: sessions a second",
            "renew-batch",
            1,
            RATE,
        )
    },
    Goal {
        dialect: "UDP",
        to: To::Bound(2.5),
        target: "<= 2.5 us",
        plot: Plot::Cost,
        ..goal(
            "the same by UDP, 16 sessions a datagram: CPU us a session",
            "renew-batch",
            1,
            CPU,
        )
    },
    Goal {
        more: true,
        dialect: "UDP",
        to: To::Best(&["ZooKeeper"]),
        wanted: 8.0,
        target: ">= 8 x ZooKeeper's",
        plot: Plot::Rate,
        ..goal(
            "the same by UDP, 16 sessions a datagram: sessions a second",
            "renew-batch",
            1,
            RATE,
        )
    },
    Goal {
        wanted: 50.0 / 144.0,
        target: "<= 0.35 of the best (50 us of 144)",
        plot: Plot::Cost,
        ..goal(
            "renew, 5,000 sessions at their pace: CPU us",
            "renew-paced",
            1,
            CPU,
        )
    },
    Goal {
        dialect: "UDP",
        to: To::Bound(15.0),
        target: "<= 15 us",
        ..goal("the same by UDP: CPU us", "renew-paced", 1, CPU)
    },
    Goal {
        scale: KIB,
        wanted: 30.0 / 35.0,
        target: "<= 0.86 of the best (30 KiB of 35)",
        plot: Plot::Memory,
        ..goal(
            "a session with its connection: KiB",
            "session-memory",
            1,
            "bytes_each",
        )
    },
    Goal {
        dialect: "UDP",
        scale: KIB,
        to: To::Bound(0.5),
        target: "<= 0.5 KiB",
        ..goal(
            "a session without one (UDP): KiB",
            "session-memory",
            1,
            "bytes_each",
        )
    },
    Goal {
        wanted: 30.0 / 129.0,
        target: "<= 0.23 of the best (30 us of 129)",
        plot: Plot::Cost,
        ..goal("discover 100 nodes, local: CPU us", "discover-local", 1, CPU)
    },
    Goal {
        more: true,
        plot: Plot::Rate,
        ..goal("discover 100 nodes, local: a second", "discover-local", 1, RATE)
    },
    Goal {
        to: To::Bound(15.0),
        target: "<= 15 us",
        plot: Plot::Cost,
        ..goal("the same, sign unchanged: CPU us", "discover-unchanged", 1, CPU)
    },
    Goal {
        wanted: 45.0 / 178.0,
        target: "<= 0.25 of the best (45 us of 178)",
        plot: Plot::Cost,
        ..goal(
            "discover 100 nodes, linearizable, 1 server: CPU us",
            "discover-linearizable",
            1,
            CPU,
        )
    },
    Goal {
        wanted: 45.0 / 178.0,
        target: "<= 0.25 of the best",
        plot: Plot::Cost,
        ..goal(
            "discover 100 nodes, linearizable, 3 servers: CPU us",
            "discover-linearizable",
            3,
            CPU,
        )
    },
    Goal {
        wanted: 12.0 / 34.0,
        target: "<= 0.35 of the best (12 ms of 34)",
        plot: Plot::Cost,
        ..goal(
            "1,000 watchers, one change: CPU ms",
            "watch-one",
            1,
            "server_cpu_ms",
        )
    },
    Goal {
        wanted: 10.0 / 26.0,
        target: "<= 0.38 of the best (10 ms of 26)",
        plot: Plot::Time,
        ..goal(
            "1,000 watchers, one change: ms until the last has it",
            "watch-one",
            1,
            "last_ms",
        )
    },
    Goal {
        plot: Plot::Cost,
        ..goal(
            "5,000 watchers, one change: CPU ms",
            "watch-many-one",
            1,
            "server_cpu_ms",
        )
    },
    Goal {
        plot: Plot::Time,
        ..goal(
            "5,000 watchers, one change: ms until the last has it",
            "watch-many-one",
            1,
            "last_ms",
        )
    },
    Goal {
        wanted: 0.8 / 1.5,
        target: "<= 0.53 of the best (0.8 s of 1.5)",
        plot: Plot::Cost,
        ..goal(
            "1,000 watchers, 1,000 changes: CPU s",
            "watch-burst",
            1,
            "server_cpu_s",
        )
    },
    Goal {
        wanted: 1.0 / 1.9,
        target: "<= 0.53 of the best (1 s of 1.9)",
        plot: Plot::Time,
        ..goal(
            "1,000 watchers, 1,000 changes: s until all are current",
            "watch-burst",
            1,
            "current_s",
        )
    },
    Goal {
        wanted: 120.0 / 320.0,
        target: "<= 0.38 of the best (120 MiB of 320)",
        plot: Plot::Memory,
        ..goal(
            "1,000 watchers, 1,000 changes: MiB at the peak",
            "watch-burst",
            1,
            "peak_mib",
        )
    },
    Goal {
        scale: KIB,
        to: To::Bound(20.0),
        target: "<= 20 KiB",
        plot: Plot::Memory,
        ..goal(
            "a watcher on its own connection: KiB",
            "watch-memory",
            1,
            "bytes_each",
        )
    },
    Goal {
        scale: KIB,
        to: To::Bound(0.5),
        target: "<= 0.5 KiB",
        plot: Plot::Memory,
        ..goal(
            "a watcher on a shared connection: KiB",
            "watch-shared-memory",
            1,
            "bytes_each",
        )
    },
    Goal {
        plot: Plot::Cost,
        ..goal(
            "1,000 watchers of 1,000 services on 8 connections, a change each: CPU us",
            "watch-shared-one",
            1,
            CPU,
        )
    },
    Goal {
        to: To::Bound(1.0),
        target: "<= 1 s",
        plot: Plot::Time,
        ..goal(
            "1,000 nodes of a killed client: s after the ttl until all are gone",
            "expiry",
            3,
            "after_ttl_s",
        )
    },
    Goal {
        ..goal(
            "a service that loses all its nodes at once: share kept by a guard",
            "expiry",
            3,
            "kept_of_a_lost_service",
        )
    },
    Goal {
        to: To::Bound(0.0),
        target: "0",
        ..goal(
            "SIGSTOP of all servers for 1.5 ttl: nodes removed of 1,000",
            "pause-all",
            3,
            "removed",
        )
    },
    Goal {
        to: To::Bound(0.0),
        target: "0",
        ..goal(
            "SIGSTOP of the leader for 1.5 ttl: nodes removed of 1,000",
            "pause-leader",
            3,
            "removed",
        )
    },
    Goal {
        to: To::Bound(0.8),
        target: "<= 0.8 s",
        plot: Plot::Time,
        ..goal(
            "leader killed under load: s without a write",
            "failover",
            3,
            "gap_s",
        )
    },
    Goal {
        to: To::Bound(0.0),
        target: "0",
        ..goal(
            "leader killed under load: acknowledged nodes lost",
            "failover",
            3,
            "lost",
        )
    },
    Goal {
        scale: KIB,
        wanted: 0.7 / 1.5,
        target: "<= 0.47 of the best (0.7 KiB of 1.5)",
        plot: Plot::Memory,
        ..goal(
            "100,000 nodes: KiB of resident memory a node",
            "stored-memory",
            1,
            "bytes_each",
        )
    },
    Goal {
        wanted: 0.6 / 0.9,
        target: "<= 0.67 of the best (0.6 s of 0.9)",
        plot: Plot::Time,
        ..goal(
            "restart with 100,000 nodes: s until all are served",
            "restart",
            1,
            "served_s",
        )
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Entrant, Row, Run};

    fn results(figures: &[(&str, f64)]) -> Results {
        let mut results = Results::default();
        for (product, value) in figures {
            results.entrants.push(Entrant {
                product: (*product).into(),
                version: String::new(),
                settings: String::new(),
            });
            let mut run = Run::default();
            run.set(CPU, *value);
            results.rows.push(Row {
                workload: "register".into(),
                servers: 1,
                product: (*product).into(),
                dialect: String::new(),
                runs: vec![run],
                note: None,
                load: 0.0,
            });
        }
        results
    }

    #[test]
    fn the_best_peer_of_the_run_decides() {
        let goal = &GOALS[0];
        let (ratio, reached) = goal.judge(&results(&[
            ("Rollcall", 29.0),
            ("etcd", 130.0),
            ("ZooKeeper", 100.0),
        ]));
        assert_eq!(
            (ratio, reached),
            (Some((0.29, "ZooKeeper".to_owned())), Reached::Yes)
        );
        let (_, reached) = goal.judge(&results(&[("Rollcall", 31.0), ("ZooKeeper", 100.0)]));
        assert_eq!(reached, Reached::No);
        assert_eq!(goal.judge(&results(&[("Rollcall", 31.0)])), (None, Reached::Open));
        assert_eq!(
            goal.judge(&results(&[("ZooKeeper", 31.0)])),
            (None, Reached::Open)
        );
    }
}
