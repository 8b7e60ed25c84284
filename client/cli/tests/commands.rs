//! The commands against real servers: what they print, and how they end.

mod support;

use std::process::Stdio;
use std::time::Duration;

use rollcall_client::v1 as wire;
use rollcall_jepsen::lab::Cluster;
use rollcall_jepsen::lab::attending::Attending;
use support::{Rollcall, eventually};

#[expect(clippy::unwrap_used, reason = "a test ends where its cluster does")]
async fn cluster(servers: u64) -> (Cluster, Rollcall) {
    let cluster = Cluster::start(servers).await.unwrap();
    let rollcall = Rollcall::at(&cluster.addresses());
    (cluster, rollcall)
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_services_and_nodes_live_and_die() {
    let (_cluster, rollcall) = cluster(1).await;
    rollcall.fails("service put prod/feed/ranker", 3);
    rollcall.ok("group put prod/feed --metadata owner=ann");
    rollcall.fails("group put prod/feed --if-absent", 5);
    rollcall.ok("service put prod/feed/ranker --default-kind persistent --nodes-max 50");
    let group = rollcall.json("group show prod/feed");
    assert_eq!(group["group"]["settings"]["metadata"]["owner"], "ann");
    assert_eq!(group["group"]["services"], 1);
    rollcall.fails("group show prod", 3);

    rollcall.ok("node register prod/feed/ranker --address http=10.0.0.1:80 --label zone=a --weight 7");
    rollcall.ok("node register prod/feed/ranker --id two --address 10.0.0.2:80 --kind static");
    let listed = rollcall.json("node list prod/feed/ranker");
    assert_eq!(listed["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(listed["nodes"][0]["id"], "10.0.0.1:80");
    assert_eq!(listed["nodes"][0]["kind"], "persistent");
    assert_eq!(listed["header"]["read_mode"], "linearizable");
    let local = rollcall.json("node list prod/feed/ranker --read local --label zone=a");
    assert_eq!(local["header"]["read_mode"], "local");
    assert_eq!(local["nodes"].as_array().unwrap().len(), 1);
    let table = rollcall.ok("node list prod/feed/ranker --no-headers");
    assert_eq!(table.lines().count(), 2);
    assert!(!table.contains('\u{1b}'));
    assert!(rollcall.ok("service list prod -o wide").contains("SIGN"));

    let revision = listed["nodes"][0]["modified_revision"].as_u64().unwrap();
    let node = "prod/feed/ranker/10.0.0.1:80";
    rollcall.ok(&format!("node update {node} --weight 9 --if-revision {revision}"));
    let stale = rollcall.fails(
        &format!("node update {node} --weight 11 --if-revision {revision}"),
        5,
    );
    assert!(stale.contains(&revision.to_string()), "{stale}");
    rollcall.ok(&format!(
        "node override set {node} --disable --reason disk --author ann"
    ));
    let shown = rollcall.json(&format!("node show {node}"));
    assert_eq!(
        (&shown["node"]["weight"], &shown["node"]["disabled"]),
        (&9.into(), &true.into())
    );
    assert_eq!(shown["node"]["override"]["author"], "ann");
    let explained = rollcall.json(&format!("node explain {node}"));
    assert_eq!(explained["registration"]["labels"]["zone"], "a");
    rollcall.ok(&format!("node override clear {node}"));
    rollcall.fails("node show prod/feed/ranker/three", 3);

    let drained = rollcall.json(&format!("node drain {node} --wait"));
    assert_eq!(drained["servers"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&drained["complete"], &drained["watchers"]),
        (&true.into(), &0.into())
    );
    assert_eq!(
        rollcall.json(&format!("node show {node}"))["node"]["state"],
        "draining"
    );

    rollcall.fails("service delete prod/feed/ranker", 5);
    let dry = rollcall.json("node deregister --all-of prod/feed/ranker --dry-run");
    assert_eq!(dry["nodes"].as_array().unwrap().len(), 2);
    rollcall.fails("node deregister --all-of prod/feed/ranker", 2);
    assert_eq!(
        rollcall.json("node list prod/feed/ranker")["nodes"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    rollcall.ok("node deregister --all-of prod/feed/ranker --yes");
    rollcall.fails("node deregister prod/feed/ranker/two", 3);
    rollcall.fails("group delete prod/feed", 5);
    rollcall.ok("service delete prod/feed/ranker");
    rollcall.ok("group delete prod/feed");
    rollcall.fails("node list prod/feed/ranker", 3);
    rollcall.fails("group put bad!name", 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_leaves_what_it_does_not_name() {
    let (_cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create --guard-window 2m --services-max 5");
    rollcall.ok("service put prod/feed --guard-share 20% --guard-hold-max 0s --metadata owner=ann");
    rollcall.ok("service put prod/feed --nodes-max 7");
    rollcall.ok("service put prod/feed");
    let settings = || rollcall.json("service show prod/feed")["service"]["settings"].clone();
    let changed = serde_json::json!({
        "share_basis_points": 2_000, "window_ms": 120_000, "keep_last": true, "hold_max_ms": 0,
    });
    let shown = settings();
    assert_eq!((&shown["guard"], &shown["nodes_max"]), (&changed, &7.into()));
    assert_eq!(shown["metadata"]["owner"], "ann");
    rollcall.ok("service put prod/feed --guard-keep-last no --no-metadata");
    let shown = settings();
    assert_eq!(shown["guard"]["keep_last"], false);
    assert_eq!(shown["guard"]["share_basis_points"], 2_000);
    assert_eq!(shown["metadata"], serde_json::json!({}));
    rollcall.ok("service put prod/feed --guard-off");
    assert!(rollcall.ok("service show prod/feed").contains("off"));
    rollcall.ok("service put prod/feed --guard-default");
    assert_eq!(settings()["guard"]["share_basis_points"], 3_000);
    assert_eq!(settings()["nodes_max"], 7);
    rollcall.ok("service put prod/feed --replace --guard-share 5%");
    let shown = settings();
    assert_eq!(
        (&shown["guard"]["share_basis_points"], &shown["nodes_max"]),
        (&500.into(), &0.into())
    );
    rollcall.fails("service put prod/feed --guard-window 10ms", 2);

    let group = || rollcall.json("group show prod")["group"]["settings"].clone();
    rollcall.ok("group put prod --nodes-max 9");
    let shown = group();
    assert_eq!(
        (&shown["auto_create"], &shown["services_max"]),
        (&true.into(), &5.into())
    );
    assert_eq!(shown["defaults"]["guard"]["window_ms"], 120_000);
    assert_eq!(shown["defaults"]["nodes_max"], 9);
    rollcall.ok("group put prod --auto-create=false");
    assert_eq!(group()["auto_create"], false);
    rollcall.ok("group put prod --replace");
    assert_eq!(group()["services_max"], 0);
    assert_eq!(group()["defaults"]["guard"]["window_ms"], 600_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_is_shown_explained_and_confirmed() {
    let (cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    assert_eq!(
        rollcall.json("service guard show")["services"],
        serde_json::json!([])
    );
    let mut provider = Attending::open(&cluster.addresses()[0], Duration::from_secs(2))
        .await
        .unwrap();
    provider.register("prod", "feed", "one").await.unwrap();
    drop(provider);
    let shown = || rollcall.json("service guard show prod/feed");
    eventually("the guard holds the last node", || shown()["guard"]["held"] == 1);
    let guard = shown();
    assert_eq!(
        (&guard["guard"]["engaged"], &guard["guard"]["reason"]),
        (&true.into(), &"last_node".into())
    );
    assert_eq!(guard["held"][0]["id"], "one");
    assert_eq!(guard["settings"]["share_basis_points"], 3_000);
    let since = guard["guard"]["held_since"].as_u64().unwrap();
    for words in [
        "service guard show prod",
        "service guard show prod/feed",
        "service show prod/feed",
    ] {
        let text = rollcall.ok(words);
        let said = format!("engaged since revision {since}: 1 of 1 lapsed, the last node stays; 1 held");
        assert!(text.contains(&said), "{words}: {text}");
    }
    let explain = |node: &str| rollcall.json(&format!("node explain prod/feed/{node}"));
    let held = explain("one");
    assert_eq!(
        (&held["listed"], &held["guard"]["held"]),
        (&true.into(), &1.into())
    );
    assert!(
        held["reasons"]
            .to_string()
            .contains("the removal guard holds it as a suspect"),
        "{held}"
    );

    let confirm = "service guard confirm prod/feed --reason gone --author ann";
    rollcall.fails(confirm, 2);
    rollcall.fails(&format!("{confirm} --yes --since {}", since - 1), 5);
    assert_eq!(shown()["held"][0]["id"], "one", "nothing was removed so far");
    rollcall.ok(&format!("{confirm} --yes"));
    assert_eq!(shown()["guard"], serde_json::Value::Null);
    rollcall.fails(&format!("{confirm} --yes"), 3);
    let gone = explain("one");
    assert_eq!(gone["listed"], false);
    assert!(
        gone["reasons"][0].to_string().contains("it was deregistered"),
        "{gone}"
    );
    let never = explain("two");
    assert!(
        never["reasons"][0].to_string().contains("it never was"),
        "{never}"
    );
}

/// In an AP group each server has a hold of its own, of a revision of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_guard_holds_in_an_ap_group_is_confirmed_where_it_was_looked_at() {
    let (mut cluster, rollcall) = cluster(3).await;
    rollcall.ok("group put edge --mode ap --auto-create");
    for port in 1..=5 {
        rollcall.ok(&format!(
            "node register edge/other --address 10.0.0.1:{port} --kind persistent"
        ));
    }
    // One that was started anew counts from the beginning.
    let last = cluster.ids()[2];
    cluster.server(last).restart().await.unwrap();
    cluster.wait_ready(support::WAIT_MAX).await.unwrap();
    let mut provider = Attending::open_for(
        &cluster.addresses()[0],
        Duration::from_secs(2),
        wire::GroupMode::Ap,
    )
    .await
    .unwrap();
    provider.register("edge", "feed", "one").await.unwrap();
    drop(provider);
    let since = |address: &String| {
        let one = Rollcall::at(std::slice::from_ref(address));
        let shown = one.run("service guard show edge/feed -o json");
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        shown["guard"]["held_since"].as_u64().filter(|since| *since > 0)
    };
    let addresses = cluster.addresses();
    eventually("each holds the last node", || {
        addresses.iter().all(|address| since(address).is_some())
    });
    let mut held: Vec<_> = addresses.iter().filter_map(since).collect();
    held.sort_unstable();
    held.dedup();
    assert!(held.len() > 1, "they cannot be told apart: {held:?}");
    rollcall.ok("service guard confirm edge/feed --reason gone --author ann --yes");
    eventually("it is gone everywhere", || {
        addresses.iter().all(|address| since(address).is_none())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storm_switch_is_set_and_shown() {
    let (_cluster, rollcall) = cluster(1).await;
    let storm = rollcall.json("storm show");
    assert_eq!(storm["records"][0]["mode"], "off");
    rollcall.ok("group put prod");
    rollcall.ok("storm set auto --reason friday --author ann");
    rollcall.ok("storm set on --share 2.5% --group prod --reason flapping --author bob");
    rollcall.fails("storm set on --group nowhere --reason none", 3);
    rollcall.fails("storm set inherited --reason none", 2);
    rollcall.fails("storm set on --share 0% --reason none", 2);
    rollcall.fails("storm set off", 2);
    eventually("the server follows", || {
        let storm = rollcall.json("storm show");
        storm["records"][1]["engaged"] == true
    });
    let storm = rollcall.json("storm show");
    let (cluster, group) = (&storm["records"][0], &storm["records"][1]);
    assert_eq!(
        (&cluster["mode"], &cluster["author"]),
        (&"auto".into(), &"ann".into())
    );
    assert_eq!(
        (&cluster["share_basis_points"], &cluster["engaged"]),
        (&1_000.into(), &false.into())
    );
    assert_eq!((&group["group"], &group["mode"]), (&"prod".into(), &"on".into()));
    assert_eq!(
        (&group["share_basis_points"], &group["reason"]),
        (&250.into(), &"flapping".into())
    );
    assert!(rollcall.ok("storm show").contains("on (2.5%)"));
    rollcall.ok("storm set inherited --group prod --reason over");
    let records = rollcall.json("storm show")["records"].as_array().unwrap().len();
    assert_eq!(records, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_node_leaves_with_its_keeper_and_watchers_see_it() {
    let (_cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    rollcall.ok("service put prod/feed");
    let mut watch = rollcall.start("watch prod/feed -o json --changes 2");
    let first = watch.json_line();
    assert_eq!(
        (&first["event"], &first["nodes"]),
        (&"snapshot".into(), &0.into())
    );

    let mut keeper = rollcall.start("node register prod/feed --address 10.0.0.1:80 --keep --ttl 5s -o json");
    let mut kept = String::new();
    while !kept.contains('}') {
        kept.push_str(&keeper.line());
    }
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let added = watch.json_line();
    assert_eq!(
        (&added["event"], &added["added"][0]["id"]),
        (&"change".into(), &"10.0.0.1:80".into())
    );
    assert_eq!(added["added"][0]["session"], kept["session"]);
    let sessions = rollcall.json("session list");
    assert_eq!(sessions["sessions"][0]["session"], kept["session"]);
    assert_eq!(sessions["sessions"][0]["nodes"], 1);

    keeper.terminate();
    assert_eq!(keeper.code(), Some(0));
    let removed = watch.json_line();
    assert_eq!(removed["removed"][0]["id"], "10.0.0.1:80");
    assert_ne!(removed["removed"][0]["cause"], "expired");
    assert_eq!(watch.code(), Some(0));
    assert_eq!(
        rollcall.json("node list prod/feed")["nodes"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_until_the_watchers_of_all_servers_have_seen_it() {
    let (mut cluster, rollcall) = cluster(3).await;
    rollcall.ok("group put prod --auto-create");
    for port in [80, 81, 82, 83] {
        rollcall.ok(&format!(
            "node register prod/feed --address 10.0.0.1:{port} --kind persistent"
        ));
    }
    let addresses = cluster.addresses();
    let mut watches: Vec<_> = addresses
        .iter()
        .zip(["prod/feed", "prod/", "prod/feed"])
        .map(|(address, target)| {
            let alone = Rollcall::at(std::slice::from_ref(address));
            alone.start(&format!("watch {target} -o json"))
        })
        .collect();
    for watch in &mut watches {
        assert_eq!(watch.json_line()["event"], "snapshot");
    }
    let seen = rollcall.json("node drain prod/feed/10.0.0.1:80 --wait --timeout 20s");
    let counts = (
        &seen["complete"],
        &seen["watchers"],
        &seen["watchers_acknowledged"],
    );
    assert_eq!(counts, (&true.into(), &3.into(), &3.into()), "{seen}");
    for server in seen["servers"].as_array().unwrap() {
        assert_eq!(server["watchers"], 1, "{seen}");
    }
    let said = rollcall.run("node drain prod/feed/10.0.0.1:81 --wait --timeout 20s");
    assert!(
        said.stderr.contains("3 of 3 watchers have acknowledged"),
        "{said:?}"
    );

    // One that takes nothing in is waited for, and named.
    // For less than it takes a server to give a connection up.
    watches[1].pause();
    let late = rollcall.run("node drain prod/feed/10.0.0.1:82 --wait --timeout 2s -o json");
    watches[1].resume();
    assert_eq!(late.code, Some(6), "{late:?}");
    assert!(late.stderr.contains("2 of 3 watchers"), "{late:?}");
    let seen: serde_json::Value = serde_json::from_str(&late.stdout).unwrap();
    assert_eq!(
        (&seen["complete"], &seen["watchers_acknowledged"]),
        (&false.into(), &2.into()),
        "{seen}"
    );
    let behind = &seen["servers"][1]["watchers_behind"][0]["client"];
    assert!(behind.as_str().unwrap().starts_with("rollcall cli"), "{seen}");

    // What a server that is gone has told its watchers, nobody knows.
    let leader = cluster.leader(support::WAIT_MAX).await.unwrap();
    let gone = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.server(gone).kill9().await.unwrap();
    let ended = rollcall.run("node drain prod/feed/10.0.0.1:83 --wait --timeout 5s");
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(
        ended.stderr.contains(&format!("server {gone} "))
            && ended.stderr.contains("its watchers are unknown")
            && ended.stderr.contains("2 of 2 watchers"),
        "{ended:?}"
    );
    assert_eq!(
        rollcall.json("node show prod/feed/10.0.0.1:83")["node"]["state"],
        "draining"
    );
}

/// Beyond what the server decodes at all, the refusal still comes in its own words.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_far_too_large_is_refused_by_name() {
    let (cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    let registry = rollcall_client::connect(cluster.addresses()).unwrap();
    let service = rollcall_client::ServiceKey::new("prod", "feed");
    let nodes: Vec<_> = (0..900)
        .map(|number| {
            let node = rollcall_client::Registration::new("http", "10.0.0.1", number)
                .kind(rollcall_client::NodeKind::Persistent)
                .metadata("filler", "x".repeat(4000));
            rollcall_client::Entry::new(service.clone(), node)
        })
        .collect();
    let refused = registry
        .register_persistent(&nodes, Default::default())
        .await
        .unwrap_err();
    let rollcall_client::Error::TooLarge { message } = &refused else {
        panic!("{refused}")
    };
    assert!(
        message.starts_with("the request is too large: found "),
        "{message}"
    );
    assert_eq!(refused.effect(), rollcall_client::Effect::None);

    // On a watch stream it is the last word.
    let client = format!("http://{}", cluster.addresses()[0]);
    let mut client = wire::watch_client::WatchClient::connect(client).await.unwrap();
    let hello = wire::WatchRequest {
        request: None,
        client: "x".repeat(9 << 20),
        ..wire::WatchRequest::default()
    };
    let mut answers = client
        .watch(tokio_stream::iter([hello]))
        .await
        .unwrap()
        .into_inner();
    let refused = answers.message().await.unwrap_err();
    let error = <wire::Error as prost::Message>::decode(refused.details()).unwrap();
    assert_eq!(error.code(), wire::ErrorCode::TooLarge);
}

/// Each server counts for itself there, so the wait goes by what they show.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_in_an_ap_group_waits_for_all_servers() {
    let cluster = Cluster::start(3).await.unwrap();
    // What one server was told another may not have heard of yet.
    let rollcall = Rollcall::at(&cluster.addresses()[..1]);
    rollcall.ok("group put edge --mode ap --auto-create");
    rollcall.ok("node register edge/feed --address 10.0.0.1:80 --kind persistent");
    let mut watcher = rollcall.start("watch edge/feed -o json");
    watcher.json_line();
    let seen = rollcall.json("node drain edge/feed/10.0.0.1:80 --wait --timeout 20s");
    assert_eq!(
        (
            &seen["complete"],
            &seen["watchers"],
            &seen["watchers_acknowledged"]
        ),
        (&true.into(), &1.into(), &1.into()),
        "{seen}"
    );
    assert_eq!(seen["servers"].as_array().unwrap().len(), 3);
    watcher.pause();
    let late = rollcall.run("node drain edge/feed/10.0.0.1:80 --wait --timeout 20s");
    assert_eq!(late.code, Some(0), "nothing has changed since: {late:?}");
    rollcall.ok("node update edge/feed/10.0.0.1:80 --state up");
    let late = rollcall.run("node drain edge/feed/10.0.0.1:80 --wait --timeout 2s");
    assert_eq!(late.code, Some(6), "{late:?}");
    watcher.resume();
    rollcall.ok("node drain edge/feed/10.0.0.1:80 --wait --timeout 20s");
}

/// A pipe into a program that has ended: nobody will ever press Ctrl-C here.
#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_whose_answer_nobody_reads_takes_its_node_along() {
    let (_cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    let words = "node register prod/feed --address 10.0.0.1:80 --keep --ttl 60s -o json";
    let mut keeper = rollcall.command(words).stderr(Stdio::null()).spawn().unwrap();
    drop(keeper.stdout.take());
    assert_eq!(keeper.wait().unwrap().code(), Some(0));
    let sessions = rollcall.json("session list");
    assert!(sessions["sessions"].as_array().unwrap().is_empty(), "{sessions}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_whose_words_nobody_reads_keeps_its_node() {
    let (_cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    let words = "node register prod/feed --address 10.0.0.1:80 --keep --ttl 60s";
    let mut keeper = rollcall.command(words).stdout(Stdio::null()).spawn().unwrap();
    drop(keeper.stderr.take());
    let sessions = || rollcall.json("session list")["sessions"].clone();
    eventually("the node is kept", || sessions()[0]["nodes"] == 1);
    let ended = sessions()[0]["session"].as_u64().unwrap();
    rollcall.ok(&format!("session end {ended} --yes"));
    eventually("a new session has the node", || {
        sessions()[0]["session"] != ended && sessions()[0]["nodes"] == 1
    });
    let running = keeper.try_wait().unwrap().is_none();
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    assert!(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_cannot_say_goodbye_does_not_say_that_nothing_was_changed() {
    let (mut cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    let keeper =
        rollcall.start("node register prod/feed --address 10.0.0.1:80 --keep --ttl 60s --timeout 5s");
    eventually("the node is kept", || {
        rollcall.json("session list")["sessions"][0]["nodes"] == 1
    });
    let id = cluster.ids()[0];
    cluster.server(id).kill9().await.unwrap();
    keeper.terminate();
    assert_eq!(keeper.code(), Some(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_ended_whether_or_not_anybody_reads_of_it() {
    let (cluster, rollcall) = cluster(1).await;
    let registry = rollcall_client::connect(cluster.addresses()).unwrap();
    let mut kept = Vec::new();
    for _ in 0..3 {
        let options = rollcall_client::SessionOptions::default();
        kept.push(registry.open_session(options).await.unwrap());
    }
    let listed = rollcall.json("session list")["sessions"].clone();
    let ids: Vec<String> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|session| session["session"].to_string())
        .collect();
    assert_eq!(ids.len(), 3, "{listed}");
    // Opened anew, they have other ids.
    let words = format!("session end {} --yes -o json", ids.join(" "));
    let mut ending = rollcall.command(&words).spawn().unwrap();
    drop(ending.stdout.take());
    assert_eq!(ending.wait().unwrap().code(), Some(0));
    let left = rollcall.json("session list")["sessions"].clone();
    let left = left.as_array().unwrap().iter();
    let left: Vec<String> = left.map(|session| session["session"].to_string()).collect();
    assert!(
        ids.iter().all(|ended| !left.contains(ended)),
        "of {ids:?} there are {left:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_words_nobody_reads_goes_on() {
    let (_cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    let mut command = rollcall.command("watch prod/ -o json --changes 1");
    let mut watch = command.spawn().unwrap();
    drop(watch.stderr.take());
    eventually("it is followed", || {
        rollcall.json("status")["servers"][0]["watchers"] == 1
    });
    rollcall.ok("node register prod/feed --address 10.0.0.1:80 --kind static");
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_more_services_than_it_can_hold_events_of_is_live() {
    let (cluster, rollcall) = cluster(1).await;
    let registry = rollcall_client::connect(cluster.addresses()).unwrap();
    let options = rollcall_client::WriteOptions::default;
    rollcall.ok("group put many");
    let services: Vec<_> = (0..1_500)
        .map(|at| rollcall_client::ServiceKey::new("many", format!("s{at}")))
        .collect();
    for key in &services {
        let any = rollcall_client::Expected::Any;
        registry.put_service(key, None, any, options()).await.unwrap();
    }
    let patience = Duration::from_secs(5);
    let began = std::time::Instant::now();
    let mut watch = rollcall.start("watch / -o json --timeout 5s");
    for _ in &services {
        assert_eq!(watch.json_line()["event"], "snapshot");
    }
    // Each round has it print a line, also behind the patience for the first connection.
    let words = "node register many/s0 --address 10.0.0.1:80 --kind static --weight";
    for weight in 1.. {
        rollcall.ok(&format!("{words} {weight}"));
        assert_eq!(watch.json_line()["event"], "change");
        if began.elapsed() > patience * 3 / 2 {
            break;
        }
    }
    watch.terminate();
    assert_eq!(watch.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_session_takes_its_nodes_along() {
    let (_cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    let keeper = rollcall.start("node register prod/feed --address 10.0.0.1:80 --keep");
    let session = || rollcall.json("session list")["sessions"][0]["session"].as_u64();
    eventually("the session is listed", || session().is_some());
    let ended = session().unwrap();
    rollcall.ok(&format!("session end {ended} --yes"));
    rollcall.fails(&format!("session end {ended} --yes"), 3);
    // Its client lives: it opens a new one and registers again.
    eventually("a new session has the node", || {
        rollcall.json("session list")["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["session"] != ended && one["nodes"] == 1)
    });
    keeper.terminate();
    assert_eq!(keeper.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_whether_the_cluster_serves() {
    let (mut cluster, rollcall) = cluster(3).await;
    rollcall.ok("group put prod");
    let status = rollcall.json("status");
    assert_eq!(status["serving"], true);
    assert_eq!(status["states_differ"], false);
    assert_eq!(status["servers"].as_array().unwrap().len(), 3);
    assert!(
        status["servers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|server| server["ready"] == true)
    );
    assert_eq!(
        rollcall.json("member list")["members"].as_array().unwrap().len(),
        3
    );
    // One address is enough to find the others.
    let alone = Rollcall::at(&cluster.addresses()[..1]);
    assert_eq!(alone.json("status")["servers"].as_array().unwrap().len(), 3);

    // One that is no member is not waited for.
    let begun = std::time::Instant::now();
    let refused = rollcall.fails("member promote 9 --wait --timeout 120s", 5);
    assert!(refused.contains("not a member"), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(60), "it was waited for");

    let leader = cluster.leader(support::WAIT_MAX).await.unwrap();
    let other = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    rollcall.ok(&format!("member transfer {other}"));
    eventually("the other one leads", || {
        rollcall.json("status")["leader"] == other
    });

    for id in cluster.ids().into_iter().filter(|id| *id != other) {
        cluster.server(id).kill9().await.unwrap();
    }
    eventually("the loss is noticed", || {
        rollcall.run("status --timeout 2s").code == Some(4)
    });
    let ended = rollcall.run("group put late --timeout 2s");
    assert!(matches!(ended.code, Some(4 | 6)), "{ended:?}");
    rollcall.ok("group list --read local");
}

#[tokio::test(flavor = "multi_thread")]
async fn benches_report_and_clean_up() {
    let (_cluster, rollcall) = cluster(1).await;
    let calls = |words: &str, count: u64| {
        let report = rollcall.json(words);
        assert_eq!(report["calls"]["answered"], count, "{words}: {report}");
        assert_eq!(report["calls"]["failed"], 0, "{words}: {report}");
        assert!(
            report["latency_ms"]["p99.9"].as_f64().unwrap() > 0.0,
            "{words}: {report}"
        );
        report
    };
    calls("bench register --count 500 --connections 2 --nodes 100", 500);
    let batches = calls("bench register --count 20 --batch 10 --nodes 100", 20);
    assert_eq!(batches["items"], 200);
    calls("bench register --count 100 --unary --nodes 100", 100);
    let by_gossip = calls("bench register --mode ap --count 100 --nodes 100", 100);
    assert_eq!(by_gossip["settings"]["mode"], "ap", "{by_gossip}");
    calls(
        "bench renew --count 500 --sessions 40 --connections 2 --batch 4",
        500,
    );
    calls(
        "bench discover --count 200 --services 2 --nodes 10 --read local",
        200,
    );
    let lists = calls("bench discover --count 100 --services 2 --nodes 10 --unary", 100);
    assert_eq!(lists["items"], 1_000);
    let unchanged = calls(
        "bench discover --count 100 --services 2 --nodes 10 --known-sign",
        100,
    );
    assert_eq!(unchanged["items"], 0);
    let open = calls("bench register --rate 200 --count 100 --nodes 100", 100);
    assert_eq!(
        (&open["loop"], &open["calls"]["unsent"]),
        (&"open".into(), &0.into())
    );

    let fanout = rollcall.json("bench watch --watchers 20 --connections 2 --changes 20");
    assert_eq!(fanout["changes"]["complete"], 20);
    assert_eq!(fanout["deliveries"], 400);
    let open = rollcall.json("bench watch --watchers 10 --connections 1 --changes 20 --rate 100");
    assert_eq!(open["changes"]["complete"], 20);

    let storm = rollcall.json(
        "bench storm --switch off,on --watchers 40 --connections 2 --nodes 20 --sessions 4 --quiet 300ms \
         --share 50%",
    );
    for (run, switch) in [(0, "off"), (1, "on")] {
        let run = &storm["runs"][run];
        assert_eq!(
            (&run["switch"], &run["current"], &run["lists"]),
            (&switch.into(), &40.into(), &40.into())
        );
        assert_eq!(run["kept"].as_u64().unwrap() > 0, switch == "on", "{run}");
        for calls in ["heartbeats", "registrations"] {
            assert_eq!(run[calls]["failed"], 0, "{run}");
            assert!(run[calls]["storm_ms"]["count"].as_u64().unwrap() > 0, "{run}");
        }
        assert!(run["bytes"].as_u64() >= run["peak_bytes_per_s"].as_u64(), "{run}");
    }
    let groups = rollcall.json("group list bench");
    assert_eq!(groups["groups"].as_array().unwrap().len(), 0);
    let all = rollcall.ok("group list --no-headers");
    assert!(!all.contains("bench-"), "{all}");
    eventually("no session is left", || {
        rollcall.json("session list")["sessions"]
            .as_array()
            .unwrap()
            .is_empty()
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bench_that_is_interrupted_leaves_nothing_behind() {
    let (_cluster, rollcall) = cluster(1).await;
    let words = "bench storm --quiet 1h --watchers 2 --connections 1 --nodes 2 --sessions 1";
    let bench = rollcall.start(words);
    eventually("its heartbeats and registrations are under way", || {
        let sessions = rollcall.json("session list")["sessions"].clone();
        sessions
            .as_array()
            .unwrap()
            .iter()
            .any(|session| session["nodes"] != 0)
    });
    bench.terminate();
    assert_eq!(bench.code(), Some(1));
    assert_eq!(rollcall.ok("group list --no-headers"), "");
    let sessions = rollcall.json("session list")["sessions"].clone();
    assert!(sessions.as_array().unwrap().is_empty(), "{sessions}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_outside_the_cluster_says_of_the_members_is_no_answer() {
    let (mut cluster, _) = cluster(1).await;
    let id = cluster.start_joining().unwrap();
    let address = cluster.server(id).endpoints().client.to_string();
    let outside = Rollcall::at(&[address]);
    eventually("it can be asked", || {
        let status: serde_json::Value =
            serde_json::from_str(&outside.run("status -o json").stdout).unwrap_or_default();
        status["servers"][0]["reachable"] == true
    });
    for words in [
        "member list",
        "group refused",
        "storm rehearse --service prod/feed",
        "status",
    ] {
        outside.fails(&format!("{words} --timeout 1s"), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_mode_ap_take_the_same_commands() {
    let (_cluster, rollcall) = cluster(1).await;
    rollcall.ok("group put prod --auto-create");
    rollcall.ok("group put edge --mode ap --auto-create");
    let written = rollcall.json("node register edge/feed --address http=10.0.0.1:80 --kind persistent");
    assert_eq!((&written["mode"], &written["acks"]), (&"ap".into(), &1.into()));
    let said = rollcall.run("node update edge/feed/10.0.0.1:80 --weight 9");
    assert!(said.stderr.contains("of server 1"), "{said:?}");
    rollcall.ok("node override set edge/feed/10.0.0.1:80 --disable --reason disk");
    let listed = rollcall.json("node list edge/feed");
    assert_eq!(
        (&listed["header"]["mode"], &listed["header"]["read_mode"]),
        (&"ap".into(), &"local".into())
    );
    assert_eq!(
        (&listed["nodes"][0]["weight"], &listed["nodes"][0]["disabled"]),
        (&9.into(), &true.into())
    );
    let groups = rollcall.json("group list");
    let modes: Vec<_> = (0..2)
        .map(|at| {
            (
                &groups["groups"][at]["group"],
                &groups["groups"][at]["settings"]["mode"],
            )
        })
        .collect();
    assert_eq!(
        modes,
        [(&"edge".into(), &"ap".into()), (&"prod".into(), &"cp".into())]
    );
    assert_eq!(rollcall.json("group show edge")["group"]["nodes"], 1);
    // The mode stays, whatever else is put; a put does not change it.
    rollcall.ok("group put edge --services-max 7");
    assert_eq!(
        rollcall.json("group show edge")["group"]["settings"]["mode"],
        "ap"
    );
    let refused = rollcall.fails("group put edge --mode cp", 2);
    assert!(refused.contains("rollcall group set-mode"), "{refused}");
    let drained = rollcall.json("node drain edge/feed/10.0.0.1:80 --wait");
    assert_eq!(drained["complete"], true);
    rollcall.fails("service delete edge/feed", 5);
    rollcall.ok("node deregister edge/feed/10.0.0.1:80");
    assert!(
        rollcall.json("node list edge/feed")["nodes"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}
