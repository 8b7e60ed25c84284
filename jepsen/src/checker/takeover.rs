//! Nodes that change hands: a session that registers a node of another one's becomes its owner at once and for good;
//! what becomes of the former owner later leaves the node alone (design, section 2, rule 10).

use std::collections::BTreeMap;
use std::time::Duration;

use super::changes::changes;
use super::verdict::Verdict;
use crate::history::{Following, Ownership};

/// A service, as `group/service`, and a node.
type Key = (String, String);

#[derive(Debug)]
struct Claim {
    session: u64,
    sent: Duration,
    end: Option<Duration>,
    revision: u64,
}

#[derive(Debug, Default)]
struct Life {
    ttl: Duration,
    /// When acknowledged heartbeats were sent. A registration is none: it proves the session, its clock runs on.
    heard: Vec<Duration>,
}

impl Life {
    /// Whether the session was alive at this moment for certain.
    fn is_alive(&self, at: Duration) -> bool {
        self.heard.iter().any(|sent| *sent <= at && *sent + self.ttl > at)
    }
}

/// Who owned a node from which revision on; `None`: it was gone.
#[derive(Debug)]
struct Owned {
    revision: u64,
    time: Duration,
    owner: Option<(u64, u64)>,
}

/// Judges every node that was claimed, by what watchers were told and by what reads showed.
#[must_use]
pub fn check(lines: &[Ownership], following: &[Following]) -> Verdict {
    let mut verdict = Verdict::new("takeovers");
    let mut claims: BTreeMap<Key, Vec<Claim>> = BTreeMap::new();
    let mut lives: BTreeMap<u64, Life> = BTreeMap::new();
    let mut seen: Vec<(Key, Option<u64>, Duration, Duration)> = Vec::new();
    for line in lines {
        match line {
            Ownership::Claimed {
                service,
                node,
                session,
                ttl,
                sent,
                end,
                revision,
            } => {
                claims
                    .entry((service.clone(), node.clone()))
                    .or_default()
                    .push(Claim {
                        session: *session,
                        sent: *sent,
                        end: *end,
                        revision: *revision,
                    });
                lives.entry(*session).or_default().ttl = *ttl;
            }
            Ownership::Beat {
                session,
                sent,
                acknowledged: Some(true),
            } => lives.entry(*session).or_default().heard.push(*sent),
            Ownership::Beat { .. } | Ownership::Stop { .. } => {}
            Ownership::Owned {
                service,
                node,
                session,
                sent,
                end,
            } => seen.push(((service.clone(), node.clone()), *session, *sent, *end)),
        }
    }
    let told = told(following, &claims);
    let mut moved = 0;
    for (key, claims) in &claims {
        verdict.judged += claims.len();
        let told = told.get(key).map_or(&[][..], Vec::as_slice);
        moved += told
            .windows(2)
            .filter(|of| of[0].owner.is_some() && of[1].owner.is_some())
            .count();
        order(&key.1, told, claims, &mut verdict);
        ends(&key.1, told, claims, &lives, &mut verdict);
    }
    for (key, owner, sent, end) in seen {
        let claims = claims.get(&key).map_or(&[][..], Vec::as_slice);
        read(&key.1, owner, (sent, end), claims, &lives, &mut verdict);
    }
    verdict.figures.push(format!(
        "{} nodes, {} owners, {moved} takeovers told",
        claims.len(),
        lives.len()
    ));
    verdict
}

/// What watchers were told of each node, by revision.
fn told(following: &[Following], claims: &BTreeMap<Key, Vec<Claim>>) -> BTreeMap<Key, Vec<Owned>> {
    let mut told: BTreeMap<Key, Vec<Owned>> = BTreeMap::new();
    for (service, changes) in changes(following) {
        for (revision, change) in &changes {
            let gone = change.removed.iter().map(|id| (id, None));
            let put = change
                .put
                .iter()
                .map(|of| (&of.id, Some((of.session, of.incarnation))));
            for (id, owner) in gone.chain(put) {
                let key = (service.clone(), id.clone());
                if !claims.contains_key(&key) {
                    continue;
                }
                let of = told.entry(key).or_default();
                if of.last().is_none_or(|last| last.owner != owner) {
                    of.push(Owned {
                        revision: *revision,
                        time: change.time,
                        owner,
                    });
                }
            }
        }
    }
    told
}

