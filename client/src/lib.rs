//! The Rollcall client: register, keep alive, discover, watch.
//!
//! Everything starts from a [`Registry`] handle on several servers of one cluster. It connects when it is first
//! used, asks another server when one does not answer, and repeats calls where that is safe.
//!
//! A **provider** opens a [`Session`] and registers its nodes under it. The session keeps itself alive: it moves
//! to another server when one is lost, and when the registry has forgotten it, it opens a new one and registers
//! everything again.
//!
//! ```no_run
//! use std::time::Duration;
//! use rollcall_client::{Registration, ServiceKey, SessionOptions, close_on_signal, connect};
//!
//! # async fn provider() -> Result<(), rollcall_client::Error> {
//! let registry = connect(["10.0.0.1:7400", "10.0.0.2:7400", "10.0.0.3:7400"])?;
//! let session = registry.open_session(SessionOptions::ttl(Duration::from_secs(15))).await?;
//! let node = Registration::new("http", "10.0.7.1", 8080).label("zone", "b").weight(100);
//! session.register(&ServiceKey::new("prod/feed", "ranker"), node).await?;
//! // Serve; on SIGTERM or SIGINT: announce draining, wait, deregister.
//! close_on_signal(session, Duration::from_secs(5)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A **consumer** discovers services, or watches them. What it holds comes from a live stream; while no server
//! answers, from memory; after a restart, from disk. Every [`ServiceView`] says which, and how old it is.
//!
//! ```no_run
//! use rollcall_client::{Choice, Picker, Registry, RegistryConfig, ServiceKey};
//!
//! # async fn consumer() -> Result<(), rollcall_client::Error> {
//! let config = RegistryConfig::new(["10.0.0.1:7400", "10.0.0.2:7400"]).snapshot_folder("/var/lib/my-app/roll");
//! let registry = Registry::connect(config)?;
//! let ranker = ServiceKey::new("prod/feed", "ranker");
//! let picker = Picker::new(Choice::RoundRobin);
//! let view = registry.discover(&ranker).await?;
//! if let Some(picked) = picker.pick(&view) {
//!     println!("call {:?}", picked.node.address("http"));
//! }
//! let mut watch = registry.watch_service(&ranker).await?;
//! while let Some(view) = watch.changed().await {
//!     println!("{} nodes as of revision {} ({})", view.nodes.len(), view.revision, view.source);
//! }
//! # Ok(())
//! # }
//! ```

mod admission;
mod backoff;
mod cluster;
mod config;
mod convergence;
mod credentials;
mod directory;
mod endpoint;
mod error;
mod key;
#[doc(hidden)]
pub mod measured;
mod node;
mod pick;
mod poll;
mod queries;
mod registry;
mod session;
mod sign;
mod snapshot;
mod view;
mod watch;

pub use admission::RefusedRegistrations;
pub use config::{Freshness, ReadOptions, RegistryConfig, WriteOptions};
pub use convergence::{Convergence, ServerConvergence, ServerWatchers};
pub use credentials::Token;
pub use directory::{Answer, Explanation, Page, SIGNS_MAX, ServiceSign, StormSetting};
pub use error::{Effect, Error};
pub use key::{NodeKey, ParseKeyError, RequestId, ServiceKey};
pub use node::{
    Address, Entry, Expected, Labels, Node, NodeKind, NodeState, NodeUpdate, Override, Registration, Removal,
    WEIGHT_DEFAULT,
};
pub use pick::{Choice, Picked, Picker};
pub use poll::PollOptions;
pub use registry::{Registry, Written, connect};
/// The wire contract: settings and summaries that tools read and write are used as they are.
pub use rollcall_proto::v1;
pub use session::{
    Heartbeats, Session, SessionEvent, SessionEvents, SessionOptions, SessionStatus, Signal, close_on_signal,
};
pub use sign::Sign;
pub use view::{ServiceView, Source};
pub use watch::{RemovalCause, RemovedNode, ServiceWatch, Watch, WatchEvent, WatchTarget};
