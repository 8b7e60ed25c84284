//! A service as a consumer holds it: its nodes, as of when, and how surely.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rollcall_proto::v1;
use tokio::time::Instant;

use crate::key::ServiceKey;
use crate::node::Node;
use crate::sign::Sign;

/// Where a view comes from, and so how far it may be trusted to be current.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Source {
    /// Nothing is known yet; the view is empty because nobody was heard, not because nobody is there.
    Nothing,
    /// Read from the disk snapshot of an earlier run.
    Disk,
    /// Heard from a server in this run; there is no live stream at the moment.
    Cache,
    /// A live stream keeps it current; of a poll: the last answer says so, as of [`ServiceView::age`].
    Live,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Disk => "disk",
            Self::Cache => "cache",
            Self::Live => "live",
        })
    }
}

/// When a server last confirmed what the views of one stream say.
#[derive(Debug)]
pub(crate) struct Heard {
    origin: Instant,
    /// After the origin; below 0: before it.
    millis: AtomicI64,
    /// The same by the clock of the wall, since 1970: it goes on while the machine sleeps.
    wall_millis: AtomicI64,
}

impl Heard {
    pub(crate) fn now() -> Arc<Self> {
        Self::earlier(Duration::ZERO)
    }

    /// Now, of what was so that long ago.
    pub(crate) fn earlier(age: Duration) -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            millis: AtomicI64::new(-whole_millis(age)),
            wall_millis: AtomicI64::new(wall_millis().saturating_sub(whole_millis(age))),
        })
    }

    pub(crate) fn touch(&self) {
        self.millis
            .store(whole_millis(self.origin.elapsed()), Ordering::Relaxed);
        self.wall_millis.store(wall_millis(), Ordering::Relaxed);
    }

    /// As it is now, whatever is heard from now on.
    pub(crate) fn as_of_now(&self) -> Arc<Self> {
        Arc::new(Self {
            origin: self.origin,
            millis: AtomicI64::new(self.millis.load(Ordering::Relaxed)),
            wall_millis: AtomicI64::new(self.wall_millis.load(Ordering::Relaxed)),
        })
    }

    /// By the clock that says more: one stands still while the machine sleeps, the other may be set back.
    pub(crate) fn age(&self) -> Duration {
        let passed = self.origin.elapsed();
        let millis = self.millis.load(Ordering::Relaxed);
        let apart = Duration::from_millis(millis.unsigned_abs());
        let awake = if millis < 0 {
            passed.saturating_add(apart)
        } else {
            passed.saturating_sub(apart)
        };
        let by_wall = wall_millis().saturating_sub(self.wall_millis.load(Ordering::Relaxed));
        awake.max(Duration::from_millis(u64::try_from(by_wall).unwrap_or(0)))
    }
}

fn wall_millis() -> i64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, whole_millis)
}

fn whole_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What revisions count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Not known.
    #[default]
    Unknown,
    /// Changes of the replicated directory: a revision is the same at every server.
    Cluster,
    /// The steps of one server in one of its lives: they mean nothing elsewhere.
    Server { epoch: u64 },
}

impl Counted {
    /// As a message says it.
    pub(crate) fn of(mode: v1::GroupMode, epoch: u64) -> Self {
        match mode {
            v1::GroupMode::Unspecified | v1::GroupMode::Cp => Self::Cluster,
            v1::GroupMode::Ap => Self::Server { epoch },
        }
    }

    pub(crate) fn mode(self) -> v1::GroupMode {
        match self {
            Self::Unknown => v1::GroupMode::Unspecified,
            Self::Cluster => v1::GroupMode::Cp,
            Self::Server { .. } => v1::GroupMode::Ap,
        }
    }

    pub(crate) fn epoch(self) -> u64 {
        match self {
            Self::Unknown | Self::Cluster => 0,
            Self::Server { epoch } => epoch,
        }
    }

    /// Whether revisions of the two cannot be compared.
    pub(crate) fn differs(self, other: Self) -> bool {
        self != Self::Unknown && other != Self::Unknown && self != other
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Confirmed {
    Never,
    /// By the clock of the wall: it outlives the process.
    Written(SystemTime),
    Heard(Arc<Heard>),
}

impl Confirmed {
    /// By an answer, which says how old its state is, or that this is not known.
    pub(crate) fn by(header: &v1::ResponseHeader) -> Self {
        match header.age_ms {
            u64::MAX => Self::Never,
            age_ms => Self::Heard(Heard::earlier(Duration::from_millis(age_ms))),
        }
    }

    /// How long ago; `None`: never.
    pub(crate) fn age(&self) -> Option<Duration> {
        match self {
            Self::Never => None,
            // A wall clock that went back makes the age zero, not negative.
            Self::Written(at) => Some(at.elapsed().unwrap_or_default()),
            Self::Heard(heard) => Some(heard.age()),
        }
    }

    /// Of two confirmations of the same: a server that is behind takes nothing back.
    pub(crate) fn or_later(self, other: &Self) -> Self {
        match (self.age(), other.age()) {
            (Some(age), Some(others)) if age <= others => self,
            (_, None) => self,
            (_, Some(_)) => other.clone(),
        }
    }
}

/// All nodes of a service, as this client knows them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceView {
    /// Which service.
    pub key: ServiceKey,
    /// Whether the service exists; `false` also while nothing is known.
    pub exists: bool,
    /// Digest of the nodes.
    pub sign: Sign,
    /// When the service last changed. In mode AP by the count of the one server that keeps it current: it means
    /// nothing at another server or in another [`Self::epoch`], and may go back when one of these changes. (Who
    /// came there with an equal sign knows only that it did not change later than this.)
    pub revision: u64,
    /// The state this reflects; at least `revision`.
    pub as_of: u64,
    /// How the group is replicated; unspecified: not known.
    pub mode: v1::GroupMode,
    /// In mode AP: the life of the server that counts the revisions; else 0.
    pub epoch: u64,
    /// The service's own metadata.
    pub metadata: crate::node::Labels,
    /// In the order of their ids.
    pub nodes: Vec<Arc<Node>>,
    /// What its removal guard says: engaged or not, since when, how many of how many, why. `None`: nothing lapsed
    /// away lately and nothing is held.
    pub guard: Option<v1::GuardStatus>,
    /// Where it comes from.
    pub source: Source,
    /// The cluster that said so; empty: not known.
    pub cluster: Arc<str>,
    pub(crate) confirmed: Confirmed,
}

impl ServiceView {
    /// How long ago a server last confirmed this; where it said how old its own state was then, that counts too. `None`:
    /// never, or by none that knew how old its state was.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.confirmed.age()
    }

