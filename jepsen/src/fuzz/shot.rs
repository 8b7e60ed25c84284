//! Bad packets, and what each should be dropped for.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::wire::{Inside, Message, PACKET_BYTES_MAX, Said, Swim, Who, Wire, answer_payload, news};

/// Epochs beyond this are nobody's.
const EPOCH_MAX: u64 = 1 << 48;
/// Ids of servers that are not there, from this on.
const STRANGERS: u64 = 9_000;

/// What a stranger says.
const STRANGERS_SAY: [Message; 6] = [
    Message::Announce,
    Message::Ping,
    Message::Ack,
    Message::PingRequest,
    Message::Gossip,
    Message::Feed,
];

/// A way in which a packet is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Noise.
    Garbage,
    /// A packet with something behind it, longer than any.
    Oversized,
    /// The beginning of a recorded packet.
    Truncated,
    /// A recorded packet with some bits turned.
    BitFlipped,
    /// A recorded packet, as it was.
    Replayed,
    /// A packet recorded on its way to another server.
    Misdelivered,
    /// Sound, of another cluster.
    WrongCluster,
    /// Sound, with another key, or with none where there should be one, or the other way round.
    Unauthenticated,
    /// Of a version or protection that does not exist.
    WrongVersion,
    /// Sound from the outside, senseless within.
    Malformed,
    /// Sound, of a server that never showed that it receives where it says.
    Stranger,
    /// With epochs that nobody reaches, or incarnations that end all refutation.
    FarFuture,
    /// An answer to a question that was not asked.
    Unasked,
    /// In the name of the server that it is thrown at.
    InItsName,
    /// In the name of a member, at another address: two servers with one id.
    Duplicate,
    /// Forged in the name of a member: it suspects others.
    ForgedSuspicion,
    /// Forged in the name of a member: others are down.
    ForgedDeath,
    /// Forged in the name of a member: it knows servers that are not there.
    ForgedMembers,
    /// Forged in the name of a member: news of everybody, from the far future.
    ForgedNews,
}

impl Class {
    /// What anybody can throw.
    pub const OUTSIDER: [Self; 15] = [
        Self::Garbage,
        Self::Oversized,
        Self::Truncated,
        Self::BitFlipped,
        Self::Replayed,
        Self::Misdelivered,
        Self::WrongCluster,
        Self::Unauthenticated,
        Self::WrongVersion,
        Self::Malformed,
        Self::Stranger,
        Self::FarFuture,
        Self::Unasked,
        Self::InItsName,
        Self::Duplicate,
    ];
    /// What takes a key, where there is one. Where there is none, anybody can.
    pub const INSIDER: [Self; 4] = [
        Self::ForgedSuspicion,
        Self::ForgedDeath,
        Self::ForgedMembers,
        Self::ForgedNews,
    ];

    /// As in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::Oversized => "oversized",
            Self::Truncated => "truncated",
            Self::BitFlipped => "bits flipped",
            Self::Replayed => "replayed",
            Self::Misdelivered => "misdelivered",
            Self::WrongCluster => "other cluster",
            Self::Unauthenticated => "unauthentic",
            Self::WrongVersion => "other version",
            Self::Malformed => "malformed",
            Self::Stranger => "stranger",
            Self::FarFuture => "far future",
            Self::Unasked => "unasked",
            Self::InItsName => "in its name",
            Self::Duplicate => "duplicate id",
            Self::ForgedSuspicion => "suspicion",
            Self::ForgedDeath => "death",
            Self::ForgedMembers => "members",
            Self::ForgedNews => "news",
        }
    }
}

/// What was thrown, by class.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many of each.
    pub by_class: BTreeMap<Class, u64>,
}

/// A packet, and the reasons one of which it must be dropped for. None: it may be taken.
pub(super) struct Shot {
    pub(super) class: Class,
    pub(super) bytes: Vec<u8>,
    pub(super) reasons: Vec<&'static str>,
}

/// What is known of the server that is thrown at.
pub(super) struct Mark {
    pub(super) own: Who,
    /// The other members, and their incarnations.
    pub(super) others: Vec<(Who, u16)>,
    /// Packets that were on their way to it.
    pub(super) record: Vec<Vec<u8>>,
    /// Packets that were on their way to others.
    pub(super) others_record: Vec<Vec<u8>>,
}

