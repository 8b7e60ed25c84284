//! Definitions: groups, services, limits and the storm switch follow the replicated directory into the view; services
//! that a registration created here follow the other way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::RwLockReadGuard;
use rollcall_core::ap::FarFuture;
use rollcall_core::directory::{
    Command, Directory, Expected, Group, GroupMode, GroupSettings, Override, Refusal, Request,
    RevisionChanges, Service, ServiceFate,
};
use rollcall_core::ids::{GroupName, NodeId, NodeKey, RequestId, Revision, ServiceKey};
use rollcall_core::storm::{Mode, Scope};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::committer::Job;
use super::exchange::hear;
use super::inner::Inner;
use crate::raft::{AppliedHead, ProposeError};

/// Most definitions in one job.
const COMMANDS_MAX: usize = 256;
/// How often it is looked at least whether every group is where it belongs.
const RETRY: Duration = Duration::from_secs(5);
/// After this all is looked through for what could not be followed: a group that still has nodes here cannot go.
const UNDONE: Duration = Duration::from_secs(1);
/// While a group moves.
const UNSETTLED: Duration = Duration::from_millis(250);
/// Until the definitions on this server's disk are in the view.
const UNDEFINED: Duration = Duration::from_millis(50);
/// How often this server looks for services that the replicated directory does not have.
const PROPOSE_EVERY: Duration = Duration::from_secs(5);
/// Most of them proposed in one go; the rest waits for the next look.
const PROPOSALS_MAX: usize = 256;
/// How long one of them may take.
const PROPOSAL_DEADLINE: Duration = Duration::from_secs(5);
/// For so long the end of what a deleted service lists may be on its way. What is listed then was registered since.
const LEAVING: Duration = Duration::from_secs(10);
/// How many times it is looked whether nobody writes to the view, before it is waited for.
const LOOKS: usize = 64;

/// What may differ between the two directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Touched {
    groups: BTreeSet<GroupName>,
    services: BTreeSet<ServiceKey>,
    storm: bool,
}

impl Touched {
    /// Whatever there is.
    fn all(raft: &Directory, view: &Directory) -> Self {
        let mut touched = Self {
            storm: true,
            ..Self::default()
        };
        let of_mode = raft.groups().filter(|group| is_ap(group));
        for group in of_mode.chain(view.groups()) {
            touched.groups.insert(group.name.clone());
            touched.services.extend(services_of(group));
        }
        touched
    }

    fn note(&mut self, changes: &RevisionChanges) {
        self.groups
            .extend(changes.groups.iter().map(|(name, _)| name.clone()));
        let services = changes.services.iter();
        let defined = services.filter(|change| change.settings.is_some() || change.fate != ServiceFate::Kept);
        self.services.extend(defined.map(|change| change.key.clone()));
        self.storm |= changes.storm.is_some();
    }
}

/// Whether it lives by records, or is on its way to.
fn is_ap(group: &Group) -> bool {
    group.settings.mode == GroupMode::Ap || group.moving.is_some_and(|moving| moving.to == GroupMode::Ap)
}

fn services_of(group: &Group) -> impl Iterator<Item = ServiceKey> {
    group.services.values().map(|service| service.key.clone())
}

