//! Progress of long work: on stderr, and only where a person looks on.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Repaints a second.
const REPAINT: Duration = Duration::from_millis(200);

/// A bar (or a counter, if the end is unknown) that counts what was done.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    done: Arc<AtomicU64>,
}

impl Progress {
    /// Work of known length.
    pub(crate) fn of(total: u64, doing: &str) -> Self {
        Self::draw(Some(total), doing)
    }

    /// Work that ends when its time is over.
    pub(crate) fn counting(doing: &str) -> Self {
        Self::draw(None, doing)
    }

    /// Work that nobody looks at.
    pub(crate) fn silent() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            done: Arc::new(AtomicU64::new(0)),
        }
    }

    fn draw(total: Option<u64>, doing: &str) -> Self {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        if std::io::stderr().is_terminal() {
            let template = match total {
                Some(_) => "{msg} [{bar:32}] {human_pos}/{human_len} {per_sec} {elapsed}",
                None => "{msg} {spinner} {human_pos} {per_sec} {elapsed}",
            };
            let style = ProgressStyle::with_template(template).expect("the templates are fixed and valid");
            bar.set_style(style.progress_chars("=> "));
            bar.set_message(doing.to_owned());
            bar.enable_steady_tick(REPAINT);
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self {
            bar,
            done: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Cheap enough for a hot loop: the bar itself is moved only every 64th time.
    pub(crate) fn add(&self, more: u64) {
        let before = self.done.fetch_add(more, Ordering::Relaxed);
        if (before ^ (before + more)) >> 6 != 0 {
            self.bar.set_position(before + more);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if Arc::strong_count(&self.done) == 1 {
            self.bar.finish_and_clear();
        }
    }
}
