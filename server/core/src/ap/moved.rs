//! A group that moves between the Raft directory and the records.

use std::collections::BTreeSet;

use super::record::{Key, NodeValue, Record, SessionValue, Standing, Stored, Value};
use super::replica::{FarFuture, Merged, Replica};
use super::shown::Moved;
use super::stamp::Stamp;
use crate::directory::{Directory, Override};
use crate::ids::{GroupName, NodeKey, Revision, ServerId, SessionId};

/// Who wrote what came from the log, and holds the sessions that came with it until somebody claims them: no server.
pub const THE_LOG: ServerId = ServerId(0);

impl Replica {
    /// Takes over what the Raft directory lists of a group, with the sessions that own it. Every server does the same
    /// and writes the same records, under one stamp, so that nothing of it has to travel; and repeats are harmless. What was
    /// known of the group before that stamp and is not listed is gone. Nobody holds the sessions until they are heard
    /// from, or until their time is over and the successor has judged them.
    ///
    /// # Errors
    /// The stamp is not credible, as in [`Self::merge`], and nothing was taken over: whoever began the move has another
    /// idea of the time.
    pub fn adopt(
        &mut self,
        view: &mut Directory,
        (now_ms, ahead_max_ms): (u64, u64),
        from: &Directory,
        group: &GroupName,
        stamp_ms: u64,
    ) -> Result<Merged, FarFuture> {
        let stamp = Stamp {
            millis: stamp_ms,
            counter: 0,
            server: THE_LOG,
        };
        FarFuture::check(stamp, now_ms, ahead_max_ms)?;
        self.clock.observe(stamp);
        let mut records = records_of(from, group, stamp);
        let listed: BTreeSet<&Key> = records.iter().map(|record| &record.key).collect();
        let earlier = self.table.records_of_group(group.as_str());
        let gone: Vec<Record> = earlier
            .filter(|record| record.stamp < stamp && !record.is_dead() && !listed.contains(&record.key))
            .map(|record| Record {
                key: record.key.clone(),
                value: match record.value {
                    Value::Override(_) => Value::Override(None),
                    Value::Node(_) | Value::Session(_) => Value::Node(None),
                },
                stamp,
            })
            .collect();
        records.extend(gone);
        let mut moved = Moved::default();
        let taken = records.len();
        let stored = records
            .into_iter()
            .filter_map(|record| self.adopt_one(record, &mut moved))
            .collect();
        Ok(Merged {
            stored,
            changes: self.impose(view, moved),
            taken,
            refused: None,
        })
    }

    fn adopt_one(&mut self, mut record: Record, moved: &mut Moved) -> Option<Stored> {
        let mut judged_here = false;
        if let (Key::Session(id), Value::Session(adopted)) = (&record.key, &mut record.value)
            && let Some(known) = self.session(*id)
        {
            let is_final = matches!(known.standing, Standing::Held | Standing::Closed);
            if is_final || known.standing == adopted.standing {
                // Somebody vouches for it already, nobody can any more, or it was adopted before.
                moved.sessions.insert(*id);
                return None;
            }
            // It lapsed among the records while the log, which counted longer, went on listing its nodes. What is listed is
            // what moves: it is given its time again, else the two sides would never be the same.
            judged_here = known.holder == self.server;
            adopted.claim = known.claim + 1;
        }
        if judged_here {
            // Others follow this server's log, where its judgement stands, and must not hear that last.
            moved.note(&record);
            return Some(self.own(record.key, record.value, record.stamp));
        }
        self.merge_one(record, moved)
    }

    /// Forgets a group: it lives in the Raft directory now, or nowhere. The keys are to be deleted on disk.
    pub fn forget_group(&mut self, group: &GroupName) -> Vec<Key> {
        let records = self.table.records_of_group(group.as_str());
        let keys: Vec<Key> = records.map(|record| record.key.clone()).collect();
        keys.iter().for_each(|key| self.table.remove(key));
        keys
    }
}

fn records_of(from: &Directory, group: &GroupName, stamp: Stamp) -> Vec<Record> {
    let mut records: Vec<(Key, Value)> = Vec::new();
    let mut owners: BTreeSet<SessionId> = BTreeSet::new();
    let services = from
        .group(group)
        .into_iter()
        .flat_map(|group| group.services.values());
    for service in services {
        let key = |id: &crate::ids::NodeId| NodeKey {
            service: service.key.clone(),
            node: id.clone(),
        };
        for (id, node) in &service.nodes {
            owners.extend(node.session());
            let value = NodeValue {
                registration: node.registration.clone(),
                kind: node.kind,
                session: node.session(),
                incarnation: node.incarnation,
            };
            records.push((Key::Node(key(id)), Value::Node(Some(Box::new(value)))));
        }
        for (id, over) in &service.overrides {
            let over = Override {
                set_at: Revision(0),
                ..Override::clone(over)
            };
            records.push((Key::Override(key(id)), Value::Override(Some(Box::new(over)))));
        }
    }
    let sessions = owners
        .into_iter()
        .filter_map(|id| from.session(id))
        .map(|session| {
            let value = SessionValue {
                secret_digest: session.secret_digest,
                ttl_ms: session.ttl_ms,
                client: session.client.clone(),
                holder: THE_LOG,
                claim: 0,
                standing: match session.lapsed {
                    None => Standing::Held,
                    Some(_) => Standing::Lapsed {
                        held: session.nodes.keys().collect(),
                    },
                },
            };
            (Key::Session(session.id), Value::Session(Box::new(value)))
        });
    sessions
        .collect::<Vec<_>>()
        .into_iter()
        .chain(records)
        .map(|(key, value)| Record { key, value, stamp })
        .collect()
}
