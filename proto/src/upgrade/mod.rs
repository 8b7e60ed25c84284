//! gRPC streams on a connection of their own, without HTTP/2 (docs/decisions/0024).
//!
//! A client asks for a stream by an HTTP/1.1 upgrade (RFC 9110, section 7.8) at the same port that speaks HTTP/2: the
//! path is the gRPC method, the headers are the call's metadata.
//!
//! ```text
//! GET /rollcall.v1.Sessions/Attend HTTP/1.1       HTTP/1.1 101 Switching Protocols
//! host: registry:7400                             connection: upgrade
//! connection: upgrade                             upgrade: rollcall-grpc
//! upgrade: rollcall-grpc
//! authorization: Bearer ...
//! ```
//!
//! Behind the heads both sides send gRPC messages as gRPC frames them: a byte 0, the length in four bytes, the
//! message. Two more kinds of frames have the same prefix: [`END`] closes a direction, with the trailers as text if
//! the server sends it (as gRPC-Web does), and a [`BEAT`], without content, says that its sender is there. A connection
//! that ends without [`END`] was lost. A call that is refused at once is answered with 200 and the status in the head, as
//! gRPC's "trailers only" are. A server that does not know all this says something else: the
//! [`Channel`] of a client then makes the call by HTTP/2. One that closes without a word has refused the call.

use std::time::Duration;

mod channel;
mod frame;
mod head;
mod inflow;
mod sending;
mod splitter;

pub use channel::{Channel, Streams};
pub use frame::{BEAT, END, TRAILERS_BYTES_MAX};
pub use head::{HEAD_BYTES_MAX, HEADERS_MAX, PROTOCOL, head, headers_of, is_upgrade};
pub use inflow::{Inflow, Side};
pub use sending::{Limits, Sending};

/// Metadata: after how many milliseconds without anything else to say the server sends a [`BEAT`]; whoever asks for that does
/// the same. Without it they come as rarely as the server has use for.
pub const BEAT_HEADER: &str = "rollcall-beat-ms";
/// Beats do not come more often.
pub const BEAT_MIN: Duration = Duration::from_secs(1);
