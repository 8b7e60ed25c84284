//! What goes wrong again and again is said twice: when it begins and when it ends. A disk that is full of lines is not
//! helped by another each second.

use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Trouble(AtomicBool);

impl Trouble {
    /// It went wrong; whether that is news.
    pub(crate) fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// It went well; whether that is news.
    pub(crate) fn ends(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_news_when_it_begins_and_when_it_ends() {
        let trouble = Trouble::default();
        assert!(!trouble.ends());
        assert!(trouble.begins());
        assert!(!trouble.begins());
        assert!(trouble.ends());
        assert!(!trouble.ends() && trouble.begins());
    }
}
