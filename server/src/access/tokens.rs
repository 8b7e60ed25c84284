//! Bearer tokens: a file of names, hashes and scopes, read again when it changes.
//!
//! The file holds SHA-256 hashes, no tokens. A plain hash is enough only for tokens that cannot be guessed: make them of
//! 32 random bytes.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rollcall_core::admission::TokenScope;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

/// Largest token file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most tokens of a file: each is compared with each token that is shown.
const TOKENS_MAX: usize = 1_024;
/// Most scopes of a token.
const SCOPES_MAX: usize = 64;
/// Longest name of a token, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// How often the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The token file cannot be used. Correct it. At start nothing was started; later the tokens read before hold.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("RC-205: cannot read tokens.path {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not say what it should.
    #[error("RC-205: tokens.path {}: {problem}", path.display())]
    Contents {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where. Hashes are not told.
        problem: String,
    },
}

/// A token as the file describes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) name: String,
    digest: [u8; 32],
    pub(super) scopes: Vec<TokenScope>,
}

/// All of them, as of one reading.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TokenTable {
    tokens: Vec<Arc<Token>>,
}

impl TokenTable {
    /// The token of which this is the hash. Takes the same time for whatever is shown.
    pub(super) fn find(&self, digest: &[u8; 32]) -> Option<&Arc<Token>> {
        let mut found = None;
        for token in &self.tokens {
            if equal(&token.digest, digest) {
                found = Some(token);
            }
        }
        found
    }
}

/// What is kept of a token that was shown.
pub(super) fn digest(shown: &str) -> [u8; 32] {
    Sha256::digest(shown).into()
}

/// Whether two digests are one. Takes the same time wherever the first difference is.
pub(crate) fn equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let difference = one
        .iter()
        .zip(other)
        .fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// The tokens that are known, if there is a token file. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    file: Option<Arc<TokenFile>>,
}

#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    table: RwLock<Arc<TokenTable>>,
    /// What the file was like before it was read for the first time.
    at_start: Stamp,
}

/// What tells one writing of a file from another; `None`: it is not there.
type Stamp = Option<(u64, Option<SystemTime>)>;

impl Tokens {
    /// Reads the token file, if there is to be one.
    ///
    /// # Errors
    /// [`TokenFileError`] names the file and what is wrong.
    pub fn load(path: Option<&Path>) -> Result<Self, TokenFileError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        // Before it is read: what is written from here on is noticed.
        let at_start = stamp_of(std::fs::metadata(path));
        let table = read(path)?;
        tracing::info!(tokens = table.tokens.len(), "token file read");
        Ok(Self {
            file: Some(Arc::new(TokenFile {
                path: path.to_owned(),
                table: RwLock::new(Arc::new(table)),
                at_start,
            })),
        })
    }

    /// Whether calls are judged by tokens at all.
    pub(crate) fn are_on(&self) -> bool {
        self.file.is_some()
    }

    /// As of the last reading; `None`: there is no token file.
    pub(super) fn table(&self) -> Option<Arc<TokenTable>> {
        self.file.as_ref().map(|file| file.table.read().clone())
    }

    /// Reads the file again whenever it has changed, until `stop`. A file that cannot be used changes nothing, and is tried
    /// again at each look.
    pub(crate) async fn keep_current(self, stop: CancellationToken) {
        let Some(file) = self.file else { return };
        let mut seen = file.at_start;
        let mut complained = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let now = stamp_of(tokio::fs::metadata(&file.path).await);
            if now == seen {
                continue;
            }
            let path = file.path.clone();
            match crate::ground::spawn_blocking(move || read(&path)).await {
                Ok(Ok(table)) => {
                    tracing::info!(tokens = table.tokens.len(), "token file read again");
                    *file.table.write() = Arc::new(table);
                    (seen, complained) = (now, None);
                }
                // Said once of each writing.
                Ok(Err(_)) if complained == Some(now) => {}
                Ok(Err(error)) => {
                    complained = Some(now);
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(%error, cause, "the token file changed and cannot be used; the tokens before it hold");
                }
                Err(error) => tracing::error!(%error, "reading the token file failed"),
            }
        }
    }
}

