//! Membership without sockets, clocks or tasks: packets and the time in; packets, events and a view out.
//!
//! foca runs SWIM (Das et al. 2002, with suspicion and infection-style dissemination). This room stands around
//! it and decides what foca may see: only whole messages, of this cluster, from senders that showed that they
//! receive at the address they name, none of them twice. It keeps foca's timers in judged time, so that what
//! this server slept through is held against nobody, and it knows what to do about two servers with one id.
//!
//! Invariants: bytes that are not a sound message of a verified sender change nothing but counters. Nobody
//! unverified is sent more than it sent. Members, senders, news and timers are bounded by `members_max`.
//!
//! `intake` and `strangers` stand before foca, `judgement` is what time does, `lives` is about this server itself.

mod intake;
mod judgement;
mod lives;
mod strangers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foca::{Foca, Header, Member, Message, Notification, Runtime, State, Timer};
use parking_lot::Mutex;
use rand_foca::SeedableRng;
use rand_foca::rngs::StdRng;
use rollcall_core::ids::ServerId;
use rollcall_core::session::JudgedTime;

use super::board::{Board, NEWS_BYTES_MAX, SharedBoard, Topic, encode as encode_news};
use super::codec::{WireCodec, kind, put_header, put_member, take_header};
use super::cookie::Cookies;
use super::health::LocalHealth;
use super::identity::Identity;
use super::packet::{DropReason, Envelope, Kind, PACKET_BYTES_MAX, PACKET_BYTES_MIN, Packet};
use super::replay::ReplayWindow;
use super::timing::Timing;

/// Most packets of a step that wait to be sent.
const OUTGOING_MAX: usize = 1_024;

/// How a member does, as far as this server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer somebody, and has yet to refute that it is down.
    Suspect,
    /// It left, or did not refute in time.
    Down,
}

impl MemberState {
    /// As in labels and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

impl From<State> for MemberState {
    fn from(state: State) -> Self {
        match state {
            State::Alive => Self::Alive,
            State::Suspect => Self::Suspect,
            State::Down => Self::Down,
        }
    }
}

/// A member, as this server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Who.
    pub identity: Identity,
    /// How it does.
    pub state: MemberState,
    /// How often it refuted a suspicion in this epoch.
    pub incarnation: u16,
    /// Since when it is in this state, by this server's clock.
    pub since: Instant,
}

/// What happened; the shell logs and counts it, and acts where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A member is in another state or life; its state before, if it was known in this life.
    Changed {
        view: MemberView,
        before: Option<MemberState>,
    },
    /// A member has not been heard of for so long that it is forgotten.
    Forgotten(Identity),
    /// Begin a new life: write an epoch of at least this to disk, then call [`Swim::renewed`].
    Renew {
        at_least: u64,
    },
    /// Another server has the id of `known`, at another address. The higher epoch holds.
    Duplicate {
        known: Identity,
        other: Identity,
    },
    /// Another server has this one's id and a later epoch: this one takes no part any more.
    Displaced {
        by: Identity,
    },
    /// This server refuted a suspicion.
    RefutedOwn,
    /// A packet went out, or came in and was taken.
    Sent(&'static str),
    Received(&'static str),
    /// A packet was dropped. Nothing else changed.
    Dropped(DropReason),
    /// A packet could not be queued.
    Unsent,
}

/// Whether this server takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Taking,
    /// Declared down; a new life begins when its epoch is on disk.
    Renewing {
        at_least: u64,
        at: Duration,
        asked: bool,
    },
    Displaced(Rival),
    Left,
}

/// Another server that has this one's id and a later life, while there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rival {
    identity: Identity,
    /// When to ask next whether it is still there.
    ask_at: Duration,
    /// The counter of the last question.
    question: u64,
    /// Questions since it answered.
    unanswered: u32,
}

/// A sender that showed that it receives at its address.
struct Sender {
    identity: Identity,
    window: ReplayWindow,
}

/// The last packet to an address, for the case that its receiver asks for a cookie.
struct LastSent {
    counter: u64,
    payload: Vec<u8>,
    bytes_min: usize,
    again: bool,
}

/// What foca wants done.
#[derive(Default)]
struct Effects {
    packets: Vec<(Identity, Vec<u8>)>,
    timers: Vec<(Timer<Identity>, Duration)>,
    defunct: bool,
}

