//! What is done to the cluster, and when: drawn from the seed before anything runs, so that a plan can be shown, and
//! cut down.

use std::fmt;

use rollcall_jepsen::seed::Seeded;

use crate::time::{MILLISECOND, Moment, SECOND};

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// Whoever leads then; if nobody does, the first server.
    Leader,
    /// A server, counted from 0.
    Server(usize),
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("the leader"),
            Self::Server(index) => write!(f, "server {}", index + 1),
        }
    }
}

/// How servers are kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One from all others.
    Single(Victim),
    /// So many of this order from the rest.
    Halves(Vec<usize>, usize),
    /// The first of this order reaches all, the others form two halves that do not reach each other.
    Bridge(Vec<usize>),
    /// In this order each reaches only its neighbours.
    Ring(Vec<usize>),
    /// What one sends is lost; what is sent to it is not.
    Mute(Victim),
    /// What is sent to one is lost; what it sends is not.
    Deaf(Victim),
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Servers do not reach each other; with `clients`, a server that is cut off from all others is from clients too.
    Cut { shape: Shape, clients: bool },
    /// All links are slow, and packets overtake each other.
    Slow { least: u64, more: u64 },
    /// Packets are lost and repeated.
    Lossy { loss: f64, repeat: f64 },
    /// The process ends at once, and is started again at the end.
    Kill(Victim),
    /// All processes end at once.
    KillAll,
    /// The power fails, and is back at the end.
    PowerLoss(Victim),
    /// It fails everywhere.
    PowerLossAll,
    /// The host stands still.
    Pause(Victim),
    /// All servers stand still.
    PauseAll,
    /// The wall clock jumps by so many milliseconds, and back at the end.
    WallClock(Victim, i64),
    /// Syncs take long.
    SlowDisk(Victim),
    /// After so many more syncs every sync fails; the server is started again at the end.
    FailingDisk(Victim, u64),
    /// The server is asked to leave, and started again.
    Restart(Victim),
}

/// Kinds of faults, as they are counted and chosen.
pub(crate) const KINDS: [&str; 17] = [
    "single",
    "halves",
    "bridge",
    "ring",
    "mute",
    "deaf",
    "slow",
    "lossy",
    "kill",
    "kill-all",
    "power",
    "power-all",
    "pause",
    "clock",
    "slow-disk",
    "failing-disk",
    "restart",
];

impl Fault {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Cut { shape, .. } => match shape {
                Shape::Single(_) => "single",
                Shape::Halves(..) => "halves",
                Shape::Bridge(_) => "bridge",
                Shape::Ring(_) => "ring",
                Shape::Mute(_) => "mute",
                Shape::Deaf(_) => "deaf",
            },
            Self::Slow { .. } => "slow",
            Self::Lossy { .. } => "lossy",
            Self::Kill(_) => "kill",
            Self::KillAll => "kill-all",
            Self::PowerLoss(_) => "power",
            Self::PowerLossAll => "power-all",
            Self::Pause(_) | Self::PauseAll => "pause",
            Self::WallClock(..) => "clock",
            Self::SlowDisk(_) => "slow-disk",
            Self::FailingDisk(..) => "failing-disk",
            Self::Restart(_) => "restart",
        }
    }
}

impl Fault {
    /// As the lab calls it: checkers know by it what was done to clocks and disks.
    pub(crate) fn name_in_histories(&self) -> &'static str {
        match self {
            Self::PowerLoss(_) => "power-loss",
            Self::PowerLossAll => "power-loss-all",
            Self::FailingDisk(..) => "sync-errors",
            _ => self.kind(),
        }
    }
}

/// A fault with its time. The number names it on a command line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(crate) number: usize,
    pub(crate) from: Moment,
    pub(crate) until: Moment,
    pub(crate) fault: Fault,
}

