//! Operations on registers: one record each, with values that are never written twice.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// What an operation does; `None` is absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Function {
    /// Reads the record; the outcome carries the value.
    Read,
    /// Writes it, whatever it was.
    Write(u64),
    /// Writes the second value if it holds the first.
    Cas(Option<u64>, u64),
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Written down before the request leaves.
    Invoke,
    /// It happened; a read saw this value, at this revision of the registry.
    Ok {
        /// What a read saw.
        value: Option<u64>,
        /// The revision that the answer carried; 0: none.
        revision: u64,
    },
    /// It surely did not happen.
    Fail,
    /// Nobody knows. This process number is not used again.
    Info,
}

/// One line: an operation began, or came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who; at most one operation of a process is open at a time.
    pub process: u64,
    /// On which record.
    pub key: u64,
    /// What.
    pub function: Function,
    /// How far.
    pub phase: Phase,
    /// When.
    pub time: Duration,
}

impl Operation {
    pub(super) fn to_json(&self, time: Value) -> Value {
        let (kind, revision) = match self.phase {
            Phase::Invoke => ("invoke", None),
            Phase::Ok { revision, .. } => ("ok", (revision > 0).then_some(revision)),
            Phase::Fail => ("fail", None),
            Phase::Info => ("info", None),
        };
        let (function, value) = match (&self.function, self.phase) {
            (Function::Read, Phase::Ok { value, .. }) => ("read", json!(value)),
            (Function::Read, _) => ("read", Value::Null),
            (Function::Write(value), _) => ("write", json!(value)),
            (Function::Cas(old, new), _) => ("cas", json!([old, new])),
        };
        let mut line = json!({
            "process": self.process, "type": kind, "f": function, "key": self.key, "value": value, "time": time,
        });
        if let (Some(revision), Some(line)) = (revision, line.as_object_mut()) {
            line.insert("rev".into(), json!(revision));
        }
        line
    }
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It happened, with what a read saw and the answer's revision.
    Ok {
        /// What a read saw.
        value: Option<u64>,
        /// The revision that the answer carried.
        revision: u64,
        /// When the answer arrived.
        at: Duration,
    },
    /// It surely did not happen.
    Fail,
    /// It may have happened, any time after it began.
    Unknown,
}

/// Beginnings with their ends, in the order in which they began. What never ended is unknown.
#[must_use]
pub fn pair<'a>(lines: impl IntoIterator<Item = &'a Operation>) -> Vec<(&'a Operation, Outcome)> {
    let mut paired: Vec<(&Operation, Outcome)> = Vec::new();
    let mut open: BTreeMap<u64, usize> = BTreeMap::new();
    for line in lines {
        let outcome = match line.phase {
            Phase::Invoke => {
                open.insert(line.process, paired.len());
                paired.push((line, Outcome::Unknown));
                continue;
            }
            Phase::Ok { value, revision } => Outcome::Ok {
                value,
                revision,
                at: line.time,
            },
            Phase::Fail => Outcome::Fail,
            Phase::Info => Outcome::Unknown,
        };
        if let Some(index) = open.remove(&line.process) {
            paired[index].1 = outcome;
        }
    }
    paired
}
