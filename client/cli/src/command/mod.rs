//! The command line: the list of the commands, and each of them in a file. A command asks, prints, and says how it
//! went.

mod completions;
mod group;
mod man;
mod member;
mod node;
mod service;
mod session;
mod settings;
mod status;
mod storm;
mod watch;

use clap::{CommandFactory, Parser, Subcommand};

use crate::bench::{self, BenchCommand};
use crate::context::Context;
use crate::exit::{self, Failure};
use crate::flags::{Connection, Printing};
use crate::interrupt::Interrupt;
use crate::output::Printer;
use crate::servers::Servers;

/// The command line of Rollcall, a service registry with consensus built in.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, after_help = exit::CODES, infer_subcommands = false)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) printing: Printing,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Groups: paths that hold services, and how they are replicated
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Services of a group
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Nodes: the registered endpoints of a service
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Sessions: the leases of clients
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// Print each change of a service, or of everything below a prefix, as it comes
    Watch(watch::WatchArguments),
    /// The heartbeat-storm switch: rations full lists while consumers stampede
    #[command(subcommand)]
    Storm(storm::StormCommand),
    /// The servers of the cluster and who votes
    #[command(subcommand)]
    Member(member::MemberCommand),
    /// How each server of the cluster does; fails if the cluster cannot serve
    Status(status::StatusArguments),
    /// Measure a cluster
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArguments),
    /// Print a manual page, or write all of them
    Man(man::ManArguments),
}

/// Does what was asked.
pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    // These need no server.
    match &arguments.command {
        Command::Completions(which) => return completions::run(which, Arguments::command()),
        Command::Man(which) => return man::run(which, Arguments::command()),
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
        Command::Completions(which) => completions::run(&which, Arguments::command()),
        Command::Man(which) => man::run(&which, Arguments::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_documents_the_exit_codes() {
        let help = Arguments::command().render_long_help().to_string();
        for line in exit::CODES.lines() {
            let words = line.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
            let squeezed = help.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(squeezed.contains(&words), "{words:?} is not in the help");
        }
    }

    #[test]
    fn addresses_are_separated_by_commas() {
        let arguments = Arguments::try_parse_from(["rollcall", "--addr", "a:1,b:2", "status"]).unwrap();
        assert_eq!(arguments.connection.addr, ["a:1", "b:2"]);
    }

    #[test]
    fn wrong_use_ends_with_the_usage_code() {
        for wrong in [
            vec!["rollcall"],
            vec!["rollcall", "node", "show", "feed"],
            vec!["rollcall", "status", "-o", "xml"],
            vec![
                "rollcall",
                "group",
                "put",
                "g",
                "--if-absent",
                "--if-revision",
                "3",
            ],
            vec!["rollcall", "--timeout", "0s", "status"],
        ] {
            let error = Arguments::try_parse_from(&wrong).unwrap_err();
            assert_eq!(error.exit_code(), exit::Exit::Usage as i32, "{wrong:?}");
        }
    }
}
