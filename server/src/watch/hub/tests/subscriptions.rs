//! How subscriptions begin, and what they bring.

use std::collections::BTreeMap;

use rollcall_core::directory::{Command, Expected, GroupMode, GroupSettings};
use rollcall_core::ids::{GroupName, Revision, ServiceKey};

use super::client::Client;
use super::world::{World, follow, key, small};
use crate::config::WatchConfig;
use crate::grpc::convert;
use crate::watch::{SubscribeError, Subscription, Target};
/// Very many subscriptions in one stream cost little: no names of their own where the directory has them, and no room
/// for what was said once.
#[test]
fn a_subscription_keeps_next_to_nothing() {
    let mut world = World::new(WatchConfig::default(), 100);
    for number in 0..200 {
        world.put(&key("a", &format!("service-{number}")), "node", 1);
    }
    let mut client = world.open();
    for number in 0..201 {
        let target = Target::Service(key("a", &format!("service-{number}")));
        client.follow(follow(number + 1, target));
    }
    let places = |client: &Client| client.handle.shared.backlog.lock().places();
    assert!(places(&client) >= 400, "a list and a start for each");
    client.read_all();
    let count = |what: &str| client.log.iter().filter(|said| **said == what).count();
    assert_eq!((count("snapshot"), count("current")), (200, 201));
    assert!(places(&client) <= 16, "{}", places(&client));
    let directory = world.directory.read();
    let backlog = client.handle.shared.backlog.lock();
    for target in backlog.subscriptions.values() {
        let Target::Service(followed) = target else {
            panic!("services are followed");
        };
        let group = directory.group(&followed.group).unwrap();
        assert_eq!(followed.group.as_str().as_ptr(), group.name.as_str().as_ptr());
        if let Some(service) = directory.service(followed) {
            let known = service.key.service.as_str();
            assert_eq!(followed.service.as_str().as_ptr(), known.as_ptr());
        }
    }
}

#[tokio::test]
async fn state_comes_first_then_changes() {
    let mut world = World::new(small(), 100);
    let (one, other) = (key("a", "one"), key("a/b", "two"));
    world.put(&one, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Prefix("a".into())));
    world.put(&other, "n1", 1);
    world.put(&key("c", "elsewhere"), "n1", 1);
    world.pull();
    client.read_all();
    assert_eq!(client.log, ["snapshot", "current", "delta"]);
    assert_eq!(client.picture(), world.truth(&Target::Prefix("a".into())));
}

#[tokio::test]
async fn everything_ready_goes_out_in_one_message() {
    let mut world = World::new(WatchConfig::default(), 100);
    let one = key("a", "one");
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.read_all();
    for weight in 0..20 {
        world.put(&one, "n1", weight);
    }
    world.pull();
    assert!(client.read());
    assert_eq!(client.log, [&["current"][..], &["delta"; 20][..]].concat());
    assert!(!client.read());
}

