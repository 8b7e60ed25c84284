//! What happened when.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most events kept; later ones are counted, not kept.
const EVENTS_MAX: usize = 100_000;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, on the timeline's own monotonic clock.
    pub at: Duration,
    /// Who did or saw it.
    pub who: String,
    /// What, as a sentence.
    pub what: String,
}

/// A list of events on one monotonic clock. Clones share it.
#[derive(Clone, Debug)]
pub struct Timeline {
    started: Instant,
    live: bool,
    events: Arc<Mutex<Events>>,
}

#[derive(Debug, Default)]
struct Events {
    kept: Vec<Event>,
    dropped: usize,
}

impl Timeline {
    /// Starts the clock. `live`: each event is printed on stdout as it comes.
    #[must_use]
    pub fn start(live: bool) -> Self {
        Self {
            started: Instant::now(),
            live,
            events: Arc::default(),
        }
    }

    /// The moment that is 0.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Records that `who` did or saw `what`, now.
    pub fn note(&self, who: &str, what: impl Into<String>) {
        self.note_at(Instant::now(), who, what);
    }

    /// Records it for a moment that has passed.
    pub fn note_at(&self, at: Instant, who: &str, what: impl Into<String>) {
        let event = Event {
            at: at.saturating_duration_since(self.started),
            who: who.into(),
            what: what.into(),
        };
        if self.live {
            println!("{}", line(&event));
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.kept.len() < EVENTS_MAX {
            events.kept.push(event);
        } else {
            events.dropped += 1;
        }
    }

    /// All events so far, earliest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = self
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .kept
            .clone();
        events.sort_by_key(|event| event.at);
        events
    }

    /// For people: one line each.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for event in self.events() {
            let _ = writeln!(text, "{}", line(&event));
        }
        let dropped = self.events.lock().unwrap_or_else(PoisonError::into_inner).dropped;
        if dropped > 0 {
            let _ = writeln!(text, "({dropped} later events were not kept)");
        }
        text
    }

    /// For programs: `[{"at_ms":..,"who":..,"what":..}]`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let event = |event: Event| {
            let at_ms = u64::try_from(event.at.as_millis()).unwrap_or(u64::MAX);
            serde_json::json!({ "at_ms": at_ms, "who": event.who, "what": event.what })
        };
        self.events().into_iter().map(event).collect()
    }
}

fn line(event: &Event) -> String {
    format!(
        "{:>9.3} s  {:<10}  {}",
        event.at.as_secs_f64(),
        event.who,
        event.what
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_in_the_order_of_their_time() {
        let timeline = Timeline::start(false);
        let start = timeline.started();
        timeline.note_at(start + Duration::from_millis(20), "watcher", "saw it");
        timeline.note_at(start + Duration::from_millis(10), "director", "did it");
        let whos: Vec<_> = timeline.events().into_iter().map(|event| event.who).collect();
        assert_eq!(whos, ["director", "watcher"]);
        assert!(timeline.render().starts_with("    0.010 s  director    did it\n"));
    }
}
