//! Who follows what: found by the changed service, never by asking every subscription.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use rollcall_core::ids::{GroupName, Revision, ServiceKey};

use super::stream::Shared;

/// Room for so many targets is never given back.
const SPARE_MIN: usize = 1_024;

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

/// These without the prefixes that lie within others of them: who walks through all has each service twice at most, however
/// often it is asked for.
pub(crate) fn outermost<'a>(targets: impl Iterator<Item = &'a Target> + Clone) -> Vec<&'a Target> {
    let prefix = |target: &'a Target| match target {
        Target::Prefix(prefix) => Some(prefix.as_str()),
        Target::Service(_) => None,
    };
    let prefixes: BTreeMap<&str, &Target> = targets
        .clone()
        .filter_map(|target| Some((prefix(target)?, target)))
        .collect();
    let is_within = |prefix: &str| {
        let mut above = prefix.match_indices('/').map(|(at, _)| &prefix[..at]);
        !prefix.is_empty() && (prefixes.contains_key("") || above.any(|above| prefixes.contains_key(above)))
    };
    let outer = prefixes.iter().filter(|(prefix, _)| !is_within(prefix));
    let services = targets.filter(|target| prefix(target).is_none());
    outer.map(|(_, target)| *target).chain(services).collect()
}

struct Follower {
    stream: Arc<Shared>,
    subscriptions: u32,
}

/// The streams that follow one target. Most services have few followers on one server, many have one: a tree for that
/// would take twenty times as much.
enum Followers {
    One(Follower),
    /// By id, so that a change meets them in a fixed order.
    #[allow(clippy::box_collection, reason = "the usual case is to be small")]
    Many(Box<BTreeMap<u64, Follower>>),
}

impl Followers {
    fn of(stream: &Arc<Shared>) -> Self {
        Self::One(Follower {
            stream: stream.clone(),
            subscriptions: 1,
        })
    }

