//! What time does: timers fire, suspects are reminded, verdicts wait, the long gone are forgotten.

use std::time::{Duration, Instant};

use foca::{Member, State, Timer};

use super::{Event, MemberState, MemberView, Standing, Swim};
use crate::gossip::identity::Identity;

/// A member that is down is forgotten after this long.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3_600);

impl Swim {
    /// Fires what is due. Call it once per tick, after the packets that have come; a late call shifts everything.
    pub(crate) fn handle_tick(&mut self, now: Instant) {
        self.end_rest(now);
        let tick = self.time.tick(now);
        if tick.shifted > self.timing.probe_rtt / 2 {
            self.on_own_pause(now);
        }
        let judged = self.time.at(now);
        if matches!(self.standing, Standing::Displaced(_) | Standing::Renewing { .. }) {
            // It asks nobody, so it judges nobody either.
            self.ask_for_epoch(now);
            return self.ask_rival(judged, now);
        }
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
    pub(super) fn silence_ends(&self, timer: &Timer<Identity>, judged: Duration) -> Option<Duration> {
        let until = self.heard_at + (self.timing.suspicion + self.timing.probe_period) * 3;
        let early = matches!(timer, Timer::ChangeSuspectToDown { .. }) && judged < until;
        (early && self.is_silent_at(judged)).then_some(until)
    }

    /// Whether no member has answered anything for longer than two probes take.
    pub(super) fn is_silent_at(&self, judged: Duration) -> bool {
        judged.saturating_sub(self.heard_at) >= self.health.stretch(self.timing.probe_period) * 2
    }

    /// foca calls members that are down only while it has others. Two by two, in turn.
    pub(super) fn call_the_down(&mut self, now: Instant) {
        let all: Vec<Identity> = self.members.values().map(|view| view.identity).collect();
        let turn = usize::try_from(self.called.as_millis() / self.timing.call_down_interval.as_millis());
        let first = turn.unwrap_or(0) * 2 % all.len().max(1);
        for member in all.iter().cycle().skip(first).take(all.len().min(2)) {
            self.step(now, |foca, effects| foca.announce(*member, effects));
        }
    }

    /// A suspicion that was refuted has no end. foca 2.0 would change nothing, yet tell the member that it is
    /// down, and a healthy server would begin a new life.
    pub(super) fn is_due(&self, timer: &Timer<Identity>) -> bool {
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
    pub(super) fn on_own_pause(&mut self, now: Instant) {
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
    pub(super) fn remind_suspects(&mut self) {
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

    pub(super) fn forget_the_gone(&mut self, now: Instant) {
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

    pub(super) fn forget(&mut self, identity: Identity, now: Instant) {
        self.step(now, |foca, effects| {
            foca.handle_timer(Timer::RemoveDown(identity), effects)
        });
        self.senders.remove(&identity.server);
        self.last_sent.remove(&identity.address);
        self.board.lock().forget(identity.server);
        self.events.push(Event::Forgotten(identity));
    }
}
