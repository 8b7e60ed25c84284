//! What a server tells everybody by gossip: how far its log goes, with the last records if they fit.

use rollcall_core::ap::{Record, Seq};
use serde::{Deserialize, Serialize};

use super::desk::{Desk, Footing};
use crate::gossip::NEWS_BYTES_MAX;

const VERSION: u8 = 1;
/// How many of the last numbers are tried to be told along.
const CARRIED: [u64; 4] = [8, 4, 2, 1];

/// News of a server's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ApNews {
    /// The name of the log.
    pub(super) log: u64,
    /// How far it goes.
    pub(super) head: Seq,
    /// Whoever follows the log up to here is with `records` at its head.
    pub(super) after: Seq,
    /// Encoded records.
    records: Vec<Vec<u8>>,
}

impl ApNews {
    /// What there is to tell; nothing of a log that has not begun, or of which nobody knows yet whether it counts.
    pub(super) fn of(desk: &Desk) -> Option<Vec<u8>> {
        let (log, head) = (desk.log(), desk.replica.head());
        if head.0 == 0 || desk.footing() == Footing::Unsure {
            return None;
        }
        let carrying = CARRIED.iter().filter_map(|count| {
            let after = Seq(head.0.saturating_sub(*count));
            let range = desk.replica.range(after, NEWS_BYTES_MAX);
            let records = range.encoded().map(|record| record.to_vec());
            (!range.more).then(|| Self {
                log,
                head,
                after,
                records: records.collect(),
            })
        });
        let bare = Self {
            log,
            head,
            after: head,
            records: Vec::new(),
        };
        carrying
            .chain([bare])
            .map(|news| news.encode())
            .find(|bytes| bytes.len() <= NEWS_BYTES_MAX)
    }

    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("plain values always encode")
    }

    /// `None`: no such news, or of a version this server does not know.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, body) = bytes.split_first()?;
        if *version != VERSION {
            return None;
        }
        let (news, rest) = postcard::take_from_bytes::<Self>(body).ok()?;
        (rest.is_empty() && news.after <= news.head && news.log != 0).then_some(news)
    }

    /// The records told along; `None` if they cannot be read.
    pub(super) fn records(&self) -> Option<Vec<Record>> {
        let records = self.records.iter().map(|bytes| Record::decode(bytes));
        records.collect::<Result<_, _>>().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_come_back_as_they_were_and_damaged_ones_do_not() {
        let news = ApNews {
            log: 7,
            head: Seq(9),
            after: Seq(8),
            records: vec![b"no record".to_vec()],
        };
        let bytes = news.encode();
        assert_eq!(ApNews::decode(&bytes), Some(news.clone()));
        assert_eq!(news.records(), None);
        for end in 0..bytes.len() {
            assert_eq!(ApNews::decode(&bytes[..end]), None);
        }
        let mut later = bytes;
        later[0] += 1;
        assert_eq!(ApNews::decode(&later), None);
    }
}