    /// In the order of their ids.
    fn iter(&self) -> impl Iterator<Item = &Follower> {
        let (one, many) = match self {
            Self::One(follower) => (Some(follower), None),
            Self::Many(followers) => (None, Some(followers.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn contains(&self, stream: u64) -> bool {
        match self {
            Self::One(follower) => follower.stream.id == stream,
            Self::Many(followers) => followers.contains_key(&stream),
        }
    }

    /// With one more subscription of this stream.
    fn with(self, stream: &Arc<Shared>) -> Self {
        let mut followers = match self {
            Self::One(mut follower) if follower.stream.id == stream.id => {
                follower.subscriptions += 1;
                return Self::One(follower);
            }
            Self::One(follower) => Box::new(BTreeMap::from([(follower.stream.id, follower)])),
            Self::Many(followers) => followers,
        };
        match followers.entry(stream.id) {
            Entry::Occupied(follower) => follower.into_mut().subscriptions += 1,
            Entry::Vacant(place) => {
                _ = place.insert(Follower {
                    stream: stream.clone(),
                    subscriptions: 1,
                });
            }
        }
        Self::Many(followers)
    }

    /// With one subscription of this stream less. `None`: none is left.
    fn without(self, stream: u64) -> Option<Self> {
        match self {
            Self::One(mut follower) => {
                if follower.stream.id == stream {
                    follower.subscriptions -= 1;
                }
                (follower.subscriptions > 0).then_some(Self::One(follower))
            }
            Self::Many(mut followers) => {
                if let Entry::Occupied(mut follower) = followers.entry(stream) {
                    follower.get_mut().subscriptions -= 1;
                    if follower.get().subscriptions == 0 {
                        follower.remove();
                    }
                }
                match followers.len() {
                    1 => followers.pop_first().map(|(_, last)| Self::One(last)),
                    _ => Some(Self::Many(followers)),
                }
            }
        }
    }
}

/// Streams by what they follow.
#[derive(Default)]
pub(crate) struct Registrations {
    services: HashMap<ServiceKey, Followers>,
    prefixes: HashMap<String, Followers>,
}

impl Registrations {
    pub(crate) fn add(&mut self, target: &Target, stream: &Arc<Shared>) {
        match target {
            Target::Service(key) => add_to(&mut self.services, key, stream),
            Target::Prefix(prefix) => add_to(&mut self.prefixes, prefix, stream),
        }
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
        self.followers(key).any(|followers| followers.contains(stream))
    }

    /// What somebody follows of these services, each target once, with the latest of its services' revisions.
    pub(crate) fn followed(&self, wanted: &[(ServiceKey, Revision)]) -> Vec<(Target, Revision)> {
        let mut services: HashMap<&ServiceKey, Revision> = HashMap::new();
        let mut above: HashMap<&str, Revision> = HashMap::new();
        for (key, revision) in wanted {
            if self.services.contains_key(key) {
                let latest = services.entry(key).or_default();
                *latest = (*latest).max(*revision);
            }
            for prefix in prefixes(&key.group).filter(|prefix| self.prefixes.contains_key(*prefix)) {
                let latest = above.entry(prefix).or_default();
                *latest = (*latest).max(*revision);
            }
        }
        let services = services
            .into_iter()
            .map(|(key, revision)| (Target::Service(key.clone()), revision));
        let above = above
            .into_iter()
            .map(|(prefix, revision)| (Target::Prefix(prefix.to_owned()), revision));
        services.chain(above).collect()
    }

    /// The streams that follow just this, each once.
    pub(crate) fn followers_of(&self, target: &Target) -> Vec<Arc<Shared>> {
        let followers = match target {
            Target::Service(key) => self.services.get(key),
            Target::Prefix(prefix) => self.prefixes.get(prefix),
        };
        let streams = followers.into_iter().flat_map(Followers::iter);
        streams.map(|follower| follower.stream.clone()).collect()
    }

    /// The streams that follow the service; one that does so in two ways comes twice.
    pub(crate) fn streams<'a>(&'a self, key: &'a ServiceKey) -> impl Iterator<Item = &'a Arc<Shared>> {
        self.followers(key)
            .flat_map(|followers| followers.iter().map(|follower| &follower.stream))
    }

    fn followers<'a>(&'a self, key: &'a ServiceKey) -> impl Iterator<Item = &'a Followers> {
        let above = prefixes(&key.group).filter_map(|prefix| self.prefixes.get(prefix));
        self.services.get(key).into_iter().chain(above)
    }
}

fn streams_of(followers: &Followers) -> impl Iterator<Item = (u64, Arc<Shared>)> {
    followers
        .iter()
        .map(|follower| (follower.stream.id, follower.stream.clone()))
}

fn add_to<K: Hash + Eq + Clone>(targets: &mut HashMap<K, Followers>, target: &K, stream: &Arc<Shared>) {
    let (known, followers) = match targets.remove_entry(target) {
        Some((known, followers)) => (known, followers.with(stream)),
        None => (target.clone(), Followers::of(stream)),
    };
    targets.insert(known, followers);
}

fn remove_from<K: Hash + Eq + Clone>(targets: &mut HashMap<K, Followers>, target: &K, stream: u64) {
    let Some((known, followers)) = targets.remove_entry(target) else {
        return;
    };
    if let Some(left) = followers.without(stream) {
        targets.insert(known, left);
    } else if targets.capacity() > SPARE_MIN && targets.capacity() / 8 > targets.len() {
        targets.shrink_to(targets.len() * 2);
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
    use tokio_util::sync::CancellationToken;

    use super::super::backlog::{Backlog, Bounds};
    use super::*;

    fn stream(id: u64) -> Arc<Shared> {
        let bounds = Bounds { frames: 1, bytes: 1 };
        let backlog = Backlog::new(bounds, Arc::default());
        Arc::new(Shared::new(id, String::new(), backlog, CancellationToken::new()))
    }

    #[test]
    fn a_prefix_within_another_is_left_out_and_nothing_else() {
        let prefix = |name: &str| Target::Prefix(name.into());
        let one = Target::Service(ServiceKey {
            group: "a/b".parse().unwrap(),
            service: "one".parse().unwrap(),
        });
        let all = ["a", "a-b", "a/b", "a/b/c", "ab", "a", "x/y"].map(prefix);
        let outer = outermost(all.iter().chain([&one]));
        assert_eq!(
            outer,
            [&prefix("a"), &prefix("a-b"), &prefix("ab"), &prefix("x/y"), &one]
        );
        let everything = [prefix("a"), prefix(""), prefix("")];
        assert_eq!(outermost(everything.iter()), [&prefix("")]);
    }

    /// Whoever comes and goes, and however often: each stream is met once, in the order of their ids, until its last
    /// subscription went; and what nobody follows leaves nothing behind.
    #[test]
    fn followers_are_those_who_came_and_did_not_go() {
        let streams: Vec<_> = (0..4).map(stream).collect();
        let group: GroupName = "a".parse().unwrap();
        let key = |service: &str| ServiceKey {
            group: group.clone(),
            service: service.parse().unwrap(),
        };
        let targets = [
            Target::Service(key("one")),
            Target::Service(key("other")),
            Target::Prefix("a".into()),
        ];
        let mut registrations = Registrations::default();
        let mut model: BTreeMap<(usize, u64), u32> = BTreeMap::new();
        let mut seed = 1_u64;
        for step in 0..4_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (target, id) = ((seed >> 33) as usize % 3, (seed >> 40) % 4);
            // Now more come, now more go.
            if (seed >> 50) % 8 < 3 + step / 1_000 % 2 * 2 {
                registrations.add(&targets[target], &streams[id as usize]);
                *model.entry((target, id)).or_default() += 1;
            } else {
                registrations.remove(&targets[target], id);
                if let Some(count) = model.get_mut(&(target, id)) {
                    *count -= 1;
                }
                model.retain(|_, count| *count > 0);
            }
            let of = |wanted: usize| model.keys().filter(move |(target, _)| *target == wanted);
            for (target, name) in [(0, "one"), (1, "other")] {
                let expected: Vec<u64> = of(target).chain(of(2)).map(|(_, id)| *id).collect();
                let key = key(name);
                let met: Vec<u64> = registrations.streams(&key).map(|stream| stream.id).collect();
                assert_eq!(met, expected, "step {step}");
                for id in 0..4 {
                    assert_eq!(registrations.covers(&key, id), expected.contains(&id));
                }
            }
            let services = [0, 1].iter().filter(|target| of(**target).next().is_some());
            assert_eq!(registrations.services.len(), services.count());
            assert_eq!(registrations.prefixes.len(), usize::from(of(2).next().is_some()));
            let by_group: Vec<u64> = registrations.of_prefixes(&group).into_keys().collect();
            assert!(by_group.iter().eq(of(2).map(|(_, id)| id)));
        }
        drop(registrations);
        assert!(streams.iter().all(|stream| Arc::strong_count(stream) == 1));
    }

    #[test]
    fn a_thousand_services_below_one_prefix_have_its_followers_once() {
        let (one, other) = (stream(1), stream(2));
        let key = |service: &str| ServiceKey {
            group: "a/b".parse().unwrap(),
            service: service.parse().unwrap(),
        };
        let mut registrations = Registrations::default();
        registrations.add(&Target::Prefix("a".into()), &one);
        registrations.add(&Target::Service(key("s7")), &other);
        let mut wanted: Vec<_> = (1..=1_000)
            .map(|number| (key(&format!("s{number}")), Revision(number)))
            .collect();
        wanted.extend([(key("s7"), Revision(9)), (key("s7"), Revision(3))]);
        let followed = registrations.followed(&wanted);
        assert_eq!(followed.len(), 2, "{followed:?}");
        assert!(followed.contains(&(Target::Service(key("s7")), Revision(9))));
        assert!(followed.contains(&(Target::Prefix("a".into()), Revision(1_000))));
        let of = |target: &Target| -> Vec<u64> {
            let streams = registrations.followers_of(target);
            streams.iter().map(|stream| stream.id).collect()
        };
        assert_eq!(of(&Target::Prefix("a".into())), [1]);
        assert_eq!(of(&Target::Service(key("s7"))), [2]);
        assert_eq!(of(&Target::Service(key("s8"))), [0; 0]);
    }

    #[test]
    fn room_for_many_targets_is_given_back() {
        let stream = stream(1);
        let mut registrations = Registrations::default();
        let target = |number: usize| Target::Prefix(format!("group-{number}"));
        for number in 0..20_000 {
            registrations.add(&target(number), &stream);
        }
        for number in 0..20_000 {
            registrations.remove(&target(number), 1);
        }
        assert!(registrations.prefixes.capacity() <= 2 * SPARE_MIN);
    }

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
