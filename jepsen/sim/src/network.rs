//! The network between the hosts of a world.
//!
//! Datagrams are lost, delayed, repeated and overtake each other. Connections behave as TCP does: their bytes arrive
//! once and in order, so loss and cuts are delays, which grow with each attempt; a host that lost its memory answers
//! with a reset. What arrives is decided per direction when it would arrive, so a cut stops what is under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rollcall_jepsen::seed::Seeded;

use crate::boundary::{
    ACT_CLOSE, ACT_CONNECT, ACT_DATA, ACT_DATAGRAM, ACT_FINISH, Act, Entered, REFUSED, RESET, TIMED_OUT,
    UNREACHABLE,
};
use crate::time::{Agenda, MICROSECOND, MILLISECOND, Moment, SECOND};
use crate::trace::Trace;

/// Which host, counted from 0.
pub(crate) type HostIndex = usize;

/// First pause before bytes that were not acknowledged are sent again.
const RETRANSMIT_FIRST: u64 = 200 * MILLISECOND;
const RETRANSMIT_MAX: u64 = 4 * SECOND;
/// Pause before a connection is asked for again; it doubles.
const SYN_AGAIN: u64 = SECOND;
const SYN_ATTEMPTS: u32 = 5;
/// To oneself.
const LOOPBACK: u64 = 15 * MICROSECOND;

/// What one host's packets to another meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    /// Least delay, and how much more it may be.
    pub(crate) delay: (u64, u64),
    pub(crate) loss: f64,
    pub(crate) repeat: f64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            cut: false,
            delay: (80 * MICROSECOND, 400 * MICROSECOND),
            loss: 0.0,
            repeat: 0.0,
        }
    }
}

#[derive(Debug)]
enum Packet {
    /// Asks for a connection.
    Syn {
        socket: u64,
        from: HostIndex,
        to: HostIndex,
        port: u32,
        attempt: u32,
    },
    /// Answers that, for the socket `socket`, whose other end is `peer`.
    SynAck {
        socket: u64,
        peer: u64,
        from: HostIndex,
        to: HostIndex,
        attempt: u32,
    },
    /// The connection of this socket is refused, or is no more.
    Break { socket: u64, error: i32, to: HostIndex },
    /// The first bytes that wait at this socket are to arrive now.
    Bytes { socket: u64 },
    Datagram {
        chunk: u64,
        from: HostIndex,
        to: HostIndex,
        port: u32,
    },
}

#[derive(Debug)]
enum Item {
    Chunk(u64),
    /// The sender will write no more.
    Finish,
    /// The sender closed without reading everything.
    Reset,
}

/// From one end of a connection to the other.
#[derive(Debug)]
struct Direction {
    peer: u64,
    from: HostIndex,
    to: HostIndex,
    under_way: VecDeque<(Moment, Item)>,
    last: Moment,
    pause: u64,
    planned: bool,
    closed: bool,
}

/// How much went where.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets: u64,
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    pub(crate) connections: u64,
}

/// The network.
#[derive(Debug)]
pub(crate) struct Network {
    links: Vec<Vec<Link>>,
    /// Whether a host has power.
    powered: Vec<bool>,
    directions: BTreeMap<u64, Direction>,
    agenda: Agenda<Packet>,
    random: Seeded,
    pub(crate) traffic: Traffic,
}

/// The address of a host: 10.0.0.1 is the first one's.
pub(crate) fn ip_of(host: HostIndex) -> u32 {
    (10 << 24) + u32::try_from(host).unwrap_or(0) + 1
}

impl Network {
    pub(crate) fn new(hosts: usize, random: Seeded) -> Self {
        Self {
            links: vec![vec![Link::default(); hosts]; hosts],
            powered: vec![true; hosts],
            directions: BTreeMap::new(),
            agenda: Agenda::default(),
            random,
            traffic: Traffic::default(),
        }
    }

    pub(crate) fn set_link(&mut self, from: HostIndex, to: HostIndex, link: Link) {
        if from != to {
            self.links[from][to] = link;
        }
    }

    /// A host without power sends nothing, not even what it had begun to send; what comes for it is lost.
    pub(crate) fn set_powered(&mut self, host: HostIndex, powered: bool, world: &Entered) {
        self.powered[host] = powered;
        if powered {
            return;
        }
        let dead: Vec<u64> = self
            .directions
            .iter()
            .filter(|(_, of)| of.from == host)
            .map(|(socket, _)| *socket)
            .collect();
        for socket in dead {
            self.drop_direction(socket, world);
        }
    }

    fn drop_direction(&mut self, socket: u64, world: &Entered) {
        if let Some(of) = self.directions.remove(&socket) {
            for (_, item) in of.under_way {
                if let Item::Chunk(chunk) = item {
                    world.free(chunk);
                }
            }
        }
    }

    pub(crate) fn next_at(&self) -> Option<Moment> {
        self.agenda.first_at()
    }