/// Makes bad packets.
pub(super) struct Armory {
    wire: Wire,
    other_cluster: Wire,
    other_key: Wire,
    plain: Wire,
    /// Where the answers to strangers go.
    sink: SocketAddr,
}

impl Armory {
    pub(super) fn new(cluster: &str, key: Option<[u8; 32]>, sink: SocketAddr, random: &mut StdRng) -> Self {
        let other: [u8; 32] = random.random();
        Self {
            wire: Wire::new(cluster, key),
            other_cluster: Wire::new(&format!("{cluster}-2"), key),
            other_key: Wire::new(cluster, Some(other)),
            plain: Wire::new(cluster, None),
            sink,
        }
    }

    /// A packet of this class; `None`: it takes a record, or members, that are not there.
    pub(super) fn make(&self, class: Class, mark: &Mark, random: &mut StdRng) -> Option<Shot> {
        let (bytes, reasons) = match class {
            Class::Garbage => (garbage(random), vec!["magic"]),
            Class::Oversized => {
                let mut bytes = mark.record.choose(random)?.clone();
                let length = random.random_range(PACKET_BYTES_MAX + 1..9_000);
                bytes.resize_with(length, || random.random());
                (bytes, vec!["oversized"])
            }
            Class::Truncated => {
                let mut bytes = mark.record.choose(random)?.clone();
                bytes.truncate(random.random_range(0..bytes.len().max(1)));
                let reason = self.wire.open(&bytes).err()?;
                (bytes, vec![reason])
            }
            Class::BitFlipped => {
                let mut bytes = mark.record.choose(random)?.clone();
                for _ in 0..random.random_range(1..=8) {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] ^= 1 << random.random_range(0..8);
                }
                let reason = self.wire.open(&bytes).err()?;
                (bytes, vec![reason])
            }
            Class::Replayed => self.replayed(mark.record.choose(random)?)?,
            Class::Misdelivered => {
                let bytes = mark.others_record.choose(random)?.clone();
                let reasons = match self.wire.open(&bytes).ok()?.kind {
                    0 => vec!["misaddressed", "own"],
                    _ => vec!["unasked"],
                };
                (bytes, reasons)
            }
            Class::WrongCluster => {
                let inside = self.by_stranger(mark, Message::Announce, &[], random);
                (self.other_cluster.seal(&inside, random), vec!["cluster"])
            }
            Class::Unauthenticated => self.unauthenticated(mark, random),
            Class::WrongVersion => {
                let inside = self.by_stranger(mark, Message::Ping, &[], random);
                let mut bytes = self.wire.seal(&inside, random);
                let at = random.random_range(3..=4);
                bytes[at] = random.random_range(2..=255);
                (bytes, vec!["version"])
            }
            Class::Malformed => self.malformed(mark, random),
            Class::Stranger => {
                let message = *STRANGERS_SAY.choose(random).unwrap_or(&Message::Ping);
                let updates = about(mark, 0, Said::Suspect);
                let inside = self.by_stranger(mark, message, &updates, random);
                (self.wire.seal(&inside, random), vec!["unverified"])
            }
            Class::FarFuture => self.far_future(mark, random),
            Class::Unasked => {
                let (from, _) = mark.others.choose(random).copied().unwrap_or((mark.own, 0));
                let later = Who {
                    epoch: mark.own.epoch + 7,
                    ..mark.own
                };
                let challenge = random.random::<bool>();
                let cookie = challenge.then(|| random.random());
                let inside = Inside {
                    kind: if challenge { 1 } else { 2 },
                    counter: random.random(),
                    cookie: 0,
                    payload: answer_payload(&from, random.random(), cookie, &later),
                };
                (self.wire.seal(&inside, random), vec!["unasked"])
            }
            Class::InItsName => {
                let inside = self.swim(mark.own, 3, mark, Message::Ping, Vec::new(), random);
                (self.wire.seal(&inside, random), vec!["own"])
            }
            Class::Duplicate => {
                let (member, _) = mark.others.choose(random)?;
                // Of two lives with one epoch the one at the lower address is the former.
                let former = Who {
                    address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
                    ..*member
                };
                let inside = self.swim(former, 0, mark, Message::Announce, Vec::new(), random);
                (self.wire.seal(&inside, random), vec!["former_life"])
            }
            Class::ForgedSuspicion | Class::ForgedDeath | Class::ForgedMembers | Class::ForgedNews => {
                let (member, incarnation) = *mark.others.choose(random)?;
                let inside = self.forged(class, member, incarnation, mark, random);
                (self.wire.seal(&inside, random), Vec::new())
            }
        };
        Some(Shot {
            class,
            bytes,
            reasons,
        })
    }

    fn replayed(&self, bytes: &[u8]) -> Option<(Vec<u8>, Vec<&'static str>)> {
        let reasons = match (self.wire.open(bytes).ok()?.kind, self.wire.is_sealed()) {
            (0, true) => vec!["replayed"],
            // Where anybody can name any counter, a window would only help to lock members out.
            (0, false) => Vec::new(),
            _ => vec!["unasked"],
        };
        Some((bytes.to_vec(), reasons))
    }

    fn unauthenticated(&self, mark: &Mark, random: &mut StdRng) -> (Vec<u8>, Vec<&'static str>) {
        let inside = match mark.others.choose(random) {
            Some((member, _)) => self.swim(*member, 0, mark, Message::Ping, Vec::new(), random),
            None => self.by_stranger(mark, Message::Ping, &[], random),
        };
        match (self.wire.is_sealed(), random.random::<bool>()) {
            (true, true) => (self.other_key.seal(&inside, random), vec!["key"]),
            (true, false) => (self.plain.seal(&inside, random), vec!["plain"]),
            (false, _) => (self.other_key.seal(&inside, random), vec!["sealed"]),
        }
    }

    fn malformed(&self, mark: &Mark, random: &mut StdRng) -> (Vec<u8>, Vec<&'static str>) {
        if random.random::<bool>() {
            let mut body = vec![0; random.random_range(0..400)];
            random.fill(&mut body[..]);
            // Whatever it should hold: this kind is none.
            if let Some(kind) = body.first_mut() {
                *kind = random.random_range(3..=255);
            }
            let bytes = self.wire.seal_body(body, random);
            return (bytes, vec!["malformed", "cut_short"]);
        }
        let mut inside = self.by_stranger(mark, Message::Gossip, &about(mark, 1, Said::Alive), random);
        match random.random_range(0..3) {
            0 => inside
                .payload
                .truncate(random.random_range(0..inside.payload.len())),
            1 => inside
                .payload
                .extend((0..random.random_range(1..40)).map(|_| 0xff_u8)),
            // The address family of the sender.
            _ => inside.payload[16] = *[0, 1, 5, 7, 255].choose(random).unwrap_or(&0),
        }
        (self.wire.seal(&inside, random), vec!["malformed"])
    }

    fn far_future(&self, mark: &Mark, random: &mut StdRng) -> (Vec<u8>, Vec<&'static str>) {
        let beyond = random.random_range(EPOCH_MAX + 1..=u64::MAX);
        let (inside, reason) = match random.random_range(0..3) {
            0 => {
                let mut updates = about(mark, 0, Said::Alive);
                updates.iter_mut().for_each(|(who, ..)| who.epoch = beyond);
                let inside = self.by_stranger(mark, Message::Gossip, &updates, random);
                let reason = if updates.is_empty() {
                    "unverified"
                } else {
                    "malformed"
                };
                (inside, reason)
            }
            1 => {
                let from = Who {
                    epoch: beyond,
                    ..mark.others.first().map_or(mark.own, |(who, _)| *who)
                };
                let inside = self.swim(from, 0, mark, Message::Ping, Vec::new(), random);
                (inside, "malformed")
            }
            _ => {
                let updates = about(mark, u16::MAX, Said::Suspect);
                let inside = self.by_stranger(mark, Message::Gossip, &updates, random);
                (inside, "unverified")
            }
        };
        (self.wire.seal(&inside, random), vec![reason])
    }

    fn forged(
        &self,
        class: Class,
        member: Who,
        incarnation: u16,
        mark: &Mark,
        random: &mut StdRng,
    ) -> Inside {
        let worst = *[0, 1, 7, u16::MAX - 1, u16::MAX].choose(random).unwrap_or(&0);
        let updates = match class {
            Class::ForgedSuspicion => about(mark, worst, Said::Suspect),
            Class::ForgedDeath => about(mark, worst, Said::Down),
            Class::ForgedMembers => (0..8)
                .map(|_| (self.stranger(random), worst, Said::Alive))
                .collect(),
            _ => Vec::new(),
        };
        let mut items = Vec::new();
        if class == Class::ForgedNews {
            for (who, _) in &mark.others {
                let content: [u8; 64] = random.random();
                items.push(news(who, u64::MAX - 1, random.random_range(0..12), &content));
            }
        }
        let mut inside = self.swim(member, incarnation, mark, Message::Gossip, updates, random);
        if !items.is_empty() {
            let swim = Swim {
                from: member,
                incarnation,
                to: mark.own,
                message: Message::Gossip,
                updates: Vec::new(),
                news: items,
            };
            inside.payload = swim.encode(random);
        }
        inside
    }

    /// A server that is not there; answers to it come to the sink.
    fn stranger(&self, random: &mut StdRng) -> Who {
        Who {
            server: STRANGERS + random.random_range(0..1_000_000),
            epoch: random.random_range(1..100),
            address: self.sink,
        }
    }

    fn by_stranger(
        &self,
        mark: &Mark,
        message: Message,
        updates: &[(Who, u16, Said)],
        random: &mut StdRng,
    ) -> Inside {
        let from = self.stranger(random);
        self.swim(from, 0, mark, message, updates.to_vec(), random)
    }

    fn swim(
        &self,
        from: Who,
        incarnation: u16,
        mark: &Mark,
        message: Message,
        updates: Vec<(Who, u16, Said)>,
        random: &mut StdRng,
    ) -> Inside {
        let swim = Swim {
            from,
            incarnation,
            to: mark.own,
            message,
            updates,
            news: Vec::new(),
        };
        Inside {
            kind: 0,
            counter: random.random(),
            cookie: random.random(),
            payload: swim.encode(random),
        }
    }
}

