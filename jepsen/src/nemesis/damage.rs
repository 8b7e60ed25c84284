//! Damage to the files of a server that is down, and what it makes of them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::Context;

use super::deed::{Deed, Effect, Ground, is_ready, reason};
use super::members::Replacement;
use crate::seed::Seeded;

/// Blocks of a write-ahead log; no record crosses their bounds.
const BLOCK: u64 = 32 << 10;
/// A record's header: checksum, length, kind.
const HEADER: u64 = 7;
/// Most zeros behind a torn end.
const ZEROS_MAX: u64 = 4_096;
const PLACES_MAX: u64 = 8;
/// The reason of a server that cannot listen.
const PORT_TAKEN: &str = "RC-202";

/// What is done to the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wound {
    /// Behind the end, what a power cut leaves of a write that was under way. Nothing was lost.
    TornTail,
    /// The end is missing, though it was synced.
    LostTail,
    /// Flipped bits anywhere.
    BitRot,
}

impl Wound {
    fn name(self) -> &'static str {
        match self {
            Self::TornTail => "torn-tail",
            Self::LostTail => "lost-tail",
            Self::BitRot => "bit-rot",
        }
    }
}

/// A server that is ended, damaged, and started; where it refuses its files, it is replaced.
#[derive(Debug)]
pub(super) struct Damage {
    id: u64,
    wound: Wound,
    random: Seeded,
    stage: Stage,
    /// What was done to which file; `None`: there was nothing to damage.
    done: Option<String>,
    log_length: u64,
}

#[derive(Debug)]
enum Stage {
    Ending,
    Down,
    Starting,
    Replacing(Refusal, Replacement),
}

/// A server that ended by itself on its damaged files. It is of no use any more, but the run goes on with a whole cluster.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It named the damage, as it should.
    Named(String),
    /// It should not have ended, or not like this.
    Broken(String),
}

impl Refusal {
    /// What its end means. `said`: the reason that it gave; `last`: the last words of its log.
    fn of(wound: Wound, id: u64, status: ExitStatus, said: Option<String>, last: &str) -> Self {
        let wound_name = wound.name();
        let Some(said) = said.filter(|_| status.code().is_some()) else {
            return Self::Broken(format!(
                "{wound_name}: server {id} did not name the damage: it ended by {status}, after: {last}"
            ));
        };
        // What a power cut leaves is repaired without a word. Somebody may have taken its port, which is no word on its files.
        if wound == Wound::TornTail && !said.starts_with(PORT_TAKEN) {
            return Self::Broken(format!(
                "{wound_name}: nothing was lost, and server {id} ended by {status} and said: {said}"
            ));
        }
        Self::Named(said)
    }
}

impl Damage {
    pub(super) async fn begin(
        id: u64,
        wound: Wound,
        ground: &mut Ground<'_>,
        random: &mut Seeded,
    ) -> anyhow::Result<Self> {
        let server = ground.cluster.server(id);
        if wound == Wound::TornTail {
            server.kill9().await?;
        } else {
            // In good order: then the mark of how far its log reached is exact, and must tell what is missing.
            server.process().context("it runs")?.terminate()?;
        }
        Ok(Self {
            id,
            wound,
            random: random.clone(),
            stage: Stage::Ending,
            done: None,
            log_length: 0,
        })
    }
}

#[tonic::async_trait]
impl Deed for Damage {
    fn what(&self) -> String {
        let done = self.done.as_deref().unwrap_or("nothing done yet");
        format!("{}: {}, {done}", self.wound.name(), self.id)
    }

