//! The Rollcall client: register, keep alive, discover, watch.

mod backoff;
mod cluster;
mod config;
mod directory;
mod endpoint;
mod error;
mod key;
mod node;
mod registry;
mod session;
mod sign;
mod view;

pub use config::{Freshness, ReadOptions, RegistryConfig, WriteOptions};
pub use directory::{Answer, Explanation, Page, SIGNS_MAX, ServiceSign};
pub use error::{Effect, Error};
pub use key::{NodeKey, ParseKeyError, RequestId, ServiceKey};
pub use node::{
    Address, Entry, Expected, Labels, Node, NodeKind, NodeState, NodeUpdate, Override, Registration, Removal,
    WEIGHT_DEFAULT,
};
pub use registry::{Registry, Written, connect};
pub use rollcall_proto::v1;
pub use session::{
    Session, SessionEvent, SessionEvents, SessionOptions, SessionStatus, Signal, close_on_signal,
};
pub use sign::Sign;
pub use view::{ServiceView, Source};
