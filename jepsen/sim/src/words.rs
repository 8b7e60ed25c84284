//! What servers say in their logs: to whoever set `RUST_LOG`, and the one thing to judges that nothing but the log tells.
//!
//! A leader that lost its quorum and found it again in the same term grants every session a full ttl, as a new one does.

use std::cell::Cell;
use std::fmt;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, registry};

const ANEW: &str = "every session has a full ttl again";

thread_local! {
    static HEARD: Cell<bool> = const { Cell::new(false) };
}

static LISTENING: Once = Once::new();

/// From now on words are heard.
pub(crate) fn listen() {
    LISTENING.call_once(|| {
        let spoken = std::env::var_os("RUST_LOG").map(|_| {
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_filter(EnvFilter::from_default_env())
        });
        let heard = Listening.with_filter(LevelFilter::WARN);
        // Whoever uses this as a library may have a subscriber already.
        let _ = registry().with(heard).with(spoken).try_init();
    });
}

/// Whether a leader on this thread began anew since this was asked last.
pub(crate) fn take_anew() -> bool {
    HEARD.take()
}

struct Listening;

impl<S: Subscriber> Layer<S> for Listening {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut Words);
    }
}

struct Words;

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" && format!("{value:?}").contains(ANEW) {
            HEARD.set(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_begins_anew_is_heard_once_on_its_thread() {
        listen();
        assert!(!take_anew());
        tracing::warn!("something else");
        assert!(!take_anew());
        tracing::warn!(deaf_ms = 3, "it heard nobody; every session has a full ttl again");
        assert!(std::thread::spawn(|| !take_anew()).join().unwrap());
        assert!(take_anew() && !take_anew());
    }
}