    async fn tend(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<()> {
        if matches!(self.stage, Stage::Ending) && !ground.cluster.server(self.id).is_running() {
            let server = ground.cluster.server(self.id);
            let ended = server.process().and_then(|process| process.exit_status());
            let data = server.data().to_owned();
            self.stage = Stage::Down;
            // One that had been started a moment ago did not end in good order: its mark may trail its log.
            if self.wound != Wound::TornTail && !ended.is_some_and(|status| status.success()) {
                return Ok(());
            }
            self.done = inflict(self.wound, &data, &mut self.random)
                .with_context(|| format!("damaging {}", data.display()))?;
        }
        Ok(())
    }

    async fn end(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        self.tend(ground).await?;
        match &mut self.stage {
            Stage::Ending => Ok(None),
            Stage::Down => {
                let server = ground.cluster.server(self.id);
                self.log_length = server.log_length();
                server.start()?;
                self.stage = Stage::Starting;
                Ok(None)
            }
            Stage::Starting => self.judge(ground).await,
            Stage::Replacing(refusal, replacement) => {
                let done = replacement.step(ground).await?;
                let replaced = replacement.seen();
                Ok(done.then(|| match refusal {
                    Refusal::Named(said) => {
                        Effect::seen(true, format!("the server said: {said}; {replaced}"))
                    }
                    Refusal::Broken(what) => Effect::broken(format!("{what}; {replaced}")),
                }))
            }
        }
    }
}

impl Damage {
    /// What the server makes of it, once that is known.
    async fn judge(&mut self, ground: &mut Ground<'_>) -> anyhow::Result<Option<Effect>> {
        let (id, damaged) = (self.id, self.done.is_some());
        let server = ground.cluster.server(id);
        let said = reason(&server.log_since(self.log_length));
        if let Some(status) = server.process().and_then(|process| process.exit_status()) {
            let refusal = Refusal::of(self.wound, id, status, said, &server.log_tail(3));
            self.stage = Stage::Replacing(refusal, Replacement::of(id));
            return Ok(None);
        }
        if !is_ready(server).await {
            return Ok(None);
        }
        let forgot = said.as_deref().is_some_and(|said| said.starts_with("RC-109"));
        Ok(Some(match self.wound {
            // It must start, and nothing is missing.
            Wound::TornTail if forgot => {
                Effect::broken(format!("server {id} lost more than what was torn: {said:?}"))
            }
            Wound::TornTail => Effect::seen(damaged, "it started as if nothing was"),
            Wound::LostTail => Effect::seen(damaged && forgot, format!("it started and said: {said:?}")),
            Wound::BitRot => Effect::seen(damaged, format!("it started and said: {said:?}")),
        }))
    }
}

/// Does it; gives back what was done, if there was anything to do it to.
fn inflict(wound: Wound, data: &Path, random: &mut Seeded) -> anyhow::Result<Option<String>> {
    if wound == Wound::BitRot {
        let files = files_of(data)?;
        return random
            .pick(&files)
            .map(|path| flip(path, data, random.clone()))
            .transpose();
    }
    let Some(path) = newest_log(&data.join("log"))? else {
        return Ok(None);
    };
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let length = file.metadata()?.len();
    let name = path
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let done = if wound == Wound::TornTail {
        let tail = torn_record(&file, length, random)?;
        let (tail, what) = match tail {
            Some(tail) => (tail, "half a record"),
            None => {
                let zeros = random.between(1, ZEROS_MAX);
                (vec![0; usize::try_from(zeros)?], "zeros")
            }
        };
        file.write_all_at(&tail, length)?;
        format!("{} bytes of {what} behind {name} ({length})", tail.len())
    } else {
        let lost = random.between(length / 4, length).max(1);
        file.set_len(length - lost)?;
        format!("the last {lost} bytes of {name} ({length}) are gone")
    };
    file.sync_all()?;
    Ok(Some(done))
}

/// The beginning of a record that the end of the file cuts off: its first one, again. `None`: there is no room for it
/// in the last block, or it is to be zeros this time.
fn torn_record(file: &File, length: u64, random: &mut Seeded) -> anyhow::Result<Option<Vec<u8>>> {
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, 0)?;
    let body = u64::from(u16::from_le_bytes([header[4], header[5]]));
    let room = BLOCK - length % BLOCK;
    if body < 2 || HEADER + body > room || HEADER + body > length || random.chance(0.3) {
        return Ok(None);
    }
    let kept = random.between(1, body - 1);
    let mut tail = vec![0; usize::try_from(HEADER + kept)?];
    file.read_exact_at(&mut tail, 0)?;
    Ok(Some(tail))
}

/// The write-ahead log that was written last, if there is something in it.
fn newest_log(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let is_log = entry.path().extension().is_some_and(|of| of == "log");
        if is_log && entry.metadata()?.len() > HEADER {
            logs.push(entry.path());
        }
    }
    // Their names are numbers of one width.
    Ok(logs.into_iter().max())
}

