//! What every command is handed.

use crate::output::Printer;
use crate::servers::Servers;

/// The servers to ask, and how to print what they say.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) servers: Servers,
    pub(crate) printer: Printer,
}
