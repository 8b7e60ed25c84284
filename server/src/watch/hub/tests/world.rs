//! A directory with its hub, and the truth about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall_core::directory::{
    Address, ChangeLogBounds, Command, DeregisterNode, Directory, Expected, ExpiryFence, GroupMode,
    GroupSettings, Labels, Limits, NodeKind, NodeState, RegisterNode, Registration, Request, RevivalFence,
    Service, ServiceSettings, Session, Sign,
};
use rollcall_core::ids::{LogIndex, LogPosition, NodeKey, RequestId, Revision, ServiceKey, SessionId, Term};
use rollcall_core::storm::{Mode, Scope};
use rollcall_proto::v1;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use crate::config::{StormConfig, WatchConfig};
use crate::grpc::convert;
use crate::raft::SharedDirectory;
use crate::storm::{StormDesk, StormMetrics};
use crate::watch::shown::Shown;
use crate::watch::{KnownSigns, Subscription, Target, WatchHub, WatchMetrics};

pub(super) struct World {
    pub(super) directory: Arc<SharedDirectory>,
    pub(super) hub: WatchHub,
    pub(super) storm: StormDesk,
    index: u64,
}

pub(super) fn key(group: &str, service: &str) -> ServiceKey {
    ServiceKey {
        group: group.parse().unwrap(),
        service: service.parse().unwrap(),
    }
}

pub(super) fn small() -> WatchConfig {
    WatchConfig {
        backlog_frames: 8,
        response_bytes: 600,
        ..WatchConfig::default()
    }
}

impl World {
    pub(super) fn new(limits: WatchConfig, retained: usize) -> Self {
        Self::with_storm(limits, retained, &StormConfig::default())
    }

    pub(super) fn with_storm(limits: WatchConfig, retained: usize, storm: &StormConfig) -> Self {
        let bounds = ChangeLogBounds {
            revisions_max: retained,
            ..ChangeLogBounds::default()
        };
        let directory = Directory::new(Limits::default()).with_change_log(bounds);
        let directory = Arc::new(SharedDirectory::new(directory));
        let storm = StormDesk::new(storm, StormMetrics::default());
        let hub = WatchHub::new(
            directory.clone(),
            limits,
            32 << 20,
            WatchMetrics::default(),
            storm.clone(),
        );
        let mut world = Self {
            directory,
            hub,
            storm,
            index: 0,
        };
        for group in ["a", "a/b", "c"] {
            let settings = GroupSettings {
                auto_create: true,
                ..GroupSettings::default()
            };
            let group = group.parse().unwrap();
            world.apply(Command::PutGroup {
                group,
                settings,
                expected: Expected::Any,
            });
        }
        world
    }

    pub(super) fn apply(&mut self, command: Command) -> Revision {
        self.index += 1;
        let request = Request {
            id: RequestId(u128::from(self.index)),
            command,
        };
        let at = LogPosition {
            term: Term(1),
            index: LogIndex(self.index),
        };
        let mut directory = self.directory.write();
        let _ = directory.apply(at, &request);
        directory.revision()
    }

    pub(super) fn put(&mut self, key: &ServiceKey, node: &str, weight: u16) -> Revision {
        self.put_under(None, key, node, weight)
    }

    pub(super) fn put_under(
        &mut self,
        session: Option<SessionId>,
        key: &ServiceKey,
        node: &str,
        weight: u16,
    ) -> Revision {
        let kind = session.map_or(NodeKind::Persistent, |_| NodeKind::Ephemeral);
        let registration = Registration {
            id: node.parse().unwrap(),
            addresses: vec![Address {
                name: "http".into(),
                host: "h".into(),
                port: 80,
            }]
            .into(),
            weight,
            labels: Labels::new(),
            metadata: Labels::new(),
            kind: Some(kind),
            state: NodeState::Up,
        };
        let node = RegisterNode {
            key: key.clone(),
            registration,
            expected: Expected::Any,
        };
        self.apply(Command::Register {
            session,
            nodes: vec![node],
        })
    }

    /// A node that may lapse.
    pub(super) fn join(&mut self, key: &ServiceKey, node: &str) -> SessionId {
        self.apply(Command::OpenSession {
            secret_digest: [0; 32],
            ttl_ms: 2_000,
            client: String::new(),
        });
        let session = self.directory.read().sessions().last().unwrap().id;
        self.put_under(Some(session), key, node, 1);
        session
    }

