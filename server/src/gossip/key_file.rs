//! Keys that packets are sealed with.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};

/// Most keys of a file: during a rotation there are two, three if one comes early.
const KEYS_MAX: usize = 8;

/// The key file cannot be used. Correct it; nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("RC-203: cannot read gossip.key_file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is no key.
    #[error("RC-203: gossip.key_file {} line {line}: not 32 bytes in base64 (make one: head -c 32 /dev/urandom | base64)", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1. The line itself is not told.
        line: usize,
    },
    /// It holds no key, or too many.
    #[error("RC-203: gossip.key_file {} holds {keys} keys, 1 to 8 are allowed", path.display())]
    Count {
        /// Which file.
        path: PathBuf,
        /// How many.
        keys: usize,
    },
}

/// Reads the keys: one a line, 32 bytes in base64; blank lines and those that begin with `#` say nothing.
pub(crate) fn read(path: &Path) -> Result<Vec<XChaCha20Poly1305>, KeyFileError> {
    let text = std::fs::read_to_string(path).map_err(|source| KeyFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    let lines = text.lines().map(str::trim).enumerate();
    let mut keys = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let key = STANDARD
            .decode(line)
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let key = key.ok_or_else(|| KeyFileError::Line {
            path: path.to_owned(),
            line: number + 1,
        })?;
        keys.push(XChaCha20Poly1305::new(&key.into()));
    }
    if keys.is_empty() || keys.len() > KEYS_MAX {
        return Err(KeyFileError::Count {
            path: path.to_owned(),
            keys: keys.len(),
        });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_read_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let key = |byte: u8| STANDARD.encode([byte; 32]);
        std::fs::write(&path, format!("# new\n{}\n\n{}\n", key(1), key(2))).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        for (text, complaint) in [
            ("", "holds 0 keys"),
            ("hello", "line 1"),
            (&format!("{}\nAAAA\n", key(1)), "line 2"),
            (&format!("{}\n", key(1)).repeat(9), "holds 9 keys"),
        ] {
            std::fs::write(&path, text).unwrap();
            let problem = read(&path).err().unwrap().to_string();
            assert!(
                problem.contains(complaint) && problem.contains("gossip.key_file"),
                "{problem}"
            );
        }
        assert!(matches!(
            read(&folder.path().join("none")),
            Err(KeyFileError::Read { .. })
        ));
    }
}
