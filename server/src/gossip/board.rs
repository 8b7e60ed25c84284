//! Small news that ride on gossip: of each server and topic the latest, passed on until all should have it.
//!
//! Bounded: one item for each member and topic. A new item replaces the one before, delivered or not, so this
//! carries states ("I am at revision 7"), never steps.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes};
use foca::{BroadcastHandler, Invalidates};
use parking_lot::Mutex;
use rollcall_core::ids::ServerId;

use super::identity::{EPOCH_MAX, Identity};

/// Longest item, in bytes. What is longer is pulled over gRPC.
pub const NEWS_BYTES_MAX: usize = 512;
/// Topics are numbered below this.
pub const TOPICS_MAX: u8 = 8;

/// What news are about; the meaning of their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// How far a server is, and whom it takes for the leader ([`Head`](super::Head)).
    Head,
    /// How far a server's log of AP records goes, and the last of them ([`crate::ap`]).
    ApHead,
}

impl Topic {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Head => 0,
            Self::ApHead => 1,
        }
    }
}

/// The latest that a server said on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Who said it.
    pub from: ServerId,
    /// In which of its lives.
    pub epoch: u64,
    /// Grows with each item of a server's life and topic.
    pub version: u64,
    /// On which topic: its number.
    pub topic: u8,
    /// What it said.
    pub bytes: Bytes,
    /// When it came here.
    pub heard_at: Instant,
}

impl News {
    /// Whether they are about this.
    #[must_use]
    pub fn is_on(&self, topic: Topic) -> bool {
        self.topic == topic.number()
    }
}

/// Tells the items of one server and topic from others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    server: ServerId,
    topic: u8,
}

impl Invalidates for Key {
    fn invalidates(&self, other: &Self) -> bool {
        self == other
    }
}

#[derive(Debug)]
pub(crate) struct Board {
    own: ServerId,
    items_max: usize,
    items: BTreeMap<Key, News>,
    /// In which of its lives each server is, as far as membership knows.
    lives: BTreeMap<ServerId, u64>,
    /// Not taken yet.
    fresh: BTreeMap<Key, News>,
    pub(crate) refused: u64,
}

impl Board {
    pub(crate) fn new(own: ServerId, members_max: usize) -> Self {
        Self {
            own,
            items_max: members_max * usize::from(TOPICS_MAX),
            items: BTreeMap::new(),
            lives: BTreeMap::new(),
            fresh: BTreeMap::new(),
            refused: 0,
        }
    }

    pub(crate) fn take_fresh(&mut self) -> Vec<News> {
        std::mem::take(&mut self.fresh).into_values().collect()
    }

    pub(crate) fn on_topic(&self, topic: Topic) -> Vec<News> {
        let number = topic.number();
        self.items
            .values()
            .filter(|news| news.topic == number)
            .cloned()
            .collect()
    }

    /// The latest that this server said: topics by number, and bytes.
    pub(crate) fn own_items(&self) -> Vec<(u8, Bytes)> {
        self.items
            .values()
            .filter(|news| news.from == self.own)
            .map(|news| (news.topic, news.bytes.clone()))
            .collect()
    }

    /// A member is in this life.
    pub(crate) fn set_life(&mut self, identity: &Identity) {
        self.lives.insert(identity.server, identity.epoch);
    }

    /// Whether an item is of a life that membership has not heard of. It may be early, or made up: whatever comes
    /// of the life that is known replaces it.
    fn is_ahead(&self, news: &News) -> bool {
        self.lives
            .get(&news.from)
            .is_some_and(|epoch| news.epoch > *epoch)
    }

    pub(crate) fn forget(&mut self, server: ServerId) {
        self.lives.remove(&server);
        self.items.retain(|key, _| key.server != server);
        self.fresh.retain(|key, _| key.server != server);
    }

    fn receive(&mut self, data: &[u8], local: bool) -> Option<Key> {
        let Some(news) = decode(data) else {
            self.refused += 1;
            return None;
        };
        if !local && news.from == self.own {
            return None;
        }
        let key = Key {
            server: news.from,
            topic: news.topic,
        };
        match self.items.get(&key) {
            Some(known)
                if (known.epoch, known.version) >= (news.epoch, news.version)
                    && (!self.is_ahead(known) || self.is_ahead(&news)) =>
            {
                return None;
            }
            None if self.items.len() >= self.items_max => {
                self.refused += 1;
                return None;
            }
            Some(_) | None => {}
        }
        if !local {
            self.fresh.insert(key, news.clone());
        }
        self.items.insert(key, news);
        Some(key)
    }
}