/// Ownership moves once to each claimant, with a higher incarnation, and never back.
fn order(node: &str, told: &[Owned], claims: &[Claim], verdict: &mut Verdict) {
    let mut former: Vec<(u64, u64)> = Vec::new();
    for of in told {
        let Some((session, incarnation)) = of.owner else {
            continue;
        };
        if !claims.iter().any(|claim| claim.session == session) {
            verdict.find(
                of.time,
                format!(
                    "node {node} belongs to session {session} at revision {}, which never claimed it",
                    of.revision
                ),
            );
            return;
        }
        if let Some((last, highest)) = former.last().copied()
            && last != session
        {
            if former.iter().any(|(one, _)| *one == session) {
                verdict.find(
                    of.time,
                    format!(
                        "node {node} went back to session {session} at revision {}, after session {last} had it",
                        of.revision
                    ),
                );
                return;
            }
            if incarnation <= highest {
                verdict.find(
                    of.time,
                    format!(
                        "node {node} went from session {last} to session {session} at revision {} with incarnation \
                         {incarnation}, after {highest}",
                        of.revision
                    ),
                );
                return;
            }
        }
        former.push((session, incarnation));
    }
    for claim in claims.iter().filter(|claim| claim.revision > 0) {
        let at = told.iter().rfind(|of| of.revision <= claim.revision);
        let owner = at.and_then(|of| of.owner).map(|(session, _)| session);
        if at.is_some_and(|of| of.revision == claim.revision) && owner != Some(claim.session) {
            verdict.find(
                claim.end.unwrap_or_default(),
                format!(
                    "node {node}: session {} was told that it is its owner from revision {} on, and watchers were told \
                     of {owner:?}",
                    claim.session, claim.revision
                ),
            );
            return;
        }
    }
}

/// It is gone only when its owner of that moment had lapsed.
fn ends(node: &str, told: &[Owned], claims: &[Claim], lives: &BTreeMap<u64, Life>, verdict: &mut Verdict) {
    for of in told.windows(2) {
        let (Some((session, _)), None) = (of[0].owner, of[1].owner) else {
            continue;
        };
        if lives.get(&session).is_some_and(|life| life.is_alive(of[1].time)) {
            let claim = claims.iter().find(|claim| claim.session == session);
            verdict.find(
                of[1].time,
                format!(
                    "node {node} was struck off at revision {} while its owner, session {session} since revision {}, \
                     was alive",
                    of[1].revision,
                    claim.map_or(0, |claim| claim.revision)
                ),
            );
        }
    }
}

