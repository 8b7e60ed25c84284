//! Cookies: a sender shows that it receives at the address it names, now.
//!
//! Nothing is kept for a stranger: the cookie is computed again when it comes back. So forged senders cost no
//! memory, nobody can be made to answer a third party with more than was sent, and packets recorded before
//! this process started are worth nothing to it.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::codec::put_identity;
use super::identity::Identity;

/// A cookie is good in the slot it was made in and in the next.
const SLOT: Duration = Duration::from_secs(30);

/// Makes and checks cookies. The secret lives as long as the process.
pub(crate) struct Cookies {
    secret: [u8; 32],
}

impl Cookies {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self { secret }
    }

    /// For a sender, at a time since the start of the process.
    pub(crate) fn bake(&self, sender: &Identity, at: Duration) -> u64 {
        self.of_slot(sender, slot(at))
    }

    pub(crate) fn is_good(&self, cookie: u64, sender: &Identity, at: Duration) -> bool {
        let slot = slot(at);
        cookie != 0
            && (cookie == self.of_slot(sender, slot)
                || slot
                    .checked_sub(1)
                    .is_some_and(|last| cookie == self.of_slot(sender, last)))
    }

    fn of_slot(&self, sender: &Identity, slot: u64) -> u64 {
        let mut bytes = Vec::with_capacity(80);
        bytes.extend(self.secret);
        bytes.extend(slot.to_be_bytes());
        put_identity(sender, &mut bytes);
        let digest = Sha256::digest(&bytes);
        let first = digest.first_chunk::<8>().copied().unwrap_or_default();
        u64::from_be_bytes(first).max(1)
    }
}

fn slot(at: Duration) -> u64 {
    at.as_secs() / SLOT.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_for_one_identity_and_a_while() {
        let cookies = Cookies::new([3; 32]);
        let sender = |epoch| Identity {
            server: rollcall_core::ids::ServerId(1),
            address: "127.0.0.1:7401".parse().unwrap(),
            epoch,
        };
        let at = Duration::from_secs(45);
        let cookie = cookies.bake(&sender(1), at);
        assert!(cookies.is_good(cookie, &sender(1), at));
        assert!(cookies.is_good(cookie, &sender(1), at + SLOT));
        assert!(!cookies.is_good(cookie, &sender(1), at + 2 * SLOT));
        assert!(!cookies.is_good(cookie, &sender(2), at));
        assert!(!cookies.is_good(0, &sender(1), at));
        assert!(!Cookies::new([4; 32]).is_good(cookie, &sender(1), at));
    }
}
