//! The directory: who offers what, as of which revision?
//!
//! It is the replicated state. It takes committed [`Request`]s with their log position and gives back a
//! result for the caller and the [`RevisionChanges`] for the watchers. The same log gives the same state,
//! the same answers and the same changes on every server, for ever.

mod addresses;
mod apply;
mod changelog;
mod codec;
mod command;
mod departed;
mod digest;
mod draft;
mod few;
mod fields;
mod groups;
mod guards;
mod imposed;
mod labels;
mod limits;
mod moves;
mod nodes;
mod outcome;
mod overrides;
mod owned;
mod packed;
mod record;
mod requests;
mod rules;
mod services;
mod session_table;
mod sessions;
mod sign;
mod snapshot;
mod state;
mod storms;
mod tombstone;
mod view;

pub use addresses::{AddressRef, Addresses};
pub use changelog::{BelowFloor, ChangeLog, ChangeLogBounds, Passed};
pub use codec::{DecodeError, FORMAT, LoggedRequest};
pub(crate) use codec::{decode_value, encode_value};
pub use command::{
    AdoptedNode, AdoptedSession, Command, DeregisterNode, Expected, ExpiryFence, RegisterNode, Request,
    RevivalFence, UpdateNode,
};
pub use fields::{GroupField, ServiceField};
pub(crate) use imposed::{ImposedNode, ImposedSession, Imposition, Listed};
pub use labels::Labels;
pub use limits::Limits;
pub use outcome::{
    Applied, GuardChange, GuardEvent, NodeChange, Outcome, Refusal, RemovalCause, RevisionChanges,
    ServiceChange, ServiceFate, SessionChange,
};
pub use owned::OwnedNodes;
pub use record::{
    Address, Group, GroupMode, GroupSettings, Move, Node, NodeKind, NodeState, Override, Owner, Registration,
    Service, ServiceSettings, Session, WEIGHT_DEFAULT,
};
pub use sign::Sign;
pub use snapshot::{SNAPSHOT_FORMAT, SnapshotError};
pub use state::{Directory, Totals};
pub use tombstone::{Tombstone, Tombstones};
pub use view::NodeView;
