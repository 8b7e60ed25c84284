//! AP groups on real processes: any server reads and writes, alone if need be, and nothing acknowledged is lost.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_client::v1::registry_client::RegistryClient;
use rollcall_client::v1::{self, GroupMode, GroupSettings, ReadMode};
use rollcall_client::{
    Entry, Error, Expected, NodeKey, NodeUpdate, Override, ReadOptions, Registration, Registry,
    RegistryConfig, Removal, ServiceKey, Session, SessionOptions, SessionStatus, WriteOptions,
};
use rollcall_jepsen::lab::attending::Attending;
use rollcall_jepsen::lab::reading::{connect, local_view};
use rollcall_jepsen::lab::{WAIT_MAX, eventually};
use support::{GROUP, Stage, cluster, registry};

const EDGE: &str = "edge";
/// How soon everything is to be everywhere.
const SOON: Duration = WAIT_MAX;
const TTL: Duration = Duration::from_secs(6);

/// A cluster with an AP group beside the CP group of every test.
async fn stage(servers: u64) -> Stage {
    let cluster = cluster(servers).await;
    put_group(&registry(&cluster.addresses(), 0), EDGE, GroupMode::Ap)
        .await
        .unwrap();
    cluster
}

async fn put_group(
    registry: &Registry,
    group: &str,
    mode: GroupMode,
) -> Result<rollcall_client::Written, Error> {
    let settings = GroupSettings {
        mode: mode.into(),
        auto_create: true,
        ..GroupSettings::default()
    };
    registry
        .put_group(group, settings, Expected::Any, WriteOptions::default())
        .await
}

/// A client of one server and no other.
fn only(address: &str) -> Registry {
    Registry::connect(RegistryConfig::new([address])).unwrap()
}

fn service() -> ServiceKey {
    ServiceKey::new(EDGE, "feed")
}

fn node(id: &str) -> Registration {
    Registration::new("tcp", "127.0.0.1", 80).id(id)
}

fn key(id: &str) -> NodeKey {
    NodeKey::new(EDGE, "feed", id)
}

async fn listed(address: &str) -> Option<BTreeMap<String, v1::Node>> {
    let view = local_view(address, EDGE, "feed", 0).await.ok()??;
    let by_id = view.nodes.into_iter().map(|node| (node.id.clone(), node));
    Some(by_id.collect())
}

/// Waits until every running server lists these nodes and nothing else, under one sign.
async fn wait_everywhere(cluster: &Stage, addresses: &[String], ids: &BTreeSet<String>) {
    let told = eventually("the same nodes at every server", SOON, || async {
        let mut signs = BTreeSet::new();
        for address in addresses {
            let view = local_view(address, EDGE, "feed", 0).await.ok()??;
            let found: BTreeSet<String> = view.nodes.iter().map(|node| node.id.clone()).collect();
            if found != *ids {
                return None;
            }
            signs.insert(view.sign.map(|sign| (sign.high, sign.low)));
        }
        (signs.len() == 1).then_some(())
    })
    .await;
    if told.is_err() {
        for address in addresses {
            let found = listed(address)
                .await
                .map(|nodes| nodes.into_keys().collect::<BTreeSet<_>>());
            eprintln!("{address} lists {found:?}, expected {ids:?}");
        }
        panic!("not the same nodes at every server:\n{}", cluster.log_tails());
    }
}

fn ids<'a>(ids: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    ids.into_iter().map(str::to_owned).collect()
}

fn attached(session: &Session) -> bool {
    matches!(session.status(), SessionStatus::Attached { .. })
}

