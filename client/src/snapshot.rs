//! Views on disk, so that a consumer can start while no server answers.
//!
//! One file per service, `group~service.roll`. Layout, little endian:
//!
//! ```text
//! 0   8  "ROLLCALL"
//! 8   2  version, 2
//! 10  2  length of the cluster's name
//! 12  8  when a server last confirmed it, milliseconds since 1970; it was written then or later
//! 20  8  the state's revision
//! 28  4  length of the view
//! 32  8  the epoch of the server that counted the revision; mode CP: 0
//! 40  1  the group's mode, as in rollcall.v1.GroupMode
//! 41     the cluster's name, UTF-8
//!        the view, an encoded rollcall.v1.ServiceView
//!     4  CRC-32 of everything before
//! ```
//!
//! Version 1 is without epoch and mode: CP; its name begins at 32.
//!
//! A file that is torn, damaged, of another version or of another service counts as not there, with a warning.
//! Files are replaced whole, by rename, so readers and other processes never see half of one.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use rollcall_proto::v1;

use crate::key::ServiceKey;
use crate::view::{Confirmed, Counted, ServiceView, Source};

const MAGIC: &[u8; 8] = b"ROLLCALL";
const VERSION: u16 = 2;
const HEAD_BYTES: usize = 41;
/// Of version 1.
const FIRST_HEAD_BYTES: usize = 32;
const CRC_BYTES: usize = 4;
/// Larger files are no snapshots of ours.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// How names of temporary files begin and end.
const TEMPORARY: (&str, &str) = ("rollcall-", ".tmp");
/// A temporary file as old as this is of a writer that died.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The folder of the snapshots. Processes may share it, on other machines too.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFolder {
    folder: PathBuf,
    /// What writers left that died is taken away.
    swept: Arc<Once>,
}

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error("cannot be read")]
    Io(#[from] io::Error),
    #[error("has {bytes} bytes, at most {FILE_BYTES_MAX} are expected")]
    TooLarge { bytes: u64 },
    #[error("has {bytes} bytes, {expected} were written")]
    Torn { bytes: usize, expected: usize },
    #[error("does not begin with ROLLCALL")]
    Magic,
    #[error("is of version {found}, this client reads up to {VERSION}")]
    Version { found: u16 },
    #[error("has checksum {computed:08x}, {written:08x} was written")]
    Checksum { written: u32, computed: u32 },
    #[error("cannot be decoded: {0}")]
    Content(String),
    #[error("is of service {found}")]
    Foreign { found: ServiceKey },
}

impl SnapshotFolder {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            swept: Arc::new(Once::new()),
        }
    }

    /// What was last written of the service, if it is sound. Blocks.
    pub(crate) fn load(&self, key: &ServiceKey) -> Option<ServiceView> {
        let path = self.path(key);
        match read(&path, key) {
            Ok(view) => view,
            Err(damage) => {
                tracing::warn!(file = %path.display(), %damage, "snapshot ignored");
                None
            }
        }
    }

    /// Replaces what was written. Blocks.
    pub(crate) fn store(&self, view: &ServiceView) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.swept.call_once(|| sweep(&self.folder));
        // Neither ids of processes nor names of machines tell the writers of a shared volume apart.
        let (begin, end) = TEMPORARY;
        let temporary = format!("{begin}{:032x}{end}", rand::random::<u128>());
        self.store_by_way_of(&temporary, view)
    }

    fn store_by_way_of(&self, temporary: &str, view: &ServiceView) -> io::Result<()> {
        let bytes = encode(view, confirmed_at(view));
        let temporary = self.folder.join(temporary);
        // One that is there is another's, to be neither written to nor removed.
        let mut file = fs::File::create_new(&temporary)?;
        let written = file.write_all(&bytes).and_then(|()| {
            // Without this a crash of the machine could leave the new name with no content.
            file.sync_data()?;
            fs::rename(&temporary, self.path(&view.key))
        });
        if written.is_err() {
            // It may not be there; the error that matters is the first one.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Forgets the service. Blocks.
    pub(crate) fn remove(&self, key: &ServiceKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &ServiceKey) -> PathBuf {
        // `~` is in no name; anything else that is in none either (and would be refused by every server) must
        // still not lead out of the folder.
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '~'
            }
        };
        let name: String = format!("{key}").chars().map(safe).collect();
        self.folder.join(format!("{name}.roll"))
    }
}

