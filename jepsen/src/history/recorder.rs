//! The recorder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::answer::Answer;
use super::ap::Ap;
use super::following::Following;
use super::guarding::Guarding;
use super::heartbeats::Heartbeats;
use super::operation::Operation;
use super::ownership::Ownership;
use super::stampede::Stampede;

/// Most records of a run. Beyond, [`History::is_full`] says so, and whatever runs stops.
pub const RECORDS_MAX: usize = 4_000_000;

/// Something that was done to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What, as a sentence.
    pub what: String,
    /// When it began.
    pub time: Duration,
    /// When it ended.
    pub end: Duration,
    /// Whether it was seen to do something to somebody.
    pub bit: bool,
    /// What was seen of it from outside; empty: nothing was looked for.
    pub effect: String,
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An operation on a register.
    Operation(Operation),
    /// About a session.
    Heartbeats(Heartbeats),
    /// About a group that any server may write to.
    Ap(Ap),
    /// About a watcher.
    Following(Following),
    /// About a guarded service.
    Guarding(Guarding),
    /// About a node that changes hands.
    Ownership(Ownership),
    /// About a stampede.
    Stampede(Stampede),
    /// About an answer.
    Answer(Answer),
    /// A fault, written down when it has ended.
    Fault(Fault),
    /// A promise that was seen broken on the spot.
    Broken(Duration, String),
    /// Anything else that a reader of the history may want to know.
    Note(Duration, String),
}

/// A history in the making. Clones share it.
#[derive(Clone, Debug)]
pub struct History {
    started: Instant,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug)]
struct Kept {
    records: Vec<Record>,
    records_max: usize,
    /// When the first record found no room.
    full_since: Option<Duration>,
    file: Option<BufWriter<File>>,
    failed: Option<String>,
}

