//! Does what was planned.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::deed::{Deed, Effect, Ground};
use super::kind::Kind;
use super::schedule::Planned;
use super::{members, network, process, resize, scarcity, storage};
use crate::history::{Fault, History, Record};
use crate::lab::{Cluster, Leading};
use crate::net::Net;
use crate::seed::Seeded;

/// How often what is under way is looked after.
const TICK: Duration = Duration::from_millis(50);
/// How long a fault may take to be undone once its time is up: servers come back, members are replaced, all while
/// other faults last.
const ENDING_MAX: Duration = Duration::from_secs(90);

/// How many faults of each kind there were, and how many of them were seen to bite.
pub type Tally = BTreeMap<Kind, (u64, u64)>;

/// Does faults to a cluster and undoes them.
#[derive(Debug)]
pub struct Nemesis {
    net: Option<Arc<Net>>,
    history: History,
    leading: Leading,
    upgrade_to: Option<PathBuf>,
    active: Vec<Active>,
    tally: Tally,
    broken: Vec<(Duration, String)>,
}

#[derive(Debug)]
struct Active {
    kind: Kind,
    deed: Box<dyn Deed>,
    began: Duration,
    until: Duration,
    /// Who led when it began, and in which term.
    led: crate::lab::Led,
}

impl Nemesis {
    /// One that writes down in `history` what it does.
    #[must_use]
    pub fn new(net: Option<Arc<Net>>, history: History, leading: Leading) -> Self {
        Self {
            net,
            history,
            leading,
            upgrade_to: None,
            active: Vec::new(),
            tally: Tally::new(),
            broken: Vec::new(),
        }
    }

    /// What rolling upgrades install.
    #[must_use]
    pub fn upgrading_to(mut self, binary: Option<PathBuf>) -> Self {
        self.upgrade_to = binary;
        self
    }