/// Whatever the server reads at its start: not the journals that RocksDB keeps for people, nor locks.
fn files_of(data: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() && name != "lost+found" {
                folders.push(entry.path());
            } else if kind.is_file()
                && entry.metadata()?.len() > 0
                && !name.starts_with("LOG")
                && !name.starts_with("LOCK")
                && !name.starts_with("lock")
            {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

fn flip(path: &Path, data: &Path, mut random: Seeded) -> anyhow::Result<String> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let places = random.between(1, PLACES_MAX.min(length));
    for _ in 0..places {
        let at = random.below(length);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        byte[0] ^= 1 << random.below(8);
        file.write_all_at(&byte, at)?;
    }
    file.sync_all()?;
    let name = path.strip_prefix(data).unwrap_or(path).display();
    Ok(format!("{places} bits flipped in {name} ({length} bytes)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_follows_from_the_seed_and_is_where_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::create_dir(&log).unwrap();
        // One whole record of 20 bytes, then some more.
        let mut whole = vec![9, 9, 9, 9, 20, 0, 1];
        whole.extend([7; 40]);
        std::fs::write(log.join("000003.log"), [1; 100]).unwrap();
        std::fs::write(log.join("000004.log"), &whole).unwrap();
        std::fs::write(log.join("000005.log"), b"").unwrap();

        let mut torn = 0;
        for seed in 0..20 {
            std::fs::write(log.join("000004.log"), &whole).unwrap();
            let done = inflict(Wound::TornTail, folder.path(), &mut Seeded::new(seed))
                .unwrap()
                .unwrap();
            let bytes = std::fs::read(log.join("000004.log")).unwrap();
            assert!(bytes.starts_with(&whole) && bytes.len() > whole.len(), "{done}");
            let tail = &bytes[whole.len()..];
            if done.contains("half a record") {
                torn += 1;
                assert!(tail.len() < 27 && whole.starts_with(tail), "{done}");
            } else {
                assert!(tail.iter().all(|byte| *byte == 0), "{done}");
            }
        }
        assert!((5..20).contains(&torn), "{torn}");

        std::fs::write(log.join("000004.log"), &whole).unwrap();
        let done = inflict(Wound::LostTail, folder.path(), &mut Seeded::new(1))
            .unwrap()
            .unwrap();
        let bytes = std::fs::read(log.join("000004.log")).unwrap();
        assert!(whole.starts_with(&bytes) && bytes.len() < whole.len(), "{done}");

        std::fs::write(folder.path().join("mark"), [0; 64]).unwrap();
        std::fs::remove_dir_all(&log).unwrap();
        let done = inflict(Wound::BitRot, folder.path(), &mut Seeded::new(1))
            .unwrap()
            .unwrap();
        assert!(done.contains("in mark (64 bytes)"), "{done}");
        assert_ne!(std::fs::read(folder.path().join("mark")).unwrap(), [0; 64]);
    }

    /// A program in a server's place, which says this and ends like this.
    fn refusal(wound: Wound, script: &str) -> Refusal {
        let ended = std::process::Command::new("sh")
            .args(["-c", script])
            .output()
            .unwrap();
        let log = String::from_utf8(ended.stderr).unwrap();
        Refusal::of(wound, 2, ended.status, reason(&log), &log)
    }

    #[test]
    fn a_server_that_refuses_its_files_names_the_damage_and_never_a_torn_tail() {
        let damaged = "echo 'ERROR RC-104: the log is damaged' >&2; exit 1";
        let broken = |refusal: Refusal, wanted: &str| match refusal {
            Refusal::Broken(what) => assert!(what.contains(wanted), "{what}"),
            Refusal::Named(said) => panic!("it passed: {said}"),
        };
        broken(refusal(Wound::TornTail, damaged), "nothing was lost");
        let named = Refusal::Named("RC-104: the log is damaged".into());
        assert_eq!(refusal(Wound::LostTail, damaged), named);
        assert_eq!(refusal(Wound::BitRot, damaged), named);
        for wound in [Wound::TornTail, Wound::LostTail, Wound::BitRot] {
            broken(refusal(wound, "echo oh >&2; exit 1"), "did not name");
            broken(refusal(wound, "echo 'RC-104: x' >&2; kill -9 $$"), "did not name");
        }
        assert!(matches!(
            refusal(Wound::TornTail, "echo 'RC-202: taken' >&2; exit 1"),
            Refusal::Named(_)
        ));
    }
}
