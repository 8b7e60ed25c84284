//! `rollcall node register`.

use std::time::Duration;

use clap::Args;
use rollcall_client::{Entry, Heartbeats, Registration, ServiceKey, SessionOptions};

use super::keep;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::flags::{Condition, Kind, State};
use crate::interrupt::Interrupt;
use crate::names::{self, NamedAddress, Pair, map_of};
use crate::output::record::Written;
use crate::servers::plain;

/// Arguments of `node register`.
#[derive(Args, Debug)]
pub(crate) struct RegisterNode {
    /// group/service
    service: ServiceKey,
    /// Its id; left out: host:port of the first address
    #[arg(long)]
    id: Option<String>,
    /// Where it listens, repeatable; IPv6 hosts in brackets
    #[arg(long, value_name = "[NAME=]HOST:PORT", required = true)]
    address: Vec<NamedAddress>,
    /// 0-65535; left out: 100
    #[arg(long)]
    weight: Option<u16>,
    /// Labels, repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Pair>,
    /// Metadata, repeatable, up to 4 KiB in all
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    /// Who decides that it is gone; left out: the service's default, ephemeral with --keep
    #[arg(long)]
    kind: Option<Kind>,
    /// Its state
    #[arg(long, default_value = "up")]
    state: State,
    /// Hold a session and keep the node until Ctrl-C or SIGTERM, then deregister it
    #[arg(long)]
    keep: bool,
    /// How long the session outlives its last heartbeat (with --keep)
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = names::positive_duration, requires = "keep")]
    ttl: Duration,
    /// Which way heartbeats go (with --keep): on the session's stream, or by datagram where that works
    #[arg(long, value_name = "WAY", value_enum, default_value_t, requires = "keep")]
    heartbeats: HeartbeatsWay,
    #[command(flatten)]
    condition: Condition,
}

/// Which way heartbeats go.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum HeartbeatsWay {
    /// On the stream
    #[default]
    Stream,
    /// By datagram (UDP), as soon as the node is registered
    Datagram,
    /// By datagram once nothing was written for a ttl
    Auto,
}

impl RegisterNode {
    fn session_options(&self) -> SessionOptions {
        let heartbeats = match self.heartbeats {
            HeartbeatsWay::Stream => Heartbeats::Stream,
            HeartbeatsWay::Datagram => Heartbeats::Datagram,
            HeartbeatsWay::Auto => Heartbeats::Auto,
        };
        SessionOptions::ttl(self.ttl).heartbeats(heartbeats)
    }
}

pub(super) async fn run(context: &Context, register: &RegisterNode) -> Result<(), Failure> {
    let kind = if register.keep {
        register.kind.or(Some(Kind::Ephemeral))
    } else {
        register.kind
    };
    let entry = Entry::new(register.service.clone(), registration_of(register, kind)?)
        .expected(register.condition.expected());
    match (register.keep, kind) {
        (true, Some(Kind::Persistent | Kind::Static)) => Err(Failure::usage(
            "--keep holds a session, and only an ephemeral node lives with one: leave out --kind or --keep",
        )),
        (true, _) => keep::run(context, entry, register.session_options(), Interrupt::listen()).await,
        (false, Some(Kind::Ephemeral)) => Err(Failure::usage(
            "an ephemeral node lives with a session: say --keep to hold one, or another --kind",
        )),
        (false, _) => register_once(context, register, entry).await,
    }
}

/// Nothing but what was said; the rest are the client's defaults.
fn registration_of(register: &RegisterNode, kind: Option<Kind>) -> Result<Registration, Failure> {
    let (first, more) = register
        .address
        .split_first()
        .ok_or_else(|| Failure::usage("a node needs an --address"))?;
    let mut said = Registration::new(&first.name, &first.host, first.port).state(register.state.into());
    for address in more {
        said = said.address(&address.name, &address.host, address.port);
    }
    if let Some(id) = &register.id {
        said = said.id(id);
    }
    if let Some(weight) = register.weight {
        said = said.weight(weight);
    }
    if let Some(kind) = kind {
        said = said.kind(kind.into());
    }
    said.labels = map_of(&register.label);
    said.metadata = map_of(&register.metadata);
    Ok(said)
}

async fn register_once(context: &Context, register: &RegisterNode, entry: Entry) -> Result<(), Failure> {
    let key = entry.key();
    let written = context
        .servers
        .registry()
        .register_persistent(&[entry], plain())
        .await
        .map_err(|error| {
            let failure = Failure::from(error);
            match (failure.exit, register.kind) {
                // The service's default kind may be the reason.
                (Exit::Usage, None) => Failure {
                    message: format!(
                        "{}; an ephemeral node needs --keep, any other a --kind",
                        failure.message
                    ),
                    ..failure
                },
                _ => failure,
            }
        })?;
    let written = Written::from(written);
    context
        .printer
        .done(&written, || format!("node {key} registered {}", written.text()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::Arguments;
    use crate::command::node::NodeCommand;

    fn parse(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split_whitespace())
    }

    fn register(words: &str) -> RegisterNode {
        match parse(words).unwrap().command {
            crate::command::Command::Node(NodeCommand::Register(register)) => register,
            other => panic!("not a registration: {other:?}"),
        }
    }

    #[test]
    fn a_registration_says_only_what_was_said() {
        let register = register(
            "rollcall node register prod/feed --address http=10.0.0.1:80 --label zone=a --label version=2",
        );
        let said = registration_of(&register, None).unwrap();
        assert_eq!(said.id, "10.0.0.1:80");
        assert_eq!(said.kind, None);
        assert_eq!(said.labels.len(), 2);
    }

    #[test]
    fn a_ttl_makes_sense_with_keep_only() {
        assert!(parse("rollcall node register g/s --address h:1 --ttl 5s").is_err());
        assert!(parse("rollcall node register g/s --address h:1 --keep --ttl 5s").is_ok());
    }
}
