//! Who calls, and what was refused to whom.
//!
//! A principal is what a door knows of a caller: the address of its connection, the token it showed, the environment
//! it claims. The address comes from the socket, never from a header; a token counts if its hash stands in the token file
//! (see [`Tokens`]); the environment is a claim and guards against mistakes, not against malice. Rules are judged after the
//! call was decoded, on its parsed contents. What an admission list refused is remembered in a list, for people.

mod principal;
mod refused;
mod tokens;

pub(crate) use principal::{NotPermitted, Principal};
pub(crate) use refused::{Attempt, RefusedEntry, RefusedList};
pub(crate) use tokens::equal;
pub use tokens::{TokenFileError, Tokens};
