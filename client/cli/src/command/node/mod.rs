//! `rollcall node`.

mod deregister;
mod drain;
mod explain;
mod keep;
mod list;
mod overrides;
mod register;
mod update;

use clap::Subcommand;

pub(super) use self::list::nodes_table;
use self::overrides::OverrideCommand;
use crate::context::Context;
use crate::exit::Failure;

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes of a service
    List(list::ListNodes),
    /// Show one node
    Show(list::ShowNode),
    /// Register a node
    Register(register::RegisterNode),
    /// Deregister nodes
    Deregister(deregister::DeregisterNodes),
    /// Change what a node's registration says; only what is named changes
    Update(update::UpdateNodes),
    /// Set nodes draining: they finish what they have and get nothing new
    Drain(drain::DrainNodes),
    /// What an operator says of a node; outlives its registrations
    #[command(subcommand)]
    Override(OverrideCommand),
    /// Say why a node is, or is not, listed
    Explain(explain::ExplainNode),
}

pub(crate) async fn run(context: &Context, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List(list) => list::list(context, &list).await,
        NodeCommand::Show(show) => list::show(context, &show).await,
        NodeCommand::Register(register) => register::run(context, &register).await,
        NodeCommand::Deregister(deregister) => deregister::run(context, &deregister).await,
        NodeCommand::Update(update) => update::run(context, &update).await,
        NodeCommand::Drain(drain) => drain::run(context, &drain).await,
        NodeCommand::Override(OverrideCommand::Set(set)) => overrides::set(context, set).await,
        NodeCommand::Override(OverrideCommand::Clear(clear)) => overrides::clear(context, &clear).await,
        NodeCommand::Explain(explain) => explain::run(context, &explain).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::command::Arguments;

    fn parse(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split_whitespace())
    }

    #[test]
    fn nothing_to_change_is_wrong_use() {
        assert!(parse("rollcall node update g/s/n").is_err());
        assert!(parse("rollcall node update g/s/n --weight 5").is_ok());
        assert!(parse("rollcall node update g/s/n --weight 65536").is_err());
        assert!(parse("rollcall node override set g/s/n --reason x").is_err());
        assert!(parse("rollcall node override set g/s/n --reason x --disable --enable").is_err());
        assert!(parse("rollcall node override set g/s/n --reason x --disable --for 10m").is_ok());
    }
}
