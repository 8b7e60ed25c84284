//! What a session owns, service by service: most sessions own nodes of one or two, so that a service's name is kept
//! once, and a node takes up its id.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{NodeId, NodeKey, ServiceKey};

/// The nodes of a session, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedNodes {
    /// In the order of the services, none of them without nodes; ids in their order.
    services: Vec<(ServiceKey, Vec<NodeId>)>,
    /// How many nodes: asked for with each registration.
    len: usize,
}

impl OwnedNodes {
    /// Whether it owns none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// How many it owns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The services of which it owns nodes, and those.
    pub fn by_service(&self) -> impl Iterator<Item = (&ServiceKey, &[NodeId])> {
        self.services.iter().map(|(key, ids)| (key, ids.as_slice()))
    }

    /// The nodes' keys.
    pub fn keys(&self) -> impl Iterator<Item = NodeKey> {
        self.services.iter().flat_map(|(service, ids)| {
            ids.iter().map(|id| NodeKey {
                service: service.clone(),
                node: id.clone(),
            })
        })
    }

    /// Adds nodes of one service that may be there already.
    pub(super) fn insert<'a>(
        &mut self,
        service: &ServiceKey,
        nodes: impl Iterator<Item = &'a NodeId> + Clone,
    ) {
        let more = nodes.clone().count();
        if more == 0 {
            return;
        }
        let place = match self.place_of(service) {
            Ok(place) => place,
            Err(place) => {
                make_room(&mut self.services, 1);
                self.services.insert(place, (service.clone(), Vec::new()));
                place
            }
        };
        let ids = &mut self.services[place].1;
        let before = ids.len();
        make_room(ids, more);
        nodes.for_each(|node| insert_in_order(ids, node));
        self.len += ids.len() - before;
    }

    /// Strikes a node that may not be there.
    pub(super) fn remove(&mut self, service: &ServiceKey, node: &NodeId) {
        let Ok(place) = self.place_of(service) else { return };
        let ids = &mut self.services[place].1;
        if let Ok(at) = ids.binary_search(node) {
            ids.remove(at);
            self.len -= 1;
        }
        if ids.is_empty() {
            self.services.remove(place);
        }
    }

    /// Keeps the nodes of some services, and of no others.
    pub(super) fn retain_services(&mut self, keep: impl Fn(&ServiceKey) -> bool) {
        self.services.retain(|(service, _)| keep(service));
        self.len = count(&self.services);
    }

    fn place_of(&self, service: &ServiceKey) -> Result<usize, usize> {
        self.services.binary_search_by(|(known, _)| known.cmp(service))
    }
}

fn count(services: &[(ServiceKey, Vec<NodeId>)]) -> usize {
    services.iter().map(|(_, ids)| ids.len()).sum()
}

impl Serialize for OwnedNodes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.services.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for OwnedNodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let services = Vec::deserialize(deserializer)?;
        let len = count(&services);
        Ok(Self { services, len })
    }
}

fn insert_in_order(ids: &mut Vec<NodeId>, node: &NodeId) {
    let place = match ids.last() {
        // What comes in order is placed without a search.
        Some(last) if last < node => Err(ids.len()),
        Some(_) | None => ids.binary_search(node),
    };
    if let Err(place) = place {
        ids.insert(place, node.clone());
    }
}

/// For so many more. Most lists have one element and stay like that; long ones keep an eighth free.
fn make_room<T>(list: &mut Vec<T>, more: usize) {
    if list.len() + more > list.capacity() {
        list.reserve_exact(more.max(1 + list.len() / 8));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn they_are_what_a_set_of_keys_would_be() {
        let (mut owned, mut set) = (OwnedNodes::default(), BTreeSet::new());
        for step in 0..2_000_u32 {
            let mixed = step.wrapping_mul(2_654_435_761) >> 20;
            let key = NodeKey {
                service: ServiceKey {
                    group: "g".parse().unwrap(),
                    service: format!("s{}", mixed % 5).parse().unwrap(),
                },
                node: format!("n{}", mixed % 97).parse().unwrap(),
            };
            if step % 5 < 3 {
                owned.insert(&key.service, [&key.node].into_iter());
                set.insert(key);
            } else {
                owned.remove(&key.service, &key.node);
                set.remove(&key);
            }
            assert_eq!((owned.len(), owned.is_empty()), (set.len(), set.is_empty()));
        }
        assert!(owned.keys().eq(set.iter().cloned()));
        owned.retain_services(|key| key.service.as_str() == "s3");
        set.retain(|key| key.service.service.as_str() == "s3");
        assert_eq!(owned.len(), set.len());
        assert!(owned.keys().eq(set.into_iter()));
        let bytes = postcard::to_allocvec(&owned).unwrap();
        assert_eq!(postcard::from_bytes::<OwnedNodes>(&bytes).unwrap(), owned);
        for (service, ids) in owned.clone().by_service() {
            ids.iter().for_each(|id| owned.remove(service, id));
        }
        assert_eq!(owned, OwnedNodes::default());
    }
}
