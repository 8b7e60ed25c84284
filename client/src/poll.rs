//! Asking now and then instead of listening, where streams are not possible: one call for the signs of all
//! services, then one per service whose sign differs from what is held.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rollcall_proto::v1;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backoff::jittered;
use crate::config::{Freshness, ReadOptions};
use crate::directory::{Answer, Queried, SIGNS_MAX, ServiceSign};
use crate::error::Error;
use crate::key::ServiceKey;
use crate::registry::Registry;
use crate::view::{Confirmed, Counted, ServiceView, Source};
use crate::watch::{Cached, KEEP_CACHE_MAX, Merged, Published, ServiceWatch};

/// Time until a sure answer that did not come is asked for again: a cluster without a quorum cannot give it, and all
/// lists wait for it, at most for one attempt.
const SURE_PAUSE: Duration = Duration::from_secs(5);
/// A server finds out how old its state is only while it is asked: asked for a bound, it does so before it answers.
const AGE_BOUND: Duration = Duration::from_secs(10);
/// Time until a bound is asked for again that no server kept.
const BOUND_PAUSE: Duration = Duration::from_secs(5);

/// How to poll.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PollOptions {
    /// Time between two rounds, a tenth more or less at random. Default 5 s; at least 50 ms.
    pub interval: Duration,
    /// How the reads are made. Default: local, which costs the cluster least: at a server whose state is young, if there
    /// is one, else at any; [`ServiceView::age`] says how old it is. Only whether a group is gone of which a
    /// server says that it does not know it is asked linearizably.
    pub read: ReadOptions,
}

impl Default for PollOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            read: ReadOptions::local(),
        }
    }
}

impl PollOptions {
    /// The defaults, with this interval.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            ..Self::default()
        }
    }
}

/// Ends the task when the last watch of the poll is dropped.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    over: Arc<Notify>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.over.notify_one();
    }
}

struct Slot {
    cached: Cached,
    published: Published,
    /// Full lists are rationed; ours comes then, or later.
    ask_at: Option<Instant>,
    /// The servers refuse its name: it spoils no question about others.
    refused: bool,
}

/// What a sign says of what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// It is so.
    Current,
    /// There is another list.
    Another,
    /// It is not there, by the word of a server that may merely be behind.
    Doubtful,
}

impl Registry {
    /// Keeps these services current by polling, under the same rules as a stream does: revisions never go back,
    /// and no unconfirmed empty list replaces nodes. One watch per key, in the order given; a key that is given
    /// twice is polled once.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]: an interval that is too short.
    pub fn poll(&self, keys: &[ServiceKey], options: PollOptions) -> Result<Vec<ServiceWatch>, Error> {
        let interval_min = Duration::from_millis(50);
        if options.interval < interval_min {
            return Err(Error::InvalidArgument {
                subject: "interval".into(),
                message: format!(
                    "interval is {:?}, at least {interval_min:?} is needed",
                    options.interval
                ),
            });
        }
        let mut slots: BTreeMap<ServiceKey, Slot> = BTreeMap::new();
        for key in keys {
            slots
                .entry(key.clone())
                .or_insert_with(|| Slot::new(Cached::unknown(key.clone())));
        }
        let guard = Arc::new(Guard::default());
        let watches = keys
            .iter()
            .map(|key| ServiceWatch::polled(key.clone(), &slots[key].published, Arc::clone(&guard)))
            .collect();
        let (registry, over) = (self.clone(), Arc::clone(&guard.over));
        tokio::spawn(async move {
            tokio::select! {
                () = poll(&registry, slots, options) => {}
                () = over.notified() => {}
            }
        });
        Ok(watches)
    }
}

