//! Where the programs under test are.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The server program: `$ROLLCALLD`, else what cargo built for the running test, else the `rollcalld` next to
/// the running program.
///
/// # Errors
/// None of these exists; the message says what to build.
pub fn rollcalld() -> anyhow::Result<PathBuf> {
    find("rollcalld", "ROLLCALLD")
}

/// The program `name`: the path in the variable `variable`, else `$CARGO_BIN_EXE_name`, else in the folder of
/// the running program or the one above it (tests run from `target/debug/deps`).
///
/// # Errors
/// None of these exists; the message says what to build.
pub fn find(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    for variable in [variable.to_owned(), format!("CARGO_BIN_EXE_{name}")] {
        if let Some(path) = std::env::var_os(&variable).filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            if !path.is_file() {
                bail!("{variable} names {}, which is not a file", path.display());
            }
            return Ok(path);
        }
    }
    let current = std::env::current_exe().context("the running program's own path is unknown")?;
    let folders = current.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| missing(name, variable, &current))
}

fn missing(name: &str, variable: &str, current: &Path) -> String {
    format!(
        "no {name} next to {}; build it (`cargo build --bin {name}`) or name it in {variable}",
        current.display()
    )
}
