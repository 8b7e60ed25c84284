//! Who leads, as it was seen last.

use std::sync::{Arc, Mutex, PoisonError};

/// A leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Led {
    /// Which server; 0: none was seen yet.
    pub server: u64,
    /// In which term.
    pub term: u64,
}

/// The leader of the highest term that was seen to have one. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Leading(Arc<Mutex<Led>>);

impl Leading {
    /// A server says that it leads; `true`: nobody was seen to lead in this or a later term before.
    pub fn note(&self, led: Led) -> bool {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = led.term > latest.term;
        if is_news {
            *latest = led;
        }
        is_news
    }

    /// The latest.
    #[must_use]
    pub fn latest(&self) -> Led {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
