//! A server program that can have bugs.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// What chooses a mutant.
pub(super) const VARIABLE: &str = "ROLLCALL_MUTANT";

/// A `rollcalld` built with the feature `mutants`.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    /// One program for each mutant, which chooses it and is the server then.
    launchers: PathBuf,
}

impl Program {
    /// Builds it in `target/mutants`, so that nothing else is built again. As fast as it builds: an hour's tests on it are
    /// no figures of speed.
    ///
    /// # Errors
    /// It does not build.
    pub fn build() -> anyhow::Result<Self> {
        let root = workspace();
        let target = root.join("target/mutants");
        let mut build = Command::new("cargo");
        build
            .current_dir(&root)
            .args(["build", "--quiet", "--package", "rollcall-server"])
            .args(["--features", "mutants", "--bin", "rollcalld", "--target-dir"])
            .arg(&target)
            .env("CARGO_INCREMENTAL", "0");
        let status = build.status().context("starting cargo")?;
        ensure!(status.success(), "the server with mutants does not build");
        Self::at(&target.join("debug/rollcalld"))
    }

    /// One that was built before.
    ///
    /// # Errors
    /// There is none.
    pub fn at(path: &Path) -> anyhow::Result<Self> {
        let path = std::fs::canonicalize(path).with_context(|| format!("looking for {}", path.display()))?;
        let folder = path.parent().context("a program lies in a folder")?;
        Ok(Self {
            launchers: folder.join("launchers"),
            path,
        })
    }

    /// Its mutants, by its own word: names, and what each does wrong.
    ///
    /// # Errors
    /// It knows of none: it was built without them.
    pub fn mutants(&self) -> anyhow::Result<Vec<(String, String)>> {
        let listed = Command::new(&self.path).arg("--mutants").output();
        let listed = listed.with_context(|| format!("starting {}", self.path.display()))?;
        ensure!(
            listed.status.success(),
            "{} was built without the feature mutants",
            self.path.display()
        );
        let text = String::from_utf8(listed.stdout).context("names of mutants are text")?;
        let mutants = text.lines().filter_map(|line| line.split_once('\t'));
        Ok(mutants
            .map(|(name, breaks)| (name.to_owned(), breaks.to_owned()))
            .collect())
    }

    /// A program that is this server with one bug, or with none.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn with(&self, mutant: Option<&str>) -> anyhow::Result<PathBuf> {
        let Some(mutant) = mutant else {
            return Ok(self.path.clone());
        };
        std::fs::create_dir_all(&self.launchers)
            .with_context(|| format!("creating {}", self.launchers.display()))?;
        let launcher = self.launchers.join(mutant);
        let mut script = String::from("#!/bin/sh\n");
        // It becomes the server: signals reach the one that they are meant for.
        writeln!(
            script,
            "{VARIABLE}={mutant} exec '{}' \"$@\"",
            self.path.display()
        )?;
        std::fs::write(&launcher, script).with_context(|| format!("writing {}", launcher.display()))?;
        std::fs::set_permissions(&launcher, PermissionsExt::from_mode(0o755))?;
        Ok(launcher)
    }
}

/// Where the sources are: those that this program was built from, if they are still there.
pub(super) fn workspace() -> PathBuf {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
    let above = |folder: &Path| {
        folder
            .ancestors()
            .find(|folder| folder.join("server/core/Cargo.toml").is_file())
            .map(Path::to_owned)
    };
    above(built_from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_chooses_its_mutant_and_passes_everything_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server");
        std::fs::write(&path, "#!/bin/sh\necho \"$ROLLCALL_MUTANT $1 $2\"\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let program = Program::at(&path).unwrap();
        let launched = Command::new(program.with(Some("skip-fsync")).unwrap())
            .args(["--data", "a b"])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&launched.stdout),
            "skip-fsync --data a b\n"
        );
        assert_eq!(program.with(None).unwrap(), std::fs::canonicalize(path).unwrap());
    }
}
