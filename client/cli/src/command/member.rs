//! `rollcall member`: who belongs to the cluster, and who votes. One change at a time.

use std::time::Duration;

use clap::{Args, Subcommand};
use rollcall_client::WriteOptions;
use rollcall_proto::v1 as wire;
use serde::Serialize;
use tokio::time::Instant;

use crate::confirm::confirm;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::record::{GossipMember, Header, Member, millis_text, nonzero_text};
use crate::output::table::Table;
use crate::servers::plain;
use crate::talk::say;

/// How long a removal may take at least: what the server has of AP groups is fetched before.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two tries to promote a learner that has not caught up.
const PROMOTE_PAUSE: Duration = Duration::from_millis(250);
/// So often in a row it is to be said that a server is no member, by one server after the other.
const STRANGERS_MAX: u32 = 10;

/// What to do with members.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// List the servers of the cluster
    List(ListMembers),
    /// List the servers as gossip sees them: alive, suspect or down, and how far each is
    Gossip(ListGossip),
    /// Add a server as a learner, which does not vote yet
    Add(AddMember),
    /// Make a learner that has caught up a voter
    Promote(PromoteMember),
    /// Remove a server
    Remove(RemoveMember),
    /// Hand leadership to another voter
    Transfer(TransferLeadership),
    /// Take a snapshot now on the server that is asked
    Snapshot(TakeSnapshot),
}

/// Arguments of `member list`.
#[derive(Args, Debug)]
pub(crate) struct ListMembers {}

/// Arguments of `member gossip`.
#[derive(Args, Debug)]
pub(crate) struct ListGossip {}

/// Arguments of `member add`.
#[derive(Args, Debug)]
pub(crate) struct AddMember {
    /// Its number (what it was started with as --id)
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    server: u64,
    /// Where it listens for the other servers
    #[arg(long, value_name = "HOST:PORT")]
    peer: String,
    /// Where it listens for clients
    #[arg(long, value_name = "HOST:PORT")]
    client: String,
    /// Where it listens for HTTP
    #[arg(long, value_name = "HOST:PORT", default_value = "", hide_default_value = true)]
    http: String,
    /// Promote it as soon as it has caught up, within --timeout
    #[arg(long)]
    promote: bool,
}

/// Arguments of `member promote`.
#[derive(Args, Debug)]
pub(crate) struct PromoteMember {
    /// Its number (what it was started with as --id)
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    server: u64,
    /// Wait until it has caught up, within --timeout
    #[arg(long)]
    wait: bool,
}