fn names(order: &[usize]) -> String {
    let names: Vec<_> = order.iter().map(|index| (index + 1).to_string()).collect();
    names.join(" ")
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |of: u64| of as f64 / SECOND as f64;
        write!(
            f,
            "#{} at {:.2} s for {:.2} s: ",
            self.number,
            seconds(self.from),
            seconds(self.until.saturating_sub(self.from))
        )?;
        match &self.fault {
            Fault::Cut { shape, clients } => {
                match shape {
                    Shape::Single(victim) => write!(f, "{victim} is cut off from the others")?,
                    Shape::Halves(order, count) => {
                        write!(
                            f,
                            "servers {} | {} are apart",
                            names(&order[..*count]),
                            names(&order[*count..])
                        )?;
                    }
                    Shape::Bridge(order) => write!(f, "a bridge, server {}", order[0] + 1)?,
                    Shape::Ring(order) => write!(f, "a ring: {}", names(order))?,
                    Shape::Mute(victim) => write!(f, "nobody hears {victim}")?,
                    Shape::Deaf(victim) => write!(f, "{victim} hears nobody")?,
                }
                if *clients {
                    f.write_str(", clients included")?;
                }
                Ok(())
            }
            Fault::Slow { least, more } => write!(
                f,
                "links take {} to {} ms",
                least / MILLISECOND,
                (least + more) / MILLISECOND
            ),
            Fault::Lossy { loss, repeat } => write!(
                f,
                "{:.0} % of packets are lost, {:.0} % repeated",
                loss * 100.0,
                repeat * 100.0
            ),
            Fault::Kill(victim) => write!(f, "the process of {victim} is killed"),
            Fault::KillAll => f.write_str("all processes are killed"),
            Fault::PowerLoss(victim) => write!(f, "{victim} is without power"),
            Fault::PowerLossAll => f.write_str("all servers are without power"),
            Fault::Pause(victim) => write!(f, "{victim} stands still"),
            Fault::PauseAll => f.write_str("all servers stand still"),
            Fault::WallClock(victim, by) => write!(f, "the wall clock of {victim} is off by {by} ms"),
            Fault::SlowDisk(victim) => write!(f, "the disk of {victim} is slow"),
            Fault::FailingDisk(victim, after) => {
                write!(f, "the disk of {victim} fails after {after} more syncs")
            }
            Fault::Restart(victim) => write!(f, "{victim} is restarted"),
        }
    }
}

/// The plan for a run: its faults begin from two seconds on, none lasts beyond `horizon`.
pub(crate) fn schedule(
    random: &mut Seeded,
    servers: usize,
    horizon: Moment,
    kinds: &[&'static str],
) -> Vec<Planned> {
    let mut plan = Vec::new();
    if kinds.is_empty() {
        return plan;
    }
    let mut at = 2 * SECOND + random.below(SECOND);
    while at + SECOND < horizon {
        let kind = random.pick(kinds).copied().unwrap_or_default();
        let fault = draw(kind, random, servers);
        let length = match random.below(4) {
            0 => random.between(20 * MILLISECOND, 400 * MILLISECOND),
            1..3 => random.between(400 * MILLISECOND, 3 * SECOND),
            _ => random.between(2 * SECOND, 7 * SECOND),
        };
        let until = (at + length).min(horizon);
        plan.push(Planned {
            number: plan.len() + 1,
            from: at,
            until,
            fault,
        });
        // Some begin while others last.
        at = match random.below(3) {
            0 => at + random.between(100 * MILLISECOND, SECOND),
            _ => until + random.below(2 * SECOND),
        };
    }
    plan
}

fn victim(random: &mut Seeded, servers: usize) -> Victim {
    match random.below(2) {
        0 => Victim::Leader,
        _ => Victim::Server(usize::try_from(random.below(servers as u64)).unwrap_or(0)),
    }
}

fn order(random: &mut Seeded, servers: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..servers).collect();
    random.shuffle(&mut order);
    order
}

