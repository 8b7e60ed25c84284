//! Ctrl-C and SIGTERM: the first asks a command to end in good order, the second one kills.

use tokio::sync::watch;

/// Told once the person, or the service manager, wants the command to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Listens from now on. A second signal ends the process at once.
    pub(crate) fn listen() -> Self {
        let (tell, told) = watch::channel(false);
        tokio::spawn(async move {
            wait_for_signal().await;
            // A command that has ended in the meantime needs no telling.
            let _ = tell.send(true);
            wait_for_signal().await;
            std::process::exit(130);
        });
        Self(told)
    }

    /// Resolves when the first signal came, at once if it came before.
    pub(crate) async fn requested(&mut self) {
        if self.0.wait_for(|requested| *requested).await.is_err() {
            // The listener cannot end before it has told; without it no signal will be told.
            std::future::pending::<()>().await;
        }
    }

    /// Whether it came.
    pub(crate) fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Told by the program itself: its sender says true when a part is to end.
    pub(crate) fn told(by: watch::Receiver<bool>) -> Self {
        Self(by)
    }

    /// One that never comes.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self(watch::channel(false).1)
    }
}

#[cfg(unix)]
async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => wait_for_ctrl_c().await,
    }
}

#[cfg(not(unix))]
async fn wait_for_signal() {
    wait_for_ctrl_c().await;
}

async fn wait_for_ctrl_c() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Signals cannot be had: the default action still ends the process.
        std::future::pending::<()>().await;
    }
}
