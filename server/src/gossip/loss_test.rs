//! Thirty members in simulated time, over a network that loses packets, some of them asleep now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rollcall_core::ids::ServerId;

use super::identity::Identity;
use super::packet::Envelope;
use super::swim::{Event, MemberState, Swim, SwimSettings};
use super::timing::Timing;
use crate::config::GossipPreset;

const MEMBERS: u64 = 30;
const TICK: Duration = Duration::from_millis(50);

struct Network {
    swims: BTreeMap<u64, Swim>,
    /// Asleep until then; what is sent to them waits for them.
    asleep: BTreeMap<u64, Instant>,
    waiting: BTreeMap<u64, Vec<Vec<u8>>>,
    dead: BTreeSet<u64>,
    now: Instant,
    loss: f64,
    random: StdRng,
    /// Who declared whom down, or found so.
    downs: Vec<(u64, u64, Instant)>,
}

fn identity(server: u64) -> Identity {
    Identity {
        server: ServerId(server),
        address: SocketAddr::from(([10, 0, 0, u8::try_from(server).unwrap()], 7_401)),
        epoch: 1,
    }
}

impl Network {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        let (now, mut random) = (Instant::now(), StdRng::seed_from_u64(seed));
        let mut swim = |server| {
            let settings = SwimSettings {
                identity: identity(server),
                envelope: Envelope::new("test", Vec::new()),
                timing: Timing::preset(GossipPreset::Lan),
                members_max: 64,
                seed: random.random(),
                cookie_secret: random.random(),
            };
            (server, Swim::new(settings, now))
        };
        Self {
            swims: (1..=MEMBERS).map(&mut swim).collect(),
            asleep: BTreeMap::new(),
            waiting: BTreeMap::new(),
            dead: BTreeSet::new(),
            now,
            loss: 0.0,
            random,
            downs: Vec::new(),
        }
    }

    fn step(&mut self) {
        self.now += TICK;
        let now = self.now;
        let woken: Vec<u64> = self
            .asleep
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in woken {
            self.asleep.remove(&id);
            let swim = self.swims.get_mut(&id).unwrap();
            for bytes in self.waiting.remove(&id).unwrap_or_default() {
                swim.handle_packet(&bytes, now);
            }
        }
        for (id, swim) in &mut self.swims {
            if !self.asleep.contains_key(id) && !self.dead.contains(id) {
                swim.handle_tick(now);
            }
        }
        self.deliver();
        for (id, swim) in &mut self.swims {
            for event in swim.take_events() {
                if let Event::Changed { view, .. } = event
                    && view.state == MemberState::Down
                {
                    self.downs.push((*id, view.identity.server.0, now));
                }
            }
        }
    }

    fn deliver(&mut self) {
        loop {
            let mut sent = Vec::new();
            for swim in self.swims.values_mut() {
                while let Some(packet) = swim.take_outgoing() {
                    sent.push(packet);
                }
            }
            if sent.is_empty() {
                return;
            }
            for (to, bytes) in sent {
                if self.random.random_bool(self.loss) {
                    continue;
                }
                let Some(id) = (1..=MEMBERS).find(|id| identity(*id).address == to) else {
                    continue;
                };
                if self.dead.contains(&id) {
                } else if self.asleep.contains_key(&id) {
                    self.waiting.entry(id).or_default().push(bytes);
                } else {
                    self.swims.get_mut(&id).unwrap().handle_packet(&bytes, self.now);
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn join(&mut self) {
        for id in 2..=MEMBERS {
            self.swims
                .get_mut(&id)
                .unwrap()
                .announce(identity(1).address, self.now);
        }
        let since = self.now;
        let complete = |network: &Self| {
            network
                .swims
                .values()
                .all(|swim| swim.members().count() as u64 == MEMBERS - 1)
        };
        while !complete(self) {
            self.step();
            assert!(self.now - since < Duration::from_secs(30));
        }
        println!("{MEMBERS} members joined within {:?}", self.now - since);
    }
}

#[test]
fn with_a_tenth_of_the_packets_lost_and_sleepers_nobody_is_falsely_down() {
    let mut network = Network::new(rand::random());
    network.join();
    network.loss = 0.1;
    let end = network.now + Duration::from_secs(20 * 60);
    while network.now < end {
        // Each second one of the members in twenty falls asleep for less than the suspicion.
        for id in 1..=MEMBERS {
            if network.random.random_bool(0.05 * 0.05) && !network.asleep.contains_key(&id) {
                let nap = Duration::from_millis(network.random.random_range(100..2_500));
                network.asleep.insert(id, network.now + nap);
            }
        }
        network.step();
    }
    assert_eq!(network.downs, []);
}

#[test]
fn a_death_is_known_to_all_within_the_bound_although_packets_are_lost() {
    let mut network = Network::new(rand::random());
    network.join();
    network.loss = 0.1;
    let mut times = Vec::new();
    for victim in 1..=20 {
        network.run(Duration::from_secs(5));
        network.dead.insert(victim);
        let (died_at, living) = (network.now, MEMBERS as usize - network.dead.len());
        let knows = |network: &Network| {
            network
                .downs
                .iter()
                .filter(|(by, who, _)| *who == victim && !network.dead.contains(by))
                .count()
        };
        while knows(&network) < living {
            network.step();
            assert!(
                network.now - died_at < Duration::from_secs(30),
                "{victim} is not down on all"
            );
        }
        times.push(network.now - died_at);
    }
    times.sort_unstable();
    println!(
        "20 deaths of {MEMBERS}, known to all after: median {:?}, slowest {:?}",
        times[10], times[19]
    );
    assert!(times[19] < Duration::from_secs(20), "{times:?}");
    let dead = network.dead.clone();
    assert!(
        network.downs.iter().all(|(_, who, _)| dead.contains(who)),
        "a living one was declared down"
    );
}
