//! What comes in, until foca may see it: whole, of a possible life, for us, from somebody known.

use std::time::Instant;

use foca::{Header, Member, Message, State};
use rollcall_core::ids::ServerId;

use super::{Event, MemberState, MemberView, Standing, Swim, is_answer};
use crate::gossip::codec::{Parsed, kind, put_header};
use crate::gossip::identity::{Identity, LEAP_MAX};
use crate::gossip::packet::{DropReason, Kind, Packet};

impl Swim {
    pub(super) fn try_packet(&mut self, bytes: &[u8], now: Instant) -> Result<(), DropReason> {
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
    pub(super) fn read(&mut self, payload: &[u8]) -> Result<(Parsed, Vec<u8>), DropReason> {
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
    pub(super) fn is_far_future(&self, identity: &Identity) -> bool {
        let known = if identity.server == self.identity.server {
            Some(self.identity.epoch)
        } else {
            self.lives.get(&identity.server).copied()
        };
        known.is_some_and(|epoch| identity.epoch > epoch.saturating_add(LEAP_MAX))
    }

    pub(super) fn handle_swim(
        &mut self,
        packet: Packet,
        received: usize,
        now: Instant,
    ) -> Result<(), DropReason> {
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

    pub(super) fn takes_for_down(&self, sender: &Identity) -> bool {
        self.members
            .get(&sender.server)
            .is_some_and(|view| view.identity == *sender && view.state == MemberState::Down)
    }

    /// An announcement to whoever is here is for us.
    pub(super) fn addressed_to_us(&self, parsed: &Parsed, payload: Vec<u8>) -> Vec<u8> {
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

    /// Makes sure that whom a message names finds room; the longest down make place.
    pub(super) fn make_room(&mut self, parsed: &Parsed, now: Instant) -> Result<(), DropReason> {
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

    pub(super) fn is_known(&self, identity: &Identity) -> bool {
        *identity == self.identity
            || self
                .members
                .get(&identity.server)
                .is_some_and(|view| view.identity.address == identity.address)
    }
}
