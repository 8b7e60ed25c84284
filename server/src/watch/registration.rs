//! Who follows what: found by the changed service, never by asking every subscription.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rollcall_core::ids::{GroupName, ServiceKey};

use super::stream::Shared;

/// What a subscription follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One service, whether it exists or not.
    Service(ServiceKey),
    /// Every service of this group and of those below it, also services to come. Empty: of all groups.
    Prefix(String),
}

impl Target {
    /// Whether this service is followed.
    pub(crate) fn covers(&self, key: &ServiceKey) -> bool {
        match self {
            Self::Service(followed) => followed == key,
            Self::Prefix(prefix) => key.group.is_within(prefix),
        }
    }

    /// Whether services of this group may be followed.
    pub(crate) fn touches(&self, group: &GroupName) -> bool {
        match self {
            Self::Service(followed) => followed.group == *group,
            Self::Prefix(prefix) => group.is_within(prefix),
        }
    }
}

struct Follower {
    stream: Arc<Shared>,
    subscriptions: u32,
}

/// Streams by id, so that a change meets them in a fixed order.
type Followers = BTreeMap<u64, Follower>;

/// Streams by what they follow.
#[derive(Default)]
pub(crate) struct Registrations {
    services: HashMap<ServiceKey, Followers>,
    prefixes: HashMap<String, Followers>,
}

impl Registrations {
    pub(crate) fn add(&mut self, target: &Target, stream: &Arc<Shared>) {
        let followers = match target {
            Target::Service(key) => self.services.entry(key.clone()).or_default(),
            Target::Prefix(prefix) => self.prefixes.entry(prefix.clone()).or_default(),
        };
        followers
            .entry(stream.id)
            .or_insert_with(|| Follower {
                stream: stream.clone(),
                subscriptions: 0,
            })
            .subscriptions += 1;
    }

    pub(crate) fn remove(&mut self, target: &Target, stream: u64) {
        match target {
            Target::Service(key) => remove_from(&mut self.services, key, stream),
            Target::Prefix(prefix) => remove_from(&mut self.prefixes, prefix, stream),
        }
    }

    /// The streams that follow single services of groups of which this holds.
    pub(crate) fn of_services(&self, holds: impl Fn(&GroupName) -> bool) -> BTreeMap<u64, Arc<Shared>> {
        let found = self.services.iter().filter(|(key, _)| holds(&key.group));
        found.flat_map(|(_, followers)| streams_of(followers)).collect()
    }

    /// The streams that follow a prefix within which the group lies.
    pub(crate) fn of_prefixes(&self, group: &GroupName) -> BTreeMap<u64, Arc<Shared>> {
        prefixes(group)
            .filter_map(|prefix| self.prefixes.get(prefix))
            .flat_map(streams_of)
            .collect()
    }

    /// Whether the stream follows the service already.
    pub(crate) fn covers(&self, key: &ServiceKey, stream: u64) -> bool {
        self.followers(key)
            .any(|followers| followers.contains_key(&stream))
    }

    /// The streams that follow the service; one that does so in two ways comes twice.
    pub(crate) fn streams<'a>(&'a self, key: &'a ServiceKey) -> impl Iterator<Item = &'a Arc<Shared>> {
        self.followers(key)
            .flat_map(|followers| followers.values().map(|follower| &follower.stream))
    }

    fn followers<'a>(&'a self, key: &'a ServiceKey) -> impl Iterator<Item = &'a Followers> {
        let above = prefixes(&key.group).filter_map(|prefix| self.prefixes.get(prefix));
        self.services.get(key).into_iter().chain(above)
    }
}

fn streams_of(followers: &Followers) -> impl Iterator<Item = (u64, Arc<Shared>)> {
    followers
        .iter()
        .map(|(id, follower)| (*id, follower.stream.clone()))
}

fn remove_from<K: std::hash::Hash + Eq + Clone>(
    targets: &mut HashMap<K, Followers>,
    target: &K,
    stream: u64,
) {
    let Some(followers) = targets.get_mut(target) else {
        return;
    };
    if let Some(follower) = followers.get_mut(&stream) {
        follower.subscriptions -= 1;
        if follower.subscriptions == 0 {
            followers.remove(&stream);
        }
    }
    if followers.is_empty() {
        targets.remove(target);
    }
}

/// `a/b/c` lies within the prefixes "", `a`, `a/b` and `a/b/c`.
fn prefixes(group: &GroupName) -> impl Iterator<Item = &str> {
    let path = group.as_str();
    let inner = path.match_indices('/').map(|(at, _)| &path[..at]);
    std::iter::once("").chain(inner).chain(std::iter::once(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_lies_within_each_of_its_leading_paths() {
        let group: GroupName = "prod/feed/eu".parse().unwrap();
        assert_eq!(
            prefixes(&group).collect::<Vec<_>>(),
            ["", "prod", "prod/feed", "prod/feed/eu"]
        );
        let group: GroupName = "prod".parse().unwrap();
        assert_eq!(prefixes(&group).collect::<Vec<_>>(), ["", "prod"]);
    }
}
