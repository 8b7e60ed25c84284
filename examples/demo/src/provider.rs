//! One service instance: it serves, registers through the SDK, and leaves in good order when told to.

use std::io::Read;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use rollcall_client::{Registration, Registry, RegistryConfig, ServiceKey, SessionEvents, SessionOptions};
use rollcall_jepsen::lab::eventually;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::arguments::ServiceArguments;
use crate::services::{self, Traffic};

/// An instance that drains leaves when nobody has called it for so long.
const QUIET: Duration = Duration::from_millis(500);
/// It leaves after so long at the latest.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Serves until SIGTERM (then it drains, deregisters and ends) or, if asked to, until its parent is gone.
///
/// # Errors
/// It cannot listen, or cannot register within the SDK's deadline.
pub(crate) async fn run(arguments: ServiceArguments) -> anyhow::Result<()> {
    let mut told_to_leave = signal(SignalKind::terminate())?;
    if arguments.with_parent {
        end_with_parent();
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .context("listening")?;
    let port = listener.local_addr()?.port();
    let traffic = Traffic::new(&arguments.instance);
    let router = services::router(arguments.job, traffic.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let served = axum::serve(listener, router).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let served = tokio::spawn(served.into_future());

    let config = RegistryConfig::new(arguments.registry).client_name(&arguments.instance);
    let registry = Registry::connect(config)?;
    let session = registry
        .open_session(SessionOptions::ttl(arguments.ttl))
        .await
        .context("opening a session")?;
    tokio::spawn(tell_events(session.events()));
    let service = ServiceKey::new(&arguments.group, arguments.job.name());
    let registration = Registration::new("http", "127.0.0.1", port)
        .id(&arguments.instance)
        .label("pid", std::process::id().to_string());
    let node = service.node(&arguments.instance);
    session
        .register(&service, registration)
        .await
        .context("registering")?;
    println!("{} serves on port {port} and is registered", arguments.instance);

    told_to_leave.recv().await.context("the signal's stream ended")?;
    println!("told to leave: draining");
    session.drain(&node).await.context("draining")?;
    let quiet = eventually("quiet", DRAIN_MAX, || async {
        traffic.is_quiet_for(QUIET).then_some(())
    })
    .await;
    if quiet.is_err() {
        println!("still called after {DRAIN_MAX:?}; leaving nevertheless");
    }
    session.deregister(&node).await.context("deregistering")?;
    session.close().await.context("closing the session")?;
    let _ = stop.send(());
    served.await??;
    println!("left after {} calls", traffic.served());
    Ok(())
}

/// For the instance's log: what its session went through.
async fn tell_events(mut events: SessionEvents) {
    while let Some(event) = events.next().await {
        println!("session: {event:?}");
    }
}

/// Standard input is a pipe from the parent; it ends with the parent, however that ended. A thread of its own,
/// since a read of standard input that is under way would keep the runtime from ending.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    });
}
