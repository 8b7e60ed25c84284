//! Sessions that speak at this server, and who vouches for them: the leader for their nodes in CP groups, this server for
//! those in AP groups.
//!
//! A session has one id on both sides. Its first word on AP groups here, or its stream's coming here, makes this server
//! vouch for it; from then on its heartbeats count here at once. A heartbeat is answered when both sides that know the
//! session have counted it; by this server alone if the leader is silent and nothing hangs on it. A session that lapsed in
//! the log and lost nodes by it is dead, though it lives on by records: its client is to register all of them again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::Either;
use rollcall_core::ap::SessionSeed;
use rollcall_core::directory::Directory;
use rollcall_core::ids::{NodeKey, SessionId};
use rollcall_proto::v1;

use super::doors::Doors;
use super::read::Reader;
use super::status;

use crate::ap::Introduction;
use crate::session::{Haste, RenewError, RenewOutcome};

/// Set in the ids of sessions that live by records alone.
pub(super) const RECORDS_ALONE: u64 = 1 << 63;
/// How long the leader may be silent before this server answers alone what it can; shorter for short ttls, so that a
/// client is answered before it tries another server.
const ALONE_AFTER_MAX: Duration = Duration::from_secs(1);
/// The same as a part of the ttl.
const ALONE_AFTER_PART: u32 = 8;
/// Pause before asking again about a session whose lapse or revival is being written.
const UNDECIDED_PAUSE: Duration = Duration::from_millis(50);
/// How often at most, for one client's sessions.
const UNDECIDED_TURNS: u32 = 20;

/// Whether a session was opened without the Raft directory, and has not come there with a group that moved.
pub(crate) fn lives_by_records_alone(reader: &Reader, session: SessionId) -> bool {
    session.0 & RECORDS_ALONE != 0 && reader.consensus().directory().read().session(session).is_none()
}

/// Whether the log let nodes of a session go. It says so for good, so that nobody needs to ask the leader.
fn has_lost_nodes(reader: &Reader, session: SessionId) -> bool {
    reader.consensus().directory().read().has_lost_nodes(session)
}

/// A session that proved that it is itself.
#[derive(Debug)]
pub(crate) struct Speaker {
    seed: Arc<SessionSeed>,
    attends: bool,
    vouched_for: AtomicBool,
}

impl Speaker {
    /// Its stream is here: this server is the one to vouch for it.
    pub(crate) fn attending(seed: SessionSeed) -> Self {
        Self {
            seed: seed.into(),
            attends: true,
            vouched_for: AtomicBool::new(false),
        }
    }

    /// It speaks here once; its stream is elsewhere.
    pub(crate) fn visiting(seed: SessionSeed) -> Self {
        Self {
            attends: false,
            ..Self::attending(seed)
        }
    }

    pub(crate) fn id(&self) -> SessionId {
        self.seed.id
    }

    pub(crate) fn ttl_ms(&self) -> u32 {
        self.seed.ttl_ms
    }

    /// What AP groups must know of it with its word.
    pub(crate) fn introduction(&self) -> Introduction {
        Introduction {
            session: self.seed.clone(),
            attends: self.attends,
        }
    }

    /// AP groups took its word.
    pub(crate) fn note_heard(&self) {
        self.vouched_for.fetch_or(self.attends, Ordering::Relaxed);
    }

    /// Whether AP groups know the session, or did.
    pub(crate) fn is_known_to_records(&self, reader: &Reader) -> bool {
        self.vouched_for.load(Ordering::Relaxed) || reader.ap().knows_session(self.id())
    }

    /// What it owns, on both sides, as this server sees them.
    pub(crate) fn nodes(&self, reader: &Reader) -> Vec<NodeKey> {
        let mut nodes = in_log(reader, self.id());
        nodes.extend(in_view(reader, self.id()));
        nodes.sort_unstable();
        nodes
    }

    /// Nothing of it hangs on the leader: it owns nodes in AP groups only.
    fn needs_no_leader(&self, reader: &Reader) -> bool {
        let owns = |directory: &Directory| {
            let session = directory.session(self.id());
            session.is_some_and(|session| !session.nodes.is_empty())
        };
        // The two locks are never held together.
        let in_log = owns(&reader.consensus().directory().read());
        !in_log && owns(&reader.ap().view().read())
    }

    fn alone_after(&self) -> Duration {
        let ttl = Duration::from_millis(self.seed.ttl_ms.into());
        (ttl / ALONE_AFTER_PART).min(ALONE_AFTER_MAX)
    }
}

fn in_log(reader: &Reader, session: SessionId) -> Vec<NodeKey> {
    let directory = reader.consensus().directory().read();
    directory
        .session(session)
        .map_or_else(Vec::new, |session| session.nodes.keys().collect())
}

fn in_view(reader: &Reader, session: SessionId) -> Vec<NodeKey> {
    let view = reader.ap().view().read();
    view.session(session)
        .map_or_else(Vec::new, |session| session.nodes.keys().collect())
}

/// What one side made of a heartbeat.
#[derive(Default)]
struct Word {
    dead: BTreeSet<SessionId>,
    /// No word yet: to be asked again.
    open: BTreeSet<SessionId>,
}