impl Runtime<Identity> for Effects {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        self.defunct |= matches!(notification, Notification::Defunct);
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers.push((event, after));
    }
}

/// Whether it shows that somebody heard this server.
fn is_answer(message: &Message<Identity>) -> bool {
    match message {
        Message::Ack(_)
        | Message::IndirectAck { .. }
        | Message::ForwardedAck { .. }
        | Message::Feed
        | Message::TurnUndead => true,
        Message::Ping(_)
        | Message::PingReq { .. }
        | Message::IndirectPing { .. }
        | Message::Announce
        | Message::Gossip
        | Message::Broadcast => false,
    }
}

type Swimmer = Foca<Identity, WireCodec, StdRng, SharedBoard>;

fn begin_foca(
    identity: Identity,
    timing: &Timing,
    board: &Arc<Mutex<Board>>,
    random: &mut StdRng,
) -> Swimmer {
    Foca::with_custom_broadcast(
        identity,
        timing.foca(),
        StdRng::from_rng(random),
        WireCodec,
        SharedBoard(Arc::clone(board)),
    )
}

/// How a [`Swim`] is set up.
pub(crate) struct SwimSettings {
    pub(crate) identity: Identity,
    pub(crate) envelope: Envelope,
    pub(crate) timing: Timing,
    /// Most members, those down included.
    pub(crate) members_max: usize,
    /// From the system's source of randomness.
    pub(crate) seed: [u8; 32],
    pub(crate) cookie_secret: [u8; 32],
}

/// The core. See the module.
pub(crate) struct Swim {
    identity: Identity,
    incarnation: u16,
    foca: Swimmer,
    board: Arc<Mutex<Board>>,
    envelope: Envelope,
    timing: Timing,
    members_max: usize,
    cookies: Cookies,
    started_at: Instant,
    time: JudgedTime,
    health: LocalHealth,
    standing: Standing,
    renewals: u32,
    /// How often a rival was gone.
    returns: u32,
    alive_from: Duration,
    counter: u64,
    news_version: u64,
    timers: BTreeMap<(Duration, u64), Timer<Identity>>,
    timer_number: u64,
    /// Nobody ticks, since nothing can come of it.
    resting: bool,
    members: BTreeMap<ServerId, MemberView>,
    /// The latest life of each server that was a member, those forgotten included.
    lives: BTreeMap<ServerId, u64>,
    /// When a member last answered something.
    heard_at: Duration,
    /// Suspicions whose end was put off, by the number of their timers.
    put_off: BTreeSet<u64>,
    senders: BTreeMap<ServerId, Sender>,
    last_sent: BTreeMap<SocketAddr, LastSent>,
    reminded: Duration,
    /// When members that are down were called last for want of others.
    called: Duration,
    random: StdRng,
    outgoing: VecDeque<(SocketAddr, Vec<u8>)>,
    events: Vec<Event>,
}