/// A read shows the claimant that nobody else's claim can have followed, if it is alive.
fn read(
    node: &str,
    owner: Option<u64>,
    (sent, end): (Duration, Duration),
    claims: &[Claim],
    lives: &BTreeMap<u64, Life>,
    verdict: &mut Verdict,
) {
    let before = claims
        .iter()
        .filter(|claim| claim.end.is_some_and(|at| at < sent));
    let Some(last) = before.max_by_key(|claim| claim.sent) else {
        return;
    };
    let contested = claims.iter().any(|claim| {
        claim.session != last.session && claim.sent < end && claim.end.is_none_or(|at| at > last.sent)
    });
    let alive = lives.get(&last.session).is_some_and(|life| {
        life.heard
            .iter()
            .any(|heard| *heard <= sent && *heard + life.ttl > end)
    });
    verdict.judged += 1;
    if alive && !contested && owner != Some(last.session) {
        verdict.find(
            sent,
            format!(
                "a read showed node {node} with owner {owner:?}; session {} had taken it over at {:?} and was alive",
                last.session,
                last.end.unwrap_or_default()
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Shown;

    const TTL: Duration = Duration::from_secs(4);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn claim(session: u64, at: u64, revision: u64) -> Ownership {
        Ownership::Claimed {
            service: "g/s".into(),
            node: "n".into(),
            session,
            ttl: TTL,
            sent: s(at),
            end: Some(s(at)),
            revision,
        }
    }

    fn beat(session: u64, at: u64) -> Ownership {
        Ownership::Beat {
            session,
            sent: s(at),
            acknowledged: Some(true),
        }
    }

    /// A revision, when it was told, and the owner with its incarnation.
    type Told = (u64, u64, Option<(u64, u64)>);

    fn told(of: &[Told]) -> Vec<Following> {
        let mut lines = vec![Following::Open {
            watch: "w".into(),
            service: "g/s".into(),
            server: 1,
            from: 0,
            time: s(0),
        }];
        lines.extend(of.iter().map(|(revision, time, owner)| {
            Following::Event {
                watch: "w".into(),
                revision: *revision,
                whole: false,
                put: owner
                    .map(|(session, incarnation)| Shown {
                        id: "n".into(),
                        value: 0,
                        session,
                        incarnation,
                        suspect: false,
                    })
                    .into_iter()
                    .collect(),
                removed: if owner.is_none() {
                    vec!["n".into()]
                } else {
                    Vec::new()
                },
                time: s(*time),
            }
        }));
        lines
    }

    fn bad(lines: &[Ownership], following: &[Following], wanted: &str) {
        let verdict = check(lines, following);
        assert_eq!(verdict.findings.len(), 1, "{verdict:?}");
        assert!(verdict.findings[0].what.contains(wanted), "{verdict:?}");
    }

    #[test]
    fn a_node_that_is_handed_on_passes() {
        let lines = [claim(1, 1, 5), claim(2, 3, 6), beat(2, 5), beat(2, 7)];
        let following = told(&[(5, 1, Some((1, 1))), (6, 3, Some((2, 2))), (9, 12, None)]);
        let verdict = check(&lines, &following);
        assert!(verdict.is_good(), "{verdict:?}");
        // It had lapsed before the next came.
        let following = told(&[
            (5, 1, Some((1, 1))),
            (6, 6, None),
            (7, 7, Some((2, 2))),
            (9, 12, None),
        ]);
        assert!(check(&[claim(1, 1, 5), claim(2, 7, 7)], &following).is_good());
    }

    #[test]
    fn deletes_of_a_live_node_and_ownership_that_goes_back_are_caught() {
        let lines = [claim(1, 1, 5), claim(2, 3, 6), beat(2, 5)];
        // The former owner's lapse takes the node along.
        let following = told(&[(5, 1, Some((1, 1))), (6, 3, Some((2, 2))), (7, 5, None)]);
        bad(&lines, &following, "struck off");
        let following = told(&[(5, 1, Some((1, 1))), (6, 3, Some((2, 2))), (7, 5, Some((1, 3)))]);
        bad(&lines, &following, "went back");
        let following = told(&[(5, 1, Some((1, 1))), (6, 3, Some((2, 1)))]);
        bad(&lines, &following, "incarnation");
        let following = told(&[(5, 1, Some((1, 1))), (6, 3, Some((3, 2)))]);
        bad(&lines, &following, "never claimed");
    }

    #[test]
    fn reads_that_miss_the_owner_are_caught() {
        let read = |session| Ownership::Owned {
            service: "g/s".into(),
            node: "n".into(),
            session,
            sent: s(4),
            end: s(4),
        };
        let lines = |session| [claim(1, 1, 5), claim(2, 3, 6), beat(2, 3), read(session)];
        assert!(check(&lines(Some(2)), &[]).is_good());
        bad(&lines(Some(1)), &[], "a read showed");
        bad(&lines(None), &[], "a read showed");
        assert!(!check(&[], &[]).is_good(), "nothing was judged");
    }
}
