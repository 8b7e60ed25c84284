//! What all watchers of a service were told together: one log of changes, by revision.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::history::{Following, Shown};

/// One revision's changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// The nodes that are there from then on, and like this.
    pub(super) put: Vec<Shown>,
    /// The nodes that are gone.
    pub(super) removed: Vec<String>,
    /// When the first watcher was told.
    pub(super) time: Duration,
}

/// For each service what its watchers were told. Where all of them were given the whole state instead of changes, what
/// differs from what was known counts as a change of the revision that it shows.
pub(super) fn changes(following: &[Following]) -> BTreeMap<String, BTreeMap<u64, Change>> {
    let mut services: BTreeMap<&str, &str> = BTreeMap::new();
    let mut deltas: BTreeMap<&str, BTreeMap<u64, Change>> = BTreeMap::new();
    let mut wholes: BTreeMap<&str, BTreeMap<u64, Change>> = BTreeMap::new();
    for line in following {
        match line {
            Following::Open { watch, service, .. } => drop(services.insert(watch, service)),
            Following::Event {
                watch,
                revision,
                whole,
                put,
                removed,
                time,
            } => {
                let Some(service) = services.get(watch.as_str()) else {
                    continue;
                };
                let of = if *whole { &mut wholes } else { &mut deltas };
                let change = of
                    .entry(service)
                    .or_default()
                    .entry(*revision)
                    .or_insert_with(|| Change {
                        put: put.clone(),
                        removed: removed.clone(),
                        time: *time,
                    });
                change.time = change.time.min(*time);
            }
            Following::Bookmark { .. } | Following::Silent { .. } | Following::Close { .. } => {}
        }
    }
    let known: BTreeSet<&str> = services.values().copied().collect();
    known
        .into_iter()
        .map(|service| {
            let deltas = deltas.remove(service).unwrap_or_default();
            let wholes = wholes.remove(service).unwrap_or_default();
            (service.to_owned(), merge(deltas, wholes))
        })
        .collect()
}

fn merge(mut deltas: BTreeMap<u64, Change>, wholes: BTreeMap<u64, Change>) -> BTreeMap<u64, Change> {
    let mut state: BTreeMap<String, Shown> = BTreeMap::new();
    let mut merged: BTreeMap<u64, Change> = BTreeMap::new();
    let revisions: BTreeSet<u64> = deltas.keys().chain(wholes.keys()).copied().collect();
    for revision in revisions {
        if let Some(change) = deltas.remove(&revision) {
            apply(&mut state, &change);
            merged.insert(revision, change);
        }
        if let Some(whole) = wholes.get(&revision) {
            let difference = difference(&state, whole);
            if !difference.put.is_empty() || !difference.removed.is_empty() {
                apply(&mut state, &difference);
                let of = merged.entry(revision).or_insert_with(|| Change {
                    time: whole.time,
                    ..Change::default()
                });
                of.put.extend(difference.put);
                of.removed.extend(difference.removed);
            }
        }
    }
    merged
}

/// Takes a change in.
pub(super) fn apply(state: &mut BTreeMap<String, Shown>, change: &Change) {
    for id in &change.removed {
        state.remove(id);
    }
    for of in &change.put {
        state.insert(of.id.clone(), of.clone());
    }
}

fn difference(state: &BTreeMap<String, Shown>, whole: &Change) -> Change {
    let there: BTreeSet<&str> = whole.put.iter().map(|of| of.id.as_str()).collect();
    Change {
        put: whole
            .put
            .iter()
            .filter(|of| state.get(&of.id) != Some(of))
            .cloned()
            .collect(),
        removed: state
            .keys()
            .filter(|id| !there.contains(id.as_str()))
            .cloned()
            .collect(),
        time: whole.time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(watch: &str, revision: u64, whole: bool, put: &[&str], removed: &[&str]) -> Following {
        let shown = |id: &&str| Shown {
            id: (*id).into(),
            value: 0,
            session: 0,
            incarnation: 1,
            suspect: false,
        };
        Following::Event {
            watch: watch.into(),
            revision,
            whole,
            put: put.iter().map(shown).collect(),
            removed: removed.iter().map(|id| (*id).into()).collect(),
            time: Duration::from_secs(revision),
        }
    }

    fn open(watch: &str) -> Following {
        Following::Open {
            watch: watch.into(),
            service: "g/s".into(),
            server: 1,
            from: 0,
            time: Duration::ZERO,
        }
    }

    #[test]
    fn gaps_of_all_watchers_are_filled_by_whole_states() {
        let lines = [
            open("a"),
            open("b"),
            event("a", 2, true, &["x"], &[]),
            event("b", 3, false, &["y"], &[]),
            // Nobody was told of the end of x as a change.
            event("a", 7, true, &["y"], &[]),
            event("b", 8, false, &[], &["y"]),
        ];
        let changes = &changes(&lines)["g/s"];
        let of = |revision: u64| {
            let change = &changes[&revision];
            let put: Vec<&str> = change.put.iter().map(|of| of.id.as_str()).collect();
            (put, change.removed.clone())
        };
        assert_eq!(of(2), (vec!["x"], vec![]));
        assert_eq!(of(3), (vec!["y"], vec![]));
        assert_eq!(of(7), (vec![], vec!["x".to_owned()]));
        assert_eq!(of(8), (vec![], vec!["y".to_owned()]));
        assert_eq!(changes.len(), 4);
    }
}
