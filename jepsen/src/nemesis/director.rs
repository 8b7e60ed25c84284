//! Does what was planned.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::kind::Kind;
use super::schedule::Planned;
use crate::history::{Fault, History, Record};
use crate::lab::{Cluster, PEER_PORT, SmallDisk};
use crate::net::{FaultId, HARNESS, Net, Protocol, Quality};
use crate::seed::Seeded;

/// Does faults to a cluster and undoes them.
#[derive(Debug)]
pub struct Nemesis {
    net: Option<Arc<Net>>,
    history: History,
    active: Vec<Active>,
}

#[derive(Debug)]
struct Active {
    what: String,
    began: Duration,
    until: Duration,
    remedy: Vec<Remedy>,
}

#[derive(Debug)]
enum Remedy {
    Lift(FaultId),
    Resume(u64),
    Start(u64),
    Free(u64),
    SetClock(u64),
}

impl Nemesis {
    /// One that writes down in `history` what it does.
    #[must_use]
    pub fn new(net: Option<Arc<Net>>, history: History) -> Self {
        Self {
            net,
            history,
            active: Vec::new(),
        }
    }

    /// Whether this cluster and machine allow such a fault.
    #[must_use]
    pub fn can(&self, kind: Kind, cluster: &Cluster) -> bool {
        match kind {
            Kind::FullDisk => cluster.servers().all(|server| server.disk().is_some()),
            Kind::Clock => cluster.servers().all(|server| server.clock().is_some()),
            Kind::Pause | Kind::Kill | Kind::KillAll => true,
            _ => self.net.is_some(),
        }
    }

    /// Runs a plan, whose times count from the history's start, to its end; then everything is undone.
    ///
    /// # Errors
    /// Something could not be done, or undone: the run is worth nothing.
    pub async fn run(&mut self, plan: &[Planned], cluster: &mut Cluster) -> anyhow::Result<()> {
        let mut ahead = plan.iter().peekable();
        loop {
            let next_end = self.active.iter().map(|active| active.until).min();
            let next_begin = ahead.peek().map(|planned| planned.begin);
            let Some(next) = next_end.into_iter().chain(next_begin).min() else {
                return Ok(());
            };
            tokio::time::sleep(next.saturating_sub(self.history.now())).await;
            self.end_due(cluster).await?;
            while let Some(planned) = ahead.next_if(|planned| planned.begin <= self.history.now()) {
                self.begin(planned, cluster).await?;
            }
        }
    }

    async fn end_due(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let now = self.history.now();
        let (due, active) = std::mem::take(&mut self.active)
            .into_iter()
            .partition(|active: &Active| active.until <= now);
        self.active = active;
        for ended in due {
            for remedy in &ended.remedy {
                self.undo(remedy, cluster)
                    .with_context(|| format!("ending: {}", ended.what))?;
            }
            self.history.record(Record::Fault(Fault {
                what: ended.what,
                time: ended.began,
                end: self.history.now(),
            }));
        }
        Ok(())
    }

    fn undo(&self, remedy: &Remedy, cluster: &mut Cluster) -> anyhow::Result<()> {
        match remedy {
            Remedy::Lift(fault) => {
                if let Some(net) = &self.net {
                    net.lift(*fault);
                }
                Ok(())
            }
            // One that died meanwhile stays dead, to be found at the end.
            Remedy::Resume(id) if !cluster.server(*id).is_running() => Ok(()),
            Remedy::Resume(id) => cluster.server(*id).resume(),
            Remedy::Start(id) => cluster.server(*id).start(),
            Remedy::Free(id) => self.free(*id, cluster),
            Remedy::SetClock(id) => cluster.server(*id).clock().map_or(Ok(()), |clock| clock.set(0)),
        }
    }

    /// A server that found no room when it was started may have said so and ended: whoever watches over it starts it
    /// again when there is room. One that was killed, or died of a signal, is not started here.
    fn free(&self, id: u64, cluster: &mut Cluster) -> anyhow::Result<()> {
        let server = cluster.server(id);
        server.disk().map_or(Ok(()), SmallDisk::free)?;
        let ended = server.process().and_then(|process| process.exit_status());
        if let Some(code) = ended.and_then(|status| status.code()) {
            self.history
                .note(format!("server {id} had ended with code {code} on a full disk"));
            server.start()?;
        }
        Ok(())
    }

    async fn begin(&mut self, planned: &Planned, cluster: &mut Cluster) -> anyhow::Result<()> {
        let mut random = Seeded::new(planned.draw);
        let ids = order(cluster, &mut random).await;
        let began = self.history.now();
        let (what, remedy) = if planned.kind.is_network() {
            let Some(net) = &self.net else { return Ok(()) };
            let (what, faults) = impose(planned.kind, net, &ids, &mut random);
            (what, faults.into_iter().map(Remedy::Lift).collect())
        } else {
            strike(planned.kind, cluster, &ids, &mut random)
                .await
                .with_context(|| format!("beginning {}", planned.kind.name()))?
        };
        self.active.push(Active {
            what,
            began,
            // As planned, however late it began: what must not overlap was planned not to.
            until: planned.end,
            remedy,
        });
        Ok(())
    }
}

/// All servers; the one that the fault is about comes first: the leader, more often than not, if it can be asked.
async fn order(cluster: &mut Cluster, random: &mut Seeded) -> Vec<u64> {
    let mut ids = cluster.ids();
    random.shuffle(&mut ids);
    let asked = tokio::time::timeout(Duration::from_millis(500), cluster.statuses()).await;
    let leader = asked
        .unwrap_or_default()
        .into_iter()
        .max_by_key(|(_, status)| status.term);
    if let Some((_, status)) = leader.filter(|_| random.chance(0.6))
        && let Some(at) = ids.iter().position(|id| *id == status.leader)
    {
        ids.swap(0, at);
    }
    ids
}

