//! A wall clock that can be set, for one process (libfaketime). Monotonic clocks stay true.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// Where Debian keeps the library, by processor.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// The wall clock of one server.
#[derive(Clone, Debug)]
pub struct WallClock {
    library: PathBuf,
    offset: PathBuf,
}

impl WallClock {
    /// A true clock whose setting is kept in the file at `offset`; `None`: libfaketime is not installed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(offset: &Path) -> anyhow::Result<Option<Self>> {
        let Some(library) = LIBRARIES.iter().map(PathBuf::from).find(|path| path.is_file()) else {
            return Ok(None);
        };
        let clock = Self {
            library,
            offset: offset.into(),
        };
        clock.set(0)?;
        Ok(Some(clock))
    }

    /// Jumps to `seconds` ahead of (or behind) the true time, at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, seconds: i64) -> anyhow::Result<()> {
        self.set_ms(seconds.saturating_mul(1_000))
    }

    /// As [`Self::set`], by milliseconds; a clock of another rate is one that is set again and again.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_ms(&self, ms: i64) -> anyhow::Result<()> {
        let sign = if ms < 0 { '-' } else { '+' };
        let ms = ms.unsigned_abs();
        // Renamed into place: the process reads it at any moment.
        let fresh = self.offset.with_extension("fresh");
        std::fs::write(&fresh, format!("{sign}{}.{:03}s\n", ms / 1_000, ms % 1_000))?;
        std::fs::rename(&fresh, &self.offset).context("setting a clock")
    }

    pub(super) fn give_to(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_TIMESTAMP_FILE", &self.offset)
            .env("FAKETIME_NO_CACHE", "1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_the_time_that_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let Some(clock) = WallClock::new(&folder.path().join("clock")).unwrap() else {
            return eprintln!("skipped: libfaketime is not installed");
        };
        let year = || {
            let mut date = Command::new("date");
            date.args(["-u", "+%s"]);
            clock.give_to(&mut date);
            String::from_utf8(date.output().unwrap().stdout)
                .unwrap()
                .trim()
                .parse::<i64>()
                .unwrap()
        };
        let now = year();
        clock.set(-86_400).unwrap();
        assert!((now - 86_402..now - 86_300).contains(&year()));
    }
}