/// What a round asks. An age is that of a mode: lists of one, of the other, and those of which it is not known yet are asked
/// about apart, so that one mode's age holds up no other. Of the last those of one group in a round, in turn, if they were
/// refused together. Of the names that are refused, one in a round.
fn questions(slots: &BTreeMap<ServiceKey, Slot>, alone: Option<usize>, round: usize) -> Vec<Vec<ServiceKey>> {
    let (mut cluster, mut server) = (Vec::new(), Vec::new());
    let mut unknown: BTreeMap<&str, Vec<ServiceKey>> = BTreeMap::new();
    let mut refused = Vec::new();
    for (key, slot) in slots {
        if slot.refused {
            refused.push(key);
            continue;
        }
        match slot.cached.view().counted() {
            Counted::Cluster => cluster.push(key.clone()),
            Counted::Server { .. } => server.push(key.clone()),
            Counted::Unknown => unknown.entry(&key.group).or_default().push(key.clone()),
        }
    }
    let unknown: Vec<ServiceKey> = match alone {
        Some(turn) if !unknown.is_empty() => {
            let turn = turn % unknown.len();
            unknown.into_values().nth(turn).unwrap_or_default()
        }
        _ => unknown.into_values().flatten().collect(),
    };
    [cluster, server, unknown]
        .iter()
        .flat_map(|keys| keys.chunks(SIGNS_MAX))
        .map(Vec::from)
        .chain((!refused.is_empty()).then(|| vec![refused[round % refused.len()].clone()]))
        .collect()
}

/// Whether a question without the name that this is about may be answered.
fn is_about_a_name(error: &Error) -> bool {
    matches!(error, Error::InvalidName { .. } | Error::InvalidArgument { .. })
}

async fn poll(registry: &Registry, mut slots: BTreeMap<ServiceKey, Slot>, options: PollOptions) {
    let mut alone = None;
    let mut round: usize = 0;
    let mut sure_from = Instant::now();
    // By mode, as the questions: one mode's age says nothing of the other's.
    let mut bounded_from: BTreeMap<v1::GroupMode, Instant> = BTreeMap::new();
    loop {
        round = round.wrapping_add(1);
        let mut doubtful = Vec::new();
        // A server that does not answer for one list is not waited for once for each of the others.
        let mut answering = true;
        let mut refused = false;
        let mut questions = questions(&slots, alone, round);
        // In their order.
        questions.reverse();
        while let Some(mut keys) = questions.pop() {
            let mode = keys
                .first()
                .and_then(|key| slots.get(key))
                .map(|slot| slot.cached.view().mode);
            let bounded_from = bounded_from
                .entry(mode.unwrap_or_default())
                .or_insert_with(Instant::now);
            match ask_signs(registry, &keys, options.read, bounded_from).await {
                Ok((answer, read)) => {
                    let options = PollOptions { read, ..options };
                    let left = take_signs(&mut slots, answer, registry, options, &mut answering).await;
                    doubtful.extend(left);
                }
                // Which says nothing of lists of the other mode.
                Err(Error::TooStale { message }) => {
                    tracing::debug!(message, "signs were not answered");
                    for key in &keys {
                        if let Some(slot) = slots.get_mut(key) {
                            slot.hold();
                            if slot.cached.view().counted() == Counted::Unknown {
                                refused = true;
                            }
                        }
                    }
                }
                // One of the names is refused: find it.
                Err(error) if is_about_a_name(&error) && keys.len() > 1 => {
                    let rest = keys.split_off(keys.len() / 2);
                    questions.extend([rest, keys]);
                }
                Err(error) if is_about_a_name(&error) => {
                    tracing::debug!(%error, "a sign was refused");
                    let error = Arc::new(error);
                    if let Some(slot) = keys.first().and_then(|key| slots.get_mut(key)) {
                        slot.refused = true;
                        slot.refuse(&error);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "signs were not answered");
                    let error = Arc::new(error);
                    for slot in slots.values_mut() {
                        if error.is_transient() {
                            slot.hold();
                        } else {
                            slot.refuse(&error);
                        }
                    }
                    break;
                }
            }
        }
        if !doubtful.is_empty() && sure_from <= Instant::now() {
            doubtful = ask_surely(&mut slots, doubtful, registry, options).await;
            if !doubtful.is_empty() {
                sure_from = Instant::now() + SURE_PAUSE;
            }
        }
        for key in &doubtful {
            if let Some(slot) = slots.get_mut(key) {
                slot.hold();
            }
        }
        alone = refused.then(|| alone.map_or(0, |turn: usize| turn.wrapping_add(1)));
        // A turn while full lists are rationed is not slept through.
        let now = Instant::now();
        let next = now + jittered(options.interval);
        let turns = slots.values().filter_map(|slot| slot.ask_at);
        let turn = turns.filter(|turn| *turn > now).min();
        tokio::time::sleep_until(turn.map_or(next, |turn| turn.min(next))).await;
    }
}