fn impose(kind: Kind, net: &Net, ids: &[u64], random: &mut Seeded) -> (String, Vec<FaultId>) {
    let (first, rest) = ids.split_first().unwrap_or((&HARNESS, &[]));
    let everywhere = net.pairs(random.chance(0.3));
    match kind {
        Kind::Halves => {
            let (one, other) = ids.split_at(ids.len() / 2);
            let cut = net.partition(one, other);
            (format!("halves: {one:?} from {other:?}"), vec![cut])
        }
        Kind::Single => {
            let clients_too = random.chance(0.5);
            let whom = if clients_too {
                "everybody"
            } else {
                "the other servers"
            };
            (
                format!("single: {first} from {whom}"),
                vec![net.isolate(*first, clients_too)],
            )
        }
        Kind::Bridge => {
            let (one, other) = rest.split_at(rest.len() / 2);
            let cut = net.partition(one, other);
            (
                format!("bridge: {one:?} from {other:?}, {first} reaches both"),
                vec![cut],
            )
        }
        Kind::Ring => {
            let count = ids.len();
            let far = |one: usize, other: usize| (one + 1) % count != other && (other + 1) % count != one;
            let mut cuts = Vec::new();
            for one in 0..count {
                for other in (one + 1..count).filter(|other| far(one, *other)) {
                    cuts.push(net.partition(&[ids[one]], &[ids[other]]));
                }
            }
            (format!("ring: {ids:?}, neighbours only"), cuts)
        }
        Kind::OneWay => {
            let heard = random.chance(0.5);
            let pairs: Vec<_> = rest
                .iter()
                .map(|other| if heard { (*other, *first) } else { (*first, *other) })
                .collect();
            let what = if heard {
                "hears no server"
            } else {
                "is heard by no server"
            };
            (
                format!("one-way: {first} {what}"),
                vec![net.impose(&pairs, Quality::cut())],
            )
        }
        Kind::NoClients => (
            format!("no-clients: {first}"),
            vec![net.partition(&[*first], &[HARNESS])],
        ),
        Kind::NoGossip => {
            let cut = net.cut_port(&[*first], rest, Protocol::Udp, PEER_PORT);
            (format!("no-gossip: {first}"), vec![cut])
        }
        Kind::Loss => {
            let percent = random.between(5, 30);
            let quality = Quality {
                loss: share(percent),
                ..Quality::default()
            };
            (
                format!("loss: {percent} %"),
                vec![net.impose(&everywhere, quality)],
            )
        }
        Kind::Delay => {
            let (delay, jitter) = (random.between(5, 150), random.between(5, 150));
            let quality = Quality {
                delay: Duration::from_millis(delay),
                jitter: Duration::from_millis(jitter),
                reorder: 0.05,
                ..Quality::default()
            };
            (
                format!("delay: {delay} ms and up to {jitter} ms more"),
                vec![net.impose(&everywhere, quality)],
            )
        }
        Kind::Mangle => {
            let percent = random.between(2, 15);
            let quality = Quality {
                duplicate: share(percent),
                corrupt: share(percent),
                ..Quality::default()
            };
            (
                format!("mangle: {percent} % twice, {percent} % damaged"),
                vec![net.impose(&everywhere, quality)],
            )
        }
        Kind::Narrow => {
            let kilobytes = random.between(100, 500);
            let quality = Quality {
                bandwidth: NonZeroU64::new(kilobytes * 1_000),
                ..Quality::default()
            };
            (
                format!("narrow: {kilobytes} kB/s a link"),
                vec![net.impose(&everywhere, quality)],
            )
        }
        Kind::Pause | Kind::Kill | Kind::KillAll | Kind::FullDisk | Kind::Clock => {
            (String::new(), Vec::new())
        }
    }
}

fn share(percent: u64) -> f64 {
    u32::try_from(percent).map_or(1.0, f64::from) / 100.0
}

async fn strike(
    kind: Kind,
    cluster: &mut Cluster,
    ids: &[u64],
    random: &mut Seeded,
) -> anyhow::Result<(String, Vec<Remedy>)> {
    let name = kind.name();
    // One that ended by itself is not there to be struck.
    let alive: Vec<u64> = ids
        .iter()
        .copied()
        .filter(|id| cluster.server(*id).is_running())
        .collect();
    let Some(first) = alive.first().copied() else {
        return Ok((format!("{name}: nobody was left"), Vec::new()));
    };
    Ok(match kind {
        Kind::Pause => {
            cluster.server(first).pause().await?;
            (format!("{name}: {first}"), vec![Remedy::Resume(first)])
        }
        Kind::Kill => {
            cluster.server(first).kill9().await?;
            (format!("{name}: {first}"), vec![Remedy::Start(first)])
        }
        Kind::KillAll => {
            for id in &alive {
                cluster.server(*id).kill9().await?;
            }
            (name.into(), alive.into_iter().map(Remedy::Start).collect())
        }
        Kind::FullDisk => {
            let bytes = cluster.server(first).disk().map_or(Ok(0), SmallDisk::fill)?;
            (
                format!("{name}: {first}, {bytes} bytes taken"),
                vec![Remedy::Free(first)],
            )
        }
        _ => {
            let seconds = i64::try_from(random.below(7_200))? - 3_600;
            if let Some(clock) = cluster.server(first).clock() {
                clock.set(seconds)?;
            }
            (
                format!("{name}: {first} by {seconds} s"),
                vec![Remedy::SetClock(first)],
            )
        }
    })
}