/// Nobody comes back to temporary files, since each has a name of its own. What cannot be removed stays.
fn sweep(folder: &Path) {
    let (begin, end) = TEMPORARY;
    let left_behind = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.map(|at| at.elapsed().unwrap_or_default());
        name.to_str()
            .is_some_and(|name| name.starts_with(begin) && name.ends_with(end))
            && age.is_ok_and(|age| age >= LEFT_BEHIND_AFTER)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(left_behind) {
        if let Err(error) = fs::remove_file(entry.path()) {
            tracing::debug!(file = %entry.path().display(), %error, "a temporary file stays");
        }
    }
}

fn read(path: &Path, key: &ServiceKey) -> Result<Option<ServiceView>, Damage> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return Err(Damage::TooLarge {
                bytes: metadata.len(),
            });
        }
        Ok(_) => {}
    }
    let view = decode(&fs::read(path)?)?;
    if view.key == *key {
        Ok(Some(view))
    } else {
        Err(Damage::Foreign { found: view.key })
    }
}

/// What nobody confirmed is as old as can be.
fn confirmed_at(view: &ServiceView) -> SystemTime {
    let at = view.age().and_then(|age| SystemTime::now().checked_sub(age));
    at.unwrap_or(UNIX_EPOCH)
}

fn encode(view: &ServiceView, confirmed_at: SystemTime) -> Vec<u8> {
    let body = view.to_wire().encode_to_vec();
    let cluster = view.cluster.as_bytes();
    let cluster = &cluster[..cluster.len().min(usize::from(u16::MAX))];
    let confirmed_ms = confirmed_at
        .duration_since(UNIX_EPOCH)
        .map_or(0, crate::config::millis);
    let mut bytes = Vec::with_capacity(HEAD_BYTES + cluster.len() + body.len() + CRC_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(cluster.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&confirmed_ms.to_le_bytes());
    bytes.extend_from_slice(&view.as_of.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&view.epoch.to_le_bytes());
    bytes.push(mode_byte(view.mode));
    bytes.extend_from_slice(cluster);
    bytes.extend_from_slice(&body);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<ServiceView, Damage> {
    let torn = |expected| Damage::Torn {
        bytes: bytes.len(),
        expected,
    };
    let (first, _) = bytes
        .split_at_checked(FIRST_HEAD_BYTES)
        .ok_or_else(|| torn(FIRST_HEAD_BYTES + CRC_BYTES))?;
    if !first.starts_with(MAGIC) {
        return Err(Damage::Magic);
    }
    let head_bytes = match u16::from_le_bytes(field(first, 8)) {
        1 => FIRST_HEAD_BYTES,
        VERSION => HEAD_BYTES,
        found => return Err(Damage::Version { found }),
    };
    let (head, rest) = bytes
        .split_at_checked(head_bytes)
        .ok_or_else(|| torn(head_bytes + CRC_BYTES))?;
    let cluster_bytes = usize::from(u16::from_le_bytes(field(head, 10)));
    let confirmed_ms = u64::from_le_bytes(field(head, 12));
    let as_of = u64::from_le_bytes(field(head, 20));
    let body_bytes = u32::from_le_bytes(field(head, 28)) as usize;
    let (epoch, mode) = match head_bytes {
        HEAD_BYTES => (u64::from_le_bytes(field(head, 32)), head[40]),
        _ => (0, mode_byte(v1::GroupMode::Cp)),
    };
    let expected = head_bytes + cluster_bytes + body_bytes + CRC_BYTES;
    if bytes.len() != expected {
        return Err(torn(expected));
    }
    let (content, crc) = rest.split_at(cluster_bytes + body_bytes);
    let written = u32::from_le_bytes(field(crc, 0));
    let computed = crc32fast::hash(&bytes[..expected - CRC_BYTES]);
    if written != computed {
        return Err(Damage::Checksum { written, computed });
    }
    let (cluster, body) = content.split_at(cluster_bytes);
    let cluster = std::str::from_utf8(cluster).map_err(|error| Damage::Content(error.to_string()))?;
    let view = v1::ServiceView::decode(body).map_err(|error| Damage::Content(error.to_string()))?;
    let confirmed_at = UNIX_EPOCH + Duration::from_millis(confirmed_ms.min(1 << 52));
    let mode = v1::GroupMode::try_from(i32::from(mode))
        .map_err(|_| Damage::Content(format!("{mode} is no mode of a group")))?;
    let origin = (Arc::from(cluster), Counted::of(mode, epoch));
    let view = ServiceView::from_wire(view, as_of, origin, Confirmed::Written(confirmed_at));
    Ok(ServiceView {
        source: Source::Disk,
        ..view
    })
}

fn mode_byte(mode: v1::GroupMode) -> u8 {
    match mode {
        v1::GroupMode::Unspecified => 0,
        v1::GroupMode::Cp => 1,
        v1::GroupMode::Ap => 2,
    }
}

/// `N` bytes at `at`; the caller has checked that they are there.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Heard;

    fn view() -> ServiceView {
        let view = v1::ServiceView {
            key: Some(v1::ServiceKey {
                group: "prod/feed".into(),
                service: "ranker".into(),
            }),
            sign: Some(v1::Sign { high: 1, low: 2 }),
            revision: 7,
            settings: None,
            nodes: vec![v1::Node {
                id: "a:1".into(),
                weight: 100,
                state: 1,
                kind: 1,
                ..Default::default()
            }],
            guard: None,
        };
        let counted = Counted::Server { epoch: 77 };
        let confirmed = Confirmed::Heard(Heard::now());
        ServiceView::from_wire(view, 9, (Arc::from("c1"), counted), confirmed)
    }

    fn same(one: &ServiceView, other: &ServiceView) -> bool {
        one.to_wire() == other.to_wire()
            && one.as_of == other.as_of
            && one.cluster == other.cluster
            && one.counted() == other.counted()
    }

    #[test]
    fn what_was_stored_is_loaded_with_its_age() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = SnapshotFolder::new(folder.path().join("made/when/needed"));
        let view = view();
        assert!(snapshots.load(&view.key).is_none());
        snapshots.store(&view).unwrap();
        let loaded = snapshots.load(&view.key).unwrap();
        assert!(same(&loaded, &view));
        assert_eq!(loaded.source, Source::Disk);
        assert!(loaded.age().unwrap() < Duration::from_secs(60));
        let names: Vec<_> = fs::read_dir(&snapshots.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["prod~feed~ranker.roll"], "nothing temporary is left");
        let a_minute = Duration::from_secs(60);
        for (confirmed, least) in [
            (Confirmed::Heard(Heard::earlier(a_minute)), a_minute),
            (Confirmed::Never, 1_000 * a_minute),
        ] {
            let view = ServiceView {
                confirmed,
                ..view.clone()
            };
            snapshots.store(&view).unwrap();
            let age = snapshots.load(&view.key).unwrap().age();
            assert!(age >= Some(least), "written later than it was confirmed: {age:?}");
        }
        snapshots.remove(&view.key).unwrap();
        snapshots.remove(&view.key).unwrap();
        assert!(snapshots.load(&view.key).is_none());
    }

    /// Two containers with one volume may both be process 1.
    #[test]
    fn a_writer_leaves_anothers_temporary_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let others = folder.path().join("1.0.tmp");
        fs::write(&others, "half a list").unwrap();
        let view = view();
        let [one, other] = [(); 2].map(|()| SnapshotFolder::new(folder.path().into()));
        let refused = one.store_by_way_of("1.0.tmp", &view).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&others).unwrap(), b"half a list");
        // In turn, with names of their own.
        for revision in 1..=20 {
            let view = ServiceView {
                as_of: 100 + revision,
                ..view.clone()
            };
            one.store(&view).unwrap();
            other.store(&view).unwrap();
            assert_eq!(other.load(&view.key).unwrap().as_of, 100 + revision);
        }
        assert_eq!(fs::read(&others).unwrap(), b"half a list");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_a_writer_left_that_died_long_ago_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new, foreign] =
            ["rollcall-1.tmp", "rollcall-2.tmp", "old.tmp"].map(|name| folder.path().join(name));
        let long_ago = SystemTime::now() - 2 * LEFT_BEHIND_AFTER;
        for (path, modified) in [(&old, long_ago), (&new, SystemTime::now()), (&foreign, long_ago)] {
            fs::File::create(path).unwrap().set_modified(modified).unwrap();
        }
        SnapshotFolder::new(folder.path().into()).store(&view()).unwrap();
        assert_eq!(
            [&old, &new, &foreign].map(|path| path.exists()),
            [false, true, true]
        );
    }

    #[test]
    fn a_torn_file_is_ignored_wherever_it_ends() {
        let whole = encode(&view(), SystemTime::now());
        for length in 0..whole.len() {
            assert!(
                decode(&whole[..length]).is_err(),
                "{length} of {} bytes",
                whole.len()
            );
        }
        assert!(decode(&whole).is_ok());
    }

    #[test]
    fn a_damaged_byte_is_noticed_wherever_it_is() {
        let whole = encode(&view(), SystemTime::now());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_file_of_another_service_or_version_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = SnapshotFolder::new(folder.path().into());
        let view = view();
        snapshots.store(&view).unwrap();
        let other = ServiceKey::new("prod/feed", "other");
        fs::copy(snapshots.path(&view.key), snapshots.path(&other)).unwrap();
        assert!(snapshots.load(&other).is_none());
        let mut later = encode(&view, SystemTime::now());
        later[8] = 3;
        assert!(matches!(decode(&later), Err(Damage::Version { found: 3 })));
    }

    #[test]
    fn names_do_not_lead_out_of_the_folder() {
        let snapshots = SnapshotFolder::new("/snapshots".into());
        let path = snapshots.path(&ServiceKey::new("../../etc", "x"));
        assert_eq!(path.parent(), Some(Path::new("/snapshots")));
    }

    /// For ever: files of earlier clients are read by later ones.
    #[test]
    fn a_file_of_version_1_is_of_a_group_in_mode_cp() {
        let bytes: Vec<u8> = (0..GOLDEN_1.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&GOLDEN_1[at..at + 2], 16).unwrap())
            .collect();
        let loaded = decode(&bytes).unwrap();
        assert_eq!(loaded.counted(), Counted::Cluster);
        let expected = ServiceView {
            mode: v1::GroupMode::Cp,
            epoch: 0,
            ..view()
        };
        assert!(same(&loaded, &expected));
    }

    #[test]
    fn golden_file() {
        let bytes = encode(&view(), UNIX_EPOCH + Duration::from_millis(1_700_000_000_000));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        assert!(same(&decode(&bytes).unwrap(), &view()));
    }

    const GOLDEN: &str = concat!(
        "524f4c4c43414c4c020002000068e5cf8b01000009000000000000003a0000004d000000000000000263310a130a0970726f642f66",
        "656564120672616e6b65721212090100000000000000110200000000000000180722002a0b0a03613a3118643001380117fdb8e6"
    );

    const GOLDEN_1: &str = concat!(
        "524f4c4c43414c4c010002000068e5cf8b01000009000000000000003a00000063310a130a0970726f642f66656564120672616e6b",
        "65721212090100000000000000110200000000000000180722002a0b0a03613a311864300138017dc988d5"
    );
}