/// An item as it travels.
pub(crate) fn encode(own: &Identity, topic: u8, version: u64, bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(25 + bytes.len());
    data.put_u64(own.server.0);
    data.put_u64(own.epoch);
    data.put_u64(version);
    data.put_u8(topic);
    data.put_slice(bytes);
    data
}

fn decode(mut data: &[u8]) -> Option<News> {
    if data.len() < 25 || data.len() > 25 + NEWS_BYTES_MAX {
        return None;
    }
    let (server, epoch, version, topic) = (data.get_u64(), data.get_u64(), data.get_u64(), data.get_u8());
    // Topics of later versions are passed on, within the bound.
    let sound = server != 0 && (1..=EPOCH_MAX).contains(&epoch) && topic < TOPICS_MAX;
    sound.then(|| News {
        from: ServerId(server),
        epoch,
        version,
        topic,
        bytes: Bytes::copy_from_slice(data),
        heard_at: Instant::now(),
    })
}

/// The board, as foca hands items to it.
#[derive(Clone, Debug)]
pub(crate) struct SharedBoard(pub(crate) Arc<Mutex<Board>>);

impl BroadcastHandler<Identity> for SharedBoard {
    type Key = Key;
    type Error = Infallible;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Identity>) -> Result<Option<Key>, Infallible> {
        Ok(self.0.lock().receive(data, sender.is_none()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(server: u64, epoch: u64, version: u64, bytes: &[u8]) -> Vec<u8> {
        let origin = Identity {
            server: ServerId(server),
            address: "127.0.0.1:1".parse().unwrap(),
            epoch,
        };
        encode(&origin, Topic::Head.number(), version, bytes)
    }

    #[test]
    fn only_later_items_are_kept_and_passed_on() {
        let mut board = Board::new(ServerId(1), 2);
        assert!(board.receive(&item(2, 1, 5, b"a"), false).is_some());
        assert!(board.receive(&item(2, 1, 5, b"a"), false).is_none());
        assert!(board.receive(&item(2, 1, 4, b"b"), false).is_none());
        assert!(board.receive(&item(2, 2, 1, b"c"), false).is_some());
        let fresh = board.take_fresh();
        assert_eq!(fresh.len(), 1);
        assert_eq!(&fresh[0].bytes[..], b"c");
        assert!(board.receive(&item(1, 9, 9, b"of ourselves"), false).is_none());
        assert!(board.receive(&item(1, 1, 1, b"own"), true).is_some());
        assert!(board.take_fresh().is_empty());
        assert_eq!(board.on_topic(Topic::Head).len(), 2);
    }

    #[test]
    fn what_nobody_can_have_said_yet_does_not_silence_who_says_it() {
        let mut board = Board::new(ServerId(1), 2);
        board.set_life(&Identity {
            server: ServerId(2),
            address: "127.0.0.1:1".parse().unwrap(),
            epoch: 3,
        });
        assert!(board.receive(&item(2, 9, u64::MAX, b"forged"), false).is_some());
        assert!(board.receive(&item(2, 9, 1, b"forged"), false).is_none());
        assert!(board.receive(&item(2, 3, 7, b"a"), false).is_some());
        assert!(board.receive(&item(2, 3, 7, b"a"), false).is_none());
        assert_eq!(&board.on_topic(Topic::Head)[0].bytes[..], b"a");
    }

    #[test]
    fn the_board_is_bounded() {
        let mut board = Board::new(ServerId(1), 2);
        for server in 2..100 {
            board.receive(&item(server, 1, 1, b"x"), false);
        }
        assert_eq!(board.items.len(), 16);
        assert_eq!(board.refused, 98 - 16);
        board.receive(&item(2, 1, 2, &[0; NEWS_BYTES_MAX + 1]), false);
        assert_eq!(board.refused, 98 - 16 + 1);
        board.forget(ServerId(2));
        assert!(board.receive(&item(200, 1, 1, b"x"), false).is_some());
    }
}