/// What the view must be told to define what the replicated directory defines. A service that the view has on its
/// own stays while it has nodes or overrides.
fn differences(raft: &Directory, view: &Directory, touched: &Touched) -> Vec<Command> {
    let mut commands = Vec::new();
    if raft.limits() != view.limits() {
        let limits = raft.limits().clone();
        commands.push(Command::SetLimits { limits });
    }
    let mut services = touched.services.clone();
    for name in &touched.groups {
        let (defined, seen) = (raft.group(name).filter(|group| is_ap(group)), view.group(name));
        commands.extend(ended_move(
            raft.group(name).map(AsRef::as_ref),
            seen.map(AsRef::as_ref),
        ));
        match (defined, seen) {
            (Some(defined), seen) if seen.is_none_or(|seen| differ(seen, defined)) => {
                commands.push(Command::PutGroup {
                    group: name.clone(),
                    settings: defined.settings.clone(),
                    expected: Expected::Any,
                });
            }
            (None, Some(seen)) => {
                let services = services_of(seen).map(|key| Command::DeleteService {
                    key,
                    expected: Expected::Any,
                });
                commands.extend(services);
                commands.push(Command::DeleteGroup {
                    group: name.clone(),
                    expected: Expected::Any,
                });
            }
            (Some(_), _) | (None, None) => {}
        }
        if let (Some(defined), None) = (defined, seen) {
            services.extend(services_of(defined));
        }
    }
    for key in &services {
        if raft.group(&key.group).is_none_or(|group| !is_ap(group)) {
            continue;
        }
        match (raft.service(key), view.service(key)) {
            (Some(defined), seen) if seen.is_none_or(|seen| seen.settings != defined.settings) => {
                commands.push(Command::PutService {
                    key: key.clone(),
                    settings: Some(defined.settings.clone()),
                    expected: Expected::Any,
                });
            }
            (None, Some(seen)) if seen.nodes.is_empty() && seen.overrides.is_empty() => {
                commands.push(Command::DeleteService {
                    key: key.clone(),
                    expected: Expected::Any,
                });
            }
            (Some(_) | None, _) => {}
        }
    }
    if touched.storm {
        commands.extend(storms(raft, view));
    }
    // A group that moves is frozen, so this comes behind all else.
    for name in &touched.groups {
        let (defined, seen) = (raft.group(name), view.group(name));
        commands.extend(begun_move(defined.map(AsRef::as_ref), seen.map(AsRef::as_ref)));
    }
    commands
}

/// Settings that the view must follow. The mode changes by moves alone.
fn differ(seen: &Group, defined: &Group) -> bool {
    let of_mode = GroupSettings {
        mode: seen.settings.mode,
        ..defined.settings.clone()
    };
    seen.settings != of_mode
}

/// The end of a move that the view has not followed yet.
fn ended_move(defined: Option<&Group>, seen: Option<&Group>) -> Option<Command> {
    let seen = seen?;
    let moving = seen.moving?;
    let still = defined.and_then(|defined| defined.moving);
    if still.is_some_and(|still| still.to == moving.to && still.stamp_ms == moving.stamp_ms) {
        return None;
    }
    Some(Command::EndMove {
        group: seen.name.clone(),
        since: moving.since,
        done: defined.is_some_and(|defined| defined.settings.mode == moving.to),
    })
}

/// The beginning of a move that the view has not followed yet.
fn begun_move(defined: Option<&Group>, seen: Option<&Group>) -> Option<Command> {
    let defined = defined?;
    let moving = defined.moving?;
    let followed = seen.and_then(|seen| seen.moving);
    (followed.is_none_or(|followed| followed.stamp_ms != moving.stamp_ms)).then(|| Command::BeginMove {
        group: defined.name.clone(),
        to: moving.to,
        stamp_ms: moving.stamp_ms,
    })
}

/// Groups on their way to gossip that the view does not show whole yet.
fn to_adopt(raft: &Directory, view: &Directory) -> Vec<(GroupName, u64)> {
    let coming = raft.groups().filter_map(|group| {
        let moving = group.moving.filter(|moving| moving.to == GroupMode::Ap)?;
        let seen = view.group(&group.name)?;
        let followed = seen.moving.is_some_and(|seen| seen.stamp_ms == moving.stamp_ms);
        (followed && !is_whole(seen, group)).then(|| (group.name.clone(), moving.stamp_ms))
    });
    coming.collect()
}

/// Whether the view shows what was frozen in the log, and no word of an operator's that was taken back there while this server was
/// away.
fn is_whole(seen: &Group, defined: &Group) -> bool {
    seen.nodes == defined.nodes
        && seen.sign == defined.sign
        && shows_overrides(seen, defined, |_| false)
        && shows_overrides(defined, seen, |_| true)
}