    /// What is compared beside the sign, which is of nodes alone.
    pub(crate) fn metadata_hash(&self) -> u64 {
        let entries = self.metadata.iter();
        rollcall_proto::metadata_hash(entries.map(|(name, value)| (name.as_str(), value.as_str())))
    }

    pub(crate) fn counted(&self) -> Counted {
        match self.mode {
            v1::GroupMode::Unspecified => Counted::Unknown,
            mode => Counted::of(mode, self.epoch),
        }
    }

    /// The node of that id.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&Arc<Node>> {
        self.nodes
            .binary_search_by(|node| node.id.as_ref().cmp(id))
            .ok()
            .map(|at| &self.nodes[at])
    }

    /// Nothing is known of this service.
    pub(crate) fn unknown(key: ServiceKey) -> Self {
        Self {
            key,
            exists: false,
            sign: Sign::default(),
            revision: 0,
            as_of: 0,
            mode: v1::GroupMode::Unspecified,
            epoch: 0,
            metadata: crate::node::Labels::new(),
            nodes: Vec::new(),
            guard: None,
            source: Source::Nothing,
            cluster: Arc::from(""),
            confirmed: Confirmed::Never,
        }
    }

    /// A view with this content, as if a server had just said it: for tests of code that takes views.
    #[must_use]
    pub fn given(view: v1::ServiceView) -> Self {
        let revision = view.revision;
        Self::from_wire(
            view,
            revision,
            (Arc::from(""), Counted::Cluster),
            Confirmed::Heard(Heard::now()),
        )
    }

    /// From the wire. Nodes are sorted here, so that a server's order cannot matter.
    pub(crate) fn from_wire(
        view: v1::ServiceView,
        as_of: u64,
        (cluster, counted): (Arc<str>, Counted),
        confirmed: Confirmed,
    ) -> Self {
        let mut nodes: Vec<Arc<Node>> = view.nodes.into_iter().map(|node| Arc::new(node.into())).collect();
        nodes.sort_by(|one, other| one.id.cmp(&other.id));
        Self {
            key: view.key.unwrap_or_default().into(),
            exists: true,
            sign: view.sign.unwrap_or_default().into(),
            revision: view.revision,
            as_of: as_of.max(view.revision),
            mode: counted.mode(),
            epoch: counted.epoch(),
            metadata: view
                .settings
                .map(|settings| settings.metadata)
                .unwrap_or_default(),
            nodes,
            guard: said(view.guard),
            source: Source::Live,
            cluster,
            confirmed,
        }
    }

    pub(crate) fn to_wire(&self) -> v1::ServiceView {
        v1::ServiceView {
            key: Some((&self.key).into()),
            sign: Some(self.sign.into()),
            revision: self.revision,
            settings: Some(v1::ServiceSettings {
                metadata: self.metadata.clone(),
                ..Default::default()
            }),
            nodes: self.nodes.iter().map(|node| node.as_ref().into()).collect(),
            guard: self.guard,
        }
    }
}

/// What a removal guard says; one that is idle says nothing.
pub(crate) fn said(guard: Option<v1::GuardStatus>) -> Option<v1::GuardStatus> {
    guard.filter(|guard| guard.held_since > 0 || guard.window_began > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As after a sleep: the clock of the wall went on, the other did not.
    #[test]
    fn what_was_heard_before_the_machine_slept_is_as_old_as_the_wall_says() {
        let hours = Duration::from_secs(8 * 3600);
        let heard = Heard::now();
        heard
            .wall_millis
            .fetch_sub(whole_millis(hours), Ordering::Relaxed);
        assert!(heard.age() >= hours, "{:?}", heard.age());
        assert!(heard.as_of_now().age() >= hours);
        heard.touch();
        assert!(heard.age() < hours);
        // Set back, it takes nothing away.
        let heard = Heard::earlier(hours);
        heard
            .wall_millis
            .fetch_add(2 * whole_millis(hours), Ordering::Relaxed);
        assert!(heard.age() >= hours, "{:?}", heard.age());
    }
}
