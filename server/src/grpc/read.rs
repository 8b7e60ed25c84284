//! How fresh an answer is, and what it says of itself.

use std::time::Duration;

use rollcall_core::ids::{Revision, Term};
use rollcall_proto::v1::{self, ReadMode, ResponseHeader};
use tokio::time::Instant;

use super::convert::milliseconds;
use super::status::{self, DoorError};
use crate::ap::Ap;
use crate::raft::{Consensus, Freshness};

/// How long a local read waits for the leader's sign of life that it asks for itself.
const PROBE_WAIT: Duration = Duration::from_millis(500);
/// How often it looks.
const PROBE_LOOK: Duration = Duration::from_millis(10);
/// Of an age that is not known: this server has not heard from a leader since it started.
pub(super) const AGE_UNKNOWN: u64 = u64::MAX;

/// Leave to read the local directory, and on what grounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grounds {
    mode: ReadMode,
    age_ms: u64,
    term: Term,
}

/// Judges reads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    consensus: Consensus,
    ap: Ap,
    cluster: String,
    server: u64,
    timeout: Duration,
}

impl Reader {
    pub(crate) fn new(consensus: Consensus, ap: Ap, cluster: String, server: u64, timeout: Duration) -> Self {
        Self {
            consensus,
            ap,
            cluster,
            server,
            timeout,
        }
    }

    /// Waits until the local directory is as fresh as asked.
    pub(crate) async fn admit(&self, options: Option<&v1::ReadOptions>) -> Result<Grounds, v1::Error> {
        let deadline = Instant::now() + self.timeout;
        let revision = Revision(options.map_or(0, |options| options.min_revision));
        let grounds = match options.map_or(ReadMode::Unspecified, v1::ReadOptions::mode) {
            ReadMode::Unspecified | ReadMode::Linearizable => {
                self.confirm(Freshness::Linearizable, ReadMode::Linearizable, deadline)
                    .await?
            }
            ReadMode::Leased => {
                self.confirm(Freshness::Leased, ReadMode::Leased, deadline)
                    .await?
            }
            ReadMode::Local => {
                let max_age_ms = options.map_or(0, |options| options.max_age_ms);
                let grounds = self.local(max_age_ms).await?;
                if self.consensus.has_applied(revision) {
                    return Ok(grounds);
                }
                self.reach(revision, deadline).await?;
                // Again: the age is that of what is shown, however long the revision took to come.
                return self.local(max_age_ms).await;
            }
        };
        self.reach(revision, deadline).await?;
        Ok(grounds)
    }

    async fn reach(&self, revision: Revision, deadline: Instant) -> Result<(), v1::Error> {
        if self.applied(revision, deadline).await {
            return Ok(());
        }
        let head = self.consensus.directory().read().revision();
        let problem = format!("revision {revision} has not been applied here, which is at {head}");
        Err(DoorError::TooStale { problem }.into())
    }

    /// The same without waiting; `None`: it takes a wait, or may not be.
    pub(crate) fn admit_at_once(&self, options: &v1::ReadOptions) -> Option<Grounds> {
        if options.mode() != ReadMode::Local || self.check_ready().is_err() {
            return None;
        }
        let age_ms = self.local_age_ms();
        let fresh = options.max_age_ms == 0 || age_ms <= options.max_age_ms;
        let reached = || self.consensus.has_applied(Revision(options.min_revision));
        (fresh && reached()).then(|| self.local_grounds(age_ms))
    }

    /// Whether this server's state may be shown at all.
    pub(crate) fn check_ready(&self) -> Result<(), v1::Error> {
        let reason = if self.consensus.is_diverged() {
            "its state differs from the leader's (RC-110)"
        } else if !self.consensus.is_loaded() {
            "it has not loaded the directory yet"
        } else {
            return Ok(());
        };
        Err(DoorError::NotReady {
            reason: reason.into(),
        }
        .into())
    }

    /// Waits until a revision is applied here; whether it was in time.
    pub(crate) async fn applied(&self, revision: Revision, deadline: Instant) -> bool {
        if self.consensus.has_applied(revision) {
            return true;
        }
        let mut applied = self.consensus.applied_head();
        let reached = applied.wait_for(|head| head.revision >= revision);
        matches!(tokio::time::timeout_at(deadline, reached).await, Ok(Ok(_)))
    }

    /// What an answer says of itself.
    pub(crate) fn header(&self, grounds: Grounds, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            revision: revision.0,
            read_mode: grounds.mode.into(),
            age_ms: grounds.age_ms,
            term: grounds.term.0,
            ..self.identity()
        }
    }

    /// What a write's answer says of itself.
    pub(crate) fn write_header(&self, revision: Revision) -> ResponseHeader {
        let term = self.consensus.term();
        ResponseHeader {
            revision: revision.0,
            term: term.0,
            ..self.identity()
        }
    }

    /// Who answers.
    pub(crate) fn identity(&self) -> ResponseHeader {
        ResponseHeader {
            cluster: self.cluster.clone(),
            server: self.server,
            mode: v1::GroupMode::Cp.into(),
            ..ResponseHeader::default()
        }
    }

    pub(crate) fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    pub(crate) fn ap(&self) -> &Ap {
        &self.ap
    }

    /// How long a read may wait for what it needs.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    async fn confirm(
        &self,
        freshness: Freshness,
        mode: ReadMode,
        deadline: Instant,
    ) -> Result<Grounds, v1::Error> {
        let confirmed = self
            .consensus
            .confirm(freshness, deadline)
            .await
            .map_err(|e| status::of_read(&e))?;
        Ok(Grounds {
            mode,
            age_ms: 0,
            term: confirmed.term,
        })
    }

    fn local_age_ms(&self) -> u64 {
        self.consensus.local_age().map_or(AGE_UNKNOWN, milliseconds)
    }

    fn local_grounds(&self, age_ms: u64) -> Grounds {
        Grounds {
            mode: ReadMode::Local,
            age_ms,
            term: self.consensus.term(),
        }
    }

    async fn local(&self, max_age_ms: u64) -> Result<Grounds, v1::Error> {
        self.check_ready()?;
        let deadline = Instant::now() + PROBE_WAIT;
        loop {
            let age_ms = self.local_age_ms();
            if max_age_ms == 0 || age_ms <= max_age_ms {
                return Ok(self.local_grounds(age_ms));
            }
            if Instant::now() >= deadline {
                let age = if age_ms == AGE_UNKNOWN {
                    "of unknown age".into()
                } else {
                    format!("{age_ms} ms old")
                };
                let problem = format!("this server's state is {age}, at most {max_age_ms} ms is accepted");
                return Err(DoorError::TooStale { problem }.into());
            }
            // Asking for the age has set a probe of the leader off.
            tokio::time::sleep(PROBE_LOOK).await;
        }
    }
}