impl History {
    /// Starts the clock. Lines go to the file at `path` as well, if there is one.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn start(path: Option<&Path>) -> anyhow::Result<Self> {
        Self::with_room(path, RECORDS_MAX)
    }

    fn with_room(path: Option<&Path>, records_max: usize) -> anyhow::Result<Self> {
        let create = |path: &Path| File::create(path).with_context(|| format!("creating {}", path.display()));
        let kept = Kept {
            records: Vec::new(),
            records_max,
            full_since: None,
            file: path.map(create).transpose()?.map(BufWriter::new),
            failed: None,
        };
        Ok(Self {
            started: Instant::now(),
            kept: Arc::new(Mutex::new(kept)),
        })
    }

    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Writes one record down. Beyond [`RECORDS_MAX`] it is dropped, and [`Self::full_since`] tells.
    pub fn record(&self, record: Record) {
        let mut kept = self.lock();
        if kept.records.len() >= kept.records_max {
            kept.full_since.get_or_insert(self.started.elapsed());
            return;
        }
        let line = line(&record);
        if let Some(file) = &mut kept.file
            && let Err(error) = writeln!(file, "{line}")
        {
            kept.failed.get_or_insert(error.to_string());
        }
        kept.records.push(record);
    }

    /// Writes down something for readers.
    pub fn note(&self, what: impl Into<String>) {
        self.record(Record::Note(self.now(), what.into()));
    }

    /// Whether there is no room for more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let kept = self.lock();
        kept.records.len() >= kept.records_max
    }

    /// When it was that something could not be written down any more. From then on nothing was judged.
    #[must_use]
    pub fn full_since(&self) -> Option<Duration> {
        self.lock().full_since
    }

    /// What that leaves undecided.
    #[must_use]
    pub fn undecided(&self) -> Option<String> {
        let since = self.full_since()?;
        Some(format!(
            "the history was full at {since:?}, and nothing was written down any more"
        ))
    }

    /// Everything so far, in the order in which it was written down.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.lock().records.clone()
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// A line could not be written, now or before: the file is not whole.
    pub fn flush(&self) -> anyhow::Result<()> {
        let mut kept = self.lock();
        if let Some(failed) = &kept.failed {
            anyhow::bail!("the history was not written: {failed}");
        }
        kept.file
            .as_mut()
            .map_or(Ok(()), Write::flush)
            .context("writing the history")
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds with microseconds behind the point, in every line alike.
fn milliseconds(time: Duration) -> Value {
    let micros = time.subsec_micros();
    let whole = time.as_secs_f64().trunc() * 1_000.0;
    json!(whole + f64::from(micros) / 1_000.0)
}

fn line(record: &Record) -> Value {
    match record {
        Record::Operation(operation) => operation.to_json(milliseconds(operation.time)),
        Record::Heartbeats(heartbeats) => heartbeats.to_json(milliseconds),
        Record::Ap(ap) => ap.to_json(milliseconds),
        Record::Following(following) => following.to_json(milliseconds),
        Record::Guarding(guarding) => guarding.to_json(milliseconds),
        Record::Ownership(ownership) => ownership.to_json(milliseconds),
        Record::Stampede(stampede) => stampede.to_json(milliseconds),
        Record::Answer(answer) => answer.to_json(milliseconds),
        Record::Fault(fault) => json!({
            "type": "fault", "what": fault.what, "time": milliseconds(fault.time), "end": milliseconds(fault.end),
            "bit": fault.bit, "effect": fault.effect,
        }),
        Record::Broken(time, what) => {
            json!({ "type": "broken", "what": what, "time": milliseconds(*time) })
        }
        Record::Note(time, what) => json!({ "type": "note", "what": what, "time": milliseconds(*time) }),
    }
}

impl Record {
    /// When it happened, or began.
    #[must_use]
    pub fn time(&self) -> Duration {
        match self {
            Self::Operation(operation) => operation.time,
            Self::Heartbeats(heartbeats) => heartbeats.time(),
            Self::Ap(ap) => ap.time(),
            Self::Following(following) => following.time(),
            Self::Guarding(guarding) => guarding.time(),
            Self::Ownership(ownership) => ownership.time(),
            Self::Stampede(stampede) => stampede.time(),
            Self::Answer(answer) => answer.time(),
            Self::Fault(fault) => fault.time,
            Self::Broken(time, _) | Self::Note(time, _) => *time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation::{Function, Phase};
    use super::*;

    #[test]
    fn lines_have_the_agreed_form() {
        let operation = |function, phase| Operation {
            process: 3,
            key: 7,
            function,
            phase,
            time: Duration::from_micros(1_500_250),
        };
        let read = operation(
            Function::Read,
            Phase::Ok {
                value: None,
                revision: 9,
            },
        );
        let cas = operation(Function::Cas(None, 5), Phase::Info);
        let beat = Heartbeats::Beat {
            session: 1,
            sent: Duration::from_millis(2),
            end: None,
            acknowledged: None,
        };
        let lines = [
            Record::Operation(read),
            Record::Operation(cas),
            Record::Heartbeats(beat),
            Record::Note(Duration::from_secs(3), "x".into()),
        ];
        let lines: Vec<String> = lines.iter().map(|record| line(record).to_string()).collect();
        assert_eq!(
            lines,
            [
                r#"{"f":"read","key":7,"process":3,"rev":9,"time":1500.25,"type":"ok","value":null}"#,
                r#"{"f":"cas","key":7,"process":3,"time":1500.25,"type":"info","value":[null,5]}"#,
                r#"{"end":null,"ev":"beat","id":1,"ok":null,"time":2.0,"type":"session"}"#,
                r#"{"time":3000.0,"type":"note","what":"x"}"#,
            ]
        );
    }

    #[test]
    fn a_full_history_says_since_when_it_is_silent() {
        let history = History::with_room(None, 2).unwrap();
        history.note("one");
        assert!(!history.is_full());
        history.note("two");
        assert!(history.is_full());
        assert_eq!(history.undecided(), None, "nothing is missing yet");
        history.record(Record::Broken(Duration::ZERO, "lost".into()));
        history.note("lost, too");
        assert_eq!(history.records().len(), 2);
        let since = history.full_since().unwrap();
        assert!(since <= history.now());
        let undecided = history.undecided().unwrap();
        assert!(undecided.contains(&format!("{since:?}")), "{undecided}");
    }
}
