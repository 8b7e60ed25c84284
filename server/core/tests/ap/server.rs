//! A server as far as records are concerned: replica, view, wall clock, and a disk to start again from.

use std::collections::BTreeMap;

use rollcall_core::ap::{
    Bucket, Key, Merged, Record, Replica, Seq, SessionSeed, Stamp, Stored, VIEW_TERM, Written,
};
use rollcall_core::directory::{
    Command, Directory, Expected, ExpiryFence, GroupMode, GroupSettings, Limits, LoggedRequest, NodeState,
    Outcome, Refusal, Request, RevivalFence,
};
use rollcall_core::ids::{NodeKey, RequestId, ServerId, ServiceKey, SessionId};

use crate::scene;

pub(crate) const AHEAD_MAX_MS: u64 = 500;

pub(crate) struct Server {
    pub(crate) id: ServerId,
    pub(crate) replica: Replica,
    pub(crate) view: Directory,
    pub(crate) now_ms: u64,
    disk: BTreeMap<Key, Stored>,
    head: Seq,
    requests: u128,
    /// How far the logs of others have been followed.
    followed: BTreeMap<ServerId, Seq>,
}

impl Server {
    pub(crate) fn new(id: u64) -> Self {
        let mut server = Self {
            id: ServerId(id),
            replica: Replica::new(ServerId(id), Stamp::default(), Seq(0)),
            view: Directory::new(Limits::default()).serving(GroupMode::Ap),
            now_ms: 1_000_000,
            disk: BTreeMap::new(),
            head: Seq(0),
            requests: u128::from(id) << 64,
            followed: BTreeMap::new(),
        };
        server.define("prod");
        server
    }

    pub(crate) fn define(&mut self, group: &str) {
        let settings = GroupSettings {
            mode: GroupMode::Ap,
            auto_create: true,
            ..GroupSettings::default()
        };
        let command = Command::PutGroup {
            group: scene::group(group),
            settings,
            expected: Expected::Any,
        };
        self.replica.define(&mut self.view, &command).unwrap();
    }

    /// Starts again from what was made durable.
    pub(crate) fn restart(&mut self) {
        self.replica = Replica::new(self.id, self.replica.latest(), self.head);
        self.view = Directory::new(Limits::default()).serving(GroupMode::Ap);
        for stored in self.disk.values().rev() {
            self.replica.load(stored.record.clone(), stored.seq);
        }
        self.define("prod");
        self.replica.impose_all(&mut self.view);
    }

    pub(crate) fn write(&mut self, command: Command) -> Result<Outcome, Refusal> {
        self.requests += 1;
        self.request(self.requests, command).applied.result
    }

    /// A write under a request id.
    pub(crate) fn request(&mut self, id: u128, command: Command) -> Written {
        let request = Request {
            id: RequestId(id),
            command,
        };
        let (request, _) = LoggedRequest::of(request);
        let written = self.replica.write(&mut self.view, self.now_ms, &request);
        self.keep(written.stored.clone());
        written
    }

    pub(crate) fn claim(&mut self, session: u64) -> Result<(), Refusal> {
        let seed = SessionSeed {
            id: SessionId(session),
            secret_digest: [7; 32],
            ttl_ms: 10_000,
            client: "test".into(),
        };
        let merged = self.replica.claim(&mut self.view, self.now_ms, seed)?;
        self.keep(merged.stored);
        Ok(())
    }

    pub(crate) fn register(&mut self, session: u64, node: &str) -> Result<Outcome, Refusal> {
        self.write(Command::Register {
            session: Some(SessionId(session)),
            nodes: vec![scene::register_node(node)],
        })
    }

    pub(crate) fn deregister(&mut self, node: &str) -> Result<Outcome, Refusal> {
        self.write(scene::deregister(None, node))
    }

    /// This server's clock says that these sessions lapsed.
    pub(crate) fn lapse(&mut self, sessions: &[u64]) {
        let fences = sessions.iter().filter_map(|id| {
            let session = self.view.session(SessionId(*id))?;
            session.lapsed.is_none().then_some(ExpiryFence {
                session: session.id,
                last_renewal: session.last_renewal,
            })
        });
        let sessions: Vec<_> = fences.collect();
        if !sessions.is_empty() {
            self.write(Command::ExpireSessions {
                term: VIEW_TERM,
                sessions,
                following: Vec::new(),
            })
            .unwrap();
        }
    }

