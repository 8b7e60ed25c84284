//! Members in simulated time, over a network that delays, loses and blocks packets; for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rollcall_core::ids::ServerId;

use super::identity::Identity;
use super::packet::Envelope;
use super::swim::{Event, MemberState, Swim, SwimSettings};
use super::timing::Timing;
use crate::config::GossipPreset;

pub(super) fn identity(server: u64, epoch: u64) -> Identity {
    Identity {
        server: ServerId(server),
        address: SocketAddr::from(([10, 0, 0, u8::try_from(server).unwrap()], 7_401)),
        epoch,
    }
}

/// A member was found to be down, by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Down {
    pub(super) by: u64,
    pub(super) who: u64,
    pub(super) at: Instant,
}

pub(super) struct Network {
    pub(super) swims: BTreeMap<u64, Swim>,
    pub(super) now: Instant,
    pub(super) random: StdRng,
    /// The share of packets that is lost.
    pub(super) loss: f64,
    /// From when a packet leaves until it arrives, by who sends and who receives.
    pub(super) delay: fn(u64, u64, &mut StdRng) -> Duration,
    /// What these send to those is lost.
    pub(super) blocked: BTreeSet<(u64, u64)>,
    /// Asleep until then; what is sent to them waits for them.
    pub(super) asleep: BTreeMap<u64, Instant>,
    pub(super) dead: BTreeSet<u64>,
    pub(super) downs: Vec<Down>,
    pub(super) suspicions: u64,
    timing: Timing,
    waiting: BTreeMap<u64, Vec<Vec<u8>>>,
    /// By when they arrive, and in the order in which they left.
    under_way: BTreeMap<(Instant, u64), (u64, Vec<u8>)>,
    left: u64,
    /// The epochs on the members' disks.
    pub(super) epochs: BTreeMap<u64, u64>,
}

impl Network {
    pub(super) fn new(members: u64, preset: GossipPreset, seed: u64) -> Self {
        println!("seed {seed}");
        let mut network = Self {
            swims: BTreeMap::new(),
            now: Instant::now(),
            random: StdRng::seed_from_u64(seed),
            loss: 0.0,
            delay: |_, _, _| Duration::ZERO,
            blocked: BTreeSet::new(),
            asleep: BTreeMap::new(),
            dead: BTreeSet::new(),
            downs: Vec::new(),
            suspicions: 0,
            timing: Timing::preset(preset),
            waiting: BTreeMap::new(),
            under_way: BTreeMap::new(),
            left: 0,
            epochs: BTreeMap::new(),
        };
        for id in 1..=members {
            network.start(id);
        }
        network
    }

    /// A new life of a member, by its disk; it knows nobody.
    pub(super) fn start(&mut self, id: u64) {
        let epoch = self.epochs.get(&id).copied().unwrap_or(0) + 1;
        self.epochs.insert(id, epoch);
        let settings = SwimSettings {
            identity: identity(id, epoch),
            envelope: Envelope::new("test", Vec::new()),
            timing: self.timing.clone(),
            members_max: 64,
            seed: self.random.random(),
            cookie_secret: self.random.random(),
        };
        self.swims.insert(id, Swim::new(settings, self.now));
        self.dead.remove(&id);
    }

    /// Asks a member to be let in.
    pub(super) fn announce(&mut self, id: u64, to: u64) {
        let (address, now) = (identity(to, 1).address, self.now);
        self.swims.get_mut(&id).unwrap().announce(address, now);
    }

    /// Everybody asks those whom it does not see to be let in, as an agent asks its seeds.
    pub(super) fn call_the_missing(&mut self) {
        let ids: Vec<u64> = self.swims.keys().copied().collect();
        for id in &ids {
            let seen: BTreeSet<SocketAddr> = self.swims[id]
                .members()
                .filter(|view| view.state != MemberState::Down)
                .map(|view| view.identity.address)
                .collect();
            for other in ids.iter().filter(|other| *other != id) {
                if !seen.contains(&identity(*other, 1).address) {
                    self.announce(*id, *other);
                }
            }
        }
    }

    /// Asks whoever is at another address of `to`, which `to` itself does not tell, to be let in.
    pub(super) fn announce_to_alias(&mut self, id: u64, to: u64) {
        let alias = SocketAddr::from(([10, 0, 9, u8::try_from(to).unwrap()], 7_401));
        let now = self.now;
        self.swims.get_mut(&id).unwrap().announce(alias, now);
    }

    /// A member gets a packet that nobody sent.
    pub(super) fn throw(&mut self, to: u64, bytes: &[u8]) {
        let now = self.now;
        self.swims.get_mut(&to).unwrap().handle_packet(bytes, now);
        self.settle(to, now);
    }

    /// What `from` send to `to` is lost from now on.
    pub(super) fn block(&mut self, from: &[u64], to: &[u64]) {
        for from in from {
            self.blocked
                .extend(to.iter().filter(|to| *to != from).map(|to| (*from, *to)));
        }
    }

    fn living(&self, id: u64) -> bool {
        !self.dead.contains(&id)
    }

