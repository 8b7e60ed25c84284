//! The commands, one file each. A command asks, prints, and says how it went.

pub(crate) mod admission;
pub(crate) mod completions;
pub(crate) mod group;
pub(crate) mod man;
pub(crate) mod member;
pub(crate) mod node;
pub(crate) mod rehearsal;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod status;
pub(crate) mod storm;
pub(crate) mod watch;

mod drain;
mod guard;
mod keep;
mod settings;

use crate::arguments::{Arguments, Command};
use crate::bench;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::output::Printer;
use crate::servers::Servers;

/// What every command is handed.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) servers: Servers,
    pub(crate) printer: Printer,
}

/// Does what was asked.
pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    // These need no server.
    match &arguments.command {
        Command::Completions(which) => return completions::run(which),
        Command::Man(which) => return man::run(which),
        _ => {}
    }
    let context = Context {
        servers: Servers::new(&arguments.connection)?,
        printer: Printer::new(&arguments.printing),
    };
    match arguments.command {
        Command::Group(command) => group::run(&context, command).await,
        Command::Service(command) => service::run(&context, command).await,
        Command::Node(command) => node::run(&context, command).await,
        Command::Session(command) => session::run(&context, command).await,
        Command::Watch(arguments) => watch::run(&context, &arguments, Interrupt::listen()).await,
        Command::Storm(command) => storm::run(&context, command).await,
        Command::Member(command) => member::run(&context, command).await,
        Command::Status(arguments) => status::run(&context, &arguments).await,
        Command::Bench(command) => bench::run(&context, command, Interrupt::listen()).await,
        Command::Completions(which) => completions::run(&which),
        Command::Man(which) => man::run(&which),
    }
}

/// A prefix as people type it: `prod`, `prod/` or `/`.
fn prefix_of(typed: Option<&str>) -> &str {
    typed.unwrap_or_default().trim_end_matches('/')
}
