//! `rollcall session`.

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::confirm::confirm;
use crate::context::Context;
use crate::exit::Failure;
use crate::flags::Reading;
use crate::output::record::{Header, Session, Written, millis_text, nonzero_text};
use crate::output::table::Table;
use crate::servers::plain;

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List sessions
    List(ListSessions),
    /// End sessions; their nodes leave
    End(EndSessions),
}

/// Arguments of `session list`.
#[derive(Args, Debug)]
pub(crate) struct ListSessions {
    #[command(flatten)]
    reading: Reading,
}

/// Arguments of `session end`.
#[derive(Args, Debug)]
pub(crate) struct EndSessions {
    /// Session ids, as `session list` shows them
    #[arg(required = true, value_name = "SESSION")]
    sessions: Vec<u64>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct SessionsBody {
    header: Header,
    sessions: Vec<Session>,
}

pub(crate) async fn run(context: &Context, command: SessionCommand) -> Result<(), Failure> {
    match command {
        SessionCommand::List(list) => list_sessions(context, &list).await,
        SessionCommand::End(end) => end_sessions(context, &end).await,
    }
}

async fn list_sessions(context: &Context, list: &ListSessions) -> Result<(), Failure> {
    let answer = context
        .servers
        .registry()
        .all_sessions(list.reading.options())
        .await?;
    let sessions = answer.value.into_iter().map(Session::from).collect();
    let body = SessionsBody {
        header: answer.header.into(),
        sessions,
    };
    context.printer.print(&body, || {
        let mut table =
            Table::new(&["SESSION", "CLIENT", "TTL", "NODES", "LAPSES-IN"]).wide(&["HOLDER", "OPENED"]);
        for session in &body.sessions {
            table.row(vec![
                session.session.to_string(),
                session.client.clone(),
                millis_text(session.ttl_ms),
                session.nodes.to_string(),
                millis_text(session.lapses_in_ms),
                nonzero_text(session.holder),
                session.opened_revision.to_string(),
            ]);
        }
        table
    })
}

async fn end_sessions(context: &Context, end: &EndSessions) -> Result<(), Failure> {
    let what = match end.sessions.as_slice() {
        [session] => format!("session {session}"),
        sessions => format!("{} sessions", sessions.len()),
    };
    confirm(
        &format!("End {what}? The nodes leave; a living client registers again."),
        end.yes,
    )?;
    // Who stops reading ends no fewer of them.
    let mut printed = Ok(());
    for (index, session) in end.sessions.iter().enumerate() {
        let written = context
            .servers
            .registry()
            .end_session(*session, plain())
            .await
            .map_err(|error| Failure::from(error).context(format!("session {session}")))
            .map_err(|failure| match index {
                0 => failure,
                ended => failure.after(format!("after {ended} sessions were ended")),
            })?;
        let written = Written::from(written);
        if printed.is_ok() {
            let sentence = || format!("session {session} ended {}", written.text());
            printed = context.printer.done(&written, sentence);
        }
    }
    printed
}