    /// This server heard a session that had lapsed and is held.
    pub(crate) fn revive(&mut self, session: u64) {
        let Some(lapsed) = self
            .view
            .session(SessionId(session))
            .and_then(|session| session.lapsed)
        else {
            return;
        };
        self.write(Command::ReviveSessions {
            term: VIEW_TERM,
            sessions: vec![RevivalFence {
                session: SessionId(session),
                lapsed,
            }],
        })
        .unwrap();
    }

    pub(crate) fn hear(&mut self, records: Vec<Record>) -> Merged {
        let merged = self
            .replica
            .merge(&mut self.view, self.now_ms, AHEAD_MAX_MS, records);
        self.keep(merged.stored.clone());
        merged
    }

    /// Pulls what the other wrote since the last time, a few records at a time.
    pub(crate) fn follow(&mut self, other: &Self) {
        loop {
            let after = self.followed.get(&other.id).copied().unwrap_or_default();
            let range = other.replica.range(after, 64);
            let records = range.records.iter().map(|record| Record::clone(record)).collect();
            self.hear(records);
            self.followed.insert(other.id, range.through);
            if !range.more {
                return;
            }
        }
    }

    /// Compares digests with the other and fetches what differs.
    pub(crate) fn repair_from(&mut self, other: &Self) {
        let own: BTreeMap<String, u128> = self.replica.group_digests().into_iter().collect();
        for (group, digest) in other.replica.group_digests() {
            if own.get(&group) == Some(&digest) {
                continue;
            }
            let here: BTreeMap<Bucket, u128> = self.replica.bucket_digests(&group).into_iter().collect();
            for (bucket, digest) in other.replica.bucket_digests(&group) {
                if here.get(&bucket) != Some(&digest) {
                    let records = other.replica.bucket(&bucket);
                    self.hear(records.iter().map(|record| Record::clone(record)).collect());
                }
            }
        }
    }

    pub(crate) fn purge(&mut self, retention_ms: u64) {
        let purged = self.replica.purge(self.now_ms, retention_ms);
        for key in purged.gone {
            self.disk.remove(&key);
        }
        self.keep(purged.stored);
    }

    pub(crate) fn state(&self, node: &str) -> Option<NodeState> {
        let key: NodeKey = scene::node(node);
        self.view.node(&key).map(|node| node.state)
    }

    pub(crate) fn signs(&self) -> BTreeMap<ServiceKey, rollcall_core::directory::Sign> {
        self.view
            .groups()
            .flat_map(|group| group.services.values())
            .filter(|service| !service.nodes.is_empty())
            .map(|service| (service.key.clone(), service.sign))
            .collect()
    }

    pub(crate) fn forget(&mut self, key: &Key) {
        self.disk.remove(key);
    }

    pub(crate) fn keep(&mut self, stored: Vec<Stored>) {
        for stored in stored {
            self.head = self.head.max(stored.seq.unwrap_or_default());
            self.disk.insert(stored.record.key.clone(), stored);
        }
        assert!(
            self.replica.is_shown_by(&self.view),
            "the view lists what the records say"
        );
    }
}

/// Everybody compares with everybody until nothing differs.
pub(crate) fn settle(servers: &mut [Server]) {
    for _ in 0..4 {
        for to in 0..servers.len() {
            for from in 0..servers.len() {
                if from != to {
                    let (to, from) = two(servers, to, from);
                    to.repair_from(from);
                }
            }
        }
    }
}

pub(crate) fn two(servers: &mut [Server], one: usize, other: usize) -> (&mut Server, &mut Server) {
    let [one, other] = servers.get_disjoint_mut([one, other]).unwrap();
    (one, other)
}

pub(crate) fn assert_same(servers: &[Server]) {
    for server in &servers[1..] {
        assert_eq!(server.replica.group_digests(), servers[0].replica.group_digests());
        assert_eq!(server.signs(), servers[0].signs());
    }
}