impl Word {
    /// On these.
    fn of(outcome: RenewOutcome, asked: Vec<SessionId>) -> Self {
        let mut open: BTreeSet<_> = asked.into_iter().collect();
        for session in outcome.renewed.iter().chain(&outcome.not_found) {
            open.remove(session);
        }
        Self {
            dead: outcome.not_found.into_iter().collect(),
            open,
        }
    }

    fn none(sessions: Vec<SessionId>) -> Self {
        Self {
            dead: BTreeSet::new(),
            open: sessions.into_iter().collect(),
        }
    }
}

/// Whose sessions are in one heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// One client's: they wait for each other.
    OneClient,
    /// Those of clients that know nothing of each other: whoever has no word yet holds up nobody.
    Strangers,
}

impl Company {
    /// How often a session that is undecided here is looked at.
    fn turns(self) -> u32 {
        match self {
            Self::OneClient => UNDECIDED_TURNS,
            Self::Strangers => 2,
        }
    }
}

/// Passes a heartbeat on to both sides, as far as they know the sessions. Sessions in neither list of the outcome have got no
/// word yet.
///
/// # Errors
/// Nothing is known of any of them.
pub(crate) async fn renew(
    doors: &Doors,
    speakers: &[Arc<Speaker>],
    haste: Haste,
    company: Company,
) -> Result<RenewOutcome, v1::Error> {
    let reader = &doors.reader;
    let (mut here, mut either, mut log) = (Vec::new(), Vec::new(), Vec::new());
    let mut bereft = Word::default();
    for speaker in speakers {
        let records_alone = lives_by_records_alone(reader, speaker.id());
        let known = records_alone || speaker.is_known_to_records(reader);
        if known {
            here.push(speaker);
            // Its records are kept alive all the same, until another session has taken its nodes over.
            if has_lost_nodes(reader, speaker.id()) {
                bereft.dead.insert(speaker.id());
                continue;
            }
        }
        if records_alone {
            continue;
        }
        if known && speaker.needs_no_leader(reader) {
            either.push(speaker.id());
        } else {
            log.push(speaker.id());
        }
    }
    if here.is_empty() {
        return in_log_alone(doors, log, haste, company)
            .await
            .map_err(status::of_renew);
    }
    let patience = here.iter().map(|speaker| speaker.alone_after()).min();
    let patience = patience.unwrap_or(ALONE_AFTER_MAX);
    // The leader is told of these, and whatever it says, they do without its word: one that it did not hear of for a
    // while, and so found lapsed, lives on by records.
    let told = {
        let doors = doors.clone();
        async move { _ = tokio::time::timeout(patience, in_log_alone(&doors, either, haste, company)).await }
    };
    let told = match company {
        Company::OneClient => Either::Left(told),
        // Nor does anybody wait for it.
        Company::Strangers => {
            tokio::spawn(told);
            Either::Right(std::future::ready(()))
        }
    };
    let (here, (), said) = tokio::join!(
        renew_here(reader, &here, company.turns()),
        told,
        tokio::time::timeout(patience, in_log_alone(doors, log.clone(), haste, company)),
    );
    // The leader's word, if it comes soon: others on the stream wait for their answer.
    let said = match said {
        Ok(Ok(outcome)) => Word::of(outcome, log),
        Ok(Err(_)) | Err(_) => Word::none(log),
    };
    let words = [here, said, bereft];
    let mut outcome = RenewOutcome::default();
    for session in speakers.iter().map(|speaker| speaker.id()) {
        if words.iter().any(|word| word.dead.contains(&session)) {
            outcome.not_found.push(session);
        } else if !words.iter().any(|word| word.open.contains(&session)) {
            outcome.renewed.push(session);
        }
    }
    Ok(outcome)
}

/// The leader's word.
async fn in_log_alone(
    doors: &Doors,
    sessions: Vec<SessionId>,
    haste: Haste,
    company: Company,
) -> Result<RenewOutcome, RenewError> {
    match company {
        Company::OneClient => doors.holder.renew(sessions, haste).await,
        Company::Strangers => doors.holder.renew_decided(sessions, haste).await,
    }
}

/// This server's word. For those that another server holds it vouches from now on: they have no word until that is
/// written.
async fn renew_here(reader: &Reader, speakers: &[&Arc<Speaker>], turns: u32) -> Word {
    let mut waiting: Vec<SessionId> = speakers.iter().map(|speaker| speaker.id()).collect();
    let mut word = Word::default();
    for turn in 0..turns {
        let verdict = reader.ap().renew(&waiting);
        word.dead.extend(verdict.not_found);
        waiting = verdict.undecided;
        if waiting.is_empty() {
            break;
        }
        if turn + 1 < turns {
            tokio::time::sleep(UNDECIDED_PAUSE).await;
        }
    }
    word.open.extend(waiting);
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_got_no_word_is_not_taken_for_renewed() {
        let ids = |ids: &[u64]| ids.iter().copied().map(SessionId).collect::<Vec<_>>();
        let outcome = RenewOutcome {
            renewed: ids(&[1]),
            not_found: ids(&[2]),
        };
        let word = Word::of(outcome, ids(&[1, 2, 3]));
        assert!(word.dead.into_iter().eq(ids(&[2])));
        assert!(word.open.into_iter().eq(ids(&[3])));
    }
}
