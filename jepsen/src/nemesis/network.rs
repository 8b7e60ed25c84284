//! Cuts and bad links.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::deed::{Deed, Effect, Ground, Nothing};
use super::kind::Kind;
use crate::lab::{PEER_PORT, Server};
use crate::net::{FaultId, Net, Protocol, Quality, Traffic};
use crate::seed::Seeded;

type Links = Vec<(u64, u64)>;

/// What is done to which links.
struct Plan {
    what: String,
    parts: Vec<(Links, Quality)>,
}

/// Breaks connections off, again and again.
#[derive(Debug)]
struct Resets {
    links: Links,
    what: String,
    last: Instant,
    broken_off: usize,
}

/// How often.
const RESET_EVERY: Duration = Duration::from_millis(700);

impl Resets {
    fn break_off(&mut self, net: &Net) {
        self.last = Instant::now();
        self.broken_off += net.reset(&self.links).unwrap_or(0);
    }
}

#[tonic::async_trait]
impl Deed for Resets {
    fn what(&self) -> String {
        self.what.clone()
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        if let Some(net) = ground.net.filter(|_| self.last.elapsed() >= RESET_EVERY) {
            self.break_off(net);
        }
        Ok(())
    }

    async fn end(&mut self, _ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let seen = format!("{} connections were broken off", self.broken_off);
        Ok(Some(Effect::seen(self.broken_off > 0, seen)))
    }
}

#[derive(Debug)]
struct BadLinks {
    kind: Kind,
    what: String,
    faults: Vec<FaultId>,
    links: Links,
    before: Traffic,
}

pub(super) fn begin(kind: Kind, ground: &mut Ground<'_>, random: &mut Seeded) -> Box<dyn Deed> {
    let targets = ground.targets(random);
    // Hosts, not ids: another server may have taken one's place.
    let mut hosts: Vec<u64> = targets
        .iter()
        .map(|id| ground.cluster.server(*id).host())
        .collect();
    let Some(net) = ground.net else {
        return Box::new(Nothing(format!("{}: without a network", kind.name())));
    };
    for host in ground.cluster.servers().map(Server::host) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    if kind == Kind::Reset {
        let mut resets = resets(net, &hosts, random);
        resets.break_off(net);
        return Box::new(resets);
    }
    let plan = plan(kind, net, &hosts, random);
    let mut faults = Vec::new();
    let mut links = Links::new();
    for (of, quality) in plan.parts {
        faults.push(net.impose(&of, quality));
        links.extend(of);
    }
    Box::new(BadLinks {
        kind,
        what: plan.what,
        before: sum(net, &links),
        faults,
        links,
    })
}

#[tonic::async_trait]
impl Deed for BadLinks {
    fn what(&self) -> String {
        self.what.clone()
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let Some(net) = ground.net else {
            return Ok(Some(Effect::seen(false, "")));
        };
        for fault in &self.faults {
            net.lift(*fault);
        }
        let now = sum(net, &self.links);
        let since = |of: fn(&Traffic) -> u64| of(&now).saturating_sub(of(&self.before));
        let counts = [
            ("sent", since(|of| of.sent.frames)),
            ("cut", since(|of| of.cut.frames)),
            ("lost", since(|of| of.lost.frames)),
            ("too many", since(|of| of.overflowed.frames)),
            ("twice", since(|of| of.duplicated.frames)),
            ("damaged", since(|of| of.corrupted.frames)),
            ("overtaken", since(|of| of.reordered.frames)),
        ];
        let bites = |name: &str| match self.kind {
            Kind::Loss | Kind::ClientLoss => name == "lost",
            Kind::Mangle => matches!(name, "twice" | "damaged"),
            Kind::Narrow => name == "too many",
            Kind::Delay | Kind::ClientSlow => name == "sent",
            _ => name == "cut",
        };
        let bit = counts.iter().any(|(name, count)| *count > 0 && bites(name));
        let counts: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let seen = format!("frames on these links: {}", counts.join(", "));
        Ok(Some(Effect::seen(bit, seen)))
    }
}

fn sum(net: &Net, links: &[(u64, u64)]) -> Traffic {
    let mut sum = Traffic::default();
    for (from, to) in links {
        sum.merge(&net.traffic(*from, *to));
    }
    sum
}

fn both_ways(one: &[u64], other: &[u64]) -> Links {
    let pairs = one
        .iter()
        .flat_map(|one| other.iter().map(move |other| (*one, *other)));
    pairs
        .flat_map(|(one, other)| [(one, other), (other, one)])
        .collect()
}

