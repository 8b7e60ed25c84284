//! Leaving on a signal.

use std::time::Duration;

use super::Session;
use crate::error::Error;

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: an orchestrator wants the process gone.
    Terminate,
    /// SIGINT: somebody pressed control-C.
    Interrupt,
}

/// Waits for SIGTERM or SIGINT; then lets the session's nodes drain for so long, closes the session, which
/// deregisters them, and returns. A second signal ends the draining. Takes up to twice `drain_for` and
/// [`crate::RegistryConfig::call_timeout`]: give the process a longer grace period.
///
/// # Errors
/// Those of [`Session::close`]; the signal has come then, and the nodes leave when the ttl has passed.
/// [`Error::Internal`]: signals cannot be listened to.
pub async fn close_on_signal(session: Session, drain_for: Duration) -> Result<Signal, Error> {
    let mut signals = Signals::listen()?;
    let signal = signals.next().await;
    if !drain_for.is_zero() {
        let draining = async {
            // However long the servers take: whoever sent the signal waits for the process.
            match tokio::time::timeout(drain_for, session.drain_all()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "draining was not announced of all nodes"),
                Err(_) => tracing::warn!("draining was not announced of all nodes in time"),
            }
            tokio::time::sleep(drain_for).await;
        };
        tokio::select! {
            () = draining => {}
            _ = signals.next() => {}
        }
    }
    session.close().await?;
    Ok(signal)
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            signal(kind).map_err(|error| Error::Internal {
                message: format!("signals cannot be listened to: {error}"),
                effect: crate::Effect::None,
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}