/// Asks a server that knows its state to be young, if the options leave that open; else any. Also says how it was asked.
async fn ask_signs(
    registry: &Registry,
    keys: &[ServiceKey],
    read: ReadOptions,
    bounded_from: &mut Instant,
) -> Result<(Answer<Vec<ServiceSign>>, ReadOptions), Error> {
    let any_age = read.freshness == Freshness::Local { max_age: None };
    if any_age && *bounded_from <= Instant::now() {
        let config = registry.config();
        let patience = read.timeout.unwrap_or(config.call_timeout);
        let bounded = ReadOptions {
            freshness: Freshness::Local {
                max_age: Some(AGE_BOUND),
            },
            timeout: Some(patience.min(config.attempt_timeout)),
            ..read
        };
        match registry.signs(keys, bounded).await {
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "no server knows its state to be young");
                *bounded_from = Instant::now() + BOUND_PAUSE;
            }
            told => return told.map(|answer| (answer, bounded)),
        }
    }
    let answer = registry.signs(keys, read).await?;
    Ok((answer, read))
}

/// Takes in what a server says of these services, and asks for the lists that differ. Returns those that are in doubt.
async fn take_signs(
    slots: &mut BTreeMap<ServiceKey, Slot>,
    answer: Answer<Vec<ServiceSign>>,
    registry: &Registry,
    options: PollOptions,
    answering: &mut bool,
) -> Vec<ServiceKey> {
    let mut doubtful = Vec::new();
    for sign in answer.value {
        let Some(slot) = slots.get_mut(&sign.key) else {
            continue;
        };
        slot.refused = false;
        slot.published.refuse(None);
        match slot.compare(&sign, &answer.header) {
            Word::Current => {}
            Word::Doubtful => doubtful.push(sign.key),
            Word::Another => {
                let current = *answering && slot.ask(&sign, registry, options, answering).await;
                if !current {
                    slot.hold();
                }
            }
        }
    }
    doubtful
}

/// A list that was counted by one server is gone, or the server that was asked has yet to hear of its group. Both look
/// the same to a local read, at every server and in every round; a leader knows. Returns what stays in doubt.
async fn ask_surely(
    slots: &mut BTreeMap<ServiceKey, Slot>,
    mut keys: Vec<ServiceKey>,
    registry: &Registry,
    options: PollOptions,
) -> Vec<ServiceKey> {
    let config = registry.config();
    let patience = options.read.timeout.unwrap_or(config.call_timeout);
    let read = ReadOptions {
        freshness: Freshness::Linearizable,
        timeout: Some(patience.min(config.attempt_timeout)),
        ..options.read
    };
    let mut doubtful = Vec::new();
    let mut answering = true;
    while !keys.is_empty() {
        let rest = keys.split_off(keys.len().min(SIGNS_MAX));
        match registry.signs(&keys, read).await {
            Ok(answer) => {
                let options = PollOptions { read, ..options };
                doubtful.extend(take_signs(slots, answer, registry, options, &mut answering).await);
            }
            Err(error) => {
                tracing::debug!(%error, "no sure answer about services that may be gone");
                doubtful.extend(keys);
                doubtful.extend(rest);
                break;
            }
        }
        keys = rest;
    }
    doubtful
}

impl Slot {
    fn new(cached: Cached) -> Self {
        Self {
            published: Published::new(cached.view()),
            cached,
            ask_at: None,
            refused: false,
        }
    }