    /// One tick of everybody, and what is under way until the next.
    pub(super) fn step(&mut self) {
        let next = self.now + self.timing.tick;
        self.wake();
        let now = self.now;
        let ids: Vec<u64> = self.swims.keys().copied().collect();
        for id in &ids {
            if !self.asleep.contains_key(id) && self.living(*id) {
                self.swims.get_mut(id).unwrap().handle_tick(now);
                self.settle(*id, now);
            }
        }
        while let Some(entry) = self.under_way.first_entry()
            && entry.key().0 < next
        {
            let ((at, _), (to, bytes)) = entry.remove_entry();
            if !self.living(to) {
            } else if self.asleep.contains_key(&to) {
                self.waiting.entry(to).or_default().push(bytes);
            } else {
                self.swims.get_mut(&to).unwrap().handle_packet(&bytes, at);
                self.settle(to, at);
            }
        }
        self.now = next;
    }

    fn wake(&mut self) {
        let now = self.now;
        let woken: Vec<u64> = self
            .asleep
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in woken {
            self.asleep.remove(&id);
            for bytes in self.waiting.remove(&id).unwrap_or_default() {
                self.swims.get_mut(&id).unwrap().handle_packet(&bytes, now);
                self.settle(id, now);
            }
        }
    }

    /// Does what a member says: its disk, its packets; and notes what happened to it.
    fn settle(&mut self, id: u64, now: Instant) {
        loop {
            let events = self.swims.get_mut(&id).unwrap().take_events();
            if events.is_empty() {
                break;
            }
            for event in events {
                match event {
                    Event::Renew { at_least } => {
                        let epoch = at_least.max(self.epochs[&id] + 1);
                        self.epochs.insert(id, epoch);
                        self.swims.get_mut(&id).unwrap().renewed(Some(epoch), now);
                    }
                    Event::Changed { view, .. } => {
                        let who = view.identity.server.0;
                        match view.state {
                            MemberState::Down => self.downs.push(Down { by: id, who, at: now }),
                            MemberState::Suspect => self.suspicions += 1,
                            MemberState::Alive => {}
                        }
                    }
                    _ => {}
                }
            }
        }
        while let Some((to, bytes)) = self.swims.get_mut(&id).unwrap().take_outgoing() {
            let Some(to) = self.who_is_at(to) else {
                continue;
            };
            if self.blocked.contains(&(id, to)) || self.random.random_bool(self.loss) {
                continue;
            }
            let arrives = now + (self.delay)(id, to, &mut self.random);
            self.left += 1;
            self.under_way.insert((arrives, self.left), (to, bytes));
        }
    }

    /// The last part of an address tells who is there.
    fn who_is_at(&self, address: SocketAddr) -> Option<u64> {
        let IpAddr::V4(ip) = address.ip() else {
            return None;
        };
        let [10, 0, 0 | 9, id] = ip.octets() else {
            return None;
        };
        self.swims.contains_key(&u64::from(id)).then_some(u64::from(id))
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Runs until it holds; how long that took.
    pub(super) fn run_until(
        &mut self,
        what: &str,
        bound: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Duration {
        let since = self.now;
        while !holds(self) {
            assert!(
                self.now - since < bound,
                "not within {bound:?}: {what}\n{}",
                self.views()
            );
            self.step();
        }
        self.now - since
    }

    /// Who sees whom how, for failures.
    fn views(&self) -> String {
        let of = |swim: &Swim| {
            let views = swim
                .members()
                .map(|view| format!("{} {}", view.identity, view.state.name()));
            format!("{}: {}\n", swim.identity(), views.collect::<Vec<_>>().join(", "))
        };
        self.swims.values().map(of).collect()
    }

    /// Whether every living member takes every other living one, in its present life, for alive.
    pub(super) fn all_see_all(&self) -> bool {
        let living: Vec<&Swim> = self
            .swims
            .iter()
            .filter(|(id, _)| self.living(**id))
            .map(|(_, swim)| swim)
            .collect();
        living.iter().all(|swim| {
            let alive = |other: &&&Swim| {
                swim.members()
                    .any(|view| view.identity == other.identity() && view.state == MemberState::Alive)
            };
            living.iter().filter(alive).count() == living.len() - 1
        })
    }

    /// Everybody asks the first to be let in.
    pub(super) fn join(&mut self) {
        let ids: Vec<u64> = self.swims.keys().copied().skip(1).collect();
        for id in &ids {
            self.announce(*id, 1);
        }
        let took = self.run_until("all see all", Duration::from_secs(60), Self::all_see_all);
        println!("{} members joined within {took:?}", ids.len() + 1);
    }

    /// A member dies; how long until every living one knows.
    pub(super) fn kill(&mut self, id: u64, bound: Duration) -> Duration {
        self.dead.insert(id);
        self.asleep.remove(&id);
        self.waiting.remove(&id);
        let (from, living) = (self.downs.len(), self.swims.len() - self.dead.len());
        self.run_until(&format!("{id} is down on all"), bound, |network| {
            let by: BTreeSet<u64> = network.downs[from..]
                .iter()
                .filter(|down| down.who == id && network.living(down.by))
                .map(|down| down.by)
                .collect();
            by.len() == living
        })
    }
}
