//! A thread with a runtime of its own, so that parts of a bench do not wait for each other.

use std::future::Future;

use tokio::sync::oneshot;

use crate::exit::Failure;

/// Runs what `make` makes on a thread of its own; gives what came of it. It is given up when the receiver is dropped.
pub(super) fn on_thread<T, F>(
    name: &str,
    make: impl FnOnce() -> F + Send + 'static,
) -> Result<oneshot::Receiver<T>, Failure>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (mut tell, told) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start a runtime: {e}")))?;
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            runtime.block_on(async {
                let made = tokio::select! {
                    made = make() => made,
                    () = tell.closed() => return,
                };
                // Whoever started this may have given up.
                let _ = tell.send(made);
            });
        })
        .map_err(|e| Failure::failed(format!("cannot start a thread: {e}")))?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_waits_for_is_given_up() {
        let (held, given_up) = oneshot::channel::<()>();
        let work = move || async move {
            let _held = held;
            std::future::pending::<()>().await;
        };
        let told = on_thread("endless", work).unwrap();
        drop(told);
        assert!(given_up.await.is_err());
    }
}