impl Swim {
    pub(crate) fn new(settings: SwimSettings, now: Instant) -> Self {
        let identity = settings.identity;
        let board = Arc::new(Mutex::new(Board::new(identity.server, settings.members_max)));
        let mut random = StdRng::from_seed(settings.seed);
        let foca = begin_foca(identity, &settings.timing, &board, &mut random);
        // Where the counter begins is nobody's business.
        let counter = u64::from(
            settings
                .seed
                .first_chunk::<4>()
                .map_or(0, |b| u32::from_be_bytes(*b)),
        );
        Self {
            identity,
            incarnation: 0,
            foca,
            board,
            envelope: settings.envelope,
            members_max: settings.members_max,
            cookies: Cookies::new(settings.cookie_secret),
            started_at: now,
            time: JudgedTime::starting_at(now, settings.timing.pace()),
            timing: settings.timing,
            health: LocalHealth::default(),
            standing: Standing::Taking,
            renewals: 0,
            returns: 0,
            alive_from: Duration::ZERO,
            counter,
            news_version: 0,
            timers: BTreeMap::new(),
            timer_number: 0,
            resting: false,
            members: BTreeMap::new(),
            lives: BTreeMap::new(),
            heard_at: Duration::ZERO,
            put_off: BTreeSet::new(),
            senders: BTreeMap::new(),
            last_sent: BTreeMap::new(),
            reminded: Duration::ZERO,
            called: Duration::ZERO,
            random,
            outgoing: VecDeque::new(),
            events: Vec::new(),
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn incarnation(&self) -> u16 {
        self.incarnation
    }

    pub(crate) fn health(&self) -> LocalHealth {
        self.health
    }

    pub(crate) fn is_displaced(&self) -> bool {
        matches!(self.standing, Standing::Displaced(_))
    }

    /// The other members, by server.
    pub(crate) fn members(&self) -> impl Iterator<Item = &MemberView> {
        self.members.values()
    }

    pub(crate) fn board(&self) -> &Arc<Mutex<Board>> {
        &self.board
    }

    /// How much is kept: members, senders, last packets, timers, packets on their way.
    #[cfg(test)]
    pub(crate) fn sizes(&self) -> [usize; 5] {
        [
            self.members.len(),
            self.senders.len(),
            self.last_sent.len(),
            self.timers.len(),
            self.outgoing.len(),
        ]
    }

    pub(crate) fn shifted_total(&self) -> Duration {
        self.time.shifted_total()
    }

    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The next packet to send, and where to.
    pub(crate) fn take_outgoing(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outgoing.pop_front()
    }

    /// Whether ticks may cease until a packet comes or somebody is called: it knows nobody, and waits for nothing. A
    /// rest, however long, is no pause of this server.
    pub(crate) fn rest_if_idle(&mut self) -> bool {
        self.resting = self.standing == Standing::Taking && self.members.is_empty() && self.timers.is_empty();
        self.resting
    }

    fn end_rest(&mut self, now: Instant) {
        if std::mem::take(&mut self.resting) {
            self.time.resume(now);
        }
    }

    /// Handles a packet from anywhere.
    pub(crate) fn handle_packet(&mut self, bytes: &[u8], now: Instant) {
        self.end_rest(now);
        if let Err(drop) = self.try_packet(bytes, now) {
            self.events.push(Event::Dropped(drop));
        }
    }

    /// Sends a few updates to one member, outside foca's own rounds.
    fn send_updates(&mut self, to: &Identity, updates: &[Member<Identity>]) {
        self.send_message(to, Message::Gossip, updates);
    }

    fn send_message(&mut self, to: &Identity, message: Message<Identity>, updates: &[Member<Identity>]) {
        let header = Header {
            src: self.identity,
            src_incarnation: self.incarnation,
            dst: *to,
            message,
        };
        let mut payload = Vec::with_capacity(128);
        put_header(&header, &mut payload);
        payload.extend(u16::try_from(updates.len()).unwrap_or(0).to_be_bytes());
        for update in updates {
            put_member(update, &mut payload);
        }
        self.send(to.address, payload);
    }

    /// Asks to be let in by whoever is at `address`.
    pub(crate) fn announce(&mut self, address: SocketAddr, now: Instant) {
        self.end_rest(now);
        if self.standing == Standing::Taking && address != self.identity.address {
            let whoever = Identity::whoever_is_at(address);
            self.step(now, |foca, effects| foca.announce(whoever, effects));
        }
    }

    /// Lets everybody know. At most [`NEWS_BYTES_MAX`] bytes; false: it is more.
    pub(crate) fn publish(&mut self, topic: Topic, bytes: &[u8]) -> bool {
        if bytes.len() > NEWS_BYTES_MAX {
            return false;
        }
        self.news_version += 1;
        let data = encode_news(&self.identity, topic.number(), self.news_version, bytes);
        self.foca.add_broadcast(&data).unwrap_or(false)
    }

    /// Leaves: every member is told. Nothing is sent or taken after that.
    pub(crate) fn leave(&mut self) {
        if self.standing != Standing::Taking {
            return;
        }
        let gone = Member::new(self.identity, self.incarnation, State::Down);
        let others: Vec<Identity> = self
            .members
            .values()
            .filter(|view| view.state != MemberState::Down)
            .map(|view| view.identity)
            .collect();
        for member in others {
            self.send_updates(&member, std::slice::from_ref(&gone));
        }
        self.standing = Standing::Left;
    }

    /// Lets foca do something, then does what it wants done and looks at what has changed.
    fn step(
        &mut self,
        now: Instant,
        act: impl FnOnce(&mut Swimmer, &mut Effects) -> Result<(), foca::Error>,
    ) {
        let mut effects = Effects::default();
        if let Err(error) = act(&mut self.foca, &mut effects) {
            // Whole messages are refused for saying what nobody says; timers never.
            tracing::trace!(%error, "not taken by swim");
        }
        let judged = self.time.at(now);
        for (timer, after) in effects.timers {
            let after = match timer {
                Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. } => self.health.stretch(after),
                // Death must still be found in a bounded time where packets are lost.
                Timer::ChangeSuspectToDown { .. } => self.health.stretch(after).min(after * 2),
                Timer::PeriodicAnnounce(_)
                | Timer::PeriodicAnnounceDown(_)
                | Timer::PeriodicGossip(_)
                | Timer::RemoveDown(_) => after,
            };
            self.timer_number += 1;
            self.timers.insert((judged + after, self.timer_number), timer);
        }
        for (to, payload) in effects.packets {
            // Nor does who gets no answers tell others that they are down: they would believe it.
            let verdict = take_header(&payload[..]).is_ok_and(|header| header.message == Message::TurnUndead);
            if !(verdict && self.is_silent_at(judged)) {
                self.send(to.address, payload);
            }
        }
        self.refresh(now);
        if effects.defunct && self.standing != Standing::Left {
            self.renew(self.identity.epoch + 1, now);
        }
    }

    fn send(&mut self, to: SocketAddr, payload: Vec<u8>) {
        if to == self.identity.address || !matches!(self.standing, Standing::Taking) {
            return;
        }
        let Ok(header) = take_header(&payload[..]) else {
            return;
        };
        self.incarnation = header.src_incarnation;
        // A stranger's answer may be as long as the question, so that one is as long as can be.
        let bytes_min = match header.message {
            Message::Announce => PACKET_BYTES_MAX,
            _ => PACKET_BYTES_MIN,
        };
        self.counter += 1;
        let packet = Packet {
            kind: Kind::Swim,
            counter: self.counter,
            cookie: 0,
            payload,
        };
        let bytes = self.envelope.seal(&packet, bytes_min, rand::random());
        if self.last_sent.len() >= self.members_max * 2 && !self.last_sent.contains_key(&to) {
            self.last_sent.pop_first();
        }
        let last = LastSent {
            counter: self.counter,
            payload: packet.payload,
            bytes_min,
            again: false,
        };
        self.last_sent.insert(to, last);
        self.queue(to, bytes, kind(&header.message));
    }

    fn queue(&mut self, to: SocketAddr, bytes: Vec<u8>, kind: &'static str) {
        if self.outgoing.len() >= OUTGOING_MAX {
            self.events.push(Event::Unsent);
            return;
        }
        self.outgoing.push_back((to, bytes));
        self.events.push(Event::Sent(kind));
    }

    /// Compares foca's members with the view, and tells what is different.
    fn refresh(&mut self, now: Instant) {
        let own = self.identity.server;
        let mut seen = 0;
        for member in self
            .foca
            .iter_membership_state()
            .filter(|member| member.id().server != own)
        {
            seen += 1;
            let known = self.members.get(&member.id().server).copied();
            let state = MemberState::from(member.state());
            let before = known.filter(|view| view.identity == *member.id());
            if let Some(before) = before
                && before.state == state
                && before.incarnation == member.incarnation()
            {
                continue;
            }
            let since = match before {
                Some(before) if before.state == state => before.since,
                _ => now,
            };
            let view = MemberView {
                identity: *member.id(),
                state,
                incarnation: member.incarnation(),
                since,
            };
            self.members.insert(view.identity.server, view);
            self.board.lock().set_life(&view.identity);
            self.lives.insert(view.identity.server, view.identity.epoch);
            if self.lives.len() > self.members_max * 2 {
                let members = &self.members;
                self.lives.retain(|server, _| members.contains_key(server));
            }
            if let Some(known) = known
                && known.identity.address != view.identity.address
                && known.state == MemberState::Alive
            {
                self.events.push(Event::Duplicate {
                    known: view.identity,
                    other: known.identity,
                });
            }
            if before.is_none_or(|before| before.state != state) {
                self.events.push(Event::Changed {
                    view,
                    before: before.map(|before| before.state),
                });
            }
        }
        if seen < self.members.len() {
            let foca = &self.foca;
            self.members.retain(|server, _| {
                foca.iter_membership_state()
                    .any(|member| member.id().server == *server)
            });
        }
    }
}