/// Arguments of `member remove`.
#[derive(Args, Debug)]
pub(crate) struct RemoveMember {
    /// Its number (what it was started with as --id)
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    server: u64,
    /// It does not answer, and will not again: give up what it alone has acknowledged in AP groups
    #[arg(long)]
    lost: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Arguments of `member transfer`.
#[derive(Args, Debug)]
pub(crate) struct TransferLeadership {
    /// The new leader; left out: the most advanced follower
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    server: Option<u64>,
}

/// Arguments of `member snapshot`.
#[derive(Args, Debug)]
pub(crate) struct TakeSnapshot {}

#[derive(Serialize)]
struct MembersBody {
    header: Header,
    members: Vec<Member>,
}

#[derive(Serialize)]
struct GossipBody {
    header: Header,
    members: Vec<GossipMember>,
}

/// What an order leaves behind: the members as they are now.
#[derive(Serialize)]
struct OrderBody {
    members: Vec<Member>,
}

impl From<Vec<wire::Member>> for OrderBody {
    fn from(members: Vec<wire::Member>) -> Self {
        Self {
            members: members.into_iter().map(Member::from).collect(),
        }
    }
}

pub(crate) async fn run(context: &Context, command: MemberCommand) -> Result<(), Failure> {
    match command {
        MemberCommand::List(ListMembers {}) => list_members(context).await,
        MemberCommand::Gossip(ListGossip {}) => list_gossip(context).await,
        MemberCommand::Add(add) => add_member(context, add).await,
        MemberCommand::Promote(promote) => promote_member(context, &promote).await,
        MemberCommand::Remove(remove) => remove_member(context, &remove).await,
        MemberCommand::Transfer(transfer) => transfer_leadership(context, &transfer).await,
        MemberCommand::Snapshot(TakeSnapshot {}) => take_snapshot(context).await,
    }
}

async fn list_members(context: &Context) -> Result<(), Failure> {
    let answer = context.servers.members().await?;
    let members = answer.value.into_iter().map(Member::from).collect();
    let body = MembersBody {
        header: answer.header.into(),
        members,
    };
    context.printer.print(&body, || members_table(&body.members))
}

fn members_table(members: &[Member]) -> Table {
    let mut table = Table::new(&["SERVER", "ROLE", "VOTER", "CLIENT-ADDRESS", "PEER-ADDRESS"]).wide(&[
        "HTTP-ADDRESS",
        "MATCHED-INDEX",
        "LAST-CONTACT",
        "GOSSIP",
        "REVISION",
        "REVISION-AGE",
    ]);
    for member in members {
        let gossip = member.gossip.as_ref();
        let head = gossip.and_then(|gossip| gossip.head);
        table.row(vec![
            member.server.to_string(),
            member.role.into(),
            if member.voter { "yes" } else { "no" }.into(),
            member.client_address.clone(),
            member.peer_address.clone(),
            member.http_address.clone(),
            nonzero_text(member.matched_index),
            millis_text(member.last_contact_ms),
            gossip.map_or("-", |gossip| gossip.state).into(),
            head.map_or("-".into(), |head| head.revision.to_string()),
            head.map_or("-".into(), |head| millis_text(head.age_ms)),
        ]);
    }
    table
}

async fn list_gossip(context: &Context) -> Result<(), Failure> {
    let answer = context.servers.registry().gossip_members().await?;
    let members = answer.value.into_iter().map(GossipMember::from).collect();
    let body = GossipBody {
        header: answer.header.into(),
        members,
    };
    context.printer.print(&body, || gossip_table(&body.members))
}

fn gossip_table(members: &[GossipMember]) -> Table {
    let mut table = Table::new(&[
        "SERVER",
        "STATE",
        "SINCE",
        "EPOCH",
        "INCARNATION",
        "REVISION",
        "REVISION-AGE",
        "ADDRESS",
    ])
    .wide(&["APPLIED-INDEX", "TERM", "LEADER"]);
    for member in members {
        let of_head = |text: fn(&crate::output::record::GossipHead) -> String| {
            member.head.as_ref().map_or("-".into(), text)
        };
        table.row(vec![
            member.server.to_string(),
            member.state.into(),
            millis_text(member.since_ms),
            member.epoch.to_string(),
            member.incarnation.to_string(),
            of_head(|head| head.revision.to_string()),
            of_head(|head| millis_text(head.age_ms)),
            member.address.clone(),
            of_head(|head| head.applied_index.to_string()),
            of_head(|head| head.term.to_string()),
            of_head(|head| nonzero_text(head.leader)),
        ]);
    }
    table
}

async fn add_member(context: &Context, add: AddMember) -> Result<(), Failure> {
    let members = context
        .servers
        .registry()
        .add_learner(add.server, &add.peer, &add.client, &add.http, plain())
        .await
        .map_err(look_first)?;
    if !add.promote {
        let body = OrderBody::from(members);
        return context
            .printer
            .done(&body, || format!("server {} is a learner", add.server));
    }
    say(format_args!(
        "server {} is a learner; promoting it when it has caught up",
        add.server
    ));
    promote_member(
        context,
        &PromoteMember {
            server: add.server,
            wait: true,
        },
    )
    .await
    .map_err(|failure| failure.after(format!("server {} is a learner", add.server)))
}

async fn promote_member(context: &Context, promote: &PromoteMember) -> Result<(), Failure> {
    let deadline = Instant::now() + context.servers.timeout();
    let mut strangers = 0;
    let members = loop {
        let tried = context
            .servers
            .registry()
            .promote(promote.server, plain())
            .await
            .map_err(look_first);
        match tried {
            Err(failure)
                if promote.wait
                    && failure.exit == Exit::Conflict
                    && Instant::now() + PROMOTE_PAUSE < deadline =>
            {
                // No wait makes a member of one that is none. Any server answers, also one that is behind.
                if let Ok(members) = context.servers.members().await {
                    let is_it = |member: &wire::Member| member.server == promote.server;
                    strangers = match members.value.iter().any(is_it) {
                        true => 0,
                        false => strangers + 1,
                    };
                }
                if strangers >= STRANGERS_MAX {
                    return Err(failure);
                }
                tokio::time::sleep(PROMOTE_PAUSE).await;
            }
            Err(failure) if promote.wait && failure.exit == Exit::Conflict => {
                return Err(Failure::timeout(format!(
                    "server {} is still a learner: {failure}",
                    promote.server
                )));
            }
            other => break other?,
        }
    };
    let body = OrderBody::from(members);
    context
        .printer
        .done(&body, || format!("server {} is a voter", promote.server))
}

async fn remove_member(context: &Context, remove: &RemoveMember) -> Result<(), Failure> {
    confirm(
        &format!("Remove server {} from the cluster?", remove.server),
        remove.yes,
    )?;
    let options = WriteOptions {
        timeout: Some(context.servers.timeout().max(REMOVAL_TIMEOUT)),
        ..plain()
    };
    let members = context
        .servers
        .registry()
        .remove(remove.server, remove.lost, options)
        .await
        .map_err(look_first)?;
    let body = OrderBody::from(members);
    context
        .printer
        .done(&body, || format!("server {} was removed", remove.server))
}

async fn transfer_leadership(context: &Context, transfer: &TransferLeadership) -> Result<(), Failure> {
    let to = transfer.server.unwrap_or(0);
    let members = context
        .servers
        .registry()
        .transfer_leadership(to, plain())
        .await
        .map_err(look_first)?;
    let body = OrderBody::from(members);
    context.printer.done(&body, || {
        let leader = body.members.iter().find(|member| member.role == "leader");
        match leader {
            Some(leader) => format!("server {} leads", leader.server),
            None => "leadership was handed over; no leader is known yet".into(),
        }
    })
}

async fn take_snapshot(context: &Context) -> Result<(), Failure> {
    let members = context.servers.registry().take_snapshot(plain()).await?;
    let body = OrderBody::from(members);
    context.printer.done(&body, || "a snapshot was taken".into())
}

/// A membership change has no request id: whoever does not know its outcome reads the list.
fn look_first(error: impl Into<Failure>) -> Failure {
    let failure = error.into();
    match failure.exit {
        Exit::Unknown => Failure {
            message: format!(
                "{}; see `rollcall member list` before repeating it",
                failure.message
            ),
            ..failure
        },
        Exit::Ok | Exit::Failed | Exit::Usage | Exit::NotFound | Exit::Unavailable | Exit::Conflict => {
            failure
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_points_to_the_list() {
        assert!(
            look_first(Failure::outcome_unknown("no answer"))
                .message
                .contains("member list")
        );
        assert!(!look_first(Failure::failed("no")).message.contains("member list"));
    }
}
