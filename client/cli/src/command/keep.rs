//! `rollcall node register --keep`: a session held by this process, for as long as it runs.

use rollcall_client::{Entry, NodeKey, Session, SessionEvent, SessionEvents, SessionOptions};
use serde::Serialize;

use super::Context;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::servers::{client_name, plain};

#[derive(Serialize)]
struct KeptBody {
    node: String,
    session: u64,
    ttl_ms: u64,
    revision: u64,
}

/// Opens a session, registers the node under it, and keeps both until the interrupt; then deregisters.
pub(crate) async fn run(
    context: &Context,
    entry: Entry,
    options: SessionOptions,
    mut interrupt: Interrupt,
) -> Result<(), Failure> {
    let options = options.client_name(client_name());
    let session = context.servers.registry().open_session(options).await?;
    let mut events = session.events();
    let key = entry.key();
    let written = session.register_all(vec![entry], plain()).await?;
    let body = KeptBody {
        node: key.to_string(),
        session: session.id(),
        ttl_ms: crate::names::millis(session.ttl()),
        revision: written.revision,
    };
    context.printer.done(&body, || {
        format!(
            "node {key} registered at revision {} and kept by session {} (ttl {:?}); Ctrl-C deregisters it",
            written.revision,
            session.id(),
            session.ttl()
        )
    })?;
    let ended = tokio::select! {
        () = interrupt.requested() => Ok(()),
        failure = tell_events(&mut events, &key) => Err(failure),
    };
    close(session, &key).await?;
    ended
}

/// Says what happens to the session; ends only if the node can no longer be kept.
async fn tell_events(events: &mut SessionEvents, kept: &NodeKey) -> Failure {
    while let Some(event) = events.next().await {
        let at = humantime::format_rfc3339_millis(std::time::SystemTime::now());
        match event {
            SessionEvent::Detached { server, reason } => eprintln!("{at} stream at {server} lost: {reason}"),
            SessionEvent::Reattached { server } => eprintln!("{at} attached again at {server}"),
            SessionEvent::Lost { session } => {
                eprintln!("{at} session {session} expired, or was ended; opening a new one")
            }
            SessionEvent::Reopened { session, server } => {
                eprintln!("{at} session {session} opened at {server}")
            }
            SessionEvent::Reregistered { nodes } => eprintln!("{at} registered again: {nodes} nodes"),
            SessionEvent::NodeRefused { node, error } => {
                return Failure::failed(format!("node {node} could not be registered again: {error}"));
            }
            SessionEvent::NodesTaken { nodes } if nodes.contains(kept) => {
                return Failure {
                    exit: crate::exit::Exit::Conflict,
                    ..Failure::failed(format!(
                        "node {kept} was taken over or deregistered by somebody else"
                    ))
                };
            }
            SessionEvent::Closed => break,
            // What opened, what was missed, and what a later client adds changes nothing for the node.
            _ => {}
        }
    }
    Failure::failed("the session has ended")
}

async fn close(session: Session, key: &NodeKey) -> Result<(), Failure> {
    let ttl = session.ttl();
    match session.close().await {
        Ok(()) => {
            eprintln!("node {key} deregistered");
            Ok(())
        }
        Err(rollcall_client::Error::Closed { .. }) => Ok(()),
        Err(error) => {
            Err(Failure::from(error).context(format!("node {key} leaves when the ttl of {ttl:?} has passed")))
        }
    }
}
