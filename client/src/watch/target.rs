//! What is followed.

use std::fmt;
use std::sync::Arc;

use rollcall_proto::v1;

use crate::key::ServiceKey;

#[cfg(test)]
thread_local! {
    /// How often a target was held against a service.
    pub(super) static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What to follow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WatchTarget {
    /// One service.
    Service(ServiceKey),
    /// Every service of a group and of the groups below it, in whole segments; empty: all.
    Group(Arc<str>),
}

impl WatchTarget {
    /// Every service of `prefix` and below.
    #[must_use]
    pub fn group(prefix: impl AsRef<str>) -> Self {
        Self::Group(prefix.as_ref().into())
    }

    /// Whether it follows this service.
    #[must_use]
    pub fn covers(&self, service: &ServiceKey) -> bool {
        #[cfg(test)]
        COMPARED.with(|compared| compared.set(compared.get() + 1));
        match self {
            Self::Service(key) => key == service,
            Self::Group(prefix) => service.is_within(prefix),
        }
    }

    pub(super) fn to_wire(&self) -> v1::WatchTarget {
        let target = match self {
            Self::Service(key) => v1::watch_target::Target::Service(key.into()),
            Self::Group(prefix) => v1::watch_target::Target::GroupPrefix(prefix.as_ref().into()),
        };
        v1::WatchTarget { target: Some(target) }
    }
}

impl From<ServiceKey> for WatchTarget {
    fn from(key: ServiceKey) -> Self {
        Self::Service(key)
    }
}

impl fmt::Display for WatchTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => key.fmt(f),
            Self::Group(prefix) => write!(f, "{prefix}/..."),
        }
    }
}