/// Whether what operators said is all shown: a word on a node that is not there is in no sign. `is_known`: the record of a word
/// on a service that the view does not have, because its settings forbid it there, say.
pub(super) fn shows_overrides(seen: &Group, defined: &Group, is_known: impl Fn(&NodeKey) -> bool) -> bool {
    let said = |over: &Override| Override {
        set_at: Revision(0),
        ..over.clone()
    };
    let is_shown =
        |service: &Service, id: &NodeId, over: &Override| match seen.services.get(&service.key.service) {
            Some(shown) => shown
                .overrides
                .get(id)
                .is_some_and(|shown| said(shown) == said(over)),
            None => is_known(&NodeKey {
                service: service.key.clone(),
                node: id.clone(),
            }),
        };
    let mut services = defined.services.values();
    services.all(|service| {
        let mut overrides = service.overrides.iter();
        overrides.all(|(id, over)| is_shown(service, id, over))
    })
}

/// Groups on their way to gossip with nothing in them: there is nothing to take over.
fn bare<'a>(raft: &'a Directory, touched: &'a Touched) -> impl Iterator<Item = &'a GroupName> {
    touched.groups.iter().filter(|name| {
        let comes = |group: &Arc<Group>| group.moving.is_some_and(|moving| moving.to == GroupMode::Ap);
        let has_no_overrides = |group: &Arc<Group>| {
            let mut services = group.services.values();
            services.all(|service| service.overrides.is_empty())
        };
        raft.group(name)
            .is_some_and(|group| comes(group) && group.nodes == 0 && has_no_overrides(group))
    })
}

/// Groups that moved to gossip without this server: it was away, and learns of the end of the move before it has what
/// is in them. `known`: those whose records it had when it was started, or took over since.
fn missed(raft: &Directory, view: &Directory, touched: &Touched, known: &BTreeSet<String>) -> Vec<GroupName> {
    // One that was created here or there with this mode has had no other. It may be on its way back by now.
    let moved =
        |group: &Arc<Group>| group.settings.mode == GroupMode::Ap && group.settings_modified > group.created;
    // The beginning may have been followed, and the end come before what was frozen was taken over.
    let comes = |group: &Arc<Group>| group.moving.is_some_and(|moving| moving.to == GroupMode::Ap);
    let lacks = |name: &&GroupName| !known.contains(name.as_str()) && view.group(name).is_none_or(comes);
    let missed = touched
        .groups
        .iter()
        .filter(lacks)
        .filter(|name| raft.group(name).is_some_and(moved));
    missed.cloned().collect()
}

/// Groups of which there are records, and that do not live by records.
fn to_forget(raft: &Directory, view: &Directory, recorded: &BTreeSet<String>) -> Vec<GroupName> {
    let gone = recorded.iter().filter_map(|name| {
        let name: GroupName = name.parse().ok()?;
        let lives = raft.group(&name).is_none_or(|group| is_ap(group));
        (!lives && view.group(&name).is_none()).then_some(name)
    });
    gone.collect()
}

