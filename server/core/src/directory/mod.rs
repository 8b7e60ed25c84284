//! The directory: who offers what, as of which revision?
//!
//! It is the replicated state. It takes committed [`Request`]s with their log position and gives back a
//! result for the caller and the [`RevisionChanges`] for the watchers. The same log gives the same state,
//! the same answers and the same changes on every server, for ever.

mod command;
mod outcome;
mod record;
mod sign;

pub use command::{Command, DeregisterNode, Expected, ExpiryFence, RegisterNode, Request, UpdateNode};
pub use outcome::{
    Applied, NodeChange, Outcome, Refusal, RemovalCause, RevisionChanges, ServiceChange, ServiceFate, SessionChange,
};
pub use record::{
    Address, Group, GroupMode, GroupSettings, Labels, Node, NodeKind, NodeState, Override, Registration, Service,
    ServiceSettings, Session, WEIGHT_DEFAULT,
};
pub use sign::Sign;
