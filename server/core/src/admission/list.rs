//! A group's list, and who may pass it.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::cidr::Cidr;
use super::scope::TokenScope;
use crate::ids::Environment;

/// Most entries of one rule.
pub const ENTRIES_MAX: usize = 64;
/// How many entries a refusal names.
const NAMED_MAX: usize = 4;

/// Who may register into a group. A rule that has entries must be met by one of them; all rules must be met. A list
/// without entries admits everyone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionList {
    /// Where from.
    pub cidrs: BTreeSet<Cidr>,
    /// With which token.
    pub scopes: BTreeSet<TokenScope>,
    /// Saying to belong where.
    pub environments: BTreeSet<Environment>,
    /// Whoever is not listed is reported and let in.
    pub dry_run: bool,
}

/// Who wants in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidate<'a> {
    /// Where its connection comes from; `None`: not known, which no network contains.
    pub address: Option<IpAddr>,
    /// What its token holds; empty without one.
    pub scopes: &'a [TokenScope],
    /// The environment its connection claims.
    pub claimed: Option<&'a str>,
    /// The environment its node is labelled with.
    pub labelled: Option<&'a str>,
}

/// The kinds of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// [`AdmissionList::cidrs`].
    Address,
    /// [`AdmissionList::scopes`].
    Scope,
    /// [`AdmissionList::environments`].
    Environment,
}

/// Why a candidate is not listed, and what would help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Connect from elsewhere, or have the network listed.
    #[error("{} is in none of its networks ({listed}): connect from one of them, or have yours added to the list", address_text(.address))]
    Address {
        /// Where the candidate comes from.
        address: Option<IpAddr>,
        /// What is listed.
        listed: String,
    },
    /// Use another token, or have its scope listed.
    #[error("{} one of its scopes ({listed}): use a token that does, or have its scopes changed", held_text(.held))]
    Scope {
        /// What the candidate's token holds.
        held: String,
        /// What is listed.
        listed: String,
    },
    /// Claim the right environment, if it is the right one.
    #[error("{} one of its environments ({listed}): if this process does, configure it to say so", claim_text(.claimed))]
    Environment {
        /// What the candidate says.
        claimed: Option<String>,
        /// What is listed.
        listed: String,
    },
}

impl NotAdmitted {
    /// Which rule was not met.
    #[must_use]
    pub fn rule(&self) -> Rule {
        match self {
            Self::Address { .. } => Rule::Address,
            Self::Scope { .. } => Rule::Scope,
            Self::Environment { .. } => Rule::Environment,
        }
    }
}

impl AdmissionList {
    /// Whether it has nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cidrs.is_empty() && self.scopes.is_empty() && self.environments.is_empty()
    }

    /// Judges a candidate. [`Self::dry_run`] is for the caller to respect.
    ///
    /// # Errors
    ///
    /// [`NotAdmitted`] names the first rule that is not met.
    pub fn check(&self, candidate: &Candidate<'_>) -> Result<(), NotAdmitted> {
        self.check_address(candidate)?;
        self.check_scope(candidate)?;
        self.check_environment(candidate)
    }

    fn check_address(&self, candidate: &Candidate<'_>) -> Result<(), NotAdmitted> {
        let inside = |address| self.cidrs.iter().any(|cidr| cidr.contains(address));
        if self.cidrs.is_empty() || candidate.address.is_some_and(inside) {
            return Ok(());
        }
        Err(NotAdmitted::Address {
            address: candidate.address.map(|address| address.to_canonical()),
            listed: some_of(&self.cidrs),
        })
    }

    fn check_scope(&self, candidate: &Candidate<'_>) -> Result<(), NotAdmitted> {
        let held = |asked: &TokenScope| candidate.scopes.iter().any(|scope| scope.covers(asked));
        if self.scopes.is_empty() || self.scopes.iter().any(held) {
            return Ok(());
        }
        Err(NotAdmitted::Scope {
            held: some_of(candidate.scopes),
            listed: some_of(&self.scopes),
        })
    }

    /// Everything the candidate says must be listed, and it must say something.
    fn check_environment(&self, candidate: &Candidate<'_>) -> Result<(), NotAdmitted> {
        if self.environments.is_empty() {
            return Ok(());
        }
        let listed = |claim: &str| self.environments.iter().any(|listed| listed.as_str() == claim);
        let mut said = [candidate.claimed, candidate.labelled].into_iter().flatten();
        let first = said.clone().next();
        let wrong = said.find(|claim| !listed(claim));
        if first.is_some() && wrong.is_none() {
            return Ok(());
        }
        Err(NotAdmitted::Environment {
            claimed: wrong.map(|claim| claim.chars().take(64).collect()),
            listed: some_of(&self.environments),
        })
    }
}

/// The first few, for people.
fn some_of<T: Display>(entries: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>) -> String {
    let entries = entries.into_iter();
    let more = entries.len().saturating_sub(NAMED_MAX);
    let mut text = entries
        .take(NAMED_MAX)
        .map(|entry| entry.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

fn address_text(address: &Option<IpAddr>) -> impl Display {
    fmt::from_fn(move |f| match address {
        Some(address) => write!(f, "address {address}"),
        None => f.write_str("an unknown address"),
    })
}

fn held_text(held: &str) -> impl Display {
    fmt::from_fn(move |f| match held {
        "" => f.write_str("no token with scopes was shown, it asks for"),
        held => write!(f, "the token holds {held}, which does not cover"),
    })
}

fn claim_text(claimed: &Option<String>) -> impl Display {
    fmt::from_fn(move |f| match claimed {
        Some(claimed) => write!(f, "environment {claimed:?} is not"),
        None => f.write_str("no environment was claimed, it asks for"),
    })
}