/// The same about every member, the one that is thrown at included.
fn about(mark: &Mark, incarnation: u16, said: Said) -> Vec<(Who, u16, Said)> {
    let all = mark
        .others
        .iter()
        .map(|(who, _)| *who)
        .chain(std::iter::once(mark.own));
    all.map(|who| (who, incarnation, said)).collect()
}

fn garbage(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..=PACKET_BYTES_MAX)];
    random.fill(&mut bytes[..]);
    if let Some(first) = bytes.first_mut()
        && *first == b'R'
    {
        *first = 0;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// What stands on the outside must lead to the reason that is foretold, by the second reading of the format.
    #[test]
    fn each_class_is_what_it_says() {
        let mut random = StdRng::seed_from_u64(11);
        for key in [None, Some([1; 32])] {
            let sink = "127.0.0.1:9".parse().unwrap();
            let armory = Armory::new("lab", key, sink, &mut random);
            let who = |server: u64| Who {
                server,
                epoch: 1,
                address: SocketAddr::from(([127, 0, 0, 1], 7_000 + server as u16)),
            };
            let mut mark = Mark {
                own: who(1),
                others: vec![(who(2), 0), (who(3), 0)],
                record: Vec::new(),
                others_record: Vec::new(),
            };
            let inside = armory.swim(who(2), 0, &mark, Message::Ping, Vec::new(), &mut random);
            mark.record.push(armory.wire.seal(&inside, &mut random));
            mark.others_record.clone_from(&mark.record);
            for class in Class::OUTSIDER.into_iter().chain(Class::INSIDER) {
                for _ in 0..200 {
                    let Some(shot) = armory.make(class, &mark, &mut random) else {
                        continue;
                    };
                    if let Err(reason) = armory.wire.open(&shot.bytes) {
                        assert!(shot.reasons.contains(&reason), "{class:?}: {reason}");
                    } else {
                        let outside = [
                            "magic",
                            "oversized",
                            "version",
                            "cluster",
                            "key",
                            "plain",
                            "sealed",
                        ];
                        assert!(
                            shot.reasons.iter().all(|reason| !outside.contains(reason)),
                            "{class:?}"
                        );
                    }
                }
            }
        }
    }
}
