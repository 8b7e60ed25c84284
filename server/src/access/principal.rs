//! A caller, as the door knows it.

use std::net::IpAddr;
use std::sync::Arc;

use rollcall_core::admission::{Candidate, TokenScope};
use rollcall_core::ids::{Environment, GroupName};

use super::tokens::{self, Token, TokenTable, Tokens};

/// Who calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Principal {
    /// Where its connection comes from.
    pub(crate) address: Option<IpAddr>,
    /// Where it claims to belong.
    pub(crate) environment: Option<Environment>,
    token: Option<Shown>,
    /// There is a token file.
    judged: bool,
}

/// A token that was shown and is known.
#[derive(Clone, Debug)]
struct Shown {
    digest: [u8; 32],
    token: Arc<Token>,
    /// The reading in which it was found.
    found_in: Arc<TokenTable>,
}

/// The token is not known, any more or at all. Use another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownToken;

/// It takes a scope that the caller's token does not have. Use another token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotPermitted {
    /// The caller, for people.
    pub(crate) who: String,
    /// The scope.
    pub(crate) scope: String,
}

impl Principal {
    /// A caller that shows this token, or none.
    pub(crate) fn new(
        address: Option<IpAddr>,
        environment: Option<Environment>,
        tokens: &Tokens,
        shown: Option<&str>,
    ) -> Result<Self, UnknownToken> {
        let token = shown
            .map(|shown| find(tokens, tokens::digest(shown)))
            .transpose()?;
        Ok(Self {
            address: address.map(|address| address.to_canonical()),
            environment,
            token,
            judged: tokens.are_on(),
        })
    }

    /// Looks its token up again, for a caller that stays.
    pub(crate) fn look_again(&mut self, tokens: &Tokens) -> Result<(), UnknownToken> {
        let Some(shown) = &mut self.token else {
            return Ok(());
        };
        let same = |table: Arc<TokenTable>| Arc::ptr_eq(&table, &shown.found_in);
        if !tokens.table().is_some_and(same) {
            *shown = find(tokens, shown.digest)?;
        }
        Ok(())
    }

    /// The name of its token; empty without one.
    pub(crate) fn token(&self) -> &str {
        self.token.as_ref().map_or("", |shown| &shown.token.name)
    }

    /// Itself as a candidate for admission, with a node labelled like this.
    pub(crate) fn candidate<'a>(&'a self, labelled: Option<&'a str>) -> Candidate<'a> {
        Candidate {
            address: self.address,
            scopes: self.scopes(),
            claimed: self.environment.as_ref().map(Environment::as_str),
            labelled,
        }
    }

    /// Whether it may change what is not its own. Without a token file everybody may.
    pub(crate) fn check_admin(&self) -> Result<(), NotPermitted> {
        self.demand(TokenScope::is_admin, || "admin".into())
    }

    /// Whether it may write nodes of a group that no session of its own vouches for. Without a token file
    /// everybody may.
    pub(crate) fn check_register(&self, group: &GroupName) -> Result<(), NotPermitted> {
        self.demand(|scope| scope.may_register(group), || format!("register:{group}"))
    }

    fn demand(
        &self,
        suffices: impl Fn(&TokenScope) -> bool,
        scope: impl Fn() -> String,
    ) -> Result<(), NotPermitted> {
        if !self.judged || self.scopes().iter().any(suffices) {
            return Ok(());
        }
        let who = match self.token() {
            "" => "a caller without a token".into(),
            name => format!("the token {name:?}"),
        };
        Err(NotPermitted { who, scope: scope() })
    }

    fn scopes(&self) -> &[TokenScope] {
        self.token.as_ref().map_or(&[], |shown| &shown.token.scopes)
    }
}

fn find(tokens: &Tokens, digest: [u8; 32]) -> Result<Shown, UnknownToken> {
    let found_in = tokens.table().ok_or(UnknownToken)?;
    let token = found_in.find(&digest).cloned().ok_or(UnknownToken)?;
    Ok(Shown {
        digest,
        token,
        found_in,
    })
}
