//! A small disk that can be filled.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::net::{Claim, Duty, run};

/// Written at a time while a disk is being filled.
const PIECE: usize = 1 << 20;
const BALLOON: &str = "balloon";

/// A file system in memory, of a stated size, mounted at a server's data folder. It survives `kill -9` of the server,
/// not the lab's own end. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
    _claim: Claim,
}

impl SmallDisk {
    /// Mounts one at `folder`, which is created.
    ///
    /// # Errors
    /// Mounting needs root.
    pub fn mount(folder: &Path, bytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let mut claim = Claim::take()?;
        claim.promise(Duty::Mount(folder.into()))?;
        let size = format!("size={bytes},mode=0700");
        let what: [&std::ffi::OsStr; 6] = [
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "-o".as_ref(),
            size.as_ref(),
            "rollcall-lab".as_ref(),
            folder.as_ref(),
        ];
        run("mount", &what, "")?;
        Ok(Self {
            folder: folder.into(),
            _claim: claim,
        })
    }

    /// Takes all the space there is; gives back how many bytes that were. Blocks.
    ///
    /// # Errors
    /// Writing fails for another reason than the lack of space.
    pub fn fill(&self) -> anyhow::Result<usize> {
        let mut balloon = File::create(self.folder.join(BALLOON)).context("creating the balloon")?;
        let (mut size, mut piece) = (0, PIECE);
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
        match std::fs::remove_file(self.folder.join(BALLOON)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("removing the balloon"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_no_room_and_a_freed_one_has() {
        let folder = tempfile::Builder::new()
            .prefix("rollcall-lab-")
            .tempdir()
            .unwrap();
        let disk = match SmallDisk::mount(&folder.path().join("data"), 4 << 20) {
            Ok(disk) => disk,
            Err(reason) => return eprintln!("skipped, no disk of its own: {reason:#}"),
        };
        let file = folder.path().join("data").join("file");
        assert!(disk.fill().unwrap() > 3 << 20);
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
}
