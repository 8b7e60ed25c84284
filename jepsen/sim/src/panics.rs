//! Panics of servers: a task that panics ends alone, the runtime goes on, and nothing else may show.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static HEARD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

static LISTENING: Once = Once::new();

/// From now on panics are heard, on each thread its own.
pub(crate) fn listen() {
    LISTENING.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            HEARD.with(|heard| {
                if let Ok(mut heard) = heard.try_borrow_mut() {
                    heard.push(panic.to_string());
                }
            });
            before(panic);
        }));
    });
}

/// What this thread has heard since it was asked last.
pub(crate) fn take() -> Vec<String> {
    HEARD.take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panics_is_heard_on_its_thread() {
        listen();
        assert!(take().is_empty());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let task = runtime.spawn(async { panic!("planted") });
        assert!(runtime.block_on(task).is_err(), "the runtime goes on");
        assert!(std::thread::spawn(take).join().unwrap().is_empty());
        let heard = take();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert!(
            heard[0].contains("planted") && heard[0].contains("panics.rs"),
            "{heard:?}"
        );
        assert!(take().is_empty());
    }
}
