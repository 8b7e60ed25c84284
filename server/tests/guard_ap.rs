//! The removal guard of AP groups on real processes: the server that vouches for the sessions judges, all show it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::{Duration, Instant};

use rollcall_client::v1::{self, GroupMode, GroupSettings};
use rollcall_client::{Expected, ReadOptions, ServiceKey, Watch, WatchEvent, WatchTarget, WriteOptions};
use rollcall_jepsen::lab::crowd::Crowd;
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{WAIT_MAX, eventually, one_clean_of};
use support::{Stage, cluster, keep_alive, registry};

const EDGE: &str = "edge";

async fn stage() -> Stage {
    let cluster = cluster(3).await;
    let settings = GroupSettings {
        mode: GroupMode::Ap.into(),
        auto_create: true,
        ..GroupSettings::default()
    };
    registry(&cluster.addresses(), 0)
        .put_group(EDGE, settings, Expected::Any, WriteOptions::default())
        .await
        .unwrap();
    // These tests speak without a client that would ask again.
    for address in cluster.addresses() {
        let registry = registry(&[address], 0);
        eventually("the group at every server", WAIT_MAX, || async {
            let listed = registry.list_services(EDGE, None, 0, ReadOptions::default());
            listed.await.ok()
        })
        .await
        .unwrap();
    }
    cluster
}

/// Waits until a server lists so many nodes up and so many suspects, and says what its guard says.
async fn wait_counted(address: &str, up: usize, suspect: usize) -> Option<v1::GuardStatus> {
    eventually(
        &format!("{up} up and {suspect} suspect at {address}"),
        WAIT_MAX,
        || async {
            let view = local_view(address, EDGE, "feed", 0).await.ok()??;
            let of = |state: v1::NodeState| view.nodes.iter().filter(|node| node.state() == state).count();
            let there = of(v1::NodeState::Up) == up && of(v1::NodeState::Suspect) == suspect;
            there.then_some(view.guard)
        },
    )
    .await
    .unwrap()
}

async fn watch(addresses: &[String], at: usize, service: &str) -> Watch {
    let target = WatchTarget::from(ServiceKey::new(EDGE, service));
    let mut watch = registry(&addresses[at..=at], 0).watch(target).await.unwrap();
    until(&mut watch, "the beginning", |event| {
        matches!(event, WatchEvent::Live { .. }).then_some(())
    })
    .await;
    watch
}

