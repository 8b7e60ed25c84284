//! What has to be undone on this machine, also after a crash.
//!
//! Whoever changes the machine (a namespace, a mount) holds a *claim*: a numbered file under `/run/rollcall-lab`,
//! locked for as long as its owner lives, with a line for each thing to undo. The kernel releases the lock with its
//! owner. The next claim sweeps first: whatever stands in a file that nobody locks is undone. Nothing that no such
//! file names is ever touched.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::command::run;

/// Most claims on one machine at a time.
const CLAIMS_MAX: u8 = 100;
/// Most processes that a sweep ends in one namespace.
const STRAY_PROCESSES_MAX: usize = 256;
const FOLDER: &str = "/run/rollcall-lab";
/// Where `ip netns` keeps its names.
const NAMESPACES: &str = "/run/netns";

/// A locked number, and what its owner has to undo. Dropping it undoes it.
#[derive(Debug)]
pub(crate) struct Claim {
    number: u8,
    file: File,
    duties: Vec<Duty>,
}

/// Something to undo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// A network namespace.
    Namespace(String),
    /// A mounted file system, frozen perhaps.
    Mount(PathBuf),
    /// A control group; what runs in it goes back to its parent.
    ControlGroup(PathBuf),
}

impl Claim {
    /// Sweeps, then takes the lowest free number.
    ///
    /// # Errors
    /// The folder cannot be written (the reason to give is that this is not root), or all numbers are taken.
    pub(crate) fn take() -> anyhow::Result<Self> {
        Self::take_in(Path::new(FOLDER))
    }

    fn take_in(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        // Taking and sweeping exclude each other: a fresh file is not yet locked for a moment.
        let gate = open(&folder.join("gate"))?;
        gate.lock().context("locking the gate")?;
        let mut free = None;
        for number in 0..CLAIMS_MAX {
            let path = folder.join(format!("{number}.claim"));
            let known = path.exists();
            if !known && free.is_some() {
                continue;
            }
            let file = open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            let mut claim = Self {
                number,
                duties: read_duties(&file)?,
                file,
            };
            claim.settle();
            if free.is_none() {
                free = Some(claim);
            } else {
                std::fs::remove_file(&path)?;
            }
        }
        free.with_context(|| format!("{CLAIMS_MAX} networks or disks of a lab are in use"))
    }

    /// This owner's number, unique among those alive.
    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// Writes down what has to be undone. Call it before doing the thing.
    pub(crate) fn promise(&mut self, duty: Duty) -> anyhow::Result<()> {
        let line = match &duty {
            Duty::Namespace(name) => format!("namespace {name}\n"),
            Duty::Mount(path) => format!("mount {}\n", path.display()),
            Duty::ControlGroup(path) => format!("cgroup {}\n", path.display()),
        };
        if line.lines().count() != 1 {
            bail!("a line break in {line:?}");
        }
        self.file.seek(SeekFrom::End(0))?;
        self.file
            .write_all(line.as_bytes())
            .context("writing down what to undo")?;
        self.duties.push(duty);
        Ok(())
    }

    /// Lets go without undoing anything, as a crash does.
    #[cfg(test)]
    pub(crate) fn abandon(mut self) {
        self.duties.clear();
        let text = std::fs::read_to_string(Path::new(FOLDER).join(format!("{}.claim", self.number)));
        assert!(!text.unwrap().is_empty());
        self.file = tempfile::tempfile().unwrap();
    }

    /// Undoes everything, the latest first.
    fn settle(&mut self) {
        while let Some(duty) = self.duties.pop() {
            match duty {
                Duty::Namespace(name) => remove_namespace(&name),
                Duty::Mount(path) => {
                    // Nobody who waits for a frozen file system can be ended. Most are not frozen, and say so.
                    let _ = run("fsfreeze", &["--unfreeze".as_ref(), path.as_os_str()], "");
                    let _ = run("umount", &["--lazy".as_ref(), path.as_os_str()], "");
                }
                Duty::ControlGroup(path) => remove_control_group(&path),
            }
        }
        let _ = self.file.set_len(0);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.settle();
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

fn read_duties(mut file: &File) -> anyhow::Result<Vec<Duty>> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let duty = |line: &str| match line.split_once(' ')? {
        // A name that is not ours is not touched, whoever wrote it.
        ("namespace", name) if name.starts_with("rc-") && !name.contains('/') => {
            Some(Duty::Namespace(name.into()))
        }
        ("mount", path) if path.contains("rollcall-lab-") => Some(Duty::Mount(path.into())),
        ("cgroup", path) if path.starts_with("/sys/fs/cgroup/") && path.contains("/rc-") => {
            Some(Duty::ControlGroup(path.into()))
        }
        _ => None,
    };
    Ok(text.lines().filter_map(duty).collect())
}

/// Ends what still runs in it, then removes it.
fn remove_namespace(name: &str) {
    if !Path::new(NAMESPACES).join(name).exists() {
        return;
    }
    let pids = run("ip", &["netns", "pids", name], "").unwrap_or_default();
    for pid in pids.split_whitespace().take(STRAY_PROCESSES_MAX) {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = run("ip", &["netns", "del", name], "");
}

fn remove_control_group(path: &Path) {
    let parent = path.parent().unwrap_or(path).join("cgroup.procs");
    let pids = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().take(STRAY_PROCESSES_MAX) {
        let _ = std::fs::write(&parent, pid);
    }
    let _ = std::fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_while_their_owners_live() {
        let folder = tempfile::tempdir().unwrap();
        let one = Claim::take_in(folder.path()).unwrap();
        let two = Claim::take_in(folder.path()).unwrap();
        assert_eq!((one.number(), two.number()), (0, 1));
        drop(one);
        assert_eq!(Claim::take_in(folder.path()).unwrap().number(), 0);
    }

    #[test]
    fn what_a_dead_owner_promised_is_read_back_and_foreign_names_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.claim");
        std::fs::write(
            &path,
            "namespace rc-0-1\nnamespace default\nmount /tmp/rollcall-lab-x/d\nmount /\n\
             cgroup /sys/fs/cgroup/cpu\ncgroup /sys/fs/cgroup/cpu/rc-3\ntorn",
        )
        .unwrap();
        let duties = read_duties(&open(&path).unwrap()).unwrap();
        assert_eq!(
            duties,
            [
                Duty::Namespace("rc-0-1".into()),
                Duty::Mount("/tmp/rollcall-lab-x/d".into()),
                Duty::ControlGroup("/sys/fs/cgroup/cpu/rc-3".into())
            ]
        );
    }
}