    /// Whether this cluster and machine allow such a fault.
    ///
    /// # Errors
    /// Why not.
    pub fn can(&self, kind: Kind, cluster: &Cluster) -> Result<(), String> {
        match kind {
            Kind::Ring if cluster.ids().len() < 4 => {
                Err("in a ring of three everybody is a neighbour of everybody".into())
            }
            _ if kind.is_network() => match &self.net {
                None => Err("there is no network to do it to".into()),
                Some(net) if net.is_on_loopback() && kind == Kind::Mangle => {
                    Err("a proxy passes streams on, of which nothing arrives twice or damaged".into())
                }
                Some(net) if !net.is_on_loopback() && kind == Kind::Reset => {
                    Err("a switch passes frames on and knows of no connections".into())
                }
                Some(net) if kind.is_of_clients() && net.clients().is_empty() => {
                    Err("clients have no hosts of their own".into())
                }
                Some(_) => Ok(()),
            },
            Kind::Resize => {
                let hosts = self.net.as_ref().map_or(0, |net| net.hosts().len() as u64);
                match hosts >= cluster.ids().len() as u64 + resize::BY {
                    true => Ok(()),
                    false => Err("there are no hosts for more servers".into()),
                }
            }
            Kind::RollingUpgrade if self.upgrade_to.is_none() => Err("no second program was named".into()),
            Kind::FullDisk
            | Kind::PowerLoss
            | Kind::PowerLossAll
            | Kind::HungDisk
            | Kind::DeadDisk
            | Kind::SyncErrors
            | Kind::TornTail
            | Kind::LostTail
            | Kind::BitRot => storage::is_possible(kind, cluster),
            Kind::Starved | Kind::Memory | Kind::Descriptors | Kind::Clock | Kind::ClockRate => {
                scarcity::is_possible(kind, cluster)
            }
            _ => Ok(()),
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Promises that were seen broken on the spot, and when.
    #[must_use]
    pub fn broken(&self) -> &[(Duration, String)] {
        &self.broken
    }

    /// Runs a plan, whose times count from the history's start, to its end, or until the history is full; then everything
    /// is undone.
    ///
    /// # Errors
    /// Something could not be done, or undone: the run is worth nothing.
    pub async fn run(&mut self, plan: &[Planned], cluster: &mut Cluster) -> anyhow::Result<()> {
        let last_end = plan.iter().map(|planned| planned.end).max().unwrap_or_default();
        let mut ahead: VecDeque<Planned> = plan.iter().copied().collect();
        loop {
            if self.history.is_full() {
                ahead.clear();
                let now = self.history.now();
                self.active
                    .iter_mut()
                    .for_each(|active| active.until = now.min(active.until));
            }
            self.end_due(cluster).await?;
            let mut later = VecDeque::new();
            while let Some(planned) = ahead.pop_front() {
                if planned.begin > self.history.now() {
                    ahead.push_front(planned);
                    break;
                }
                let excluded = |active: &Active| active.kind.excludes(planned.kind);
                if self.active.iter().any(excluded) {
                    later.push_back(planned);
                } else if self.history.now() + TICK >= last_end.max(planned.end) {
                    let what = format!("{}: no time was left for it", planned.kind.name());
                    self.history.note(what);
                } else {
                    self.begin(planned, cluster).await?;
                }
            }
            later.append(&mut ahead);
            ahead = later;
            if ahead.is_empty() && self.active.is_empty() {
                return Ok(());
            }
            self.tend(cluster).await?;
            tokio::time::sleep(TICK).await;
        }
    }

    async fn tend(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let mut active = std::mem::take(&mut self.active);
        for of in &mut active {
            let mut ground = self.ground(cluster);
            of.deed
                .tend(&mut ground)
                .await
                .with_context(|| format!("in the middle of {}", of.deed.what()))?;
        }
        self.active = active;
        Ok(())
    }

    async fn end_due(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        for mut active in std::mem::take(&mut self.active) {
            if active.until > self.history.now() {
                self.active.push(active);
                continue;
            }
            let mut ground = self.ground(cluster);
            let ended = active
                .deed
                .end(&mut ground)
                .await
                .with_context(|| format!("ending: {}", active.deed.what()))?;
            match ended {
                Some(effect) => self.close(&active, effect),
                None if self.history.now() > active.until + ENDING_MAX => {
                    let late = format!(
                        "{} was not over {ENDING_MAX:?} after its time",
                        active.deed.what()
                    );
                    self.close(&active, Effect::broken(late));
                }
                None => self.active.push(active),
            }
        }
        Ok(())
    }

    fn close(&mut self, active: &Active, effect: Effect) {
        let now = self.leading.latest();
        let mut seen = effect.seen;
        if now.term > active.led.term {
            seen = format!(
                "{seen}; leader {} to {}, term {} to {}",
                active.led.server, now.server, active.led.term, now.term
            );
        }
        let (done, bit) = self.tally.entry(active.kind).or_default();
        *done += 1;
        *bit += u64::from(effect.bit);
        let end = self.history.now();
        self.broken.extend(effect.broken.map(|what| (end, what)));
        self.history.record(Record::Fault(Fault {
            what: active.deed.what(),
            time: active.began,
            end,
            bit: effect.bit,
            effect: seen,
        }));
    }

    async fn begin(&mut self, planned: Planned, cluster: &mut Cluster) -> anyhow::Result<()> {
        let mut random = Seeded::new(planned.draw);
        let (began, led) = (self.history.now(), self.leading.latest());
        let mut ground = self.ground(cluster);
        let deed = begin(planned.kind, &mut ground, &mut random)
            .await
            .with_context(|| format!("beginning {}", planned.kind.name()))?;
        // As planned, however late it began: what must not overlap was planned not to. But what waited for another's
        // end has its time still.
        let lasts = planned.end - planned.begin;
        let waited = began > planned.begin + TICK * 4;
        self.active.push(Active {
            kind: planned.kind,
            deed,
            began,
            until: if waited { began + lasts } else { planned.end },
            led,
        });
        Ok(())
    }

    fn ground<'a>(&'a self, cluster: &'a mut Cluster) -> Ground<'a> {
        Ground {
            cluster,
            net: self.net.as_deref(),
            leading: &self.leading,
            upgrade_to: self.upgrade_to.as_deref(),
        }
    }
}

async fn begin(kind: Kind, ground: &mut Ground<'_>, random: &mut Seeded) -> anyhow::Result<Box<dyn Deed>> {
    match kind {
        Kind::Halves
        | Kind::Single
        | Kind::Bridge
        | Kind::Ring
        | Kind::OneWay
        | Kind::NoClients
        | Kind::NoGossip
        | Kind::Loss
        | Kind::Delay
        | Kind::Mangle
        | Kind::Narrow
        | Kind::Reset
        | Kind::ClientCut
        | Kind::ClientLoss
        | Kind::ClientSlow => Ok(network::begin(kind, ground, random)),
        Kind::Pause
        | Kind::Kill
        | Kind::KillAll
        | Kind::RollingRestart
        | Kind::RollingUpgrade
        | Kind::Transfer => process::begin(kind, ground, random).await,
        Kind::Membership => Ok(members::begin(ground, random)),
        Kind::Resize => Ok(resize::begin(ground)),
        Kind::FullDisk
        | Kind::PowerLoss
        | Kind::PowerLossAll
        | Kind::HungDisk
        | Kind::DeadDisk
        | Kind::SyncErrors
        | Kind::TornTail
        | Kind::LostTail
        | Kind::BitRot => storage::begin(kind, ground, random).await,
        Kind::Starved | Kind::Memory | Kind::Descriptors | Kind::Clock | Kind::ClockRate => {
            scarcity::begin(kind, ground, random)
        }
    }
}
