//! `rollcall node register --keep`: a session held by this process, for as long as it runs.

use rollcall_client::{Entry, NodeKey, Session, SessionEvent, SessionEvents, SessionOptions};
use serde::Serialize;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::servers::{client_name, plain};
use crate::talk::say;

#[derive(Serialize)]
struct KeptBody {
    node: String,
    session: u64,
    ttl_ms: u64,
    revision: u64,
}

/// Opens a session, registers the node under it, and keeps both until the interrupt; then deregisters, however it ends.
pub(crate) async fn run(
    context: &Context,
    entry: Entry,
    options: SessionOptions,
    mut interrupt: Interrupt,
) -> Result<(), Failure> {
    let options = options.client_name(client_name());
    let session = tokio::select! {
        opened = context.servers.registry().open_session(options) => opened?,
        // One that opens all the same is closed by its handle's end.
        () = interrupt.requested() => return Ok(()),
    };
    let key = entry.key();
    let kept = tokio::select! {
        failure = keep(context, &session, entry) => failure,
        () = interrupt.requested() => Ok(()),
    };
    let closed = close(session, &key).await;
    match kept {
        Err(failure) if failure.exit != Exit::Ok => Err(failure),
        _ => closed,
    }
}

/// Registers the node and says what happens to it; ends only if it can no longer be kept.
async fn keep(context: &Context, session: &Session, entry: Entry) -> Result<(), Failure> {
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
    Err(tell_events(&mut events, &key).await)
}

/// Says what happens to the session; ends only if the node can no longer be kept.
async fn tell_events(events: &mut SessionEvents, kept: &NodeKey) -> Failure {
    while let Some(event) = events.next().await {
        let at = humantime::format_rfc3339_millis(std::time::SystemTime::now());
        match event {
            SessionEvent::Detached { server, reason } => {
                say(format_args!("{at} stream at {server} lost: {reason}"))
            }
            SessionEvent::Reattached { server } => say(format_args!("{at} attached again at {server}")),
            SessionEvent::Lost { session } => say(format_args!(
                "{at} session {session} expired, or was ended; opening a new one"
            )),
            SessionEvent::Reopened { session, server } => {
                say(format_args!("{at} session {session} opened at {server}"))
            }
            SessionEvent::Reregistered { nodes } => say(format_args!("{at} registered again: {nodes} nodes")),
            SessionEvent::NodeRefused { node, error } => {
                return Failure::failed(format!("node {node} could not be registered again: {error}"));
            }
            SessionEvent::NodesTaken { nodes } if nodes.contains(kept) => {
                return Failure {
                    exit: Exit::Conflict,
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
    let registered = session.nodes().contains(key);
    match session.close().await {
        Ok(()) => {
            if registered {
                say(format_args!("node {key} deregistered"));
            }
            Ok(())
        }
        Err(rollcall_client::Error::Closed { .. }) => Ok(()),
        // What was registered is still there, whatever the servers did with the close.
        Err(error) => {
            Err(Failure::from(error).after(format!("node {key} leaves when the ttl of {ttl:?} has passed")))
        }
    }
}
