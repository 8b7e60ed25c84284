//! The disks of the servers.
//!
//! The log lies in a [`Table`] in memory with a durable part and the batches written behind it. Files (mark, snapshots,
//! identity, epochs) are real ones in a folder in memory; what of them is durable is noted when they and their folders
//! are synced. A crash of the process loses nothing that was written; a loss of power loses what was not synced: of
//! the table some or all of the last batches, of the files either nothing (it happened to be written) or everything
//! behind the last syncs.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_jepsen::seed::Seeded;
use rollcall_server::ground::{Change, Family, Row, Simulation, Table};
use tempfile::TempDir;

use crate::network::HostIndex;

type Rows = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

/// A table of a server.
#[derive(Debug, Default)]
pub(crate) struct MemoryTable {
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    /// As the server sees it.
    current: Rows,
    durable: Rows,
    /// Written behind the durable part, the oldest first.
    unsynced: VecDeque<Vec<Change>>,
    /// So many more syncs succeed.
    syncs_left: Option<u64>,
    syncs: u64,
}

fn apply(rows: &mut Rows, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put { family, key, value } => _ = rows.insert((*family, key.clone()), value.clone()),
            Change::Remove { family, key } => _ = rows.remove(&(*family, key.clone())),
            Change::RemoveRange { family, from, to } => {
                let range = (*family, from.clone())..(*family, to.clone());
                let gone: Vec<_> = rows.range(range).map(|(key, _)| key.clone()).collect();
                for key in gone {
                    rows.remove(&key);
                }
            }
        }
    }
}

impl MemoryTable {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes: of what was not synced some batches stay, and none behind one that is lost.
    fn lose_power(&self, random: &mut Seeded) -> u64 {
        let mut content = self.lock();
        let written = content.unsynced.len() as u64;
        let kept = random.below(written + 1);
        for _ in 0..kept {
            if let Some(batch) = content.unsynced.pop_front() {
                apply(&mut content.durable, &batch);
            }
        }
        content.unsynced.clear();
        content.current = content.durable.clone();
        written - kept
    }

    fn repair(&self) {
        self.lock().syncs_left = None;
    }
}

impl Table for MemoryTable {
    fn write(&self, changes: Vec<Change>) -> io::Result<()> {
        let mut content = self.lock();
        if content.syncs_left == Some(0) {
            return Err(io::Error::from_raw_os_error(5));
        }
        apply(&mut content.current, &changes);
        content.unsynced.push_back(changes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut content = self.lock();
        match &mut content.syncs_left {
            Some(0) => return Err(io::Error::from_raw_os_error(5)),
            Some(left) => *left -= 1,
            None => {}
        }
        content.syncs += 1;
        while let Some(batch) = content.unsynced.pop_front() {
            apply(&mut content.durable, &batch);
        }
        Ok(())
    }

    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock().current.get(&(family, key.to_vec())).cloned())
    }

    fn rows_from(&self, family: Family, key: &[u8]) -> io::Result<Vec<Row>> {
        let content = self.lock();
        let rows = content
            .current
            .range((family, key.to_vec())..)
            .take_while(|((of, _), _)| *of == family);
        Ok(rows
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }
}

/// What of a file is durable, by its number in the file system.
type Inode = u64;

#[derive(Debug, Default)]
struct Disk {
    table: Arc<MemoryTable>,
    /// The folder that is in use.
    folder: PathBuf,
    /// Contents as they were synced last.
    synced: BTreeMap<Inode, Rc<Vec<u8>>>,
    /// Names that are durable, relative to the folder.
    names: BTreeMap<PathBuf, Inode>,
    starts: u64,
    slow: bool,
}