fn storms(raft: &Directory, view: &Directory) -> Vec<Command> {
    let of_groups = |directory: &Directory| -> BTreeSet<Scope> {
        let groups = directory.storm().groups();
        groups.map(|(name, _)| Scope::Group(name.clone())).collect()
    };
    let mut scopes = of_groups(raft);
    scopes.extend(of_groups(view));
    scopes.insert(Scope::Cluster);
    let commands = scopes.into_iter().filter_map(|scope| {
        let (set, seen) = (raft.storm().of(&scope), view.storm().of(&scope));
        let same = match (set, seen) {
            (Some(set), Some(seen)) => {
                (set.mode, &set.author, &set.reason) == (seen.mode, &seen.author, &seen.reason)
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        // Of a group that is not of mode AP the view knows nothing.
        let known = match &scope {
            Scope::Cluster => true,
            Scope::Group(group) => raft.group(group).is_some_and(|group| is_ap(group)) || seen.is_some(),
        };
        (!same && known).then(|| Command::SetStorm {
            scope,
            mode: set.map_or(Mode::Inherited, |set| set.mode),
            author: set.map_or_else(String::new, |set| set.author.clone()),
            reason: set.map_or_else(String::new, |set| set.reason.clone()),
        })
    });
    commands.collect()
}

/// The replicated directory and the view. What is committed is not applied while somebody reads the one, and the other may be
/// written to for long: so nobody waits for the other with the one in hand, unless it is written to again and again.
fn both(inner: &Inner) -> (RwLockReadGuard<'_, Directory>, RwLockReadGuard<'_, Directory>) {
    for _ in 0..LOOKS {
        let raft = inner.consensus.directory().read();
        if let Some(view) = inner.view.try_read() {
            return (raft, view);
        }
        drop(raft);
        drop(inner.view.read());
    }
    (inner.consensus.directory().read(), inner.view.read())
}

/// Services that the log has deleted, and of which the view shows something whose end has not come here yet. `touched`: what
/// changed in the log.
fn leave(
    leaving: &mut BTreeMap<ServiceKey, std::time::Instant>,
    raft: &Directory,
    view: &Directory,
    touched: Option<&Touched>,
    now: std::time::Instant,
) {
    let is_deleted = |key: &ServiceKey| {
        let lives = raft.group(&key.group).is_some_and(|group| is_ap(group));
        lives && raft.service(key).is_none() && view.service(key).is_some()
    };
    let changed = touched.into_iter().flat_map(|touched| &touched.services);
    for key in changed.filter(|key| is_deleted(key)) {
        leaving.entry(key.clone()).or_insert(now + LEAVING);
    }
    leaving.retain(|key, until| now < *until && is_deleted(key));
}

/// Keeps the view's definitions those of the replicated directory.
pub(super) async fn follow(inner: Arc<Inner>, stop: CancellationToken) {
    let mut applied = inner.consensus.applied_head();
    let mut seen: Option<Revision> = None;
    let mut undone_at: Option<Instant> = None;
    let mut loaded = false;
    let mut settled_at = None;
    let mut known = inner.desk.lock().known_groups();
    let mut refused = BTreeMap::new();
    loop {
        // Asked first: what was applied by then is followed below.
        let complete = inner.defined.load(Ordering::Acquire) || is_complete(&inner);
        let (again, lingers);
        _ = applied.borrow_and_update();
        let (commands, regrouped, revision, misses) = {
            let (raft, view) = both(&inner);
            again = undone_at.is_some_and(|at: Instant| at.elapsed() >= UNDONE);
            let news = seen.map(|seen| touched_since(Some(seen), &raft, &view));
            let mut leaving = inner.leaving.lock();
            leave(
                &mut leaving,
                &raft,
                &view,
                news.as_ref(),
                std::time::Instant::now(),
            );
            let mut touched = news
                .filter(|_| !again)
                .unwrap_or_else(|| Touched::all(&raft, &view));
            touched.services.extend(leaving.keys().cloned());
            lingers = !leaving.is_empty();
            drop(leaving);
            if inner.consensus.is_loaded() {
                // One that comes back comes with other records.
                let is_here = |name: &GroupName| raft.group(name).is_some_and(|group| is_ap(group));
                for name in touched.groups.iter().filter(|name| !is_here(name)) {
                    known.remove(name.as_str());
                }
                if !std::mem::replace(&mut loaded, true) {
                    // What was applied until then is the past: groups may have come and gone in it.
                    known.retain(|name| name.parse().is_ok_and(|name| is_here(&name)));
                }
                inner.keep_missed(is_here);
            }
            known.extend(bare(&raft, &touched).map(ToString::to_string));
            let missed = missed(&raft, &view, &touched, &known);
            if !missed.is_empty() {
                tracing::info!(
                    ?missed,
                    "AP groups: moved here while this server was away; asking others for what is in them"
                );
                known.extend(missed.iter().map(ToString::to_string));
                // Before they are in the view, so that nobody reads them empty.
                inner.note_missed(&missed, raft.revision());
            }
            inner.followed.store(raft.revision().0, Ordering::Release);
            let commands = differences(&raft, &view, &touched);
            (
                commands,
                !touched.groups.is_empty(),
                raft.revision(),
                !missed.is_empty(),
            )
        };
        if misses && let Err(reason) = hear(&inner, Vec::new(), None, true).await {
            // With what is written next, then.
            tracing::debug!(reason = reason.message(), "what is missed is not on disk yet");
        }
        if again {
            undone_at = None;
        }
        for commands in commands.chunks(COMMANDS_MAX) {
            let commands = commands.to_vec();
            match inner.perform(|done| Job::Define { commands, done }).await {
                Ok(refused) if refused.is_empty() => {}
                Ok(_) => undone_at = undone_at.or_else(|| Some(Instant::now())),
                Err(_) => return,
            }
        }
        // Looking through all groups is for when one of them changed, and for now and then.
        if regrouped || settled_at.is_none_or(|at: Instant| at.elapsed() >= RETRY) {
            settled_at = match settle_moves(&inner, &mut known, &mut refused).await {
                None => return,
                Some(Settled::Yes) => Some(Instant::now()),
                Some(Settled::NotYet) => None,
            };
        }
        seen = Some(revision);
        inner.defined_through.store(revision.0, Ordering::Release);
        if complete && !inner.defined.swap(true, Ordering::AcqRel) {
            let groups = inner.view.read().totals().groups;
            tracing::info!(groups, "AP groups: defined");
        }
        let pause = match inner.defined.load(Ordering::Acquire) {
            true if settled_at.is_none() => UNSETTLED,
            true if lingers => UNSETTLED,
            true if undone_at.is_some() => UNDONE,
            true => RETRY,
            false => UNDEFINED,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = tokio::time::timeout(pause, applied.changed()) => if let Ok(Err(_)) = changed {
                return;
            },
        }
    }
}

/// Whether every group is where it belongs.
enum Settled {
    Yes,
    /// Something was done, or is to be done again.
    NotYet,
}

/// Groups of which there are records.
fn recorded(inner: &Inner) -> BTreeSet<String> {
    inner.desk.lock().recorded_groups()
}

/// Takes over groups that come, and forgets those that went. `refused`: moves of which an operator was told, by their
/// stamps. `None`: the committing task is gone.
async fn settle_moves(
    inner: &Inner,
    known: &mut BTreeSet<String>,
    refused: &mut BTreeMap<GroupName, u64>,
) -> Option<Settled> {
    let recorded = recorded(inner);
    // Asked first: what was applied by then is looked at below. What is taken over while nobody knows yet whether this server's
    // records count would be dropped with them, or missed by them.
    let loaded = inner.consensus.is_loaded() && inner.is_sure();
    let (raft, coming, gone) = {
        let (raft, view) = both(inner);
        let (coming, gone) = (to_adopt(&raft, &view), to_forget(&raft, &view, &recorded));
        if coming.is_empty() && gone.is_empty() {
            return Some(Settled::Yes);
        }
        if !loaded {
            // What a server has applied before it has caught up is the past. A group that is seen to come may have gone and
            // come back since, without nodes that it had then: taken over once more, they would come back to life everywhere.
            // And one that is seen to be elsewhere may have come, and what is forgotten would have to be fetched.
            return Some(Settled::NotYet);
        }
        (raft.clone(), coming, gone)
    };
    refused.retain(|group, stamp_ms| coming.contains(&(group.clone(), *stamp_ms)));
    for (group, stamp_ms) in coming {
        let from = Box::new(raft.clone());
        let name = group.clone();
        let adopted = inner.perform(|done| Job::Adopt {
            from,
            group: name,
            stamp_ms,
            done,
        });
        match adopted.await.ok()? {
            Ok(()) => _ = known.insert(group.to_string()),
            Err(far) => {
                inner.metrics.refused.inc();
                if refused.insert(group.clone(), stamp_ms) != Some(stamp_ms) {
                    alarm(&group, &far);
                }
            }
        }
    }
    for group in gone {
        known.remove(group.as_str());
        inner.perform(|done| Job::Forget { group, done }).await.ok()?;
    }
    Some(Settled::NotYet)
}

/// Who began the move is not known here.
fn alarm(group: &GroupName, far: &FarFuture) {
    tracing::error!(
        %group,
        ahead_ms = far.ahead_ms,
        ahead_max_ms = far.ahead_max_ms,
        "RC-301: the group moves here by a time that is ahead of this server's clock, and is not taken over; one of the \
         two clocks is wrong"
    );
}

fn touched_since(seen: Option<Revision>, raft: &Directory, view: &Directory) -> Touched {
    match seen.map(|seen| raft.changes().range(seen, usize::MAX)) {
        Some(Ok(changes)) => {
            let mut touched = Touched::default();
            changes.iter().for_each(|changes| touched.note(changes));
            touched
        }
        Some(Err(_)) | None => Touched::all(raft, view),
    }
}

/// Whether the replicated directory holds all that this server's disk knows of it. Needs no quorum.
fn is_complete(inner: &Inner) -> bool {
    let status = inner.consensus.status();
    let AppliedHead { position, .. } = status.applied;
    let replayed = match (status.committed_index, position) {
        (Some(committed), Some(position)) => position.index >= committed,
        (Some(_) | None, _) => false,
    };
    status.loaded || replayed
}

/// Proposes services that registrations created in the view, so that they outlive their last node.
pub(super) async fn propose_created(inner: Arc<Inner>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = inner.created.notified() => {}
            () = tokio::time::sleep(PROPOSE_EVERY) => {}
        }
        if inner.consensus.leadership().borrow().leader.is_none() {
            continue;
        }
        for key in unknown_services(&inner) {
            let proposing = propose(&inner, key);
            match stop.run_until_cancelled(proposing).await {
                None => return,
                Some(true) => {}
                Some(false) => break,
            }
        }
    }
}

