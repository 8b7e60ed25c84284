//! The judges judged: servers with a bug each, and whether somebody notices.
//!
//! - [`Catalogue`]: which mutants there are, by the server's own word, and how each is sought.
//! - [`Program`]: a server that can have bugs, built in a target folder of its own.
//! - [`Trial`]: one way to seek: a run of the lab, or a test of real processes.
//! - [`hunt`]: seeks them all, and what came of it.
//!
//! Each trial is first carried out on a server of the same build without a bug, and must find nothing there.

mod catalogue;
mod hunt;
mod program;
mod table;
mod trial;

pub use catalogue::Catalogue;
pub use hunt::{Hunt, hunt};
pub use program::Program;
pub use table::Row;
pub use trial::{Lab, ServerTest, Trial};
