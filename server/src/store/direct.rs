//! Whether files of a folder can be written past the page cache.
//!
//! The engine's tables are written once and seldom read: through the page cache each of their bytes is copied into memory
//! that has to be found for it. Some file systems do not take such writes, and some say so only when one comes.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// What is written to find out. Nothing else is ever called so.
const PROBE: &str = "direct.probe";
/// Such writes come in whole blocks, from memory that begins like one.
const BLOCK_BYTES: usize = 4096;

#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// Tries it, in a file that is gone afterwards. The folder is made if it is missing.
pub(super) fn takes_direct_writes(folder: &Path) -> bool {
    let probe = folder.join(PROBE);
    let tried = std::fs::create_dir_all(folder).and_then(|()| write_block(&probe));
    if let Err(error) = std::fs::remove_file(&probe)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %probe.display(), %error, "not removed");
    }
    if let Err(error) = &tried {
        tracing::info!(path = %folder.display(), %error, "no direct writes here: tables go through the page cache");
    }
    tried.is_ok()
}

fn write_block(path: &Path) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::DIRECT;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(&Box::new(Block([0; BLOCK_BYTES])).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let taken = takes_direct_writes(&log);
        assert_eq!(
            taken,
            write_block(&log.join("another")).is_ok(),
            "the same every time"
        );
        let left: Vec<_> = std::fs::read_dir(&log).unwrap().collect();
        assert!(left.len() <= 1, "nothing but the other: {left:?}");
    }

    #[test]
    fn where_it_cannot_be_done_it_is_not() {
        // A device that takes any bytes, but not like this.
        assert!(write_block(Path::new("/dev/null")).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!takes_direct_writes(file.path()), "no folder at all");
    }
}
