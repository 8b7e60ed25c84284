//! What is said to people on stderr, beside what goes to stdout.

use std::io::Write;

/// A line on stderr. Nobody there to read it is no reason to end what goes on.
pub(crate) fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