    pub(super) fn lapse(&mut self, sessions: &[SessionId]) {
        let fences = {
            let directory = self.directory.read();
            let found = sessions.iter().filter_map(|id| directory.session(*id));
            let fence = |session: &Arc<Session>| ExpiryFence {
                session: session.id,
                last_renewal: session.last_renewal,
            };
            found.map(fence).collect()
        };
        self.apply(Command::ExpireSessions {
            term: Term(1),
            sessions: fences,
            following: Vec::new(),
        });
    }

    /// Those of all lapsed sessions whose number is even.
    pub(super) fn revive(&mut self) {
        let sessions = {
            let directory = self.directory.read();
            let fence = |session: &Arc<Session>| {
                Some(RevivalFence {
                    session: session.id,
                    lapsed: session.lapsed?,
                })
            };
            let even = directory.sessions().filter(|session| session.id.0 % 2 == 0);
            even.filter_map(fence).collect()
        };
        self.apply(Command::ReviveSessions {
            term: Term(1),
            sessions,
        });
    }

    pub(super) fn close_windows(&mut self) {
        let windows = {
            let directory = self.directory.read();
            let window = |service: &Arc<Service>| Some((service.key.clone(), service.guard.window()?.began));
            directory.guarded_services().filter_map(window).collect()
        };
        self.apply(Command::CloseGuardWindows {
            term: Term(1),
            windows,
        });
    }

    pub(super) fn confirm(&mut self, key: &ServiceKey) {
        self.apply(Command::ConfirmRemoval {
            service: key.clone(),
            since: None,
            author: String::new(),
            reason: String::new(),
        });
    }

    pub(super) fn remove(&mut self, key: &ServiceKey, node: &str) -> Revision {
        let key = NodeKey {
            service: key.clone(),
            node: node.parse().unwrap(),
        };
        let nodes = vec![DeregisterNode {
            key,
            expected: Expected::Any,
        }];
        self.apply(Command::Deregister { session: None, nodes })
    }

    /// Sets the service's own metadata.
    pub(super) fn say_of(&mut self, key: &ServiceKey, value: &str) -> Revision {
        let metadata = [("about".to_owned(), value.to_owned())].into_iter().collect();
        self.apply(Command::PutService {
            key: key.clone(),
            settings: Some(ServiceSettings {
                metadata,
                ..ServiceSettings::default()
            }),
            expected: Expected::Any,
        })
    }

    pub(super) fn delete(&mut self, key: &ServiceKey) -> Revision {
        self.apply(Command::DeleteService {
            key: key.clone(),
            expected: Expected::Any,
        })
    }

    pub(super) fn set_storm(&mut self, mode: Mode) {
        self.apply(Command::SetStorm {
            scope: Scope::Cluster,
            mode,
            author: "test".into(),
            reason: "test".into(),
        });
        self.storm.follow(&self.directory);
    }

    pub(super) fn open(&self) -> Client {
        Client::new(
            self.hub
                .open("test", v1::ResponseHeader::default(), CancellationToken::new())
                .unwrap(),
        )
    }

    pub(super) fn pull(&self) {
        while self.hub.pull() {}
    }

    /// What a client that follows `target` must hold.
    pub(super) fn truth(&self, target: &Target) -> Picture {
        truth(&self.directory, target)
    }
}

/// Of each service the sign, the number of nodes, and what its guard says.
pub(super) type Picture = BTreeMap<ServiceKey, (Sign, usize, Option<v1::GuardStatus>)>;

pub(super) fn truth(directory: &SharedDirectory, target: &Target) -> Picture {
    let directory = directory.read();
    let picture = |service: &Arc<Service>| {
        let guard = convert::service_guard(service);
        (service.key.clone(), (service.sign, service.nodes.len(), guard))
    };
    let shown = Shown::new(&directory, GroupMode::Cp);
    shown.services(target).map(picture).collect()
}

pub(super) fn follow(id: u64, target: Target) -> Subscription {
    Subscription {
        id,
        target,
        after: Revision(0),
        directory: Revision(0),
        known: KnownSigns::default(),
        known_metadata: Arc::default(),
        division: None,
    }
}
