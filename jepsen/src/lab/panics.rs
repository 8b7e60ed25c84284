//! Panics of servers, as their logs tell of them. A task that panics ends alone: the server goes on without it, and nothing
//! else may show.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// What the standard library says of each.
const WORDS: &str = "panicked at";

/// The panics that the logs in a folder tell of, each with the name of its log. Logs of servers that were replaced are there
/// still.
///
/// # Errors
/// A log cannot be read.
pub fn panics_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|of| of != "log") || !path.is_file() {
            continue;
        }
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = path
            .file_stem()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        found.extend(panics(&String::from_utf8_lossy(&text)).map(|panic| format!("{name}: {panic}")));
    }
    found.sort();
    Ok(found)
}

/// Where each was, and what it said.
fn panics(log: &str) -> impl Iterator<Item = String> {
    let mut lines = log.lines().peekable();
    std::iter::from_fn(move || {
        let place = lines.find(|line| line.contains(WORDS))?;
        let said = lines.peek().copied().unwrap_or_default();
        Some(format!("{place} {said}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_in_every_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        log("server-1.log", "INFO it leads\nWARN a watcher was dropped\n");
        log(
            "server-2.log",
            "INFO ready\n\nthread 'tokio-rt-worker' (9) panicked at server/src/watch/hub.rs:9:5:\nit has a position\n\
             note: run with `RUST_BACKTRACE=1`\nINFO it goes on\nthread 'main' panicked at x.rs:1:1:",
        );
        log("server-1.clock", "panicked at");
        fs::create_dir(folder.path().join("server-3.log")).unwrap();
        let found = panics_in(folder.path()).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[1].starts_with("server-2: thread 'tokio-rt-worker'"),
            "{found:?}"
        );
        assert!(found[1].ends_with("hub.rs:9:5: it has a position"), "{found:?}");
        assert!(panics_in(&folder.path().join("none")).is_err());
    }
}
