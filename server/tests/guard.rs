//! The removal guard on real processes: a mass lapse removes nobody, a few lapses do, and a new leader goes on.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::{Duration, Instant};

use rollcall_client::{Registry, RemovalCause, ServiceKey, Watch, WatchEvent, WatchTarget, v1};
use rollcall_jepsen::lab::attending::Attending;
use rollcall_jepsen::lab::crowd::Crowd;
use rollcall_jepsen::lab::reading::local_view;
use rollcall_jepsen::lab::{WAIT_MAX, eventually, one_clean_of};
use support::{GROUP, Stage, cluster, keep_alive, registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Much longer than this machine stands still when it is busy.
const TTL: Duration = Duration::from_secs(5);

/// How many nodes of the service are in which state, at one server.
async fn counted(cluster: &mut Stage, server: u64) -> (usize, usize) {
    let address = cluster.server(server).address().to_owned();
    let view = local_view(&address, GROUP, "feed", 0).await.unwrap().unwrap();
    let of = |state: v1::NodeState| view.nodes.iter().filter(|node| node.state() == state).count();
    (of(v1::NodeState::Up), of(v1::NodeState::Suspect))
}

async fn wait_counted(cluster: &mut Stage, server: u64, up: usize, suspect: usize) {
    let address = cluster.server(server).address().to_owned();
    eventually(&format!("{up} up and {suspect} suspect"), WAIT_MAX, || async {
        let view = local_view(&address, GROUP, "feed", 0).await.ok()??;
        let of = |state: v1::NodeState| view.nodes.iter().filter(|node| node.state() == state).count();
        (of(v1::NodeState::Up) == up && of(v1::NodeState::Suspect) == suspect).then_some(())
    })
    .await
    .unwrap();
}

/// Sends the heartbeats of these providers for so long.
async fn beat(providers: &mut [Attending], turns: u32) {
    for _ in 0..turns {
        for provider in providers.iter_mut() {
            assert!(provider.renew().await.unwrap(), "a living session was struck off");
        }
        tokio::time::sleep(TTL / 6).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_a_service_falls_silent_and_is_held_whoever_leads_until_it_returns() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let other = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let home = addresses[usize::try_from(other - 1).unwrap()].clone();
    let mut providers: Vec<Attending> = Vec::new();
    for number in 0..10 {
        // Those who are there live on while others come.
        for provider in &mut providers {
            assert!(provider.renew().await.unwrap());
        }
        let mut provider = Attending::open(&home, TTL).await.unwrap();
        provider
            .register(GROUP, "feed", &format!("node-{number}"))
            .await
            .unwrap();
        providers.push(provider);
    }
    let mut silent = providers.split_off(5);

    // Five of ten: more than the share. They may lapse in two ticks, and three of the first may go.
    beat(&mut providers, 12).await;
    let (up, held) = counted(&mut cluster, other).await;
    assert_eq!(up, 5);
    assert!((2..=5).contains(&held), "{held} of 5 are held");

    // A new leader goes on with the same account, for two ttls and more.
    cluster.server(leader).kill9().await.unwrap();
    beat(&mut providers, 13).await;
    assert_eq!(counted(&mut cluster, other).await, (5, held));
    cluster.server(leader).restart().await.unwrap();

    let mut returned = 0;
    for provider in &mut silent {
        returned += usize::from(provider.renew().await.unwrap());
    }
    assert_eq!(returned, held, "held sessions that are alive");
    wait_counted(&mut cluster, other, 5 + held, 0).await;
}

/// The next event of the watch for which `wanted` has an answer.
async fn until<T>(watch: &mut Watch, what: &str, mut wanted: impl FnMut(&WatchEvent) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(&watch.next().await) {
                return found;
            }
        }
    };
    tokio::time::timeout(WAIT_MAX, found)
        .await
        .unwrap_or_else(|_| panic!("{what} was not told within {WAIT_MAX:?}"))
}

/// What the guard says in an event of the watch; nothing may have been removed so far.
fn guard_without_removals(event: &WatchEvent) -> Option<v1::GuardStatus> {
    match event {
        WatchEvent::Changed { removed, .. } => {
            assert!(removed.is_empty(), "removed: {removed:?}");
            None
        }
        WatchEvent::Guard { view, .. } => Some(view.guard.unwrap_or_default()),
        _ => None,
    }
}

