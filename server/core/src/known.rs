//! Texts that come again: every request names groups and services, mostly the same few.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::LocalKey;

use xxhash_rust::xxh3::xxh3_64;

/// How many a thread keeps.
const KEPT: usize = 64;

/// What a thread has seen lately of one kind, each text in the place that its hash names.
pub(crate) struct Known([Option<Arc<str>>; KEPT]);

impl Known {
    pub(crate) const fn nothing() -> RefCell<Self> {
        RefCell::new(Self([const { None }; KEPT]))
    }

    fn place_of(&mut self, text: &str) -> &mut Option<Arc<str>> {
        &mut self.0[xxh3_64(text.as_bytes()) as usize % KEPT]
    }
}

/// A text that `check` lets pass, to be shared. One that is known has passed already.
pub(crate) fn shared<E>(
    known: &'static LocalKey<RefCell<Known>>,
    text: &str,
    check: impl FnOnce(&str) -> Result<(), E>,
) -> Result<Arc<str>, E> {
    // A thread that ends knows nothing any more.
    let found = known.try_with(|known| {
        let mut known = known.borrow_mut();
        let place = known.place_of(text);
        place.as_ref().filter(|kept| ***kept == *text).cloned()
    });
    if let Ok(Some(found)) = found {
        return Ok(found);
    }
    check(text)?;
    let shared: Arc<str> = text.into();
    let kept = shared.clone();
    let _ends = known.try_with(|known| *known.borrow_mut().place_of(text) = Some(kept));
    Ok(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static KNOWN: RefCell<Known> = const { Known::nothing() };
    }

    #[test]
    fn one_that_comes_again_is_shared_and_not_checked_again() {
        let first = shared(&KNOWN, "payments", |_| Ok::<_, ()>(())).unwrap();
        let again = shared(&KNOWN, "payments", |_| Err(())).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        for _ in 0..2 {
            assert_eq!(shared(&KNOWN, "refused", |_| Err(())), Err(()), "it is not kept");
        }
    }

    #[test]
    fn any_number_are_told_apart() {
        for _ in 0..2 {
            for n in 0..10 * KEPT {
                let text = format!("service-{n}");
                assert_eq!(&*shared(&KNOWN, &text, |_| Ok::<_, ()>(())).unwrap(), text);
            }
        }
    }
}
