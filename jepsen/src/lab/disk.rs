//! A disk of a server's own: it fills up, loses power, hangs, dies.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::net::{Claim, Duty, run};

/// Written at a time while a disk is being filled.
const PIECE: usize = 1 << 20;
const BALLOON: &str = "balloon";
/// The lab's own files on a disk, which tell what became of written bytes.
const CANARY: &str = "canary";
const UNSYNCED: &[u8] = b"written, and never synced";
/// Room in memory for an image beyond its own size.
const IMAGE_MARGIN: u64 = 4 << 20;
/// How often an unmounting is tried while the last user of the disk goes.
const UNMOUNTS_MAX: u32 = 100;

/// A file system of a stated size, mounted at a server's data folder. It survives `kill -9` of the server, not the
/// lab's own end. Dropping it unmounts it.
///
/// It is ext4 on an image in memory where the machine has loop devices: synced bytes then survive [`Self::cut_power`]
/// and others do not. Elsewhere it is a file system in memory that can only be filled.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    /// Or why there is none.
    image: Result<PathBuf, String>,
    claim: Claim,
}

impl Disk {
    /// Mounts one at `folder`, which is created.
    ///
    /// # Errors
    /// Mounting needs root.
    pub fn mount(folder: &Path, bytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let mut disk = Self {
            folder: folder.into(),
            image: Err("it was not tried".into()),
            claim: Claim::take()?,
        };
        let images = folder.with_extension("image");
        std::fs::create_dir_all(&images)?;
        disk.claim.promise(Duty::Mount(images.clone()))?;
        mount_memory(&images, bytes + IMAGE_MARGIN)?;
        disk.claim.promise(Duty::Mount(folder.into()))?;
        disk.image = disk
            .format(&images.join("disk"), bytes)
            .map_err(|reason| format!("{reason:#}"));
        if disk.image.is_err() {
            mount_memory(folder, bytes)?;
        }
        Ok(disk)
    }

    fn format(&self, image: &Path, bytes: u64) -> anyhow::Result<PathBuf> {
        File::create(image)?.set_len(bytes)?;
        let arguments = [
            "-q",
            "-m",
            "0",
            "-E",
            "nodiscard,lazy_itable_init=1,lazy_journal_init=1",
        ];
        let mut arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        arguments.push(image.as_os_str());
        run("mkfs.ext4", &arguments, "")?;
        self.mount_image(image)?;
        Ok(image.into())
    }

    fn mount_image(&self, image: &Path) -> anyhow::Result<()> {
        // The kernel frees the loop device with its last user.
        let what: [&std::ffi::OsStr; 4] = [
            "-o".as_ref(),
            "loop,noatime".as_ref(),
            image.as_os_str(),
            self.folder.as_os_str(),
        ];
        run("mount", &what, "").map(drop)
    }

    /// Whether its power can be cut and it can hang.
    ///
    /// # Errors
    /// Why not.
    pub fn is_breakable(&self) -> Result<(), String> {
        self.image.as_ref().map_err(Clone::clone)?;
        for tool in ["xfs_io", "fsfreeze"] {
            run(tool, &["-V"], "").map_err(|reason| format!("{reason:#}"))?;
        }
        Ok(())
    }

    fn image(&self) -> anyhow::Result<&Path> {
        match &self.image {
            Ok(image) => Ok(image),
            Err(reason) => bail!("this disk is only memory: {reason}"),
        }
    }

    /// Takes all the space there is; gives back how many bytes that were. Blocks.
    ///
    /// # Errors
    /// Writing fails for another reason than the lack of space.
    pub fn fill(&self) -> anyhow::Result<usize> {
        let path = self.folder.join(BALLOON);
        drop(File::create(&path).context("creating the balloon")?);
        // Most of it at once and without a byte written; the rest as anybody else would.
        for piece in (20..28).rev().map(|bits| 1_u64 << bits) {
            while reserve(&path, piece).is_ok() {}
        }
        let mut balloon = File::options()
            .append(true)
            .open(&path)
            .context("opening the balloon")?;
        let mut size = usize::try_from(balloon.metadata()?.len())?;
        let mut piece = PIECE;
        while piece > 0 {
            match balloon.write(&vec![0; piece]) {
                Ok(written) if written > 0 => size += written,
                Ok(_) => piece /= 2,
                Err(error) if error.kind() == ErrorKind::StorageFull => piece /= 2,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
        Ok(size)
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// The balloon cannot be removed.
    pub fn free(&self) -> anyhow::Result<()> {
        self.remove(BALLOON)
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        match std::fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {name}"))
            }
            _ => Ok(()),
        }
    }

    /// From here on nothing more reaches the disk, and every read and write is answered with an error. What was
    /// written and not synced is gone for good. End the server, then [`Self::restore_power`].
    ///
    /// # Errors
    /// This disk cannot, see [`Self::is_breakable`].
    pub fn cut_power(&self) -> anyhow::Result<()> {
        self.image()?;
        // Whatever survives that was never synced would show that the cut is none.
        std::fs::write(self.folder.join(CANARY), UNSYNCED).context("writing the canary")?;
        let what: [&std::ffi::OsStr; 4] = [
            "-x".as_ref(),
            "-c".as_ref(),
            "shutdown".as_ref(),
            self.folder.as_os_str(),
        ];
        run("xfs_io", &what, "").map(drop)
    }

    /// Whether a write is answered with an error, as seen by the lab itself: the disk is dead.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        std::fs::write(self.folder.join("probe"), b"?").is_err()
    }

