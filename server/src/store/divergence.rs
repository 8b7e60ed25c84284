//! The note that this server's state was found to differ from the leader's. A file of its own, so that a version that does
//! not know it reads all the others; it goes with the data folder, or by an operator's hand.

use std::io;
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::identity::replace_file;

/// Whether that was noted here once.
pub(crate) fn is_noted(folder: &Path) -> Result<bool, StoreError> {
    let path = file_in(folder);
    path.try_exists()
        .map_err(|error| StoreError::folder(&path, error))
}

/// Notes it; durable when this returns. Blocks.
pub(crate) fn note(folder: &Path, index: u64) -> io::Result<()> {
    let told = format!("RC-110: the state after entry {index} differs from the leader's\n");
    replace_file(&file_in(folder), told.as_bytes())
}

fn file_in(folder: &Path) -> PathBuf {
    folder.join("differs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_stays() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_noted(folder.path()).unwrap());
        note(folder.path(), 7).unwrap();
        note(folder.path(), 8).unwrap();
        assert!(is_noted(folder.path()).unwrap());
    }
}
