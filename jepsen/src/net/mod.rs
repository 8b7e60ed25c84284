//! A network whose every cable the test holds in its hand.
//!
//! [`Net`] gives each host a network namespace with an address of its own, joined by a switch in user space that
//! cuts, loses, delays, repeats, reorders, damages and counts frames as it is told. The test's own process is a host
//! too ([`HARNESS`]): it reaches the others by their addresses, with ordinary sockets. Clients may have hosts of their
//! own ([`Net::start_with_clients`], [`HostRuntime`]), to be cut off and slowed like any other.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::{sync::Arc, time::Duration};
//! use rollcall_jepsen::lab::{Cluster, ClusterOptions, WAIT_MAX};
//! use rollcall_jepsen::net::Net;
//!
//! // Root only; elsewhere this prints why and the test ends.
//! let Some(net) = Net::start_or_skip(5, 42) else { return Ok(()) };
//! let net = Arc::new(net);
//! // Server n runs on host n.
//! let mut cluster = Cluster::start_with(ClusterOptions::servers(5).on(&net)).await?;
//! let clients_connect_to = cluster.addresses();
//!
//! net.partition(&[1, 2], &[3, 4, 5]); // servers only: clients still reach both sides
//! cluster.leader_among(&[3, 4, 5], WAIT_MAX).await?;
//! net.heal();
//! cluster.wait_converged(WAIT_MAX).await?;
//!
//! net.everywhere(false).loss(0.2).delay(Duration::from_millis(10)).jitter(Duration::from_millis(30));
//! let alone = net.isolate(2, true); // on top of the loss, clients cut too
//! net.lift(alone);
//! println!("server 1 sent {} bytes", net.bytes_from(1));
//! # Ok(())
//! # }
//! ```
//!
//! - `switch`, `quality`, `frame`, `meter`: the switch, deterministic and tested without root.
//! - `wire`: the thread that carries frames between it and the TAP devices.
//! - `host`, `runtime`, `claim`: namespaces, threads in them, and what has to be undone even after a crash.
//! - `loopback`, `stream`, `owner`: without root, a proxy that carries connections and datagrams instead, who dialled
//!   whom, and what one connection waits for.
//!
//! The kernel's own netem would do for delays and loss; many kernels lack it, and it neither counts nor obeys a seed.

mod claim;
mod command;
mod frame;
mod host;
mod loopback;
mod meter;
mod network;
mod owner;
mod quality;
mod runtime;
mod stream;
mod switch;
mod wire;

pub(crate) use claim::{Claim, Duty};
pub(crate) use command::run;
pub use meter::{Count, Traffic};
pub use network::{HARNESS, HOSTS_MAX, Links, Net};
pub use quality::{Cut, Protocol, Quality};
pub use runtime::HostRuntime;
pub use switch::FaultId;
