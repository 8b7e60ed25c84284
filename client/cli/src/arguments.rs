//! What every command shares on the command line, and the list of commands.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use rollcall_client::{Expected, Freshness, NodeKind, NodeState, ReadOptions, Token};
use rollcall_proto::v1 as wire;

use crate::bench::BenchCommand;
use crate::command::completions::CompletionsArguments;
use crate::command::group::GroupCommand;
use crate::command::man::ManArguments;
use crate::command::member::MemberCommand;
use crate::command::node::NodeCommand;
use crate::command::service::ServiceCommand;
use crate::command::session::SessionCommand;
use crate::command::status::StatusArguments;
use crate::command::storm::StormCommand;
use crate::command::watch::WatchArguments;
use crate::exit;
use crate::names;

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

/// How to reach the servers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Client addresses of servers, separated by commas; any of them will do
    #[arg(
        long,
        global = true,
        env = "ROLLCALL_ADDR",
        value_name = "HOST:PORT,..",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub(crate) addr: Vec<String>,

    /// How long to wait for an answer in all, other servers and repeats included
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = names::positive_duration)]
    pub(crate) timeout: Duration,

    /// The bearer token to show; better in the environment than on the command line, which others can read
    #[arg(
        long,
        global = true,
        env = "ROLLCALL_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) token: Option<Token>,

    /// The environment to claim when registering, for groups that ask for one
    #[arg(long, global = true, env = "ROLLCALL_ENVIRONMENT", value_name = "NAME")]
    pub(crate) environment: Option<String>,
}

/// How to print.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub(crate) struct Printing {
    /// How to print: a table, a table with every column, or JSON with stable names
    #[arg(short, long, global = true, value_name = "FORM", default_value = "table")]
    pub(crate) output: Form,

    /// Leave out the line with the columns' names
    #[arg(long, global = true)]
    pub(crate) no_headers: bool,
}

/// The form of what goes to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Table,
    Wide,
    Json,
}

/// How fresh a read must be.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Freshness")]
pub(crate) struct Reading {
    /// linearizable: a quorum confirms the answer; leased: the leader answers under its lease; local: what the
    /// asked server has, with its age
    #[arg(long, value_name = "MODE", default_value = "linearizable")]
    pub(crate) read: ReadMode,

    /// Refuse an answer that may be older than this (with --read local; the other modes are never older)
    #[arg(long, value_name = "TIME", value_parser = names::positive_duration)]
    pub(crate) max_age: Option<Duration>,
}

/// The three read modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadMode {
    #[default]
    Linearizable,
    Leased,
    Local,
}

/// How a group is replicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Raft: linearizable writes, a quorum needed
    #[default]
    Cp,
    /// Gossip: any server writes at any time, alone if need be
    Ap,
}

impl Mode {
    pub(crate) fn to_wire(self) -> wire::GroupMode {
        match self {
            Self::Cp => wire::GroupMode::Cp,
            Self::Ap => wire::GroupMode::Ap,
        }
    }

    /// Its word on the command line and in reports.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Cp => "cp",
            Self::Ap => "ap",
        }
    }
}

impl Reading {
    /// As the client wants it.
    pub(crate) fn options(&self) -> ReadOptions {
        let freshness = match self.read {
            ReadMode::Linearizable => Freshness::Linearizable,
            ReadMode::Leased => Freshness::Leased,
            ReadMode::Local => Freshness::Local {
                max_age: self.max_age,
            },
        };
        ReadOptions {
            freshness,
            ..ReadOptions::default()
        }
    }
}

/// A condition on the record to be written.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub(crate) struct Condition {
    /// Only if the record was last modified at this revision
    #[arg(long, value_name = "REVISION")]
    pub(crate) if_revision: Option<u64>,

    /// Only if there is no such record yet
    #[arg(long)]
    pub(crate) if_absent: bool,
}

impl Condition {
    /// As the client wants it.
    pub(crate) fn expected(&self) -> Expected {
        match (self.if_revision, self.if_absent) {
            (Some(revision), _) => Expected::Revision(revision),
            (None, true) => Expected::Absent,
            (None, false) => Expected::Any,
        }
    }
}

/// A revision the record must still have, where absence makes no sense.
pub(crate) fn at_revision(revision: Option<u64>) -> Expected {
    revision.map_or(Expected::Any, Expected::Revision)
}

/// Who decides that a node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Lives with its session
    Ephemeral,
    /// Stays until deregistered; health comes from checks
    Persistent,
    /// Never struck off by the registry
    Static,
}

impl From<Kind> for NodeKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Ephemeral => Self::Ephemeral,
            Kind::Persistent => Self::Persistent,
            Kind::Static => Self::Static,
        }
    }
}

/// The states a registrant or an operator can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    Up,
    Draining,
    Down,
}

impl From<State> for NodeState {
    fn from(state: State) -> Self {
        match state {
            State::Up => Self::Up,
            State::Draining => Self::Draining,
            State::Down => Self::Down,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Groups: paths that hold services, and how they are replicated
    #[command(subcommand)]
    Group(GroupCommand),
    /// Services of a group
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Nodes: the registered endpoints of a service
    #[command(subcommand)]
    Node(NodeCommand),
    /// Sessions: the leases of clients
    #[command(subcommand)]
    Session(SessionCommand),
    /// Print each change of a service, or of everything below a prefix, as it comes
    Watch(WatchArguments),
    /// The heartbeat-storm switch: rations full lists while consumers stampede
    #[command(subcommand)]
    Storm(StormCommand),
    /// The servers of the cluster and who votes
    #[command(subcommand)]
    Member(MemberCommand),
    /// How each server of the cluster does; fails if the cluster cannot serve
    Status(StatusArguments),
    /// Measure a cluster
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print a completion script for a shell
    Completions(CompletionsArguments),
    /// Print a manual page, or write all of them
    Man(ManArguments),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

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
