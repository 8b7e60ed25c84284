//! Membership without sockets, clocks or tasks: packets and the time in; packets, events and a view out.
//!
//! foca runs SWIM (Das et al. 2002, with suspicion and infection-style dissemination). This room stands around
//! it and decides what foca may see: only whole messages, of this cluster, from senders that showed that they
//! receive at the address they name, none of them twice. It keeps foca's timers in judged time, so that what
//! this server slept through is held against nobody, and it knows what to do about two servers with one id.
//!
//! Invariants: bytes that are not a sound message of a verified sender change nothing but counters. Nobody
//! unverified is sent more than it sent. Members, senders, news and timers are bounded by `members_max`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Buf;
use foca::{Foca, Header, Member, Message, Notification, Runtime, State, Timer};
use parking_lot::Mutex;
use rand_foca::SeedableRng;
use rand_foca::rngs::StdRng;
use rollcall_core::ids::ServerId;
use rollcall_core::session::JudgedTime;

use super::board::{Board, NEWS_BYTES_MAX, SharedBoard, Topic, encode as encode_news};
use super::codec::{
    Parsed, WireCodec, kind, put_header, put_identity, put_member, take_header, take_identity, take_member,
};
use super::cookie::Cookies;
use super::health::LocalHealth;
use super::identity::{Identity, LEAP_MAX};
use super::packet::{DropReason, Envelope, Kind, PACKET_BYTES_MAX, PACKET_BYTES_MIN, Packet};
use super::replay::ReplayWindow;
use super::timing::Timing;