impl Disk {
    /// Copies the files. A lock on one of them stays with the copy that the program before had: what remains of that is
    /// no other process.
    fn copy_to(&mut self, next: &Path) -> io::Result<()> {
        for (name, inode) in files(&self.folder, Path::new(""))? {
            let path = next.join(&name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::copy(self.folder.join(&name), &path)?;
            let copied = std::fs::metadata(&path)?.ino();
            if let Some(content) = self.synced.get(&inode).cloned() {
                self.synced.insert(copied, content);
            }
            for durable in self.names.values_mut().filter(|durable| **durable == inode) {
                *durable = copied;
            }
        }
        Ok(())
    }
}

/// The files in a folder and those below it, by their names from `root` on.
fn files(root: &Path, inside: &Path) -> io::Result<Vec<(PathBuf, Inode)>> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(root.join(inside))? {
        let item = item?;
        let (name, metadata) = (inside.join(item.file_name()), item.metadata()?);
        match metadata.is_dir() {
            true => found.extend(files(root, &name)?),
            false => found.push((name, metadata.ino())),
        }
    }
    found.sort();
    Ok(found)
}

/// The disks of all servers.
#[derive(Debug)]
pub(crate) struct Disks {
    root: TempDir,
    disks: Vec<Disk>,
    random: Seeded,
    /// Whose disk is meant now.
    current: HostIndex,
    pub(crate) lost_batches: u64,
    pub(crate) lost_files: u64,
}

thread_local! {
    static DISKS: RefCell<Option<Rc<RefCell<Disks>>>> = const { RefCell::new(None) };
}

/// A file or folder was synced.
pub(crate) extern "C" fn on_sync(descriptor: i32) {
    let disks = DISKS.with(|disks| disks.borrow().clone());
    if let Some(disks) = disks
        && let Ok(mut disks) = disks.try_borrow_mut()
    {
        let _ = disks.note_sync(descriptor);
    }
}

/// Where simulated disks lie: in memory, if the system has a folder there.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => memory.to_owned(),
        false => std::env::temp_dir(),
    }
}

const PREFIX: &str = "rollcall-sim-";

/// A folder for the disks of one run. Made outside of its world: a name that is taken already would draw on the world's
/// randomness.
pub(crate) fn folder() -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir_in(place())
}

/// Removes what a process left behind.
pub(crate) fn clear(process: u32) {
    clear_of(|of| of == process);
}

/// Removes what all processes left behind that are no more.
pub(crate) fn clear_all() {
    clear_of(|of| !Path::new(&format!("/proc/{of}")).exists());
}

fn clear_of(meant: impl Fn(u32) -> bool) {
    for item in std::fs::read_dir(place()).into_iter().flatten().flatten() {
        let name = item.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if process.is_some_and(&meant) {
            // Whoever else clears up may be faster.
            let _ = std::fs::remove_dir_all(item.path());
        }
    }
}

impl Disks {
    /// New disks, of this thread from now on.
    pub(crate) fn new(root: TempDir, servers: usize, random: Seeded) -> Rc<RefCell<Self>> {
        let disks = Rc::new(RefCell::new(Self {
            root,
            disks: (0..servers).map(|_| Disk::default()).collect(),
            random,
            current: 0,
            lost_batches: 0,
            lost_files: 0,
        }));
        DISKS.with(|of| *of.borrow_mut() = Some(disks.clone()));
        disks
    }

    /// The disks are given up; their folder is removed with the last handle.
    pub(crate) fn leave() {
        DISKS.with(|of| *of.borrow_mut() = None);
    }

    pub(crate) fn set_current(&mut self, server: HostIndex) {
        if server < self.disks.len() {
            self.current = server;
        }
    }

    /// The folder for the next start of a server, with what its disk holds.
    pub(crate) fn folder_for_start(&mut self, server: HostIndex) -> io::Result<PathBuf> {
        let root = self.root.path().to_owned();
        let disk = &mut self.disks[server];
        disk.starts += 1;
        disk.table.repair();
        let next = root.join(format!("server-{}-{}", server + 1, disk.starts));
        std::fs::create_dir_all(&next)?;
        if disk.folder.is_dir() {
            disk.copy_to(&next)?;
            std::fs::remove_dir_all(&disk.folder)?;
        }
        disk.folder = next.clone();
        Ok(next)
    }