#[tokio::test]
async fn a_stream_that_follows_a_service_twice_gets_each_change_once() {
    let mut world = World::new(small(), 100);
    let one = key("a/b", "one");
    world.put(&one, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.follow(follow(2, Target::Prefix("a".into())));
    client.follow(follow(3, Target::Prefix(String::new())));
    world.put(&one, "n2", 1);
    world.pull();
    client.read_all();
    assert_eq!(client.log.iter().filter(|kind| **kind == "delta").count(), 1);
    client.handle.unsubscribe(1);
    client.handle.unsubscribe(2);
    world.put(&one, "n3", 1);
    world.pull();
    client.read_all();
    assert_eq!(client.picture(), world.truth(&Target::Prefix(String::new())));
}

#[tokio::test]
async fn a_resume_within_retention_gets_exactly_what_it_missed() {
    let mut world = World::new(WatchConfig::default(), 100);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.read_all();
    let after = Revision(client.last);
    world.put(&one, "n2", 1);
    world.put(&one, "n3", 1);
    let mut again = world.open();
    again.services = client.services.clone();
    again.seen = client.seen.clone();
    again.follow(Subscription {
        after,
        ..follow(1, Target::Service(one.clone()))
    });
    again.read_all();
    assert_eq!(again.log, ["delta", "delta", "resumed"]);
    assert_eq!(again.picture(), world.truth(&Target::Service(one)));
}

#[tokio::test]
async fn a_resume_below_retention_gets_nothing_for_equal_signs_and_a_snapshot_for_others() {
    let mut world = World::new(WatchConfig::default(), 3);
    let (one, two, three) = (key("a", "one"), key("a", "two"), key("a", "three"));
    for service in [&one, &two, &three] {
        world.put(service, "n1", 1);
    }
    let all = Target::Prefix("a".into());
    let mut client = world.open();
    client.follow(follow(1, all.clone()));
    client.read_all();
    let after = Revision(client.last);
    world.put(&two, "n2", 1);
    world.remove(&three, "n1");
    world.delete(&three);
    for weight in 0..5 {
        world.put(&key("c", "elsewhere"), "n1", weight);
    }
    let mut again = world.open();
    again.services = client.services.clone();
    again.follow(Subscription {
        after,
        known: client.known(),
        ..follow(1, all.clone())
    });
    again.read_all();
    assert_eq!(again.log, ["gone", "snapshot", "current"]);
    assert_eq!(again.picture(), world.truth(&all));
}

/// Servers that were set back to a copy count the same revisions again: behind one of them they have only what followed
/// there, and no word of what was lost.
#[tokio::test]
async fn who_saw_changes_that_were_lost_is_told_the_state_once_the_head_has_passed_them() {
    let (same, other, gone) = (key("a", "same"), key("a", "other"), key("a", "gone"));
    let copied = |services: &[&ServiceKey]| {
        let mut world = World::new(WatchConfig::default(), 100);
        for service in services {
            world.put(service, "n1", 1);
            world.say_of(service, "copied");
        }
        world
    };
    let saw = |target: &Target| {
        let mut world = copied(&[&same, &other]);
        world.put(&other, "lost", 1);
        world.put(&gone, "lost", 1);
        let mut client = world.open();
        client.follow(follow(1, target.clone()));
        client.read_all();
        client
    };
    let resumes = |world: &World, client: &Client, target: &Target| {
        let mut again = world.open();
        again.services = client.services.clone();
        let metadata_of = |key: &ServiceKey| {
            let directory = world.directory.read();
            let service = directory.service(key);
            (
                key.clone(),
                service.map_or(0, |service| convert::metadata_hash(service)),
            )
        };
        let known_metadata: BTreeMap<_, _> = client.services.keys().map(metadata_of).collect();
        again.follow(Subscription {
            after: Revision(client.last),
            known: client.known(),
            known_metadata: known_metadata.into(),
            ..follow(1, target.clone())
        });
        again.read_all();
        assert_eq!(again.picture(), world.truth(target), "{target:?}");
        again.log
    };
    let mut world = copied(&[&same, &other]);
    let prefix = Target::Prefix("a".into());
    let [of_same, of_other, of_gone] = [&same, &other, &gone].map(|service| Target::Service(service.clone()));
    for weight in 0..9 {
        world.put(&key("c", "elsewhere"), "n1", weight);
    }
    assert_eq!(resumes(&world, &saw(&of_same), &of_same), ["resumed"]);
    assert_eq!(
        resumes(&world, &saw(&of_other), &of_other),
        ["snapshot", "current"]
    );
    assert_eq!(resumes(&world, &saw(&of_gone), &of_gone), ["gone", "current"]);
    assert_eq!(
        resumes(&world, &saw(&prefix), &prefix),
        ["gone", "snapshot", "current"]
    );
}

/// A sign is of nodes alone, and metadata may have been lost as well as nodes.
#[tokio::test]
async fn who_saw_metadata_that_was_lost_is_told_the_state() {
    let mut world = World::new(WatchConfig::default(), 100);
    let one = key("a", "one");
    world.put(&one, "n1", 1);
    world.say_of(&one, "copied");
    let mut client = world.open();
    client.follow(follow(1, Target::Service(one.clone())));
    client.read_all();
    let after = world.put(&key("c", "elsewhere"), "n1", 1);
    let held = convert::metadata_hash(world.directory.read().service(&one).unwrap());
    for (held, log) in [(held, vec!["resumed"]), (held ^ 1, vec!["snapshot", "current"])] {
        let mut again = world.open();
        again.services = client.services.clone();
        again.follow(Subscription {
            after,
            known: client.known(),
            known_metadata: BTreeMap::from([(one.clone(), held)]).into(),
            ..follow(1, Target::Service(one.clone()))
        });
        again.read_all();
        assert_eq!(again.log, log);
    }
}

/// A sign is of nodes alone: who was away while a service's metadata changed is told so all the same.
#[tokio::test]
async fn an_equal_sign_with_other_metadata_is_sent_again() {
    let mut world = World::new(WatchConfig::default(), 3);
    let (one, two) = (key("a", "one"), key("a", "two"));
    for service in [&one, &two] {
        world.put(service, "n1", 1);
        world.say_of(service, "old");
    }
    let all = Target::Prefix("a".into());
    let mut client = world.open();
    client.follow(follow(1, all.clone()));
    client.read_all();
    let metadata_of = |world: &World, service: &ServiceKey| {
        let directory = world.directory.read();
        convert::metadata_hash(directory.service(service).unwrap())
    };
    let old: BTreeMap<_, _> = [&one, &two]
        .map(|service| (service.clone(), metadata_of(&world, service)))
        .into();
    world.say_of(&one, "new");
    for weight in 0..5 {
        world.put(&key("c", "elsewhere"), "n1", weight);
    }
    let resume = |known_metadata: BTreeMap<ServiceKey, u64>| {
        let mut again = world.open();
        again.services = client.services.clone();
        again.follow(Subscription {
            after: Revision(client.last),
            known: client.known(),
            known_metadata: known_metadata.into(),
            ..follow(1, all.clone())
        });
        again.read_all();
        again.log
    };
    assert_eq!(resume(old.clone()), ["snapshot", "current"], "what changed");
    let mut new = old;
    new.insert(one.clone(), metadata_of(&world, &one));
    assert_eq!(resume(new), ["current"]);
    assert_eq!(
        resume(BTreeMap::new()),
        ["snapshot", "snapshot", "current"],
        "to who does not say what it holds"
    );
}

/// The revision behind which it resumes may be one that the hub has yet to pull.
#[tokio::test]
async fn a_resume_behind_a_move_that_the_hub_has_not_pulled_brings_what_followed() {
    for target in [Target::Prefix("m".into()), Target::Service(key("m", "one"))] {
        let mut world = World::new(WatchConfig::default(), 100);
        let group: GroupName = "m".parse().unwrap();
        let settings = GroupSettings {
            auto_create: true,
            mode: GroupMode::Ap,
            ..GroupSettings::default()
        };
        world.apply(Command::PutGroup {
            group: group.clone(),
            settings,
            expected: Expected::Any,
        });
        world.pull();
        let since = world.apply(Command::BeginMove {
            group: group.clone(),
            to: GroupMode::Cp,
            stamp_ms: 1,
        });
        let moved = world.apply(Command::EndMove {
            group,
            since,
            done: true,
        });
        world.put(&key("m", "one"), "n1", 1);
        let mut client = world.open();
        client.follow(Subscription {
            after: moved,
            ..follow(1, target.clone())
        });
        client.read_all();
        assert_eq!(client.log, ["delta", "resumed"]);
        assert_eq!(client.picture(), world.truth(&target));
    }
}

#[tokio::test]
async fn bad_subscriptions_are_refused_and_change_nothing() {
    let limits = WatchConfig {
        subscriptions_max: 2,
        ..small()
    };
    let world = World::new(limits, 100);
    let client = world.open();
    let target = Target::Prefix(String::new());
    let subscribe = |id, after| {
        client.handle.subscribe(Subscription {
            after,
            ..follow(id, target.clone())
        })
    };
    assert_eq!(subscribe(0, Revision(0)), Err(SubscribeError::ZeroId));
    subscribe(1, Revision(0)).unwrap();
    assert_eq!(
        subscribe(1, Revision(0)),
        Err(SubscribeError::Duplicate { id: 1 })
    );
    assert!(matches!(
        subscribe(2, Revision(99)),
        Err(SubscribeError::Ahead { .. })
    ));
    subscribe(2, Revision(0)).unwrap();
    assert_eq!(
        subscribe(3, Revision(0)),
        Err(SubscribeError::TooMany { subscriptions_max: 2 })
    );
}