    /// Mounts the disk again, as a machine does that starts up. Nobody may be using it. `true`: what was written
    /// without a sync is gone, as it must be.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn restore_power(&self) -> anyhow::Result<bool> {
        let image = self.image()?;
        let mut attempts = 0;
        while let Err(busy) = run("umount", &[&self.folder], "") {
            attempts += 1;
            if attempts >= UNMOUNTS_MAX {
                return Err(busy);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.mount_image(image)?;
        // Its name may be there: somebody else's sync takes the names along, not the bytes.
        let kept = std::fs::read(self.folder.join(CANARY)).unwrap_or_default();
        self.remove(CANARY)?;
        self.remove("probe")?;
        Ok(kept != UNSYNCED)
    }

    /// Writes and syncs wait until [`Self::thaw`], and whoever waits cannot even be killed.
    ///
    /// # Errors
    /// This disk cannot, see [`Self::is_breakable`].
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.image()?;
        let what: [&std::ffi::OsStr; 2] = ["--freeze".as_ref(), self.folder.as_os_str()];
        run("fsfreeze", &what, "").map(drop)
    }

    /// Ends that.
    ///
    /// # Errors
    /// It does not hang.
    pub fn thaw(&self) -> anyhow::Result<()> {
        let what: [&std::ffi::OsStr; 2] = ["--unfreeze".as_ref(), self.folder.as_os_str()];
        run("fsfreeze", &what, "").map(drop)
    }

    /// A thread that writes to the disk and says how long that took: for as long as the disk hangs.
    #[must_use]
    pub fn time_a_write(&self) -> std::thread::JoinHandle<Duration> {
        let path = self.folder.join("probe");
        std::thread::spawn(move || {
            let began = std::time::Instant::now();
            let _ = std::fs::write(&path, b"?");
            let _ = std::fs::remove_file(&path);
            began.elapsed()
        })
    }

    /// Removes everything on it.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn wipe(&self) -> anyhow::Result<()> {
        wipe(&self.folder)
    }
}

/// Lengthens a file by room that nobody else has then.
fn reserve(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let length = std::fs::metadata(path)?.len().to_string();
    let bytes = bytes.to_string();
    let what: [&std::ffi::OsStr; 5] = [
        "--offset".as_ref(),
        length.as_ref(),
        "--length".as_ref(),
        bytes.as_ref(),
        path.as_os_str(),
    ];
    run("fallocate", &what, "").map(drop)
}

/// Removes everything in a folder.
pub(super) fn wipe(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn mount_memory(folder: &Path, bytes: u64) -> anyhow::Result<()> {
    let size = format!("size={bytes},mode=0700");
    let what: [&std::ffi::OsStr; 6] = [
        "-t".as_ref(),
        "tmpfs".as_ref(),
        "-o".as_ref(),
        size.as_ref(),
        "rollcall-lab".as_ref(),
        folder.as_os_str(),
    ];
    run("mount", &what, "").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(folder: &Path, bytes: u64) -> Option<Disk> {
        let disk = Disk::mount(&folder.join("data"), bytes);
        disk.inspect_err(|reason| eprintln!("skipped, no disk of its own: {reason:#}"))
            .ok()
    }

    fn lab_folder() -> tempfile::TempDir {
        tempfile::Builder::new()
            .prefix("rollcall-lab-")
            .tempdir()
            .unwrap()
    }

    #[test]
    fn a_full_disk_has_no_room_and_a_freed_one_has() {
        let folder = lab_folder();
        let Some(disk) = disk(folder.path(), 16 << 20) else {
            return;
        };
        let file = folder.path().join("data").join("file");
        assert!(disk.fill().unwrap() > 8 << 20);
        assert_eq!(
            std::fs::write(&file, [0; 8_192]).unwrap_err().kind(),
            ErrorKind::StorageFull
        );
        disk.free().unwrap();
        disk.free().unwrap();
        std::fs::write(&file, [0; 8_192]).unwrap();
        drop(disk);
        assert!(!file.exists(), "it is unmounted");
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_nothing_else() {
        let folder = lab_folder();
        let Some(disk) = disk(folder.path(), 16 << 20) else {
            return;
        };
        if let Err(reason) = disk.is_breakable() {
            return eprintln!("skipped: {reason}");
        }
        let data = folder.path().join("data");
        let synced = File::create(data.join("synced")).unwrap();
        (&synced).write_all(b"kept").unwrap();
        synced.sync_all().unwrap();
        (&synced).write_all(b", not kept").unwrap();
        drop(synced);
        std::fs::write(data.join("unsynced"), b"lost").unwrap();
        assert!(!disk.is_dead());
        disk.cut_power().unwrap();
        assert!(disk.is_dead());
        assert!(disk.restore_power().unwrap());
        assert_eq!(std::fs::read(data.join("synced")).unwrap(), b"kept");
        assert!(!data.join("unsynced").exists());
        assert!(!disk.is_dead());
    }

    #[test]
    fn whoever_writes_to_a_hanging_disk_waits_until_it_hangs_no_more() {
        let folder = lab_folder();
        let Some(disk) = disk(folder.path(), 16 << 20) else {
            return;
        };
        if let Err(reason) = disk.is_breakable() {
            return eprintln!("skipped: {reason}");
        }
        disk.freeze().unwrap();
        let writing = disk.time_a_write();
        std::thread::sleep(Duration::from_millis(300));
        assert!(!writing.is_finished());
        disk.thaw().unwrap();
        assert!(writing.join().unwrap() >= Duration::from_millis(290));
        // A lab that ends meanwhile must not leave it hanging.
        disk.freeze().unwrap();
        let writing = disk.time_a_write();
        drop(disk);
        writing.join().unwrap();
    }
}
