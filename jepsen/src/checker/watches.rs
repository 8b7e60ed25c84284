//! Watchers against each other: a change that one was told, everyone who was following then was told too, with the
//! same content, and each in the order of revisions.
//!
//! That every single frame keeps its promises (no going back, no repeat, no removal of something unknown) is checked
//! by [`crate::lab::watching::Mirror`] as it arrives; its complaint is [`Seen::broken`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::verdict::Verdict;

/// What one watcher was told of one service.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whose word it is.
    pub watcher: String,
    /// Changes by revision: what each put and removed, in a form that can be compared.
    pub changes: BTreeMap<u64, String>,
    /// Spans of revisions of which every change was told: behind the first, up to the second.
    pub followed: Vec<(u64, u64)>,
    /// A promise that a frame broke.
    pub broken: Option<String>,
}

/// Judges watchers of the same service. `acknowledged`: revisions of changes to it that somebody was promised.
#[must_use]
pub fn check(seen: &[Seen], acknowledged: &[u64], ended: Duration) -> Verdict {
    let mut verdict = Verdict::new("watches");
    let mut known: BTreeMap<u64, (&str, &str)> = BTreeMap::new();
    for of in seen {
        verdict.judged += of.changes.len();
        if let Some(broken) = &of.broken {
            verdict.find(ended, format!("watcher {}: {broken}", of.watcher));
        }
        for (revision, change) in &of.changes {
            let (first, other) = *known.entry(*revision).or_insert((&of.watcher, change));
            if other != change {
                verdict.find(
                    ended,
                    format!(
                        "revision {revision}: watcher {first} was told {other}, watcher {} was told {change}",
                        of.watcher
                    ),
                );
            }
        }
    }
    for of in seen {
        let followed = |revision: u64| {
            of.followed
                .iter()
                .any(|(from, to)| revision > *from && revision <= *to)
        };
        let promised = known
            .keys()
            .chain(acknowledged)
            .filter(|revision| followed(**revision));
        let missing: Vec<u64> = promised
            .filter(|revision| !of.changes.contains_key(revision))
            .copied()
            .collect();
        if let Some(first) = missing.first() {
            verdict.find(
                ended,
                format!(
                    "watcher {} followed without a gap and was never told {} changes, the first of revision {first}",
                    of.watcher,
                    missing.len()
                ),
            );
        }
    }
    verdict
        .figures
        .push(format!("{} watchers, {} changes", seen.len(), known.len()));
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(watcher: &str, changes: &[(u64, &str)], followed: (u64, u64)) -> Seen {
        Seen {
            watcher: watcher.into(),
            changes: changes
                .iter()
                .map(|(revision, change)| (*revision, (*change).into()))
                .collect(),
            followed: vec![followed],
            broken: None,
        }
    }

    #[test]
    fn watchers_that_agree_pass() {
        let one = seen("a", &[(3, "+x"), (5, "-x")], (2, 6));
        let late = seen("b", &[(5, "-x")], (4, 5));
        assert!(check(&[one, late], &[3, 5, 9], Duration::ZERO).is_good());
    }

    #[test]
    fn gaps_disagreement_and_broken_promises_are_caught() {
        let one = seen("a", &[(3, "+x"), (5, "-x")], (2, 6));
        let gap = check(
            &[one.clone(), seen("b", &[(5, "-x")], (2, 6))],
            &[],
            Duration::ZERO,
        );
        assert_eq!(gap.findings.len(), 1, "{gap:?}");
        let other = check(
            &[one.clone(), seen("b", &[(3, "+y"), (5, "-x")], (2, 6))],
            &[],
            Duration::ZERO,
        );
        assert_eq!(other.findings.len(), 1, "{other:?}");
        let unheard = check(std::slice::from_ref(&one), &[4], Duration::ZERO);
        assert_eq!(unheard.findings.len(), 1, "{unheard:?}");
        let broken = Seen {
            broken: Some("it went back".into()),
            ..one
        };
        assert_eq!(check(&[broken], &[], Duration::ZERO).findings.len(), 1);
    }
}
