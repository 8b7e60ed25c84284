//! What commands share on the command line.

use std::time::Duration;

use clap::{ArgMatches, Args, ValueEnum};
use rollcall_client::{Expected, Freshness, NodeKind, NodeState, ReadOptions, Token};
use rollcall_proto::v1 as wire;

use crate::exit::Failure;
use crate::names;

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

    /// Refuse an answer that may be older than this; needs --read local
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
    /// Whichever command it was: an age that would be left aside is refused.
    pub(crate) fn check(matches: &ArgMatches) -> Result<(), Failure> {
        let mut command = Some(matches);
        while let Some(given) = command {
            let mode = given.try_get_one::<ReadMode>("read").ok().flatten();
            let age = given.try_get_one::<Duration>("max_age").ok().flatten();
            if age.is_some() && mode != Some(&ReadMode::Local) {
                return Err(Failure::usage("--max-age needs --read local"));
            }
            command = given.subcommand().map(|(_, deeper)| deeper);
        }
        Ok(())
    }

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
    /// Stays until deregistered; nothing checks its health in this version: whoever registered it sets its state
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