/// A member that is down is forgotten after this long.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// Most packets of a step that wait to be sent.
const OUTGOING_MAX: usize = 1_024;
/// A server that is declared down again and again comes back ever more slowly, up to this.
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A rival that leaves so many questions unanswered is gone.
const UNANSWERED_MAX: u32 = 3;
/// Questions to a rival become rarer with each return, up to two to this power.
const RETURNS_MAX: u32 = 8;
/// A life that lasted this long was no flapping.
const STABLE_AFTER: Duration = Duration::from_secs(60);

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

    /// Handles a packet from anywhere.
    pub(crate) fn handle_packet(&mut self, bytes: &[u8], now: Instant) {
        if let Err(drop) = self.try_packet(bytes, now) {
            self.events.push(Event::Dropped(drop));
        }
    }

    fn try_packet(&mut self, bytes: &[u8], now: Instant) -> Result<(), DropReason> {
        let packet = self.envelope.open(bytes)?;
        match self.standing {
            Standing::Left => return Err(DropReason::Aside),
            Standing::Displaced(rival) => return self.handle_rival(rival, &packet, now),
            Standing::Taking | Standing::Renewing { .. } => {}
        }
        match packet.kind {
            Kind::Swim => self.handle_swim(packet, bytes.len(), now),
            Kind::Challenge => self.handle_challenge(&packet),
            Kind::LaterLife => self.handle_later_life(&packet, now),
        }
    }

    /// Reads a message as a whole. An update about a life that cannot be is left out: its sender may have been told
    /// so itself.
    fn read(&mut self, payload: &[u8]) -> Result<(Parsed, Vec<u8>), DropReason> {
        let parsed = Parsed::read(payload).map_err(|_| DropReason::Malformed)?;
        let updates = || parsed.updates.iter().map(Member::id);
        if !parsed.header.src.is_plausible() || updates().any(|identity| !identity.is_plausible()) {
            return Err(DropReason::Malformed);
        }
        if self.is_far_future(&parsed.header.src) {
            return Err(DropReason::FarFuture);
        }
        if !updates().any(|identity| self.is_far_future(identity)) {
            return Ok((parsed, payload.to_vec()));
        }
        self.events.push(Event::Dropped(DropReason::FarFuture));
        let payload = parsed.without(payload, |update| !self.is_far_future(update.id()));
        let parsed = Parsed::read(&payload).map_err(|_| DropReason::Malformed)?;
        Ok((parsed, payload))
    }

    /// Whether it is of a life far beyond the last that is known of its server.
    fn is_far_future(&self, identity: &Identity) -> bool {
        let known = if identity.server == self.identity.server {
            Some(self.identity.epoch)
        } else {
            self.lives.get(&identity.server).copied()
        };
        known.is_some_and(|epoch| identity.epoch > epoch.saturating_add(LEAP_MAX))
    }

    fn handle_swim(&mut self, packet: Packet, received: usize, now: Instant) -> Result<(), DropReason> {
        let (parsed, payload) = self.read(&packet.payload)?;
        let sender = parsed.header.src;
        if sender.server == self.identity.server
            && sender.address == self.identity.address
            && sender.epoch <= self.identity.epoch
        {
            return Err(DropReason::Own);
        }
        let to_whoever = parsed.header.message == Message::Announce && parsed.header.dst.server.0 == 0;
        if parsed.header.dst.server != self.identity.server && !to_whoever {
            return Err(DropReason::Misaddressed);
        }
        if let Some(known) = self.later_life_of(&sender) {
            self.tell_later_life(&sender, known, packet.counter, received);
            if sender.address != known.identity.address && known.state != MemberState::Down {
                self.events.push(Event::Duplicate {
                    known: known.identity,
                    other: sender,
                });
            }
            return Err(DropReason::FormerLife);
        }
        self.verify(&sender, &packet, received, now)?;
        if sender.server == self.identity.server {
            self.outlive(&sender, now);
            return Err(DropReason::Own);
        }
        if parsed.third_party().is_some_and(|third| !self.is_known(third)) {
            return Err(DropReason::UnknownMember);
        }
        self.make_room(&parsed, now)?;
        for update in &parsed.updates {
            if self.is_later_own_life(update) {
                self.outlive(update.id(), now);
                return Err(DropReason::Own);
            }
            if update.id().server == self.identity.server
                && update.id().address != self.identity.address
                && update.state() != State::Down
            {
                self.events.push(Event::Duplicate {
                    known: self.identity,
                    other: *update.id(),
                });
            }
        }
        if parsed.header.message != Message::Announce && parsed.header.dst != self.identity {
            // For a former life of this server.
            return Err(DropReason::Misaddressed);
        }
        if matches!(
            parsed.header.message,
            Message::Ack(_) | Message::ForwardedAck { .. }
        ) {
            self.health.mend();
        }
        let suspected = parsed
            .updates
            .iter()
            .filter(|update| update.id() == &self.identity && update.state() == State::Suspect)
            .map(Member::incarnation)
            .max();
        if suspected.is_some_and(|incarnation| incarnation >= self.incarnation) {
            self.health.worsen();
            self.events.push(Event::RefutedOwn);
        }
        if is_answer(&parsed.header.message) {
            self.heard_at = self.time.at(now);
        }
        self.events.push(Event::Received(kind(&parsed.header.message)));
        if self.is_alone() && self.takes_for_down(&sender) {
            self.reconsider(&parsed.header, now);
            return Ok(());
        }
        let payload = self.addressed_to_us(&parsed, payload);
        self.step(now, |foca, effects| foca.handle_data(&payload, effects));
        if suspected.is_some() {
            // foca tells some members at random that we live; whoever suspects us should be among them.
            self.send_updates(&sender, &[]);
        }
        Ok(())
    }

    /// This server takes everybody for down, and hears one of them. If that one hears this server too, it was this
    /// server that could not be reached: it begins anew, instead of telling the living that they are dead. If not,
    /// it says that it hears, and waits.
    fn reconsider(&mut self, heard: &Header<Identity>, now: Instant) {
        match heard.message {
            Message::Feed | Message::TurnUndead => self.renew(self.identity.epoch + 1, now),
            Message::Ping(_)
            | Message::Ack(_)
            | Message::PingReq { .. }
            | Message::IndirectPing { .. }
            | Message::IndirectAck { .. }
            | Message::ForwardedAck { .. }
            | Message::Announce
            | Message::Gossip
            | Message::Broadcast => self.send_message(&heard.src, Message::Feed, &[]),
        }
    }

    fn takes_for_down(&self, sender: &Identity) -> bool {
        self.members
            .get(&sender.server)
            .is_some_and(|view| view.identity == *sender && view.state == MemberState::Down)
    }

    /// Whether it knows others, all of them down.
    fn is_alone(&self) -> bool {
        !self.members.is_empty() && self.members.values().all(|view| view.state == MemberState::Down)
    }

    /// An announcement to whoever is here is for us.
    fn addressed_to_us(&self, parsed: &Parsed, payload: Vec<u8>) -> Vec<u8> {
        if parsed.header.message != Message::Announce || parsed.header.dst.server.0 != 0 {
            return payload;
        }
        let header = Header {
            dst: self.identity,
            ..parsed.header.clone()
        };
        let mut readdressed = Vec::with_capacity(payload.len());
        put_header(&header, &mut readdressed);
        readdressed.extend_from_slice(&payload[parsed.header_bytes..]);
        readdressed
    }

    /// What is known of a sender, if that is a later life of it.
    fn later_life_of(&self, sender: &Identity) -> Option<MemberView> {
        let known = if sender.server == self.identity.server {
            MemberView {
                identity: self.identity,
                state: MemberState::Alive,
                incarnation: self.incarnation,
                since: self.started_at,
            }
        } else {
            *self.members.get(&sender.server)?
        };
        (known.identity.precedence(sender) == Ordering::Greater).then_some(known)
    }

    /// Lets through who has shown that it receives at its address, and nothing twice.
    fn verify(
        &mut self,
        sender: &Identity,
        packet: &Packet,
        received: usize,
        now: Instant,
    ) -> Result<(), DropReason> {
        let at = now.saturating_duration_since(self.started_at);
        if let Some(known) = self.senders.get_mut(&sender.server)
            && known.identity == *sender
        {
            // Without a key anybody can name any counter: the window would only help to lock members out.
            return match self.envelope.is_sealed() && !known.window.accept(packet.counter) {
                true => Err(DropReason::Replayed),
                false => Ok(()),
            };
        }
        if !self.cookies.is_good(packet.cookie, sender, at) {
            self.challenge(sender, packet.counter, received, at);
            return Err(DropReason::Unverified);
        }
        if self.senders.len() >= self.members_max && !self.senders.contains_key(&sender.server) {
            let members = &self.members;
            self.senders.retain(|server, _| members.contains_key(server));
            if self.senders.len() >= self.members_max {
                return Err(DropReason::MembersFull);
            }
        }
        let verified = Sender {
            identity: *sender,
            window: ReplayWindow::starting_at(packet.counter),
        };
        self.senders.insert(sender.server, verified);
        Ok(())
    }

    /// Asks a stranger to show that it is where it says. Never longer than what came.
    fn challenge(&mut self, sender: &Identity, counter: u64, received: usize, at: Duration) {
        let mut payload = Vec::with_capacity(64);
        put_identity(&self.identity, &mut payload);
        payload.extend(counter.to_be_bytes());
        payload.extend(self.cookies.bake(sender, at).to_be_bytes());
        self.answer_stranger(sender.address, Kind::Challenge, payload, received);
    }

    fn tell_later_life(&mut self, sender: &Identity, known: MemberView, counter: u64, received: usize) {
        let mut payload = Vec::with_capacity(96);
        put_identity(&self.identity, &mut payload);
        payload.extend(counter.to_be_bytes());
        put_member(
            &Member::new(known.identity, known.incarnation, State::Alive),
            &mut payload,
        );
        self.answer_stranger(sender.address, Kind::LaterLife, payload, received);
    }

    fn answer_stranger(&mut self, to: SocketAddr, kind: Kind, payload: Vec<u8>, received: usize) {
        self.counter += 1;
        let packet = Packet {
            kind,
            counter: self.counter,
            cookie: 0,
            payload,
        };
        let bytes = self.envelope.seal(&packet, PACKET_BYTES_MIN, rand::random());
        if bytes.len() <= received {
            let name = match kind {
                Kind::Swim => "swim",
                Kind::Challenge => "challenge",
                Kind::LaterLife => "later_life",
            };
            self.queue(to, bytes, name);
        }
    }

    /// We are asked to show that we receive here: what was sent last goes out again, once, with the cookie.
    fn handle_challenge(&mut self, packet: &Packet) -> Result<(), DropReason> {
        let mut payload = &packet.payload[..];
        take_identity(&mut payload).map_err(|_| DropReason::Malformed)?;
        if payload.len() != 16 {
            return Err(DropReason::Malformed);
        }
        let (answers, cookie) = (payload.get_u64(), payload.get_u64());
        // It goes where the question went, which may be another address than the one its receiver tells.
        let asked = self
            .last_sent
            .iter_mut()
            .find(|(_, last)| last.counter == answers && !last.again);
        let Some((&to, last)) = asked else {
            return Err(DropReason::Unasked);
        };
        last.again = true;
        self.counter += 1;
        last.counter = self.counter;
        let again = Packet {
            kind: Kind::Swim,
            counter: self.counter,
            cookie,
            payload: last.payload.clone(),
        };
        let bytes = self.envelope.seal(&again, last.bytes_min, rand::random());
        self.events.push(Event::Received("challenge"));
        self.queue(to, bytes, "verification");
        Ok(())
    }

    /// Somebody remembers a later life of this server than the one it is in.
    fn handle_later_life(&mut self, packet: &Packet, now: Instant) -> Result<(), DropReason> {
        let mut payload = &packet.payload[..];
        take_identity(&mut payload).map_err(|_| DropReason::Malformed)?;
        if payload.len() < 8 {
            return Err(DropReason::Malformed);
        }
        let answers = payload.get_u64();
        let known = take_member(&mut payload).map_err(|_| DropReason::Malformed)?;
        if !payload.is_empty() || !known.id().is_plausible() {
            return Err(DropReason::Malformed);
        }
        if self.is_far_future(known.id()) {
            return Err(DropReason::FarFuture);
        }
        let asked = self.last_sent.values().any(|last| last.counter == answers);
        if !asked || !self.is_later_own_life(&known) {
            return Err(DropReason::Unasked);
        }
        self.events.push(Event::Received("later_life"));
        self.outlive(known.id(), now);
        Ok(())
    }

    fn is_later_own_life(&self, member: &Member<Identity>) -> bool {
        member.id().server == self.identity.server
            && member.id().precedence(&self.identity) == Ordering::Greater
    }

    /// There is, or was, a later life with our id. At our own address it was ours, and our disk forgot it:
    /// begin one above it. Elsewhere it is another server, and holds.
    fn outlive(&mut self, later: &Identity, now: Instant) {
        if later.address == self.identity.address {
            self.renew(later.epoch + 1, now);
        } else if !self.is_displaced() {
            self.events.push(Event::Duplicate {
                known: self.identity,
                other: *later,
            });
            self.events.push(Event::Displaced { by: *later });
            self.standing = Standing::Displaced(Rival {
                identity: *later,
                ask_at: self.time.at(now) + self.rival_interval(),
                question: 0,
                unanswered: 0,
            });
            self.outgoing.clear();
        }
    }

    fn rival_interval(&self) -> Duration {
        self.timing.call_down_interval * (2 << self.returns.min(RETURNS_MAX))
    }

    /// While displaced only one thing matters: whether the rival is still there.
    fn handle_rival(&mut self, rival: Rival, packet: &Packet, now: Instant) -> Result<(), DropReason> {
        if packet.kind != Kind::LaterLife {
            return Err(DropReason::Aside);
        }
        let mut payload = &packet.payload[..];
        let from = take_identity(&mut payload).map_err(|_| DropReason::Malformed)?;
        let answers = (payload.len() >= 8).then(|| payload.get_u64());
        let is_rival =
            from.server == self.identity.server && from.precedence(&self.identity) == Ordering::Greater;
        if !is_rival || rival.question == 0 || answers != Some(rival.question) {
            return Err(DropReason::Unasked);
        }
        self.events.push(Event::Received("later_life"));
        self.standing = Standing::Displaced(Rival {
            identity: from,
            ask_at: self.time.at(now) + self.rival_interval(),
            question: 0,
            unanswered: 0,
        });
        Ok(())
    }

    /// Asks the rival whether it is still there; when it is not, this server comes back in a life above it.
    fn ask_rival(&mut self, judged: Duration, now: Instant) {
        let Standing::Displaced(rival) = self.standing else {
            return;
        };
        if judged < rival.ask_at {
            return;
        }
        if rival.unanswered >= UNANSWERED_MAX {
            self.returns += 1;
            self.standing = Standing::Renewing {
                at_least: rival.identity.epoch + 1,
                at: judged,
                asked: false,
            };
            self.ask_for_epoch(now);
            return;
        }
        let header = Header {
            src: self.identity,
            src_incarnation: self.incarnation,
            dst: Identity::whoever_is_at(rival.identity.address),
            message: Message::Announce,
        };
        let mut payload = Vec::with_capacity(64);
        put_header(&header, &mut payload);
        self.counter += 1;
        let packet = Packet {
            kind: Kind::Swim,
            counter: self.counter,
            cookie: 0,
            payload,
        };
        let bytes = self.envelope.seal(&packet, PACKET_BYTES_MAX, rand::random());
        self.queue(rival.identity.address, bytes, kind(&header.message));
        self.standing = Standing::Displaced(Rival {
            ask_at: judged + self.rival_interval(),
            question: self.counter,
            unanswered: rival.unanswered + 1,
            ..rival
        });
    }

    fn renew(&mut self, at_least: u64, now: Instant) {
        match &mut self.standing {
            Standing::Renewing { at_least: floor, .. } => *floor = at_least.max(*floor),
            Standing::Taking => {
                let judged = self.time.at(now);
                if judged.saturating_sub(self.alive_from) > STABLE_AFTER {
                    self.renewals = 0;
                }
                let pause = match self.renewals {
                    0 => Duration::ZERO,
                    some => (self.timing.probe_rtt * (1 << some.min(10))).min(RENEWAL_PAUSE_MAX),
                };
                self.renewals += 1;
                self.standing = Standing::Renewing {
                    at_least,
                    at: judged + pause,
                    asked: false,
                };
            }
            Standing::Displaced(_) | Standing::Left => {}
        }
        self.ask_for_epoch(now);
    }

    fn ask_for_epoch(&mut self, now: Instant) {
        let judged = self.time.at(now);
        if let Standing::Renewing { at_least, at, asked } = &mut self.standing
            && !*asked
            && *at <= judged
        {
            *asked = true;
            self.events.push(Event::Renew { at_least: *at_least });
        }
    }

    /// The answer to [`Event::Renew`]: this epoch is on disk. `None`: it could not be written; asked again later.
    pub(crate) fn renewed(&mut self, epoch: Option<u64>, now: Instant) {
        let judged = self.time.at(now);
        let Standing::Renewing { at_least, .. } = self.standing else {
            return;
        };
        let Some(epoch) = epoch.filter(|epoch| *epoch >= at_least && *epoch > self.identity.epoch) else {
            self.standing = Standing::Renewing {
                at_least,
                at: judged + RENEWAL_PAUSE_MAX,
                asked: false,
            };
            return;
        };
        self.standing = Standing::Taking;
        self.alive_from = judged;
        self.identity.epoch = epoch;
        self.incarnation = 0;
        let known = self.begin_anew(now);
        for member in known {
            self.step(now, |foca, effects| foca.announce(member, effects));
        }
    }

    /// A new life knows whom the old one knew, and carries none of its rumours on: whoever was declared down may
    /// have declared others down wrongly. If all were, it was this server that was cut off, and it forgets them.
    /// Returns whom to tell: everybody.
    fn begin_anew(&mut self, now: Instant) -> Vec<Identity> {
        self.foca = begin_foca(self.identity, &self.timing, &self.board, &mut self.random);
        self.timers.clear();
        self.put_off.clear();
        let all: Vec<MemberView> = self.members.values().copied().collect();
        if self.is_alone() {
            self.members.clear();
            self.events
                .extend(all.iter().map(|view| Event::Forgotten(view.identity)));
        }
        let updates = self.members.values().map(|view| {
            let state = match view.state {
                MemberState::Alive => State::Alive,
                MemberState::Suspect => State::Suspect,
                MemberState::Down => State::Down,
            };
            Member::new(view.identity, view.incarnation, state)
        });
        let updates: Vec<Member<Identity>> = updates.collect();
        self.step(now, |foca, effects| {
            foca.apply_many(updates.into_iter(), false, effects)
        });
        let own = self.board.lock().own_items();
        for (topic, bytes) in own {
            self.news_version += 1;
            let data = encode_news(&self.identity, topic, self.news_version, &bytes);
            // It is later than what the board holds, so it is taken.
            let _ = self.foca.add_broadcast(&data);
        }
        all.iter().map(|view| view.identity).collect()
    }

    /// Fires what is due. Call it once per tick, after the packets that have come; a late call shifts everything.
    pub(crate) fn handle_tick(&mut self, now: Instant) {
        let tick = self.time.tick(now);
        if tick.shifted > self.timing.probe_rtt / 2 {
            self.on_own_pause(now);
        }
        let judged = self.time.at(now);
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= judged
        {
            let ((_, number), timer) = entry.remove_entry();
            let was_put_off = self.put_off.remove(&number);
            if !self.is_due(&timer) {
                continue;
            }
            if let Some(later) = self.silence_ends(&timer, judged)
                && !was_put_off
            {
                self.timer_number += 1;
                self.put_off.insert(self.timer_number);
                self.timers.insert((later, self.timer_number), timer);
                continue;
            }
            self.step(now, |foca, effects| foca.handle_timer(timer, effects));
        }
        self.ask_for_epoch(now);
        self.ask_rival(judged, now);
        if judged.saturating_sub(self.reminded) >= self.timing.probe_period / 2 {
            self.reminded = judged;
            self.remind_suspects();
            self.forget_the_gone(now);
        }
        if self.is_alone() && judged.saturating_sub(self.called) >= self.timing.call_down_interval {
            self.called = judged;
            self.call_the_down(now);
        }
    }

    /// Who gets no answers at all is more likely deaf, or mute, than the last one alive: it declares nobody down
    /// before the others have had the time to do so with it. `Some`: until then; once for each suspicion.
    fn silence_ends(&self, timer: &Timer<Identity>, judged: Duration) -> Option<Duration> {
        let until = self.heard_at + (self.timing.suspicion + self.timing.probe_period) * 3;
        let early = matches!(timer, Timer::ChangeSuspectToDown { .. }) && judged < until;
        (early && self.is_silent_at(judged)).then_some(until)
    }

    /// Whether no member has answered anything for longer than two probes take.
    fn is_silent_at(&self, judged: Duration) -> bool {
        judged.saturating_sub(self.heard_at) >= self.health.stretch(self.timing.probe_period) * 2
    }

    /// foca calls members that are down only while it has others. Two by two, in turn.
    fn call_the_down(&mut self, now: Instant) {
        let all: Vec<Identity> = self.members.values().map(|view| view.identity).collect();
        let turn = usize::try_from(self.called.as_millis() / self.timing.call_down_interval.as_millis());
        let first = turn.unwrap_or(0) * 2 % all.len().max(1);
        for member in all.iter().cycle().skip(first).take(all.len().min(2)) {
            self.step(now, |foca, effects| foca.announce(*member, effects));
        }
    }

    /// A suspicion that was refuted has no end. foca 2.0 would change nothing, yet tell the member that it is
    /// down, and a healthy server would begin a new life.
    fn is_due(&self, timer: &Timer<Identity>) -> bool {
        let Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            ..
        } = timer
        else {
            return true;
        };
        self.members.get(&member_id.server).is_some_and(|view| {
            view.identity == *member_id
                && view.state == MemberState::Suspect
                && view.incarnation == *incarnation
        })
    }

    /// This server slept. Nobody is declared down for what it could not hear: every suspect is asked again, and
    /// has time for an answer.
    fn on_own_pause(&mut self, now: Instant) {
        self.health.worsen();
        let earliest = self.time.at(now) + self.timing.probe_period * 2;
        let (suspicions, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.timers)
            .into_iter()
            .partition(|(_, timer)| matches!(timer, Timer::ChangeSuspectToDown { .. }));
        self.timers = others.into_iter().collect();
        for ((due, number), timer) in suspicions {
            self.timers.insert((due.max(earliest), number), timer);
        }
        self.remind_suspects();
    }

    /// Tells suspects of the suspicion, which they can refute only when they hear of it (Lifeguard's buddies).
    fn remind_suspects(&mut self) {
        let suspects: Vec<MemberView> = self
            .members
            .values()
            .filter(|view| view.state == MemberState::Suspect)
            .copied()
            .collect();
        for view in suspects {
            let suspicion = Member::new(view.identity, view.incarnation, State::Suspect);
            self.send_updates(&view.identity, &[suspicion]);
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

    fn forget_the_gone(&mut self, now: Instant) {
        let gone: Vec<Identity> = self
            .members
            .values()
            .filter(|view| {
                view.state == MemberState::Down && now.saturating_duration_since(view.since) > FORGET_AFTER
            })
            .map(|view| view.identity)
            .collect();
        for identity in gone {
            self.forget(identity, now);
        }
    }

    fn forget(&mut self, identity: Identity, now: Instant) {
        self.step(now, |foca, effects| {
            foca.handle_timer(Timer::RemoveDown(identity), effects)
        });
        self.senders.remove(&identity.server);
        self.last_sent.remove(&identity.address);
        self.board.lock().forget(identity.server);
        self.events.push(Event::Forgotten(identity));
    }

    /// Makes sure that whom a message names finds room; the longest down make place.
    fn make_room(&mut self, parsed: &Parsed, now: Instant) -> Result<(), DropReason> {
        let named = std::iter::once(&parsed.header.src).chain(parsed.updates.iter().map(Member::id));
        let mut strangers: Vec<ServerId> = named
            .map(|identity| identity.server)
            .filter(|server| *server != self.identity.server && !self.members.contains_key(server))
            .collect();
        strangers.sort_unstable();
        strangers.dedup();
        let over = (self.members.len() + strangers.len()).saturating_sub(self.members_max);
        if over == 0 {
            return Ok(());
        }
        let mut down: Vec<MemberView> = self
            .members
            .values()
            .filter(|view| view.state == MemberState::Down)
            .copied()
            .collect();
        if down.len() < over {
            return Err(DropReason::MembersFull);
        }
        down.sort_by_key(|view| view.since);
        for view in down.into_iter().take(over) {
            self.forget(view.identity, now);
        }
        Ok(())
    }

    fn is_known(&self, identity: &Identity) -> bool {
        *identity == self.identity
            || self
                .members
                .get(&identity.server)
                .is_some_and(|view| view.identity.address == identity.address)
    }

    /// Asks to be let in by whoever is at `address`.
    pub(crate) fn announce(&mut self, address: SocketAddr, now: Instant) {
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