    /// A server, which does not run any more, has lost power.
    pub(crate) fn lose_power(&mut self, server: HostIndex) -> io::Result<()> {
        let disk = &mut self.disks[server];
        self.lost_batches += disk.table.lose_power(&mut self.random);
        if self.random.chance(0.5) || !disk.folder.is_dir() {
            return Ok(());
        }
        self.lost_files += 1;
        std::fs::remove_dir_all(&disk.folder)?;
        std::fs::create_dir_all(&disk.folder)?;
        let mut names = BTreeMap::new();
        let mut synced = BTreeMap::new();
        for (name, inode) in std::mem::take(&mut disk.names) {
            let path = disk.folder.join(&name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let content = disk.synced.get(&inode).cloned().unwrap_or_default();
            std::fs::write(&path, &*content)?;
            let inode = std::fs::metadata(&path)?.ino();
            names.insert(name, inode);
            synced.insert(inode, content);
        }
        (disk.names, disk.synced) = (names, synced);
        Ok(())
    }

    /// After so many more syncs every one fails, until the server starts anew.
    pub(crate) fn fail_after(&mut self, server: HostIndex, syncs: u64) {
        self.disks[server].table.lock().syncs_left = Some(syncs);
    }

    pub(crate) fn set_slow(&mut self, server: HostIndex, slow: bool) {
        self.disks[server].slow = slow;
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.disks.iter().map(|disk| disk.table.lock().syncs).sum()
    }

    fn note_sync(&mut self, descriptor: i32) -> io::Result<()> {
        let path = std::fs::read_link(format!("/proc/self/fd/{descriptor}"))?;
        let Some(disk) = self
            .disks
            .iter_mut()
            .find(|disk| !disk.folder.as_os_str().is_empty() && path.starts_with(&disk.folder))
        else {
            return Ok(());
        };
        if !path.is_dir() {
            let content = std::fs::read(&path)?;
            disk.synced
                .insert(std::fs::metadata(&path)?.ino(), Rc::new(content));
            return Ok(());
        }
        let Ok(inside) = path.strip_prefix(&disk.folder).map(Path::to_owned) else {
            return Ok(());
        };
        disk.names
            .retain(|name, _| name.parent() != Some(inside.as_path()));
        for item in std::fs::read_dir(&path)? {
            let item = item?;
            let metadata = item.metadata()?;
            if metadata.is_file() {
                disk.names.insert(inside.join(item.file_name()), metadata.ino());
            }
        }
        Ok(())
    }
}

/// The ground that servers in a world stand on.
pub(crate) struct Ground {
    disks: Rc<RefCell<Disks>>,
}

impl Ground {
    pub(crate) fn new(disks: Rc<RefCell<Disks>>) -> Rc<Self> {
        Rc::new(Self { disks })
    }
}

impl Simulation for Ground {
    fn open_table(&self, _folder: &Path) -> io::Result<Arc<dyn Table>> {
        let disks = self.disks.borrow();
        Ok(disks.disks[disks.current].table.clone())
    }

    fn work_takes(&self) -> Duration {
        let mut disks = self.disks.borrow_mut();
        match disks.random.below(10) {
            0 => Duration::from_millis(disks.random.below(20)),
            _ => Duration::ZERO,
        }
    }

    fn sync_takes(&self) -> Duration {
        let mut disks = self.disks.borrow_mut();
        let slow = disks.disks[disks.current].slow;
        match (slow, disks.random.below(20)) {
            (true, _) => Duration::from_millis(disks.random.between(20, 400)),
            (false, 0) => Duration::from_millis(disks.random.between(1, 15)),
            (false, _) => Duration::from_millis(1),
        }
    }
}
