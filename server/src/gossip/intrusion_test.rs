//! Packets from anybody, against the core: nothing changes but counters, and nobody is answered with more than
//! was sent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use foca::{Header, Member, Message, State};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rollcall_core::ids::ServerId;

use super::codec::{put_header, put_member};
use super::identity::Identity;
use super::packet::{DropReason, Envelope, Kind, Packet};
use super::swim::{Event, MemberState, Swim, SwimSettings};
use super::timing::Timing;
use crate::config::GossipPreset;

fn identity(server: u64) -> Identity {
    Identity {
        server: ServerId(server),
        address: SocketAddr::from(([127, 0, 0, 1], 7_000 + u16::try_from(server).unwrap())),
        epoch: 1,
    }
}

fn envelope(cluster: &str, key: Option<u8>) -> Envelope {
    let keys = key.map(|byte| XChaCha20Poly1305::new(&[byte; 32].into()));
    Envelope::new(cluster, keys.into_iter().collect())
}

fn swim(server: u64, key: Option<u8>, secret: u8, now: Instant) -> Swim {
    let settings = SwimSettings {
        identity: identity(server),
        envelope: envelope("test", key),
        timing: Timing::preset(GossipPreset::Local),
        members_max: 8,
        seed: [u8::try_from(server).unwrap(); 32],
        cookie_secret: [secret; 32],
    };
    Swim::new(settings, now)
}

struct Stage {
    swims: Vec<Swim>,
    now: Instant,
    /// Every packet that was on its way: where to, and what.
    wire: Vec<(SocketAddr, Vec<u8>)>,
}

impl Stage {
    fn new(count: u64, key: Option<u8>) -> Self {
        Self::with_secret(count, key, 1)
    }

    fn with_secret(count: u64, key: Option<u8>, secret: u8) -> Self {
        let now = Instant::now();
        let mut stage = Self {
            swims: (1..=count).map(|server| swim(server, key, secret, now)).collect(),
            now,
            wire: Vec::new(),
        };
        for index in 1..stage.swims.len() {
            stage.swims[index].announce(identity(1).address, now);
        }
        stage.run(Duration::from_secs(2));
        for swim in &stage.swims {
            assert_eq!(
                swim.members()
                    .filter(|view| view.state == MemberState::Alive)
                    .count(),
                stage.swims.len() - 1
            );
        }
        stage
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.deliver();
            self.now += Duration::from_millis(20);
            for swim in &mut self.swims {
                swim.handle_tick(self.now);
            }
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        loop {
            let sent: Vec<_> = self
                .swims
                .iter_mut()
                .flat_map(|swim| std::iter::from_fn(|| swim.take_outgoing()).collect::<Vec<_>>())
                .collect();
            if sent.is_empty() {
                return;
            }
            for (to, bytes) in sent {
                if let Some(swim) = self.swims.iter_mut().find(|swim| swim.identity().address == to) {
                    swim.handle_packet(&bytes, self.now);
                }
                self.wire.push((to, bytes));
            }
        }
    }

    /// What the first server makes of a packet: what it dropped it for, and what it answers.
    fn throw(&mut self, bytes: &[u8]) -> (Option<DropReason>, Vec<(SocketAddr, Vec<u8>)>) {
        let swim = &mut self.swims[0];
        swim.take_events();
        swim.handle_packet(bytes, self.now);
        let dropped = swim.take_events().into_iter().find_map(|event| match event {
            Event::Dropped(reason) => Some(reason),
            _ => None,
        });
        (dropped, std::iter::from_fn(|| swim.take_outgoing()).collect())
    }

    fn footprint(&self) -> (Vec<super::MemberView>, [usize; 5]) {
        (self.swims[0].members().copied().collect(), self.swims[0].sizes())
    }
}

fn swim_packet(header: &Header<Identity>, updates: &[Member<Identity>], counter: u64, cookie: u64) -> Packet {
    let mut payload = Vec::new();
    put_header(header, &mut payload);
    if header.message != Message::Announce {
        payload.extend(u16::try_from(updates.len()).unwrap().to_be_bytes());
        updates.iter().for_each(|update| put_member(update, &mut payload));
    }
    Packet {
        kind: Kind::Swim,
        counter,
        cookie,
        payload,
    }
}

fn header(src: Identity, message: Message<Identity>) -> Header<Identity> {
    Header {
        src,
        src_incarnation: 0,
        dst: identity(1),
        message,
    }
}

