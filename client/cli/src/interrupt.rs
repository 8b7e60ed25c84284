//! Ctrl-C and SIGTERM: the first asks a command to end in good order, the second one kills.

#[cfg(test)]
use std::sync::LazyLock;

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

    /// Resolves when the first signal came, at once if it came before; and when there is nobody left to tell.
    pub(crate) async fn requested(&mut self) {
        // An error: who would have told is gone, and waits for nothing any more.
        let _ = self.0.wait_for(|requested| *requested).await;
    }

    /// Whether it came.
    pub(crate) fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Told by the program itself: its sender says true, or is dropped, when a part is to end.
    pub(crate) fn told(by: watch::Receiver<bool>) -> Self {
        Self(by)
    }

    /// One that never comes.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        static SENDER: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));
        Self(SENDER.subscribe())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_gives_up_waiting_is_taken_at_his_word() {
        let (tell, told) = watch::channel(false);
        let mut interrupt = Interrupt::told(told);
        assert!(!interrupt.is_requested());
        drop(tell);
        assert!(interrupt.is_requested());
        interrupt.requested().await;
    }
}