/// A counter or gauge of a server's metrics page.
async fn metric(cluster: &mut Stage, server: u64, name: &str) -> u64 {
    let http = cluster.server(server).endpoints().http.clone();
    let mut stream = TcpStream::connect(&http).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {page}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_die_at_once_and_none_is_removed_until_replacements_are_there() {
    const MANY: u32 = 1_000;
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let home = cluster.server(others[0]).address().to_owned();
    let place = |name: &'static str| (GROUP, "feed", name);
    let ttl = Duration::from_secs(8);
    let mut crowd = Crowd::register(&home, ttl, place("old"), MANY as usize)
        .await
        .unwrap();
    let registry = registry(&addresses, usize::try_from(others[1] - 1).unwrap());
    let target = WatchTarget::from(ServiceKey::new(GROUP, "feed"));
    let mut watch = registry.watch(target).await.unwrap();
    until(&mut watch, "the beginning", |event| {
        matches!(event, WatchEvent::Live { .. }).then_some(())
    })
    .await;
    assert_eq!(crowd.renew().await.unwrap(), 0, "a living session was struck off");
    let died = Instant::now();
    drop(crowd);

    let engaged = until(&mut watch, "an engaged guard that holds all", |event| {
        guard_without_removals(event).filter(|guard| guard.engaged && guard.held == MANY)
    })
    .await;
    let took = died.elapsed();
    println!("{MANY} of {MANY} died at once: held after {took:?}, 0 removed; {engaged:?}");
    assert!(took >= ttl, "held {took:?} after their last heartbeat");
    assert_eq!(engaged.reason(), v1::GuardReason::Share);
    assert_eq!((engaged.lapsed, engaged.of, engaged.needed), (MANY, MANY, 700));
    assert_eq!((engaged.listed, engaged.up, engaged.removed), (MANY, 0, 0));

    // A new leader in the middle changes nothing.
    cluster.server(leader).kill9().await.unwrap();
    cluster.leader(WAIT_MAX).await.unwrap();
    tokio::time::sleep(ttl + Duration::from_secs(2)).await;
    for server in &others {
        assert_eq!(counted(&mut cluster, *server).await, (0, MANY as usize));
    }
    let view = registry.discover(&ServiceKey::new(GROUP, "feed")).await.unwrap();
    assert_eq!(
        view.guard,
        Some(engaged),
        "the same engagement, by the new leader's word"
    );

    // Replacements: it disengages when enough are there, and lets go no more than the share.
    let mut replacing = Crowd::register(&home, ttl * 10, place("new"), 700).await.unwrap();
    let disengaged = until(&mut watch, "a guard that has disengaged", |event| {
        guard_without_removals(event).filter(|guard| !guard.engaged)
    })
    .await;
    assert_eq!((disengaged.up, disengaged.held), (700, MANY));
    println!("replaced by 700: {disengaged:?}");
    let mut gone = 0;
    let released = until(&mut watch, "held nodes that go", |event| match event {
        WatchEvent::Changed { removed, .. } => {
            assert!(
                removed
                    .iter()
                    .all(|node| node.id.starts_with("old") && node.cause == RemovalCause::Expired)
            );
            gone += removed.len();
            None
        }
        WatchEvent::Guard { view, .. } => view.guard.filter(|guard| guard.removed > 0),
        _ => None,
    })
    .await;
    println!("released: {released:?}");
    assert_eq!((released.removed, gone), (510, 510), "30 % of 1,700");
    assert_eq!(replacing.renew().await.unwrap(), 0);

    // One server has seen it all.
    for (fate, nodes) in [
        ("held", 1_000),
        ("removed", 510),
        ("revived", 0),
        ("confirmed", 0),
    ] {
        let name = format!("rollcall_guard_nodes_total{{fate=\"{fate}\"}}");
        assert_eq!(metric(&mut cluster, others[0], &name).await, nodes, "{fate}");
    }
    let held = metric(&mut cluster, others[0], "rollcall_guard_held_nodes").await;
    assert_eq!(held, 490);
    let engagements = metric(&mut cluster, others[0], "rollcall_guard_engagements_total").await;
    assert_eq!(engagements, 1);

    // An operator's word for the rest, which is not counted as lapsed; and not for a hold that is no more.
    let feed = ServiceKey::new(GROUP, "feed");
    let stale = registry
        .confirm_removal(&feed, Some(engaged.held_since), "ann", "gone", Default::default())
        .await;
    assert!(stale.is_err(), "{stale:?}");
    registry
        .confirm_removal(&feed, None, "ann", "gone", Default::default())
        .await
        .unwrap();
    wait_counted(&mut cluster, others[0], 700, 0).await;
    let name = "rollcall_guard_nodes_total{fate=\"confirmed\"}";
    assert_eq!(metric(&mut cluster, others[0], name).await, 490);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_of_ten_die_and_are_removed_in_time() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let home = cluster.server(leader).address().to_owned();
    let registry = registry(&addresses, 1);
    let mut rounds = ["one", "two", "three"].into_iter();
    one_clean_of(3, async || {
        three_of_ten_die(&home, &registry, rounds.next().unwrap()).await
    })
    .await;
}

/// A machine that is busy elsewhere may delay the removal, or the heartbeats of the living.
async fn three_of_ten_die(home: &str, registry: &Registry, service: &str) -> Result<(), String> {
    let ttl = Duration::from_secs(5);
    let bound = ttl + Duration::from_secs(1);
    let began = Instant::now();
    let mut living = Crowd::register(home, ttl, (GROUP, service, "living"), 7)
        .await
        .unwrap();
    let dies = async {
        let mut dying = Crowd::register(home, ttl, (GROUP, service, "dying"), 3)
            .await
            .unwrap();
        let target = WatchTarget::from(ServiceKey::new(GROUP, service));
        let mut watch = registry.watch(target).await.unwrap();
        until(&mut watch, "the beginning", |event| {
            matches!(event, WatchEvent::Live { .. }).then_some(())
        })
        .await;
        let beat = Instant::now();
        if dying.renew().await.unwrap() > 0 {
            return Err("they were taken for dead before they died".into());
        }
        drop(dying);
        let mut removed = 0;
        let all_dying = until(&mut watch, "the removal of three", |event| {
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
        println!("3 of 10 died: removed {took:?} after their last heartbeat, ttl {ttl:?}");
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
