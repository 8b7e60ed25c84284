//! A thread with a runtime of its own, so that parts of a bench do not wait for each other.

use std::future::Future;

use tokio::sync::oneshot;

use crate::exit::Failure;

/// Runs what `make` makes on a thread of its own; gives what came of it. If the runtime cannot be had, the receiver
/// is told of nothing.
pub(super) fn on_thread<T, F>(
    name: &str,
    make: impl FnOnce() -> F + Send + 'static,
) -> Result<oneshot::Receiver<T>, Failure>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (tell, told) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start a runtime: {e}")))?;
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            // Whoever started this may have given up.
            let _ = tell.send(runtime.block_on(make()));
        })
        .map_err(|e| Failure::failed(format!("cannot start a thread: {e}")))?;
    Ok(told)
}
