//! What a token's holder may do.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupName, NameError};

/// The verb that covers everything.
const ADMIN: &str = "admin";
/// The verb of writing nodes.
const REGISTER: &str = "register";
/// Longest verb, in bytes.
const VERB_BYTES_MAX: usize = 32;

/// A verb and, perhaps, the group it is meant for, those below included: `register:prod/feed`, `register`, `admin`.
/// Tokens hold scopes, admission lists ask for them. Verbs other than `register` and `admin` mean what an operator wants
/// them to mean.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenScope(Arc<str>);

/// A text that is no scope. Correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// The verb is empty, too long, or has other characters than these.
    #[error(
        "scope {text:?} does not begin with a verb of [a-z0-9-], 1 to 32 of them, as in register:prod/feed"
    )]
    BadVerb {
        /// The beginning of the text.
        text: String,
    },
    /// What follows the colon is no group.
    #[error("scope {text:?} does not name a group")]
    BadGroup {
        /// The beginning of the text.
        text: String,
        /// Why.
        source: NameError,
    },
    /// Whoever administers, administers the cluster.
    #[error("scope {text:?} would be of one group: admin has none")]
    AdminOfGroup {
        /// The beginning of the text.
        text: String,
    },
}

impl TokenScope {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its holder administers the cluster.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        &*self.0 == ADMIN
    }

    /// Whether its holder may write nodes of the group.
    #[must_use]
    pub fn may_register(&self, group: &GroupName) -> bool {
        self.covers_parts(REGISTER, Some(group.as_str()))
    }

    /// Whether its holder has what is asked for: the same verb for that group, for one above it, or for all.
    #[must_use]
    pub fn covers(&self, asked: &Self) -> bool {
        let (verb, group) = asked.parts();
        self.covers_parts(verb, group)
    }

    fn covers_parts(&self, verb: &str, group: Option<&str>) -> bool {
        let (own_verb, own_group) = self.parts();
        let covers_group = match (own_group, group) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(group)) => group
                .strip_prefix(own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        self.is_admin() || own_verb == verb && covers_group
    }

    fn parts(&self) -> (&str, Option<&str>) {
        match self.0.split_once(':') {
            Some((verb, group)) => (verb, Some(group)),
            None => (&self.0, None),
        }
    }
}

impl FromStr for TokenScope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let beginning = || text.chars().take(64).collect();
        let (verb, group) = match text.split_once(':') {
            Some((verb, group)) => (verb, Some(group)),
            None => (text, None),
        };
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if verb.is_empty() || verb.len() > VERB_BYTES_MAX || !verb.bytes().all(allowed) {
            return Err(ScopeError::BadVerb { text: beginning() });
        }
        if let Some(group) = group {
            if verb == ADMIN {
                return Err(ScopeError::AdminOfGroup { text: beginning() });
            }
            group
                .parse::<GroupName>()
                .map_err(|source| ScopeError::BadGroup {
                    text: beginning(),
                    source,
                })?;
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for TokenScope {
    type Error = ScopeError;

    fn try_from(text: String) -> Result<Self, ScopeError> {
        text.parse()
    }
}

impl From<TokenScope> for String {
    fn from(scope: TokenScope) -> Self {
        scope.0.as_ref().into()
    }
}

impl fmt::Display for TokenScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TokenScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
