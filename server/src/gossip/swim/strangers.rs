//! Senders that have yet to show that they receive where they say, and answers to them: never more than they sent.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Buf;
use foca::{Member, State};

use super::{Event, MemberState, MemberView, Sender, Swim};
use crate::gossip::codec::{put_identity, put_member, take_identity, take_member};
use crate::gossip::identity::Identity;
use crate::gossip::packet::{DropReason, Kind, PACKET_BYTES_MIN, Packet};
use crate::gossip::replay::ReplayWindow;

impl Swim {
    /// What is known of a sender, if that is a later life of it.
    pub(super) fn later_life_of(&self, sender: &Identity) -> Option<MemberView> {
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
    pub(super) fn verify(
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
    pub(super) fn challenge(&mut self, sender: &Identity, counter: u64, received: usize, at: Duration) {
        let mut payload = Vec::with_capacity(64);
        put_identity(&self.identity, &mut payload);
        payload.extend(counter.to_be_bytes());
        payload.extend(self.cookies.bake(sender, at).to_be_bytes());
        self.answer_stranger(sender.address, Kind::Challenge, payload, received);
    }

    pub(super) fn tell_later_life(
        &mut self,
        sender: &Identity,
        known: MemberView,
        counter: u64,
        received: usize,
    ) {
        let mut payload = Vec::with_capacity(96);
        put_identity(&self.identity, &mut payload);
        payload.extend(counter.to_be_bytes());
        put_member(
            &Member::new(known.identity, known.incarnation, State::Alive),
            &mut payload,
        );
        self.answer_stranger(sender.address, Kind::LaterLife, payload, received);
    }

    pub(super) fn answer_stranger(&mut self, to: SocketAddr, kind: Kind, payload: Vec<u8>, received: usize) {
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
    pub(super) fn handle_challenge(&mut self, packet: &Packet) -> Result<(), DropReason> {
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
    pub(super) fn handle_later_life(&mut self, packet: &Packet, now: Instant) -> Result<(), DropReason> {
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

    pub(super) fn is_later_own_life(&self, member: &Member<Identity>) -> bool {
        member.id().server == self.identity.server
            && member.id().precedence(&self.identity) == Ordering::Greater
    }
}