/// `hosts`: those of servers; the one that the fault is about comes first.
fn plan(kind: Kind, net: &Net, hosts: &[u64], random: &mut Seeded) -> Plan {
    let (first, rest) = hosts.split_first().unwrap_or((&1, &[]));
    match kind {
        Kind::ClientCut | Kind::ClientLoss | Kind::ClientSlow => of_clients(kind, net, hosts, random),
        Kind::Loss | Kind::Delay | Kind::Mangle | Kind::Narrow => everywhere(kind, net, random),
        Kind::Halves => {
            let (one, other) = hosts.split_at(hosts.len() / 2);
            cut(format!("halves: {one:?} from {other:?}"), both_ways(one, other))
        }
        Kind::Bridge => {
            let (one, other) = rest.split_at(rest.len() / 2);
            cut(
                format!("bridge: {one:?} from {other:?}, {first} reaches both"),
                both_ways(one, other),
            )
        }
        Kind::Ring => {
            let count = hosts.len();
            let far = |one: usize, other: usize| (one + 1) % count != other && (other + 1) % count != one;
            let mut cuts = Links::new();
            for one in 0..count {
                for other in (one + 1..count).filter(|other| far(one, *other)) {
                    cuts.extend(both_ways(&[hosts[one]], &[hosts[other]]));
                }
            }
            cut(format!("ring: {hosts:?}, neighbours only"), cuts)
        }
        Kind::OneWay => {
            let hears = random.chance(0.5);
            let links = rest
                .iter()
                .map(|other| if hears { (*first, *other) } else { (*other, *first) });
            let what = if hears {
                "is heard by no server"
            } else {
                "hears no server"
            };
            cut(format!("one-way: {first} {what}"), links.collect())
        }
        Kind::NoClients => cut(
            format!("no-clients: {first}"),
            both_ways(&[*first], &net.all_clients()),
        ),
        Kind::NoGossip => Plan {
            what: format!("no-gossip: {first}"),
            parts: vec![(
                both_ways(&[*first], rest),
                Quality::cut_port(Protocol::Udp, PEER_PORT),
            )],
        },
        _ => {
            let mut others = rest.to_vec();
            let whom = if random.chance(0.5) {
                others.extend(net.all_clients());
                "everybody"
            } else {
                "the other servers"
            };
            cut(
                format!("single: {first} from {whom}"),
                both_ways(&[*first], &others),
            )
        }
    }
}

/// Of one server, or of all.
fn resets(net: &Net, hosts: &[u64], random: &mut Seeded) -> Resets {
    let (whose, links) = match hosts.first().filter(|_| random.chance(0.5)) {
        Some(first) => {
            let mut others = net.hosts();
            others.extend(net.all_clients());
            others.retain(|other| other != first);
            (format!("of {first}"), both_ways(&[*first], &others))
        }
        None => ("of all".to_owned(), net.pairs(true)),
    };
    Resets {
        links,
        what: format!("reset: connections {whose}"),
        last: Instant::now(),
        broken_off: 0,
    }
}

fn cut(what: String, links: Links) -> Plan {
    Plan {
        what,
        parts: vec![(links, Quality::cut())],
    }
}

fn of_clients(kind: Kind, net: &Net, hosts: &[u64], random: &mut Seeded) -> Plan {
    let clients = net.clients();
    let number = random.below(clients.len() as u64);
    let client = clients[usize::try_from(number).unwrap_or(0)];
    let name = format!("{}: clients' host {}", kind.name(), number + 1);
    if kind == Kind::ClientCut {
        // From all, or from some: the leader is among them more often than not.
        let some = usize::try_from(random.between(1, hosts.len() as u64)).unwrap_or(1);
        let from = if random.chance(0.5) {
            hosts
        } else {
            &hosts[..some.min(hosts.len())]
        };
        return cut(format!("{name} from {from:?}"), both_ways(&[client], from));
    }
    let links = both_ways(&[client], hosts);
    let (how, quality) = if kind == Kind::ClientLoss {
        let percent = random.between(10, 50);
        let quality = Quality {
            loss: share(percent),
            ..Quality::default()
        };
        (format!("{percent} %"), quality)
    } else {
        let (delay, jitter) = (random.between(25, 200), random.between(5, 100));
        let quality = Quality {
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
            ..Quality::default()
        };
        (format!("{delay} ms each way and up to {jitter} ms more"), quality)
    };
    Plan {
        what: format!("{name}, {how}"),
        parts: vec![(links, quality)],
    }
}

fn everywhere(kind: Kind, net: &Net, random: &mut Seeded) -> Plan {
    let links = net.pairs(random.chance(0.3));
    let (how, quality) = match kind {
        Kind::Loss => {
            let percent = random.between(5, 30);
            let quality = Quality {
                loss: share(percent),
                ..Quality::default()
            };
            (format!("{percent} %"), quality)
        }
        Kind::Delay => {
            let (delay, jitter) = (random.between(5, 150), random.between(5, 150));
            let quality = Quality {
                delay: Duration::from_millis(delay),
                jitter: Duration::from_millis(jitter),
                reorder: 0.05,
                ..Quality::default()
            };
            (format!("{delay} ms and up to {jitter} ms more"), quality)
        }
        Kind::Mangle => {
            let percent = random.between(2, 15);
            let quality = Quality {
                duplicate: share(percent),
                corrupt: share(percent),
                ..Quality::default()
            };
            (format!("{percent} % twice, {percent} % damaged"), quality)
        }
        _ => {
            let kilobytes = random.between(10, 100);
            let quality = Quality {
                bandwidth: NonZeroU64::new(kilobytes * 1_000),
                ..Quality::default()
            };
            (format!("{kilobytes} kB/s a link"), quality)
        }
    };
    Plan {
        what: format!("{}: {how}", kind.name()),
        parts: vec![(links, quality)],
    }
}

fn share(percent: u64) -> f64 {
    u32::try_from(percent).map_or(1.0, f64::from) / 100.0
}