#[test]
fn a_hundred_thousand_broken_packets_change_nothing() {
    for key in [None, Some(1)] {
        let mut stage = Stage::new(3, key);
        let recorded: Vec<Vec<u8>> = stage.wire.iter().map(|(_, bytes)| bytes.clone()).collect();
        let before = stage.footprint();
        let mut random = StdRng::seed_from_u64(17);
        for round in 0..100_000_u32 {
            let mut bytes = recorded[random.random_range(0..recorded.len())].clone();
            match round % 5 {
                0 => {
                    bytes = (0..random.random_range(0..2_000))
                        .map(|_| random.random())
                        .collect()
                }
                1 => bytes.truncate(random.random_range(0..bytes.len())),
                2 => bytes.extend((0..random.random_range(1..1_400)).map(|_| random.random::<u8>())),
                3 => {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] ^= 1 << random.random_range(0..8);
                }
                _ => {
                    // Ours from the outside, noise within.
                    let start = random.random_range(13..bytes.len());
                    random.fill(&mut bytes[start..]);
                    let last = bytes.len() - 1;
                    bytes[last] = bytes[last].wrapping_add(1) | 1;
                }
            }
            if recorded.contains(&bytes) {
                continue;
            }
            let (dropped, answers) = stage.throw(&bytes);
            assert!(dropped.is_some(), "round {round}");
            assert!(answers.is_empty(), "round {round}");
        }
        assert_eq!(stage.footprint(), before);
    }
}

#[test]
fn sound_packets_with_senseless_content_change_nothing() {
    let mut stage = Stage::new(3, Some(1));
    let sealed = envelope("test", Some(1));
    let before = stage.footprint();
    let mut random = StdRng::seed_from_u64(19);
    for counter in 0..100_000_u64 {
        let length = random.random_range(0..256);
        let packet = Packet {
            kind: [Kind::Swim, Kind::Challenge, Kind::LaterLife][random.random_range(0..3)],
            counter: 1 << 40 | counter,
            cookie: random.random(),
            payload: (0..length).map(|_| random.random()).collect(),
        };
        let bytes = sealed.seal(&packet, 0, random.random());
        let (dropped, answers) = stage.throw(&bytes);
        assert!(dropped.is_some());
        let answered: usize = answers.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(answered <= bytes.len());
    }
    assert_eq!(stage.footprint(), before);
}

#[test]
fn a_recorded_packet_is_not_taken_twice() {
    let mut stage = Stage::new(3, Some(1));
    let own = identity(1).address;
    let recorded: Vec<Vec<u8>> = stage
        .wire
        .iter()
        .filter(|(to, _)| *to == own)
        .map(|(_, bytes)| bytes.clone())
        .collect();
    assert!(recorded.len() > 20);
    let before = stage.footprint();
    for bytes in &recorded {
        let (dropped, answers) = stage.throw(bytes);
        assert!(
            matches!(dropped, Some(DropReason::Replayed | DropReason::Unasked)),
            "{dropped:?}"
        );
        assert!(answers.is_empty());
    }
    assert_eq!(stage.footprint(), before);

    // Nor by the same server after a restart, which remembers no counters: it asks for a cookie.
    let mut restarted = Stage::with_secret(1, Some(1), 2);
    for bytes in &recorded {
        let (dropped, answers) = restarted.throw(bytes);
        assert!(
            matches!(dropped, Some(DropReason::Unverified | DropReason::Unasked)),
            "{dropped:?}"
        );
        assert!(answers.iter().all(|(_, answer)| answer.len() <= bytes.len()));
    }
    assert_eq!(restarted.swims[0].members().count(), 0);
}

#[test]
fn another_cluster_or_key_is_not_heard() {
    let packet = swim_packet(&header(identity(7), Message::Announce), &[], 1, 0);
    let mut stages = [Stage::new(2, None), Stage::new(2, Some(1))];
    for (stage, outside, reason) in [
        (0, envelope("other", None), DropReason::Cluster),
        (1, envelope("other", Some(1)), DropReason::Cluster),
        (1, envelope("test", Some(2)), DropReason::Key),
        (1, envelope("test", None), DropReason::Plain),
    ] {
        let stage: &mut Stage = &mut stages[stage];
        let before = stage.footprint();
        let (dropped, answers) = stage.throw(&outside.seal(&packet, 1_400, [5; 24]));
        assert_eq!((dropped, answers.len()), (Some(reason), 0));
        assert_eq!(stage.footprint(), before);
    }
}

