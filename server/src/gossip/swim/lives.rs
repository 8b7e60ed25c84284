//! When this server begins a new life, and when it stands aside for another with its id.
//!
//! The reasons stand in decision 0014.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use bytes::Buf;
use foca::{Header, Member, Message, State};

use super::{Event, MemberState, MemberView, Rival, Standing, Swim, begin_foca};
use crate::gossip::board::encode as encode_news;
use crate::gossip::codec::{kind, put_header, take_identity};
use crate::gossip::identity::Identity;
use crate::gossip::packet::{DropReason, Kind, PACKET_BYTES_MAX, Packet};

/// A server that is declared down again and again comes back ever more slowly, up to this.
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A rival that leaves so many questions unanswered is gone.
const UNANSWERED_MAX: u32 = 3;
/// Questions to a rival become rarer with each return, up to two to this power.
const RETURNS_MAX: u32 = 8;
/// A life that lasted this long was no flapping.
const STABLE_AFTER: Duration = Duration::from_secs(60);

impl Swim {
    /// This server takes everybody for down, and hears one of them. If that one hears this server too, it was this
    /// server that could not be reached: it begins anew, instead of telling the living that they are dead. If not,
    /// it says that it hears, and waits.
    pub(super) fn reconsider(&mut self, heard: &Header<Identity>, now: Instant) {
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

    /// Whether it knows others, all of them down.
    pub(super) fn is_alone(&self) -> bool {
        !self.members.is_empty() && self.members.values().all(|view| view.state == MemberState::Down)
    }

    /// There is, or was, a later life with our id. At our own address it was ours, and our disk forgot it:
    /// begin one above it. Elsewhere it is another server, and holds.
    pub(super) fn outlive(&mut self, later: &Identity, now: Instant) {
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

    pub(super) fn rival_interval(&self) -> Duration {
        self.timing.call_down_interval * (2 << self.returns.min(RETURNS_MAX))
    }

    /// While displaced only one thing matters: whether the rival is still there.
    pub(super) fn handle_rival(
        &mut self,
        rival: Rival,
        packet: &Packet,
        now: Instant,
    ) -> Result<(), DropReason> {
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
    pub(super) fn ask_rival(&mut self, judged: Duration, now: Instant) {
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

    pub(super) fn renew(&mut self, at_least: u64, now: Instant) {
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

    pub(super) fn ask_for_epoch(&mut self, now: Instant) {
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
    pub(super) fn begin_anew(&mut self, now: Instant) -> Vec<Identity> {
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
}
