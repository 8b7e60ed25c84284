//! A provider: one session that is kept alive at one server after the other, and says what it was told.

use std::time::Duration;

use rollcall_proto::v1::{ErrorCode, GroupMode};

use super::Stage;
use crate::history::{Heartbeats, Record};
use crate::lab::attending::Attending;
use crate::seed::Seeded;

/// How long a server may take to answer before the client goes elsewhere.
const ANSWER_MAX: Duration = Duration::from_millis(900);

/// A session in the hands of its client.
#[derive(Debug)]
pub(super) struct Provider {
    addresses: Vec<String>,
    attending: Option<Attending>,
    secret: Vec<u8>,
    /// Its id.
    pub(super) session: u64,
    /// What was granted.
    pub(super) ttl: Duration,
    mode: GroupMode,
}

/// A heartbeat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) sent: Duration,
    pub(super) end: Duration,
    /// `None`: nobody answered.
    pub(super) acknowledged: Option<bool>,
}

impl Provider {
    /// Opens a session at one of `addresses`, the only ones that it will go to.
    pub(super) async fn open(
        addresses: &[String],
        ttl: Duration,
        mode: GroupMode,
        random: &mut Seeded,
    ) -> Option<Self> {
        let address = random.pick(addresses)?;
        let opening = Attending::open_for(address, ttl, mode);
        let attending = tokio::time::timeout(ANSWER_MAX * 2, opening).await.ok()?.ok()?;
        Some(Self {
            addresses: addresses.to_vec(),
            secret: attending.secret.clone(),
            session: attending.session,
            ttl: attending.ttl,
            attending: Some(attending),
            mode,
        })
    }

    /// Registers a node under the session where it is attached; the revision, or `None`: nobody knows.
    pub(super) async fn register(&mut self, group: &str, service: &str, id: &str) -> Option<u64> {
        let mut attending = self.attending.take()?;
        let registering = attending.register(group, service, id);
        let registered = tokio::time::timeout(ANSWER_MAX * 2, registering).await;
        let revision = registered.ok()?.ok()?;
        self.attending = Some(attending);
        Some(revision)
    }

    /// Writes down that it was opened, which was asked for at this time.
    pub(super) fn opened(&self, stage: &Stage, sent: Duration) {
        stage.history.record(Record::Heartbeats(Heartbeats::Open {
            session: self.session,
            ttl: self.ttl,
            sent,
            end: stage.history.now(),
        }));
    }

    /// One heartbeat, on its stream or, if that is broken, by attaching to some server. It is written
    /// down if all servers answer for its session: in AP groups one that has not heard of it does not find it.
    pub(super) async fn beat(&mut self, stage: &Stage, random: &mut Seeded) -> Beat {
        let sent = stage.history.now();
        let acknowledged = match self.attending.take() {
            Some(mut attending) => match tokio::time::timeout(ANSWER_MAX, attending.renew()).await {
                Ok(Ok(acknowledged)) => {
                    self.attending = Some(attending);
                    Some(acknowledged)
                }
                _ => None,
            },
            None => self.attach(random).await,
        };
        let end = stage.history.now();
        if self.mode == GroupMode::Cp {
            stage.history.record(Record::Heartbeats(Heartbeats::Beat {
                session: self.session,
                sent,
                end: acknowledged.map(|_| end),
                acknowledged,
            }));
        }
        Beat {
            sent,
            end,
            acknowledged,
        }
    }

    async fn attach(&mut self, random: &mut Seeded) -> Option<bool> {
        let address = random.pick(&self.addresses)?.clone();
        let attaching = Attending::attach(&address, self.session, &self.secret);
        match tokio::time::timeout(ANSWER_MAX, attaching).await {
            Ok(Ok(Ok(attending))) => {
                self.attending = Some(attending);
                Some(true)
            }
            Ok(Ok(Err(refused))) if refused.code() == ErrorCode::SessionNotFound => Some(false),
            _ => None,
        }
    }

    /// Whether it has a stream that no answer has failed to come on.
    pub(super) fn is_attached(&self) -> bool {
        self.attending.is_some()
    }

    /// Leaves its stream without a word.
    pub(super) fn hang_up(&mut self) {
        self.attending = None;
    }
}