#[test]
fn a_stranger_is_sent_no_more_than_it_sent() {
    let mut stage = Stage::new(3, None);
    let outside = envelope("test", None);
    let before = stage.footprint();
    let victims: Vec<Identity> = (20..40).map(identity).collect();
    for (counter, victim) in victims.iter().enumerate() {
        for message in [
            Message::Announce,
            Message::Ping(1),
            Message::Gossip,
            Message::TurnUndead,
        ] {
            let packet = swim_packet(&header(*victim, message), &[], counter as u64, 99);
            let bytes = outside.seal(&packet, 0, [0; 24]);
            let (_, answers) = stage.throw(&bytes);
            let answered: usize = answers.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!(answered <= bytes.len(), "{answered} bytes for {}", bytes.len());
        }
    }
    assert_eq!(stage.footprint(), before);
    // And nothing later, either.
    stage.wire.clear();
    stage.run(Duration::from_secs(3));
    assert!(
        stage
            .wire
            .iter()
            .all(|(to, _)| victims.iter().all(|victim| victim.address != *to))
    );
}

#[test]
fn what_is_for_another_server_is_not_taken() {
    for key in [None, Some(1)] {
        let mut stage = Stage::new(3, key);
        let own = identity(1).address;
        let others: Vec<Vec<u8>> = stage
            .wire
            .iter()
            .filter(|(to, _)| *to != own)
            .map(|(_, bytes)| bytes.clone())
            .collect();
        let before = stage.footprint();
        let mut misaddressed = 0;
        for bytes in &others {
            let (dropped, answers) = stage.throw(bytes);
            assert!(dropped.is_some() && answers.is_empty(), "{dropped:?}");
            misaddressed += u32::from(dropped == Some(DropReason::Misaddressed));
        }
        assert!(misaddressed > 10, "{misaddressed}");
        assert_eq!(stage.footprint(), before);
        // Nor what is for a former or later life of this server.
        let mut to_another_life = header(identity(2), Message::Ping(3));
        to_another_life.dst.epoch += 1;
        let packet = swim_packet(&to_another_life, &[], 1 << 40, 0);
        let (dropped, answers) = stage.throw(&envelope("test", key).seal(&packet, 0, [5; 24]));
        assert_eq!((dropped, answers.len()), (Some(DropReason::Misaddressed), 0));
    }
}

#[test]
fn members_cannot_be_made_up_without_end() {
    let mut stage = Stage::new(3, None);
    let outside = envelope("test", None);
    let mut full = 0;
    for (counter, server) in (100..1_000_u64).enumerate() {
        // A forger who can pass for server 2, which without a key is anybody.
        let update = Member::new(identity(server), 0, State::Alive);
        let packet = swim_packet(
            &header(identity(2), Message::Gossip),
            &[update],
            counter as u64,
            0,
        );
        let (dropped, _) = stage.throw(&outside.seal(&packet, 0, [0; 24]));
        full += u32::from(dropped == Some(DropReason::MembersFull));
    }
    assert_eq!(stage.swims[0].members().count(), 8);
    assert!(full > 800, "{full}");
}

#[test]
fn a_member_cannot_be_made_to_probe_a_third_party() {
    let mut stage = Stage::new(3, None);
    let target = identity(50);
    let message = Message::PingReq {
        target,
        probe_number: 1,
    };
    let packet = swim_packet(&header(identity(2), message), &[], 1, 0);
    let (dropped, answers) = stage.throw(&envelope("test", None).seal(&packet, 0, [0; 24]));
    assert_eq!((dropped, answers.len()), (Some(DropReason::UnknownMember), 0));
}

#[test]
fn what_this_server_slept_through_is_held_against_nobody() {
    let mut stage = Stage::new(3, Some(1));
    // The first sleeps an hour, then ticks on, while nothing from the others arrives for a moment.
    stage.now += Duration::from_secs(3_600);
    let now = stage.now;
    for step in 0..10 {
        stage.swims[0].handle_tick(now + Duration::from_millis(20 * step));
    }
    assert!(
        stage.swims[0]
            .members()
            .all(|view| view.state != MemberState::Down)
    );
    assert!(stage.swims[0].shifted_total() > Duration::from_secs(3_590));
}

#[test]
fn whoever_knows_nobody_may_rest_and_a_rest_is_no_pause() {
    let mut stage = Stage::new(1, None);
    assert!(stage.swims[0].rest_if_idle());
    stage.now += Duration::from_secs(3_600);
    stage.swims.push(swim(2, None, 1, stage.now));
    let first = identity(1).address;
    stage.swims[1].announce(first, stage.now);
    stage.run(Duration::from_secs(2));
    for swim in &mut stage.swims {
        let alive = swim.members().filter(|view| view.state == MemberState::Alive);
        assert_eq!(alive.count(), 1);
        assert_eq!(swim.shifted_total(), Duration::ZERO);
        assert_eq!(swim.health().score(), 0);
        assert!(!swim.rest_if_idle(), "members are looked after");
    }
}