fn stamp_of(metadata: std::io::Result<Metadata>) -> Stamp {
    let metadata = metadata.ok()?;
    Some((metadata.len(), metadata.modified().ok()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    token: Vec<WrittenToken>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenToken {
    name: String,
    sha256: String,
    scopes: Vec<String>,
}

fn read(path: &Path) -> Result<TokenTable, TokenFileError> {
    let failed = |source| TokenFileError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(contents(
            path,
            format!("it has {size} bytes, at most {FILE_BYTES_MAX} are read"),
        ));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let table = parse(&text).map_err(|problem| contents(path, problem))?;
    if table.tokens.is_empty() {
        return Err(contents(
            path,
            "it holds no token: nobody could administer the cluster",
        ));
    }
    Ok(table)
}

fn contents(path: &Path, problem: impl Into<String>) -> TokenFileError {
    TokenFileError::Contents {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

fn parse(text: &str) -> Result<TokenTable, String> {
    // The whole error would quote the line, hash and all.
    let written: Written = toml::from_str(text).map_err(|error| {
        let line = error.span().and_then(|span| text.get(..span.start));
        let line = line.map_or(1, |before| before.matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })?;
    if written.token.len() > TOKENS_MAX {
        return Err(format!(
            "it holds {} tokens, at most {TOKENS_MAX} are allowed",
            written.token.len()
        ));
    }
    let mut names = BTreeSet::new();
    let mut digests = BTreeSet::new();
    let mut tokens = Vec::new();
    for token in written.token {
        let token = token_from(token)?;
        if !names.insert(token.name.clone()) {
            return Err(format!("token {:?} is there twice", token.name));
        }
        if !digests.insert(token.digest) {
            return Err(format!("token {:?} has the hash of another one", token.name));
        }
        tokens.push(Arc::new(token));
    }
    Ok(TokenTable { tokens })
}

fn token_from(written: WrittenToken) -> Result<Token, String> {
    let name = written.name;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
        let beginning: String = name.chars().take(NAME_BYTES_MAX).collect();
        return Err(format!(
            "token name {beginning:?} is not of 1 to {NAME_BYTES_MAX} characters of [A-Za-z0-9._-]"
        ));
    }
    let digest = digest_from(&written.sha256).ok_or_else(|| {
        format!("sha256 of token {name:?} is not of 64 hexadecimal digits (printf %s TOKEN | sha256sum)")
    })?;
    if written.scopes.len() > SCOPES_MAX {
        return Err(format!(
            "token {name:?} has {} scopes, at most {SCOPES_MAX} are allowed",
            written.scopes.len()
        ));
    }
    let scopes = written.scopes.iter().map(|scope| scope.parse());
    let scopes = scopes
        .collect::<Result<_, _>>()
        .map_err(|error: rollcall_core::admission::ScopeError| format!("token {name:?}: {error}"))?;
    Ok(Token { name, digest, scopes })
}

fn digest_from(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(shown: &str) -> String {
        digest(shown).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn entry(name: &str, shown: &str, scopes: &str) -> String {
        format!(
            "[[token]]\nname = {name:?}\nsha256 = \"{}\"\nscopes = {scopes}\n",
            hex(shown)
        )
    }

    #[test]
    fn a_token_is_found_by_its_hash_alone() {
        let text = entry("feed", "one", "[\"register:prod/feed\"]") + &entry("ops", "two", "[\"admin\"]");
        let table = parse(&text).unwrap();
        let found = |shown: &str| table.find(&digest(shown)).map(|token| token.name.as_str());
        assert_eq!(found("one"), Some("feed"));
        assert_eq!(found("two"), Some("ops"));
        for stranger in ["", "On", "one ", "feed", &hex("one")] {
            assert_eq!(found(stranger), None, "{stranger:?}");
        }
        for at in 0..32 {
            let mut other = digest("one");
            other[at] ^= 1;
            assert!(table.find(&other).is_none(), "byte {at}");
        }
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused_without_quoting_hashes() {
        let many: String = (0..=TOKENS_MAX)
            .map(|n| entry(&format!("t{n}"), &n.to_string(), "[]"))
            .collect();
        let scopes = format!("[{}]", "\"team\",".repeat(SCOPES_MAX + 1));
        for (text, complaint) in [
            ("token = 1".to_owned(), "line 1"),
            (format!("\n\n{}", entry("a", "x", "[1]")), "line 6"),
            ("[[token]]\nname = \"a\"\n".to_owned(), "sha256"),
            (entry("a", "x", "[]") + "secret = \"x\"\n", "unknown field"),
            (entry("a b", "x", "[]"), "token name \"a b\""),
            (entry("", "x", "[]"), "token name"),
            (entry("a", "x", "[\"Register\"]"), "does not begin with a verb"),
            (
                entry("a", "x", "[]").replace(&hex("x"), &"ä".repeat(32)),
                "64 hexadecimal digits",
            ),
            (
                entry("a", "x", "[]").replace(&hex("x"), "00"),
                "64 hexadecimal digits",
            ),
            (entry("a", "x", "[]") + &entry("a", "y", "[]"), "there twice"),
            (
                entry("a", "x", "[]") + &entry("b", "x", "[]"),
                "the hash of another one",
            ),
            (many, "holds 1025 tokens"),
            (entry("a", "x", &scopes), "has 65 scopes"),
        ] {
            let problem = parse(&text).unwrap_err();
            assert!(problem.contains(complaint), "{problem}");
            assert!(!problem.contains(&hex("x")), "{problem}");
        }
    }

    #[test]
    fn a_file_is_needed_if_it_is_named_and_must_hold_somebody() {
        assert!(!Tokens::load(None).unwrap().are_on());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        let problem = Tokens::load(Some(&path)).unwrap_err();
        assert!(problem.to_string().contains("tokens.toml"), "{problem}");
        std::fs::write(&path, "").unwrap();
        let problem = Tokens::load(Some(&path)).unwrap_err().to_string();
        assert!(problem.contains("holds no token"), "{problem}");
        std::fs::write(&path, vec![b'#'; 1 << 21]).unwrap();
        let problem = Tokens::load(Some(&path)).unwrap_err().to_string();
        assert!(problem.contains("2097152 bytes"), "{problem}");
        std::fs::write(&path, entry("ops", "x", "[\"admin\"]")).unwrap();
        assert!(Tokens::load(Some(&path)).unwrap().are_on());
    }

    #[tokio::test]
    async fn a_change_of_the_file_is_seen_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, entry("ops", "one", "[\"admin\"]")).unwrap();
        let tokens = Tokens::load(Some(&path)).unwrap();
        let stop = CancellationToken::new();
        // Between its first reading and the first look at it.
        std::fs::write(&path, entry("first", "two", "[\"admin\"]")).unwrap();
        let keeping = tokio::spawn(tokens.clone().keep_current(stop.clone()));
        let known = |shown: &str| tokens.table().unwrap().find(&digest(shown)).is_some();
        let wait = |shown: &'static str| {
            let tokens = tokens.clone();
            let waiting = async move {
                while tokens.table().unwrap().find(&digest(shown)).is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), waiting)
        };
        wait("two").await.unwrap();
        assert!(!known("one"));
        for bad in ["garbage", ""] {
            std::fs::write(&path, bad).unwrap();
            tokio::time::sleep(LOOK_INTERVAL * 3 / 2).await;
            assert!(known("two"), "{bad:?}");
        }
        std::fs::write(&path, entry("ops-2", "three", "[\"admin\"]")).unwrap();
        wait("three").await.unwrap();
        assert!(!known("two"));
        stop.cancel();
        keeping.await.unwrap();
    }
}
