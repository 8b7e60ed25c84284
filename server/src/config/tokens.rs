//! Tokens: who may do what.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Tokens: who may do what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokensConfig {
    /// A file of tokens, the same on every server: names, SHA-256 hashes and scopes. Read again when it changes.
    /// With it, operators' calls take the scope `admin`. Without it nobody needs a token, none is accepted, and
    /// admission lists that ask for scopes admit nobody: for development. Connections are not encrypted yet; keep
    /// tokens off networks that others can listen to.
    pub path: Option<PathBuf>,
}
