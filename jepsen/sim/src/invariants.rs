//! What must hold at every moment, and can be seen only by who looks into all servers at once.
//!
//! - Servers that applied the same log up to the same entry have the same state hash.
//! - A term has one leader.
//! - A server's applied state never goes back while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall_core::ids::LogPosition;
use rollcall_server::raft::SharedDirectory;

use crate::network::HostIndex;
use crate::server::Handles;

/// Findings beyond this many say nothing new.
const FINDINGS_MAX: usize = 20;

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    /// The state after an entry, and who was seen with it first.
    states: BTreeMap<(u64, u64), (u128, HostIndex)>,
    /// Who leads in a term.
    leaders: BTreeMap<u64, HostIndex>,
    leading: Option<(u64, HostIndex)>,
    /// How far each server had applied, and what it keeps its state in while it runs.
    applied: BTreeMap<HostIndex, (Arc<SharedDirectory>, LogPosition)>,
    pub(crate) compared: u64,
    pub(crate) findings: Vec<String>,
}

impl Invariants {
    pub(crate) fn find(&mut self, what: String) {
        if self.findings.len() < FINDINGS_MAX && !self.findings.contains(&what) {
            self.findings.push(what);
        }
    }

    /// Who leads in the highest term that has a leader.
    pub(crate) fn leader(&self) -> Option<HostIndex> {
        self.leading.map(|(_, server)| server)
    }

    /// The highest term in which somebody led.
    pub(crate) fn term(&self) -> u64 {
        self.leading.map_or(0, |(term, _)| term)
    }

    /// How many terms had a leader.
    pub(crate) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// Looks at servers that run; gives leaders of terms that had none before.
    pub(crate) fn look(&mut self, servers: &[(HostIndex, Handles)]) -> Vec<(HostIndex, u64)> {
        let mut new = Vec::new();
        for (server, handles) in servers {
            let leadership = *handles.consensus.leadership().borrow();
            if leadership.leading {
                let term = leadership.term.0;
                match self.leaders.insert(term, *server) {
                    Some(other) if other != *server => self.find(format!(
                        "servers {} and {} both lead in term {term}",
                        other + 1,
                        server + 1
                    )),
                    Some(_) => {}
                    None => new.push((*server, term)),
                }
                if self.leading.is_none_or(|(of, _)| of < term) {
                    self.leading = Some((term, *server));
                }
            }
            let position = handles.consensus.applied_head().borrow().position;
            if let Some(position) = position {
                let LogPosition { term, index } = position;
                let state = handles.consensus.directory().clone();
                let before = self.applied.insert(*server, (state.clone(), position));
                let before = before.filter(|(same, _)| Arc::ptr_eq(same, &state));
                if let Some((_, before)) = before.filter(|(_, before)| *before > position) {
                    self.find(format!(
                        "server {} had applied entry {} and has only applied entry {} now",
                        server + 1,
                        before.index.0,
                        index.0
                    ));
                }
                let hash = handles.consensus.directory().read().state_hash();
                self.compared += 1;
                let seen = *self.states.entry((index.0, term.0)).or_insert((hash, *server));
                if seen.0 != hash {
                    self.find(format!(
                        "after entry {} of term {} servers {} and {} have different states ({:032x}, {hash:032x})",
                        index.0,
                        term.0,
                        seen.1 + 1,
                        server + 1,
                        seen.0
                    ));
                }
            }
        }
        // Only what somebody may still reach is worth remembering.
        while self.states.len() > 100_000 {
            self.states.pop_first();
        }
        new
    }
}