    /// Whether what is held is what the sign says; then it is confirmed.
    fn compare(&mut self, sign: &ServiceSign, header: &v1::ResponseHeader) -> Word {
        let held = self.cached.view();
        let confirmed = Confirmed::by(header);
        let cluster = Arc::from(header.cluster.as_str());
        let counted = Counted::of(sign.mode, header.epoch);
        let origin = (&cluster, counted);
        let revision = if sign.mode == header.mode() || counted == Counted::Cluster {
            header.revision
        } else {
            // The header counts something else.
            self.least_revision(sign, counted)
        };
        if !sign.exists {
            // A server that is behind may never have heard of the group in whose mode the list was counted.
            let behind = held.counted().differs(counted)
                && counted == Counted::Cluster
                && header.read_mode() == v1::ReadMode::Local;
            if behind {
                return Word::Doubtful;
            }
            let unknown_age = confirmed.age().is_none();
            if unknown_age || self.cached.take_gone(revision, origin, confirmed) == Merged::UnconfirmedEmpty {
                // Nobody knows when it was so, or another cluster does not know it. What is held stays, but nobody says any
                // more that it is so.
                self.hold();
            }
            self.publish();
            return Word::Current;
        }
        let same = held.exists
            && held.sign == sign.sign
            && held.metadata_hash() == sign.metadata_hash
            && held.source != Source::Nothing;
        if !same {
            return Word::Another;
        }
        if confirmed.age().is_none() {
            self.hold();
            return Word::Current;
        }
        let confirmed = confirmed.or_later(&held.confirmed);
        if self.cached.confirm(revision, origin, confirmed) == Merged::Confirmed {
            self.cached.take_guard(sign.guard);
        }
        self.publish();
        Word::Current
    }

    /// What a server has surely counted to that says this: never more, or its next list would be taken for an older
    /// one. A number that somebody else counted says nothing of that.
    fn least_revision(&self, sign: &ServiceSign, counted: Counted) -> u64 {
        let held = self.cached.view();
        if held.counted() != counted {
            return sign.revision;
        }
        // What is held went in a revision behind it.
        let went = u64::from(held.exists && !sign.exists);
        sign.revision.max(held.revision.saturating_add(went))
    }