    fn host_of(&self, ip: u32) -> Option<HostIndex> {
        (0..self.links.len()).find(|host| ip_of(*host) == ip)
    }

    fn delay(&mut self, from: HostIndex, to: HostIndex) -> u64 {
        if from == to {
            return LOOPBACK;
        }
        let (least, more) = self.links[from][to].delay;
        least + self.random.below(more + 1)
    }

    /// Whether a packet gets through now.
    fn passes(&mut self, from: HostIndex, to: HostIndex) -> bool {
        self.traffic.packets += 1;
        let link = self.links[from][to];
        let passes = !link.cut && self.powered[to] && !self.random.chance(link.loss);
        self.traffic.lost += u64::from(!passes);
        passes
    }

    /// Takes in what the host that just ran did to its sockets.
    pub(crate) fn handle_acts(&mut self, now: Moment, world: &Entered, trace: &mut Trace) {
        while let Some(act) = world.next_act() {
            trace.note(u64::from(act.kind) << 56 ^ act.socket << 8 ^ u64::from(act.port));
            let from = self.host_of(act.host).filter(|host| self.powered[*host]);
            match (act.kind, from) {
                (ACT_DATAGRAM, None) => world.free(act.chunk),
                (ACT_CLOSE, None) => {
                    self.drop_direction(act.socket, world);
                    world.forget(act.socket);
                }
                (_, None) => {}
                (ACT_CONNECT, Some(from)) => self.ask(now, from, act, world),
                (ACT_DATA, Some(_)) => self.send(now, act.socket, None, world, trace),
                (ACT_FINISH, Some(_)) => self.send(now, act.socket, Some(Item::Finish), world, trace),
                (ACT_CLOSE, Some(_)) => {
                    // Unread bytes that are thrown away are answered with a reset, as the kernel does.
                    let last = if act.ip == 1 { Item::Reset } else { Item::Finish };
                    self.send(now, act.socket, Some(last), world, trace);
                    match self.directions.get_mut(&act.socket) {
                        Some(of) => of.closed = true,
                        None => world.forget(act.socket),
                    }
                }
                (ACT_DATAGRAM, Some(from)) => self.throw(now, from, act, world, trace),
                (_, Some(_)) => {}
            }
        }
    }

    fn ask(&mut self, now: Moment, from: HostIndex, act: Act, world: &Entered) {
        let Some(to) = self.host_of(act.ip) else {
            world.break_off(act.socket, UNREACHABLE);
            return;
        };
        let at = now + self.delay(from, to);
        let syn = Packet::Syn {
            socket: act.socket,
            from,
            to,
            port: act.port,
            attempt: 0,
        };
        self.agenda.put(at, syn);
    }

    fn throw(&mut self, now: Moment, from: HostIndex, act: Act, world: &Entered, trace: &mut Trace) {
        trace.note(world.hash(act.chunk));
        let Some(to) = self.host_of(act.ip) else {
            world.free(act.chunk);
            return;
        };
        let repeat = self.links[from][to].repeat;
        if self.random.chance(repeat) {
            self.traffic.repeated += 1;
            let chunk = world.copy(act.chunk);
            let at = now + self.delay(from, to) + self.random.below(5 * MILLISECOND);
            self.agenda.put(
                at,
                Packet::Datagram {
                    chunk,
                    from,
                    to,
                    port: act.port,
                },
            );
        }
        let at = now + self.delay(from, to);
        self.agenda.put(
            at,
            Packet::Datagram {
                chunk: act.chunk,
                from,
                to,
                port: act.port,
            },
        );
    }

    /// Sends what was written to a socket, and what comes behind it.
    fn send(&mut self, now: Moment, socket: u64, behind: Option<Item>, world: &Entered, trace: &mut Trace) {
        let chunk = world.take(socket);
        let Some((from, to)) = self.directions.get(&socket).map(|of| (of.from, of.to)) else {
            if let Some(chunk) = chunk {
                world.free(chunk);
            }
            return;
        };
        let delay = self.delay(from, to);
        let Some(of) = self.directions.get_mut(&socket) else {
            return;
        };
        if of.closed {
            return;
        }
        of.last = of.last.max(now + delay);
        let at = of.last;
        if let Some(chunk) = chunk {
            trace.note(world.hash(chunk));
            of.under_way.push_back((at, Item::Chunk(chunk)));
        }
        of.under_way.extend(behind.map(|item| (at, item)));
        if !of.planned && !of.under_way.is_empty() {
            of.planned = true;
            self.agenda.put(at, Packet::Bytes { socket });
        }
    }