async fn header_of(address: &str, mode: ReadMode) -> v1::ResponseHeader {
    let mut registry = RegistryClient::new(connect(address).await.unwrap());
    let request = v1::QueryRequest {
        key: Some((&service()).into()),
        read: Some(v1::ReadOptions {
            mode: mode.into(),
            ..v1::ReadOptions::default()
        }),
        ..v1::QueryRequest::default()
    };
    registry
        .query(request)
        .await
        .unwrap()
        .into_inner()
        .header
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_an_ap_group_come_change_and_go_on_one_server() {
    let cluster = stage(1).await;
    let registry = registry(&cluster.addresses(), 0);
    let session = registry.open_session(SessionOptions::ttl(TTL)).await.unwrap();

    let written = session.register(&service(), node("a")).await.unwrap();
    assert_eq!(
        (written.mode, written.acks, written.server),
        (GroupMode::Ap, 1, 1)
    );
    assert_ne!(written.epoch, 0);
    let entries = ["b", "c"].map(|id| Entry::new(service(), node(id)));
    session
        .register_all(entries.to_vec(), WriteOptions::default())
        .await
        .unwrap();
    session.update(NodeUpdate::new(key("a")).weight(7)).await.unwrap();
    let over = Override {
        disabled: Some(true),
        ..Override::default()
    };
    registry
        .set_override(&key("b"), &over, WriteOptions::default())
        .await
        .unwrap();
    session.deregister(&key("c")).await.unwrap();

    let view = registry.query(&service(), ReadOptions::default()).await.unwrap();
    assert_eq!(view.header.mode(), GroupMode::Ap);
    assert_eq!(view.header.epoch, written.epoch);
    let nodes: BTreeMap<_, _> = view
        .value
        .nodes
        .iter()
        .map(|node| (&*node.id, (node.weight, node.disabled)))
        .collect();
    assert_eq!(nodes, BTreeMap::from([("a", (7, false)), ("b", (100, true))]));

    // A condition is judged against this server's revisions.
    let stale = NodeUpdate::new(key("a"))
        .weight(8)
        .expected(Expected::Revision(written.revision));
    assert!(matches!(
        session.update(stale).await,
        Err(Error::RevisionMismatch { .. })
    ));

    // Whatever freshness is asked for, the answer is local and says so.
    let address = &cluster.addresses()[0];
    for mode in [ReadMode::Linearizable, ReadMode::Leased, ReadMode::Local] {
        let header = header_of(address, mode).await;
        assert_eq!(
            (header.mode(), header.read_mode()),
            (GroupMode::Ap, ReadMode::Local)
        );
    }

    // Lists show both kinds, each with its mode.
    let services = registry
        .list_services("", None, 0, ReadOptions::default())
        .await
        .unwrap();
    let modes: Vec<_> = services
        .value
        .items
        .iter()
        .map(|service| service.mode())
        .collect();
    assert_eq!(modes, [GroupMode::Ap]);
    let groups = registry
        .list_groups("", "", 0, ReadOptions::default())
        .await
        .unwrap();
    let groups: Vec<_> = groups
        .value
        .items
        .iter()
        .map(|group| (group.group.as_str(), group.nodes))
        .collect();
    assert_eq!(groups, [(EDGE, 2), (GROUP, 0)]);
    let explained = registry.explain(&key("a"), ReadOptions::default()).await.unwrap();
    assert!(explained.value.listed);
    assert!(explained.value.session_lapses_in.is_some());

    session.close().await.unwrap();
    wait_everywhere(&cluster, &cluster.addresses(), &ids([])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_loses_nothing_acknowledged_when_it_is_killed() {
    let mut cluster = stage(1).await;
    let registry = registry(&cluster.addresses(), 0);
    let session = registry
        .open_session(SessionOptions::ttl(Duration::from_secs(10)))
        .await
        .unwrap();
    let mut kept = BTreeSet::new();
    for number in 0..50 {
        let id = format!("n{number}");
        session.register(&service(), node(&id)).await.unwrap();
        kept.insert(id);
    }
    session.deregister(&key("n7")).await.unwrap();
    kept.remove("n7");
    let before = header_of(&cluster.addresses()[0], ReadMode::Local).await.epoch;
    cluster.server(1).kill9().await.unwrap();
    cluster.server(1).restart().await.unwrap();
    wait_everywhere(&cluster, &cluster.addresses(), &kept).await;
    assert_ne!(
        header_of(&cluster.addresses()[0], ReadMode::Local).await.epoch,
        before
    );
    // The session goes on where it was.
    let id = session.id();
    session.register(&service(), node("late")).await.unwrap();
    assert_eq!(session.id(), id);
    kept.insert("late".into());
    wait_everywhere(&cluster, &cluster.addresses(), &kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_at_any_server_is_soon_at_all() {
    let cluster = stage(3).await;
    let addresses = cluster.addresses();
    let mut sessions = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        let session = only(address)
            .open_session(SessionOptions::ttl(TTL))
            .await
            .unwrap();
        let written = session
            .register(&service(), node(&format!("n{number}")))
            .await
            .unwrap();
        assert_eq!(written.mode, GroupMode::Ap);
        sessions.push(session);
    }
    wait_everywhere(&cluster, &addresses, &ids(["n0", "n1", "n2"])).await;

    // An operator's word at one server on a node of another.
    let over = Override {
        weight: Some(3),
        ..Override::default()
    };
    only(&addresses[1])
        .set_override(&key("n0"), &over, WriteOptions::default())
        .await
        .unwrap();
    eventually("the override at every server", SOON, || async {
        for address in &addresses {
            if listed(address).await?.get("n0")?.weight != 3 {
                return None;
            }
        }
        Some(())
    })
    .await
    .unwrap();
    only(&addresses[2])
        .deregister(&[Removal::from(key("n1"))], WriteOptions::default())
        .await
        .unwrap();
    wait_everywhere(&cluster, &addresses, &ids(["n0", "n2"])).await;

    // On two disks, if that is asked for.
    let options = WriteOptions {
        acks: 2,
        ..WriteOptions::default()
    };
    let entry = Entry::new(service(), node("twice"));
    // As often as a machine that is busy has the other one late.
    let twice = eventually("on two disks", SOON, || async {
        let written = sessions[0].register_all(vec![entry.clone()], options);
        (written.await.unwrap().acks == 2).then_some(())
    });
    twice.await.unwrap();

    // Longer than a ttl: who lives stays everywhere.
    tokio::time::sleep(TTL + TTL / 2).await;
    wait_everywhere(&cluster, &addresses, &ids(["n0", "n2", "twice"])).await;
    assert!(sessions.iter().all(attached));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_server_goes_on_alone_and_what_it_took_stays() {
    let mut cluster = stage(3).await;
    let addresses = cluster.addresses();
    let last = only(&addresses[0]);
    let cp = ServiceKey::new(GROUP, "feed");
    // Opened with a quorum, nodes in the AP group alone.
    let old = last.open_session(SessionOptions::ttl(TTL)).await.unwrap();
    old.register(&service(), node("old")).await.unwrap();
    let other = only(&addresses[1])
        .open_session(SessionOptions::ttl(Duration::from_secs(60)))
        .await
        .unwrap();
    other.register(&service(), node("other")).await.unwrap();
    wait_everywhere(&cluster, &addresses, &ids(["old", "other"])).await;

    for id in [2, 3] {
        cluster.server(id).kill9().await.unwrap();
    }
    let mut kept = ids(["old", "other"]);
    let mut options = SessionOptions::ttl(TTL);
    options.timeout = Some(WAIT_MAX);
    let new = last.open_session(options).await.unwrap();
    for number in 0..20 {
        let id = format!("alone{number}");
        let written = new.register(&service(), node(&id)).await.unwrap();
        assert_eq!(
            (written.mode, written.acks, written.server),
            (GroupMode::Ap, 1, 1)
        );
        kept.insert(id);
    }
    // Nobody else has it, whatever was asked for.
    let options = WriteOptions {
        acks: 2,
        ..WriteOptions::default()
    };
    let entry = Entry::new(service(), node("single"));
    let written = new.register_all(vec![entry], options).await.unwrap();
    assert_eq!(written.acks, 1);
    kept.insert("single".into());
    old.register(&service(), node("old2")).await.unwrap();
    kept.insert("old2".into());
    // Longer than two ttls: heartbeats of both kinds of sessions are answered by this server alone.
    let (old_id, new_id) = (old.id(), new.id());
    tokio::time::sleep(TTL * 5 / 2).await;
    assert!(
        attached(&old) && attached(&new),
        "{:?} {:?}",
        old.status(),
        new.status()
    );
    assert_eq!((old.id(), new.id()), (old_id, new_id));
    wait_everywhere(&cluster, &addresses[..1], &kept).await;
    let view = last.query(&service(), ReadOptions::default()).await.unwrap();
    assert_eq!(view.header.mode(), GroupMode::Ap);

    // The CP group has no quorum, and says so.
    let short = WriteOptions {
        timeout: Some(Duration::from_secs(2)),
        ..WriteOptions::default()
    };
    let persistent = Entry::new(cp.clone(), node("c").kind(rollcall_client::NodeKind::Persistent));
    let refused = last
        .register_persistent(std::slice::from_ref(&persistent), short)
        .await
        .unwrap_err();
    assert!(
        matches!(refused, Error::Unavailable { .. } | Error::OutcomeUnknown { .. }),
        "{refused}"
    );

    for id in [2, 3] {
        cluster.server(id).restart().await.unwrap();
    }
    wait_everywhere(&cluster, &addresses, &kept).await;
    let entry = Entry::new(cp, node("d"));
    new.register_all(
        vec![entry],
        WriteOptions {
            timeout: Some(WAIT_MAX),
            ..WriteOptions::default()
        },
    )
    .await
    .unwrap();
    // For that it needed a session that the log knows; its nodes moved with it.
    assert_ne!(new.id(), new_id);
    wait_everywhere(&cluster, &addresses, &kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_alone_serves_what_it_has() {
    let mut cluster = stage(3).await;
    let addresses = cluster.addresses();
    let first = only(&addresses[0]);
    let session = first
        .open_session(SessionOptions::ttl(Duration::from_secs(60)))
        .await
        .unwrap();
    for id in ["a", "b"] {
        session.register(&service(), node(id)).await.unwrap();
    }
    wait_everywhere(&cluster, &addresses, &ids(["a", "b"])).await;
    for id in [1, 2, 3] {
        cluster.server(id).kill9().await.unwrap();
    }
    cluster.server(1).start().unwrap();
    wait_everywhere(&cluster, &addresses[..1], &ids(["a", "b"])).await;
    let options = WriteOptions {
        timeout: Some(WAIT_MAX),
        ..WriteOptions::default()
    };
    let entry = Entry::new(service(), node("c"));
    session.register_all(vec![entry], options).await.unwrap();
    for id in [2, 3] {
        cluster.server(id).start().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    wait_everywhere(&cluster, &addresses, &ids(["a", "b", "c"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_may_have_nodes_of_both_kinds_and_takes_them_along() {
    let mut cluster = stage(3).await;
    let addresses = cluster.addresses();
    let both = registry(&addresses, 0);
    let session = both
        .open_session(SessionOptions::ttl(Duration::from_secs(10)))
        .await
        .unwrap();
    let cp = ServiceKey::new(GROUP, "feed");
    session.register(&service(), node("a")).await.unwrap();
    let written = session.register(&cp, node("c")).await.unwrap();
    assert_eq!((written.mode, written.epoch), (GroupMode::Cp, 0));

    // One call serves one mode.
    let mixed = vec![
        Entry::new(service(), node("x")),
        Entry::new(cp.clone(), node("x")),
    ];
    let refused = session
        .register_all(mixed, WriteOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(&refused, Error::InvalidArgument { .. }), "{refused}");
    assert!(
        refused.to_string().contains("one call serves one mode"),
        "{refused}"
    );

    // Once in the list, with the nodes of both kinds.
    eventually("one session with two nodes", SOON, || async {
        let sessions = both.list_sessions(0, 0, ReadOptions::default()).await.unwrap();
        let nodes: Vec<_> = sessions.value.items.iter().map(|session| session.nodes).collect();
        assert_eq!(nodes.len(), 1);
        (nodes == [2]).then_some(())
    })
    .await
    .unwrap();

    // It comes to another server within its ttl.
    let id = session.id();
    wait_everywhere(&cluster, &addresses, &ids(["a"])).await;
    cluster.server(1).kill9().await.unwrap();
    eventually("the session at another server", WAIT_MAX, || async {
        matches!(session.status(), SessionStatus::Attached { server } if server != addresses[0]).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(session.id(), id);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(session.id(), id);
    wait_everywhere(&cluster, &addresses[1..], &ids(["a"])).await;
    let view = local_view(&addresses[1], GROUP, "feed", 0)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(view.nodes.len(), 1);

    // Its end ends both.
    session.close().await.unwrap();
    wait_everywhere(&cluster, &addresses[1..], &ids([])).await;
    let view = local_view(&addresses[1], GROUP, "feed", 0)
        .await
        .unwrap()
        .unwrap();
    assert!(view.nodes.is_empty());
    cluster.server(1).restart().await.unwrap();
    wait_everywhere(&cluster, &addresses, &ids([])).await;
}

/// Silent for too long, a session is struck off in a CP group, in an AP group its node is the last and is held. Whoever
/// speaks under it again must be told, or the node in the CP group would be missed by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_lost_a_node_in_the_log_does_not_live_on_by_records() {
    let cluster = stage(1).await;
    let address = cluster.addresses()[0].clone();
    let crowd = only(&address)
        .open_session(SessionOptions::ttl(TTL))
        .await
        .unwrap();
    let feed = ServiceKey::new(GROUP, "feed");
    for id in ["c1", "c2", "c3", "c4"] {
        crowd.register(&feed, node(id)).await.unwrap();
    }
    // This client waits until the server has loaded its AP groups.
    crowd
        .register(&ServiceKey::new(EDGE, "web"), node("w"))
        .await
        .unwrap();
    let mut silent = Attending::open(&address, TTL).await.unwrap();
    silent.register(GROUP, "feed", "lost").await.unwrap();
    silent.register(EDGE, "feed", "last").await.unwrap();
    assert!(silent.renew().await.unwrap());
    eventually(
        "the node in the CP group is gone, the other is held",
        WAIT_MAX,
        || async {
            let view = local_view(&address, GROUP, "feed", 0).await.ok()??;
            let gone = view.nodes.len() == 4;
            let held = listed(&address).await?.get("last")?.state() == v1::NodeState::Suspect;
            (gone && held).then_some(())
        },
    )
    .await
    .unwrap();
    assert!(
        !silent.renew().await.unwrap(),
        "renewed, although a node of it is gone"
    );
    let (session, secret) = (silent.session, silent.secret.clone());
    let attached = Attending::attach(&address, session, &secret).await.unwrap();
    assert_eq!(attached.err().unwrap().code(), v1::ErrorCode::SessionNotFound);

    // Under another session both are there again.
    let mut again = Attending::open(&address, TTL).await.unwrap();
    again.register(GROUP, "feed", "lost").await.unwrap();
    again.register(EDGE, "feed", "last").await.unwrap();
    assert!(again.renew().await.unwrap());
    let state = listed(&address).await.unwrap()["last"].state();
    assert_eq!(state, v1::NodeState::Up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_falls_silent_leaves_the_ap_group() {
    let cluster = stage(1).await;
    let address = cluster.addresses()[0].clone();
    let staying = only(&address)
        .open_session(SessionOptions::ttl(TTL))
        .await
        .unwrap();
    for id in ["a", "b", "c"] {
        staying.register(&service(), node(id)).await.unwrap();
    }
    let ttl = Duration::from_secs(4);
    let mut silent = Attending::open(&address, ttl).await.unwrap();
    silent.register(EDGE, "feed", "silent").await.unwrap();
    let (here, all) = (std::slice::from_ref(&address), ids(["a", "b", "c", "silent"]));
    let beating = async {
        while silent.renew().await.unwrap() {
            tokio::time::sleep(ttl / 8).await;
        }
    };
    // It falls silent when it has been seen.
    tokio::select! {
        () = wait_everywhere(&cluster, here, &all) => {}
        () = beating => panic!("it was struck off while it was alive"),
    }
    wait_everywhere(&cluster, &[address], &ids(["a", "b", "c"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_of_ap_groups_are_guarded() {
    let cluster = stage(1).await;
    let registry = registry(&cluster.addresses(), 0);
    let session = registry.open_session(SessionOptions::ttl(TTL)).await.unwrap();
    session.register(&service(), node("a")).await.unwrap();

    let refused = put_group(&registry, EDGE, GroupMode::Cp).await.unwrap_err();
    assert!(
        refused.to_string().contains("rollcall group set-mode"),
        "{refused}"
    );
    // Left out, it stays what it is.
    put_group(&registry, EDGE, GroupMode::Unspecified).await.unwrap();

    let options = WriteOptions::default;
    let refused = registry
        .delete_service(&service(), Expected::Any, options())
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::NotEmpty { .. }), "{refused}");
    let refused = registry
        .delete_group(EDGE, Expected::Any, options())
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::NotEmpty { .. }), "{refused}");
    let status = registry.status().await.unwrap();
    assert_eq!(status.nodes, 1, "AP groups are counted");
    // An operator's word stands for longer than the node.
    let over = Override {
        disabled: Some(true),
        ..Override::default()
    };
    registry.set_override(&key("a"), &over, options()).await.unwrap();
    session.deregister(&key("a")).await.unwrap();
    let refused = registry
        .delete_service(&service(), Expected::Any, options())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("overrides (feed/a)"), "{refused}");
    registry.clear_override(&key("a"), options()).await.unwrap();
    // The service that the registration created is in the log, or comes there soon.
    eventually("the group gone", SOON, || async {
        match registry
            .delete_service(&service(), Expected::Any, options())
            .await
        {
            Ok(_) | Err(Error::ServiceNotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        registry.delete_group(EDGE, Expected::Any, options()).await.ok()
    })
    .await
    .unwrap();
    let refused = session.register(&service(), node("a")).await.unwrap_err();
    assert!(matches!(refused, Error::GroupNotFound { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_ap_groups_alone_is_opened_without_the_log() {
    let cluster = stage(1).await;
    let registry = registry(&cluster.addresses(), 0);
    let options = SessionOptions::ttl(TTL).mode(GroupMode::Ap);
    let session = registry.open_session(options).await.unwrap();
    assert_ne!(session.id() & (1 << 63), 0);
    session.register(&service(), node("a")).await.unwrap();
    // It can own nothing in a CP group.
    let refused = session
        .register(&ServiceKey::new(GROUP, "feed"), node("c"))
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::SessionNotFound { .. }), "{refused}");
    wait_everywhere(&cluster, &cluster.addresses(), &ids(["a"])).await;
    session.close().await.unwrap();
    wait_everywhere(&cluster, &cluster.addresses(), &ids([])).await;
}