    /// Asks for the full list, if it is our turn. Whether what is held is current then. An error that another service's
    /// question would meet too is told by `answering`.
    async fn ask(
        &mut self,
        sign: &ServiceSign,
        registry: &Registry,
        options: PollOptions,
        answering: &mut bool,
    ) -> bool {
        if self.ask_at.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        let held = self.cached.view();
        let known =
            (held.exists && held.source != Source::Nothing).then(|| (held.sign, held.metadata_hash()));
        let answer = match registry.query_unless(&held.key, known, options.read).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(service = %held.key, %error, "a service was not answered");
                *answering = !error.is_transient();
                return false;
            }
        };
        let header = answer.header;
        self.ask_at = None;
        match answer.value {
            Queried::View(view) => {
                let origin = (
                    Arc::from(header.cluster.as_str()),
                    Counted::of(header.mode(), header.epoch),
                );
                let confirmed = Confirmed::by(&header);
                let unknown_age = confirmed.age().is_none();
                let view = ServiceView::from_wire(*view, header.revision, origin, confirmed);
                let merged = self.cached.take_full(view);
                if unknown_age && merged != Merged::Older {
                    // Better than nothing, and shown as no more than that.
                    self.cached.on_interrupted();
                }
                self.publish();
                // A server that is behind says nothing against what is held.
                matches!(merged, Merged::Changed | Merged::Confirmed | Merged::Older)
            }
            // Another server told of another list: this one is behind, or the list was there for a moment.
            Queried::Unchanged if sign.sign != self.cached.view().sign => false,
            // An older server, which knows nothing of metadata beside signs.
            Queried::Unchanged => {
                let cluster = Arc::from(header.cluster.as_str());
                let counted = Counted::of(header.mode(), header.epoch);
                let confirmed = Confirmed::by(&header);
                if confirmed.age().is_none() {
                    return false;
                }
                let confirmed = confirmed.or_later(&self.cached.view().confirmed);
                let merged = self
                    .cached
                    .confirm(header.revision, (&cluster, counted), confirmed);
                self.publish();
                merged == Merged::Confirmed
            }
            Queried::KeepCache(retry_after) => {
                self.ask_at = Some(Instant::now() + retry_after.min(KEEP_CACHE_MAX));
                false
            }
        }
    }

    /// No server confirms what is held any more: it stays, and is no longer said to be live.
    fn hold(&mut self) {
        if self.cached.on_interrupted() {
            self.publish();
        }
    }

    /// The servers will not answer, and would not next time.
    fn refuse(&mut self, error: &Arc<Error>) {
        self.hold();
        self.published.refuse(Some(error));
    }

    fn publish(&self) {
        self.published.show(self.cached.view());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::Sign;
    use crate::view::Heard;

    const EPOCH: u64 = 3;
    const OWN: Counted = Counted::Server { epoch: EPOCH };

    fn key() -> ServiceKey {
        ServiceKey::new("ap", "y")
    }

    /// Of an answer about groups of both modes.
    fn header() -> v1::ResponseHeader {
        v1::ResponseHeader {
            mode: v1::GroupMode::Cp.into(),
            revision: 9_000,
            epoch: EPOCH,
            ..v1::ResponseHeader::default()
        }
    }

    fn sign(mode: v1::GroupMode, found: Option<&ServiceView>) -> ServiceSign {
        ServiceSign {
            key: key(),
            exists: found.is_some(),
            sign: found.map_or(Sign::default(), |view| view.sign),
            revision: found.map_or(0, |view| view.revision),
            guard: None,
            mode,
            metadata_hash: 0,
        }
    }

    fn list(port: u16, revision: u64, counted: Counted) -> ServiceView {
        let node = v1::Node {
            id: format!("n:{port}"),
            ..v1::Node::default()
        };
        let view = v1::ServiceView {
            key: Some((&key()).into()),
            sign: Some(Sign::of_nodes([&node.clone().into()]).into()),
            revision,
            nodes: vec![node],
            ..v1::ServiceView::default()
        };
        let confirmed = Confirmed::Heard(Heard::now());
        ServiceView::from_wire(view, revision, (Arc::from(""), counted), confirmed)
    }

    #[test]
    fn a_group_that_came_later_is_not_held_against_the_clusters_count() {
        let mut slot = Slot::new(Cached::unknown(key()));
        assert_eq!(
            slot.compare(&sign(v1::GroupMode::Cp, None), &header()),
            Word::Current
        );
        for _ in 0..50 {
            assert_eq!(
                slot.compare(&sign(v1::GroupMode::Ap, None), &header()),
                Word::Current
            );
        }
        assert_eq!(slot.cached.take_full(list(1, 16, OWN)), Merged::Changed);
    }

    #[test]
    fn a_group_that_moved_is_not_held_against_the_clusters_count() {
        let mut slot = Slot::new(Cached::of(list(1, 8_000, Counted::Cluster)));
        for _ in 0..50 {
            let said = sign(v1::GroupMode::Ap, Some(&list(1, 12, OWN)));
            assert_eq!(slot.compare(&said, &header()), Word::Current);
        }
        assert_eq!(slot.cached.take_full(list(2, 16, OWN)), Merged::Changed);
    }

    #[test]
    fn what_went_may_come_back_in_the_next_revision() {
        let mut slot = Slot::new(Cached::of(list(1, 12, OWN)));
        for _ in 0..50 {
            assert_eq!(
                slot.compare(&sign(v1::GroupMode::Ap, None), &header()),
                Word::Current
            );
        }
        assert!(!slot.cached.view().exists);
        assert_eq!(slot.cached.take_full(list(1, 14, OWN)), Merged::Changed);
    }
    /// A server that merely has yet to hear of the group says the same, so its word alone ends nothing.
    #[test]
    fn a_group_that_is_gone_is_in_doubt_until_a_leader_says_so() {
        let said = sign(v1::GroupMode::Cp, None);
        let read = |mode: v1::ReadMode| v1::ResponseHeader {
            read_mode: mode.into(),
            ..header()
        };
        let mut slot = Slot::new(Cached::of(list(1, 12, OWN)));
        for _ in 0..3 {
            assert_eq!(slot.compare(&said, &read(v1::ReadMode::Local)), Word::Doubtful);
            assert!(slot.cached.view().exists);
        }
        slot.hold();
        assert_eq!(slot.cached.view().source, Source::Cache);
        assert_eq!(
            slot.compare(&said, &read(v1::ReadMode::Linearizable)),
            Word::Current
        );
        let view = slot.cached.view();
        assert_eq!((view.exists, view.source), (false, Source::Live));
        assert_eq!(slot.compare(&said, &read(v1::ReadMode::Local)), Word::Current);
    }
}