fn unknown_services(inner: &Inner) -> Vec<ServiceKey> {
    let (raft, view) = both(inner);
    let defined_through = Revision(inner.defined_through.load(Ordering::Acquire));
    let mut unfollowed = touched_since(Some(defined_through), &raft, &view);
    unfollowed.services.extend(inner.leaving.lock().keys().cloned());
    unknown(&raft, &view, &unfollowed)
}

/// Services that the view alone has, but for those whose definition it has not followed yet: they are deleted, perhaps.
fn unknown(raft: &Directory, view: &Directory, unfollowed: &Touched) -> Vec<ServiceKey> {
    let defined = view
        .groups()
        .filter(|group| raft.group(&group.name).is_some_and(|group| is_ap(group)))
        .filter(|group| !unfollowed.groups.contains(&group.name));
    defined
        .flat_map(|group| services_of(group))
        .filter(|key| raft.service(key).is_none() && !unfollowed.services.contains(key))
        .take(PROPOSALS_MAX)
        .collect()
}

/// Whether to go on with the next.
async fn propose(inner: &Inner, key: ServiceKey) -> bool {
    let request = Request {
        id: RequestId(rand::random()),
        command: Command::PutService {
            key,
            settings: None,
            expected: Expected::Absent,
        },
    };
    let proposed = inner
        .consensus
        .propose(request, Instant::now() + PROPOSAL_DEADLINE)
        .await;
    match proposed {
        Ok(_) | Err(ProposeError::Refused(Refusal::AlreadyExists { .. } | Refusal::GroupNotFound { .. })) => {
            true
        }
        Err(ProposeError::Refused(refusal)) => {
            tracing::warn!(%refusal, "a service that a registration created is not defined");
            true
        }
        Err(error) => {
            tracing::debug!(%error, "a service that a registration created is not defined yet");
            false
        }
    }
}

#[cfg(test)]
#[path = "definitions_test.rs"]
mod tests;
