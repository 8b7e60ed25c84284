//! Sessions that speak without a stream: heartbeats by datagram come through here, to the same judges.

use std::sync::Arc;

use rollcall_core::ids::SessionId;

use super::doors::Doors;
use super::sessions;
use super::speaker::{self, Company, RECORDS_ALONE, Speaker};
use crate::ap::Remembered;
use crate::session::{Haste, RenewOutcome};

/// What a listener for heartbeats needs to know of sessions. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Unattended {
    doors: Doors,
}

impl Unattended {
    pub(crate) fn new(doors: Doors) -> Self {
        Self { doors }
    }

    /// Whether this server may say that it does not know a session.
    pub(crate) fn is_ready(&self) -> bool {
        self.doors.reader.check_ready().is_ok()
    }

    /// What is known of a session's secret here.
    pub(crate) fn digest_of(&self, session: SessionId) -> Option<[u8; 32]> {
        sessions::seed_of(&self.doors.reader, session).map(|seed| seed.secret_digest)
    }

    /// Those that this server has no record of any more, not even that they ended.
    pub(crate) fn gone(&self, sessions: &[SessionId]) -> Vec<SessionId> {
        let reader = &self.doors.reader;
        if !self.is_ready() {
            return Vec::new();
        }
        let mut gone: Vec<_> = {
            let directory = reader.consensus().directory().read();
            let is_gone = |session: &&SessionId| directory.session(**session).is_none();
            sessions.iter().filter(is_gone).copied().collect()
        };
        reader.ap().retain_unrecorded(&mut gone);
        gone
    }

    /// Whether a session lives by records alone, which may come back where they were dropped.
    pub(crate) fn may_return(session: SessionId) -> bool {
        session.0 & RECORDS_ALONE != 0
    }

    /// Those among them that have, or had, to do with AP groups.
    pub(crate) fn remembered(&self, sessions: &[SessionId]) -> Remembered {
        let mut remembered = self.doors.reader.ap().remembered(sessions);
        let alone = sessions.iter().filter(|session| Self::may_return(**session));
        for session in alone {
            // Where nothing is known of it, or that it ended, there is nobody to judge it: its client asks on a stream.
            if remembered.ended.contains(session) || self.digest_of(*session).is_none() {
                remembered.ended.insert(*session);
            } else {
                remembered.alive.insert(*session);
            }
        }
        remembered
    }

    /// Renews them all at once, where this server is the whole cluster. `None`: the leader is to be asked.
    pub(crate) fn renew_alone(&self, sessions: &[SessionId]) -> Option<RenewOutcome> {
        self.doors.holder.renew_alone(sessions)
    }

    /// Asks the leader. Sessions in neither list of the outcome have got no word; without an outcome none has.
    pub(crate) async fn renew_in_log(&self, sessions: Vec<SessionId>, haste: Haste) -> Option<RenewOutcome> {
        self.doors.holder.renew_decided(sessions, haste).await.ok()
    }

    /// Asks whoever judges these sessions, as for a stream that they attend.
    pub(crate) async fn renew_on_both_sides(
        &self,
        sessions: &[SessionId],
        haste: Haste,
    ) -> Option<RenewOutcome> {
        let reader = &self.doors.reader;
        let known = |session: &SessionId| sessions::seed_of(reader, *session);
        let seeds = sessions.iter().filter_map(known);
        let speakers: Vec<_> = seeds.map(|seed| Arc::new(Speaker::attending(seed))).collect();
        speaker::renew(&self.doors, &speakers, haste, Company::Strangers)
            .await
            .ok()
    }
}
