//! What Raft promises of terms, as it shows from outside: one leader in each, and no server goes back to an earlier one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What servers said of their terms. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Elections(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// The leader of each term.
    leaders: BTreeMap<u64, u64>,
    /// The last term of each server.
    terms: BTreeMap<u64, u64>,
}

impl Elections {
    /// A server says in which term it is, and whether it leads in it: the promise that this breaks, once for each.
    pub(super) fn note(&self, server: u64, term: u64, leads: bool) -> Option<String> {
        // One that has just started does not know yet.
        if server == 0 || term == 0 {
            return None;
        }
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.terms.insert(server, term).unwrap_or(0);
        if before > term {
            return Some(format!(
                "server {server} was in term {before} and is in term {term}"
            ));
        }
        if !leads {
            return None;
        }
        let leader = *seen.leaders.entry(term).or_insert(server);
        if leader == server {
            return None;
        }
        seen.leaders.insert(term, server);
        Some(format!(
            "server {leader} led in term {term}, and server {server} does"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_a_term_and_a_server_that_goes_back_are_noticed() {
        let elections = Elections::default();
        assert_eq!(elections.note(1, 3, true), None);
        assert_eq!(elections.note(2, 3, false), None);
        assert_eq!(elections.note(1, 0, false), None);
        assert_eq!(elections.note(1, 3, true), None);
        assert_eq!(elections.note(3, 4, true), None);
        assert!(elections.note(2, 4, true).is_some());
        assert_eq!(elections.note(2, 4, true), None, "once");
        assert!(elections.note(1, 2, false).is_some());
    }
}
