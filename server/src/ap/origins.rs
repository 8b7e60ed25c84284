//! How far the other servers' logs go, as they say, and whose clock is not to be believed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rollcall_core::ap::{FarFuture, Seq};
use rollcall_core::ids::ServerId;

use super::rows::Followed;

/// Alarms about one server's clock come at most this often.
const ALARM_EVERY: Duration = Duration::from_secs(60);
/// A refusal this long ago says nothing of now.
const REFUSAL_HOLDS: Duration = Duration::from_secs(30);

/// What is known of another server.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    /// Its log, and how far it goes.
    pub(super) said: Followed,
    answered_at: Option<Instant>,
    refused: Option<Refused>,
    alarmed_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    ahead: Duration,
    at: Instant,
}

impl Origin {
    /// By how much its clock was ahead when its records were last refused, if that still holds.
    pub(super) fn ahead(&self, now: Instant) -> Option<Duration> {
        let refused = self.refused.filter(|refused| now - refused.at < REFUSAL_HOLDS);
        refused.map(|refused| refused.ahead)
    }
}

/// The other servers. Bounded by the members of the cluster.
#[derive(Debug, Default)]
pub(super) struct Origins(Mutex<BTreeMap<ServerId, Origin>>);

impl Origins {
    /// Only these are members.
    pub(super) fn keep_only(&self, members: &[ServerId]) {
        let mut origins = self.0.lock();
        origins.retain(|server, _| members.contains(server));
        for member in members {
            origins.entry(*member).or_default();
        }
    }

    /// A member says how far its log goes.
    pub(super) fn note_head(&self, server: ServerId, log: u64, through: Seq) {
        if let Some(origin) = self.0.lock().get_mut(&server) {
            origin.said = Followed { log, through };
        }
    }

    /// It answered a question.
    pub(super) fn note_answer(&self, server: ServerId, now: Instant) {
        if let Some(origin) = self.0.lock().get_mut(&server) {
            origin.answered_at = Some(now);
        }
    }

    /// When it last answered a question.
    pub(super) fn answered_at(&self, server: ServerId) -> Option<Instant> {
        self.0.lock().get(&server)?.answered_at
    }

    /// How far its log goes, if it said so.
    pub(super) fn said(&self, server: ServerId) -> Option<Followed> {
        let origins = self.0.lock();
        let said = origins.get(&server)?.said;
        (said.log != 0).then_some(said)
    }

    /// Records were not taken; tells an operator, now and then.
    pub(super) fn refuse(&self, far: &FarFuture, now: Instant) {
        let mut origins = self.0.lock();
        let Some(origin) = origins.get_mut(&far.server) else {
            tracing::debug!(%far, "records of a server that is no member are not taken");
            return;
        };
        origin.refused = Some(Refused {
            ahead: Duration::from_millis(far.ahead_ms),
            at: now,
        });
        if origin.alarmed_at.is_none_or(|at| now - at >= ALARM_EVERY) {
            origin.alarmed_at = Some(now);
            tracing::error!(
                server = far.server.0,
                ahead_ms = far.ahead_ms,
                ahead_max_ms = far.ahead_max_ms,
                "RC-301: records of a server are ahead of this server's clock and are not taken; one of the two clocks \
                 is wrong"
            );
        }
    }

    /// Its records are taken (again).
    pub(super) fn accept(&self, server: ServerId) {
        if let Some(origin) = self.0.lock().get_mut(&server)
            && origin.refused.take().is_some()
        {
            origin.alarmed_at = None;
            tracing::info!(server = server.0, "records of a server are taken again");
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<(ServerId, Origin)> {
        let origins = self.0.lock();
        let all = origins.iter().map(|(server, origin)| (*server, origin.clone()));
        all.collect()
    }
}