fn draw(kind: &str, random: &mut Seeded, servers: usize) -> Fault {
    let cut = |shape: Shape| Fault::Cut {
        shape,
        clients: false,
    };
    match kind {
        "single" => Fault::Cut {
            shape: Shape::Single(victim(random, servers)),
            clients: random.chance(0.3),
        },
        "halves" => {
            let minority = 1 + random.below((servers as u64 - 1) / 2);
            cut(Shape::Halves(
                order(random, servers),
                usize::try_from(minority).unwrap_or(1),
            ))
        }
        "bridge" => cut(Shape::Bridge(order(random, servers))),
        "ring" => cut(Shape::Ring(order(random, servers))),
        "mute" => Fault::Cut {
            shape: Shape::Mute(victim(random, servers)),
            clients: random.chance(0.3),
        },
        "deaf" => Fault::Cut {
            shape: Shape::Deaf(victim(random, servers)),
            clients: random.chance(0.3),
        },
        "slow" => Fault::Slow {
            least: random.between(1, 60) * MILLISECOND,
            more: random.between(1, 250) * MILLISECOND,
        },
        "lossy" => Fault::Lossy {
            loss: random.between(2, 30) as f64 / 100.0,
            repeat: random.below(30) as f64 / 100.0,
        },
        "kill" => Fault::Kill(victim(random, servers)),
        "kill-all" => Fault::KillAll,
        "power" => Fault::PowerLoss(victim(random, servers)),
        "power-all" => Fault::PowerLossAll,
        "pause" if random.chance(0.15) => Fault::PauseAll,
        "pause" => Fault::Pause(victim(random, servers)),
        "clock" => {
            let by = i64::try_from(random.between(1, 3_600_000)).unwrap_or(1);
            let by = if random.chance(0.5) { by } else { -by };
            Fault::WallClock(victim(random, servers), by)
        }
        "slow-disk" => Fault::SlowDisk(victim(random, servers)),
        "failing-disk" => Fault::FailingDisk(victim(random, servers), random.below(40)),
        _ => Fault::Restart(victim(random, servers)),
    }
}

/// The links that a shape cuts, as pairs from and to. `leader` stands for [`Victim::Leader`].
pub(crate) fn cuts(shape: &Shape, servers: usize, leader: usize) -> Vec<(usize, usize)> {
    let of = |victim: &Victim| match victim {
        Victim::Leader => leader,
        Victim::Server(index) => *index,
    };
    let place = |order: &[usize], server: usize| order.iter().position(|of| *of == server).unwrap_or(0);
    let is_cut = |from: usize, to: usize| match shape {
        Shape::Single(victim) => of(victim) == from || of(victim) == to,
        Shape::Mute(victim) => of(victim) == from,
        Shape::Deaf(victim) => of(victim) == to,
        Shape::Halves(order, count) => (place(order, from) < *count) != (place(order, to) < *count),
        Shape::Bridge(order) => {
            let (from, to) = (place(order, from), place(order, to));
            from > 0 && to > 0 && (from % 2) != (to % 2)
        }
        Shape::Ring(order) => {
            let apart = place(order, from).abs_diff(place(order, to));
            // With three servers everyone would be everyone's neighbour.
            apart != 1 && (apart != servers - 1 || servers < 4)
        }
    };
    let pairs = (0..servers).flat_map(|from| (0..servers).map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| from != to && is_cut(*from, *to))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed_and_stays_within_the_run() {
        let plan = |seed| schedule(&mut Seeded::new(seed), 5, 30 * SECOND, &KINDS);
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        for seed in 0..200 {
            for planned in plan(seed) {
                assert!(planned.from < planned.until && planned.until <= 30 * SECOND);
                assert!(planned.from >= 2 * SECOND && KINDS.contains(&planned.fault.kind()));
            }
        }
    }

    #[test]
    fn shapes_cut_what_their_names_say() {
        let order = vec![0, 1, 2, 3, 4];
        let count = |shape: Shape| cuts(&shape, 5, 3).len();
        assert_eq!(count(Shape::Single(Victim::Leader)), 8);
        assert_eq!(count(Shape::Mute(Victim::Leader)), 4);
        assert_eq!(count(Shape::Halves(order.clone(), 2)), 12);
        assert_eq!(count(Shape::Bridge(order.clone())), 8);
        assert_eq!(count(Shape::Ring(order)), 10);
        assert_eq!(cuts(&Shape::Ring(vec![2, 0, 1]), 3, 0), [(1, 2), (2, 1)]);
    }
}