async fn until<T>(watch: &mut Watch, what: &str, mut wanted: impl FnMut(&WatchEvent) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(&watch.next().await) {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(WAIT_MAX, found).await;
    found.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_die_at_once_and_none_is_removed_at_any_server_until_replacements_are_there() {
    const MANY: usize = 1_000;
    let ttl = Duration::from_secs(8);
    let mut cluster = stage().await;
    let addresses = cluster.addresses();
    let mut crowd = Crowd::register(&addresses[0], ttl, (EDGE, "feed", "old"), MANY)
        .await
        .unwrap();
    for address in &addresses {
        assert_eq!(wait_counted(address, MANY, 0).await, None);
    }
    let mut consumer = watch(&addresses, 2, "feed").await;
    assert_eq!(crowd.renew().await.unwrap(), 0, "a living session was struck off");
    let died = Instant::now();
    drop(crowd);
    let mut removals = 0;
    until(&mut consumer, "a thousand suspects", |event| {
        if let WatchEvent::Changed { removed, .. } = event {
            removals += removed.len();
        }
        let view = match event {
            WatchEvent::Changed { view, .. }
            | WatchEvent::Snapshot { view, .. }
            | WatchEvent::Guard { view, .. } => view,
            _ => return None,
        };
        view.guard
            .filter(|guard| guard.engaged && guard.held as usize == MANY)
    })
    .await;
    let took = died.elapsed();
    println!(
        "{MANY} of {MANY} died at once: held after {took:?}, as another server's consumer saw it, {removals} removed"
    );
    assert!(took >= ttl, "held {took:?} after their last heartbeat");
    assert_eq!(removals, 0);
    for address in &addresses {
        let guard = wait_counted(address, 0, MANY).await.unwrap();
        assert!(guard.engaged, "{address}: {guard:?}");
    }

    // The judge dies, and whoever comes after it lets nobody go either.
    cluster.server(1).kill9().await.unwrap();
    tokio::time::sleep(ttl * 2).await;
    for address in &addresses[1..] {
        assert!(wait_counted(address, 0, MANY).await.unwrap().engaged);
    }
    cluster.server(1).restart().await.unwrap();
    for address in &addresses {
        assert!(wait_counted(address, 0, MANY).await.unwrap().engaged);
    }

    // Replacements at another server: every guard disengages, and nobody has been removed until then.
    let mut replacing = Crowd::register(&addresses[1], ttl * 10, (EDGE, "feed", "new"), 700)
        .await
        .unwrap();
    until(
        &mut consumer,
        "a guard that has disengaged",
        |event| match event {
            WatchEvent::Changed { removed, view, .. } => {
                removals += removed.len();
                view.guard.filter(|guard| !guard.engaged)
            }
            WatchEvent::Guard { view, .. } => view.guard.filter(|guard| !guard.engaged),
            _ => None,
        },
    )
    .await;
    assert_eq!(removals, 0);
    assert_eq!(replacing.renew().await.unwrap(), 0);
    // An operator's word at any server.
    let feed = ServiceKey::new(EDGE, "feed");
    registry(&addresses[2..], 0)
        .confirm_removal(&feed, None, "ann", "the rack is gone", Default::default())
        .await
        .unwrap();
    for address in &addresses {
        wait_counted(address, 700, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_of_ten_die_and_are_removed_in_time_at_another_server() {
    let cluster = stage().await;
    let addresses = cluster.addresses();
    let mut rounds = ["one", "two", "three"].into_iter();
    one_clean_of(3, async || {
        three_of_ten_die(&addresses, rounds.next().unwrap()).await
    })
    .await;
}

/// A machine that is busy elsewhere may delay the removal, or the heartbeats of the living.
async fn three_of_ten_die(addresses: &[String], service: &str) -> Result<(), String> {
    let ttl = Duration::from_secs(5);
    let bound = ttl + Duration::from_secs(1);
    let began = Instant::now();
    let mut living = Crowd::register(&addresses[0], ttl, (EDGE, service, "living"), 7)
        .await
        .unwrap();
    let dies = async {
        let mut dying = Crowd::register(&addresses[1], ttl, (EDGE, service, "dying"), 3)
            .await
            .unwrap();
        eventually("all ten at the third server", WAIT_MAX, || async {
            let view = local_view(&addresses[2], EDGE, service, 0).await.ok()??;
            (view.nodes.len() == 10).then_some(())
        })
        .await
        .unwrap();
        let mut consumer = watch(addresses, 2, service).await;
        let beat = Instant::now();
        if dying.renew().await.unwrap() > 0 {
            return Err("they were taken for dead before they died".into());
        }
        drop(dying);
        let mut removed = 0;
        let all_dying = until(&mut consumer, "the removal of three", |event| {
            if let WatchEvent::Changed { removed: gone, .. } = event {
                removed += gone.len();
                if !gone.iter().all(|node| node.id.starts_with("dying")) {
                    return Some(false);
                }
            }
            (removed == 3).then_some(true)
        })
        .await;
        let took = beat.elapsed();
        println!("3 of 10 died: removed {took:?} after their last heartbeat, ttl {ttl:?}, at another server");
        if !all_dying {
            // Whether it was in time is known to whoever keeps it alive, and soon finds it gone.
            let judged = tokio::time::timeout(WAIT_MAX, std::future::pending::<()>());
            judged
                .await
                .expect("a living one was removed, and its session goes on");
        }
        assert!(took >= ttl, "removed {took:?} after a heartbeat");
        if took > bound {
            return Err(format!("removed {took:?} after the last heartbeat"));
        }
        Ok(())
    };
    tokio::select! {
        died = dies => died,
        late = keep_alive(&mut living, ttl, began) => Err(late),
    }
}