    /// Lets arrive what is due; gives the hosts that have something to do now.
    pub(crate) fn deliver(&mut self, now: Moment, world: &Entered, trace: &mut Trace) -> BTreeSet<HostIndex> {
        let mut met = BTreeSet::new();
        while let Some(packet) = self.agenda.take(now) {
            let host = match packet {
                Packet::Syn {
                    socket,
                    from,
                    to,
                    port,
                    attempt,
                } => self.syn(now, (socket, from, to, port, attempt), world),
                Packet::SynAck {
                    socket,
                    peer,
                    from,
                    to,
                    attempt,
                } => self.syn_ack(now, (socket, peer, from, to, attempt), world),
                Packet::Break { socket, error, to } => {
                    world.break_off(socket, error);
                    Some(to)
                }
                Packet::Bytes { socket } => self.bytes(now, socket, world, trace),
                Packet::Datagram {
                    chunk,
                    from,
                    to,
                    port,
                } => {
                    if self.passes(from, to) {
                        trace.note(now ^ (to as u64) << 60);
                        world.deliver_datagram(ip_of(to), port, chunk).then_some(to)
                    } else {
                        world.free(chunk);
                        None
                    }
                }
            };
            met.extend(host);
        }
        met
    }

    fn syn(
        &mut self,
        now: Moment,
        (socket, from, to, port, attempt): (u64, HostIndex, HostIndex, u32, u32),
        world: &Entered,
    ) -> Option<HostIndex> {
        if world.is_closed(socket) {
            return None;
        }
        if !self.passes(from, to) {
            if attempt >= SYN_ATTEMPTS {
                world.break_off(socket, TIMED_OUT);
                return Some(from);
            }
            let syn = Packet::Syn {
                socket,
                from,
                to,
                port,
                attempt: attempt + 1,
            };
            self.agenda.put(now + (SYN_AGAIN << attempt), syn);
            return None;
        }
        let back = now + self.delay(to, from);
        let Some(peer) = world
            .listener(ip_of(to), port)
            .and_then(|listener| world.accept(listener, socket))
        else {
            let refused = Packet::Break {
                socket,
                error: REFUSED,
                to: from,
            };
            self.agenda.put(back, refused);
            return None;
        };
        self.traffic.connections += 1;
        let direction = |peer, from, to| Direction {
            peer,
            from,
            to,
            under_way: VecDeque::new(),
            last: 0,
            pause: RETRANSMIT_FIRST,
            planned: false,
            closed: false,
        };
        self.directions.insert(socket, direction(peer, from, to));
        self.directions.insert(peer, direction(socket, to, from));
        let syn_ack = Packet::SynAck {
            socket,
            peer,
            from: to,
            to: from,
            attempt: 0,
        };
        self.agenda.put(back, syn_ack);
        Some(to)
    }

    fn syn_ack(
        &mut self,
        now: Moment,
        (socket, peer, from, to, attempt): (u64, u64, HostIndex, HostIndex, u32),
        world: &Entered,
    ) -> Option<HostIndex> {
        if !self.passes(from, to) {
            if attempt < SYN_ATTEMPTS {
                let again = Packet::SynAck {
                    socket,
                    peer,
                    from,
                    to,
                    attempt: attempt + 1,
                };
                self.agenda.put(now + (SYN_AGAIN << attempt), again);
            }
            return None;
        }
        if world.is_closed(socket) {
            self.reset(now, peer, to, from);
            return None;
        }
        world.connected(socket, peer);
        Some(to)
    }

    /// The end `socket` at the host `to` hears that the other one is no more.
    fn reset(&mut self, now: Moment, socket: u64, from: HostIndex, to: HostIndex) {
        let at = now + self.delay(from, to);
        self.agenda.put(
            at,
            Packet::Break {
                socket,
                error: RESET,
                to,
            },
        );
    }

    fn bytes(&mut self, now: Moment, socket: u64, world: &Entered, trace: &mut Trace) -> Option<HostIndex> {
        let (from, to, peer) = self.directions.get(&socket).map(|of| (of.from, of.to, of.peer))?;
        let passes = self.passes(from, to);
        let of = self.directions.get_mut(&socket)?;
        if !passes {
            let at = now + of.pause;
            of.pause = (of.pause * 2).min(RETRANSMIT_MAX);
            self.agenda.put(at, Packet::Bytes { socket });
            return None;
        }
        of.pause = RETRANSMIT_FIRST;
        trace.note(now ^ socket << 40);
        let mut gone = false;
        while let Some((_, item)) = of.under_way.pop_front_if(|(at, _)| *at <= now) {
            match item {
                Item::Chunk(chunk) => gone |= !world.deliver(peer, chunk),
                Item::Finish => world.finish(peer),
                Item::Reset => world.break_off(peer, RESET),
            }
        }
        of.planned = false;
        let next = of.under_way.front().map(|(at, _)| *at);
        let over = next.is_none() && of.closed;
        of.planned = next.is_some();
        if let Some(at) = next {
            self.agenda.put(at, Packet::Bytes { socket });
        }
        if over {
            self.directions.remove(&socket);
            world.forget(socket);
        } else if gone {
            self.reset(now, socket, to, from);
        }
        Some(to)
    }
}
