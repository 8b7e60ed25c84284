//! Clusters of real processes under kill -9, restart and membership change.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rollcall_client::{Entry, Registration, ServiceKey, SessionOptions, WriteOptions};
use rollcall_jepsen::lab::{Server, WAIT_MAX, eventually, one_clean_of};
use rollcall_proto::v1::MembersRequest;
use rollcall_proto::v1::cluster_client::ClusterClient;
use support::{Follower, GROUP, Load, Stage, cluster, registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

const TTL: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_when_the_leader_and_a_follower_are_killed() {
    let mut cluster = cluster(3).await;
    let load = Load::start(&cluster.addresses(), "feed", 4, TTL).await;
    load.wait_more(100).await;

    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    cluster.server(leader).kill9().await.unwrap();
    load.wait_more(100).await;
    cluster.server(leader).restart().await.unwrap();

    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.server(follower).kill9().await.unwrap();
    load.wait_more(100).await;
    cluster.server(follower).restart().await.unwrap();

    load.stop().await.assert_kept(&mut cluster, "feed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_all_servers_were_killed_at_once() {
    let mut cluster = cluster(3).await;
    let load = Load::start(&cluster.addresses(), "feed", 3, TTL).await;
    load.wait_more(200).await;
    for server in cluster.servers_mut() {
        server.kill9().await.unwrap();
    }
    for server in cluster.servers_mut() {
        server.start().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    load.wait_more(50).await;
    load.stop().await.assert_kept(&mut cluster, "feed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_restarts_from_disk_in_good_order_and_after_kill() {
    let mut cluster = cluster(1).await;
    let load = Load::start(&cluster.addresses(), "feed", 2, TTL).await;
    load.wait_more(50).await;
    cluster.server(1).restart().await.unwrap();
    load.wait_more(50).await;
    cluster.server(1).kill9().await.unwrap();
    cluster.server(1).restart().await.unwrap();
    load.wait_more(50).await;
    load.stop().await.assert_kept(&mut cluster, "feed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_across_failover_without_gap_and_without_repeat() {
    let mut cluster = cluster(3).await;
    let addresses = cluster.addresses();
    let load = Load::start(&addresses, "feed", 3, TTL).await;
    load.wait_more(20).await;
    // One at each server; each goes to the next server whenever its stream ends.
    let followers: Vec<_> = (0..3)
        .map(|first| Follower::start(&addresses, "feed", first))
        .collect();
    load.wait_more(50).await;
    // Each in turn, the leader among them, so that every watcher loses its server once at least.
    for id in cluster.ids() {
        cluster.server(id).kill9().await.unwrap();
        load.wait_more(50).await;
        cluster.server(id).restart().await.unwrap();
        load.wait_more(50).await;
    }
    let ledger = load.stop().await;
    let last = ledger.acknowledged().map(|(_, revision)| revision).max().unwrap();

    for follower in &followers {
        follower.wait_revision(last).await;
        follower.look(|followed| {
            // Each node was registered once: told once, at its revision, in order; or it was there from the start.
            let mut told: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
            let mut in_states = std::collections::BTreeSet::new();
            for change in &followed.told {
                for node in &change.put {
                    if change.as_delta {
                        told.entry(&node.id).or_default().push(change.revision);
                    } else {
                        in_states.insert(node.id.clone());
                    }
                }
            }
            for (id, revision) in ledger.acknowledged() {
                match told.get(id.as_str()) {
                    Some(revisions) => assert_eq!(revisions, &[revision], "changes told of node {id}"),
                    None => assert!(
                        in_states.contains(id),
                        "node {id} of revision {revision} was never told"
                    ),
                }
            }
            assert!(followed.streams >= 2, "this watcher was never moved");
        });
    }
    assert!(followers.iter().all(|follower| follower.removals() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_from_one_to_five_and_shrinks_to_three_under_load() {
    let mut cluster = cluster(1).await;
    let load = Load::start(&cluster.addresses(), "feed", 2, TTL).await;
    load.wait_more(50).await;
    for servers in 2..=5 {
        let id = cluster.grow().await.unwrap();
        assert_eq!(id, servers);
        load.wait_more(20).await;
    }
    assert_eq!(cluster.statuses().await.len(), 5);
    // The clients know server 1 only, so others are taken away.
    for id in [5, 4] {
        cluster.shrink(id).await.unwrap();
        load.wait_more(20).await;
    }
    assert_eq!(cluster.ids(), [1, 2, 3]);
    load.stop().await.assert_kept(&mut cluster, "feed").await;
    let view = rollcall_jepsen::lab::reading::local_view(cluster.server(3).address(), GROUP, "feed", 0).await;
    assert!(!view.unwrap().unwrap().nodes.is_empty());
}

/// Whether a server says by its pages that it hears a leader: the probe of balancers and the gauge agree.
async fn hears_leader(server: &Server) -> Option<bool> {
    let http = &server.endpoints().http;
    let ready = page(http, "/readyz").await.ok()?.starts_with("HTTP/1.1 200");
    let metrics = page(http, "/metrics").await.ok()?;
    let known = metrics.contains("\nrollcall_raft_leader_known 1\n");
    (ready == known).then_some(known)
}

async fn page(http: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

async fn wait_hears_leader(server: &Server, expected: bool) {
    let what = format!("server {} to say of a leader: {expected}", server.id());
    let says = eventually(&what, WAIT_MAX, async || {
        (hears_leader(server).await == Some(expected)).then_some(())
    });
    says.await.unwrap();
}

/// What a balancer is told: as long as it is told that such a server is ready, clients are sent where nothing goes.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_quorum_is_not_ready_whether_it_followed_or_led() {
    let mut cluster = cluster(3).await;
    for left_leads in [false, true] {
        let leader = cluster.leader(WAIT_MAX).await.unwrap();
        let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
        let left = if left_leads { leader } else { follower };
        wait_hears_leader(cluster.server(left), true).await;
        let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != left).collect();
        for other in &others {
            cluster.server(*other).kill9().await.unwrap();
        }
        wait_hears_leader(cluster.server(left), false).await;
        cluster.server(others[0]).start().unwrap();
        wait_hears_leader(cluster.server(left), true).await;
        cluster.server(others[1]).start().unwrap();
        cluster.wait_ready(WAIT_MAX).await.unwrap();
    }
}

/// A machine that is gone for a week must not fill the leader's disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_member_is_told_of_when_it_falls_silent_and_when_it_is_heard_again() {
    let mut cluster = cluster(3).await;
    one_clean_of(5, async || falls_silent(&mut cluster).await).await;
}

/// Whoever leads anew tells of it anew: an attempt in which leadership moves shows nothing.
async fn falls_silent(cluster: &mut Stage) -> Result<(), String> {
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let silent = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let said = cluster.server(leader).log_length();
    let status = cluster.server(leader).status().await;
    let term = status.map_err(|error| error.to_string())?.term;
    cluster.server(silent).kill9().await.unwrap();
    // Fifty heartbeats, none of them answered.
    let server: &Server = cluster.server(leader);
    let long_silent = eventually("five seconds of silence", WAIT_MAX, async || {
        let contact = last_contact(server, silent).await?;
        (contact >= 5_000).then_some(())
    });
    let long_silent = long_silent.await;
    let log = server.log_since(said);
    cluster.server(silent).start().unwrap();
    let server: &Server = cluster.server(leader);
    let heard = eventually("a word of its return", WAIT_MAX, async || {
        let log = server.log_since(said);
        log.contains("a member is heard again").then_some(())
    });
    let heard = heard.await;
    let status = server.status().await.map_err(|error| error.to_string())?;
    if status.term != term {
        return Err("leadership moved".into());
    }
    let said_of = |id: u64| {
        let lines = log.lines().filter(|line| line.contains("a member is silent"));
        lines
            .filter(|line| line.contains(&format!("member={id}")))
            .count()
    };
    if cluster
        .ids()
        .into_iter()
        .any(|id| id != silent && said_of(id) > 0)
    {
        return Err("another one stood still".into());
    }
    long_silent.unwrap();
    assert_eq!(said_of(silent), 1, "{log}");
    assert!(log.lines().count() < 10, "{log}");
    heard.unwrap();
    Ok(())
}

/// How long ago a leader heard of a member, in milliseconds.
async fn last_contact(leader: &Server, member: u64) -> Option<u64> {
    let address = format!("http://{}", leader.endpoints().client);
    let mut client = ClusterClient::connect(address).await.ok()?;
    let members = client.members(MembersRequest {}).await.ok()?.into_inner().members;
    let member = members.into_iter().find(|of| of.server == member)?;
    Some(member.last_contact_ms)
}

/// A hash that belongs to another index would tell operators that servers differ.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_told_with_the_entry_at_which_it_stands() {
    let mut cluster = cluster(1).await;
    let writer = registry(&cluster.addresses(), 0);
    let over = AtomicBool::new(false);
    // Large entries: there is much time in which one is half applied.
    let writing = async {
        let session = writer.open_session(SessionOptions::ttl(TTL)).await.unwrap();
        for round in 0..200 {
            let node = |id: u32| {
                Registration::new("tcp", "127.0.0.1", 80)
                    .id(format!("n{id}"))
                    .weight(round)
            };
            let nodes = (0..500).map(|id| Entry::new(ServiceKey::new(GROUP, "feed"), node(id)));
            let written = session.register_all(nodes.collect(), WriteOptions::default());
            written.await.unwrap();
        }
        over.store(true, Ordering::Relaxed);
        session.close().await.unwrap();
    };
    let server = cluster.server(1);
    let looking = join_all((0..16).map(async |_| {
        let mut told = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let status = server.status().await.unwrap();
            told.push((status.applied_index, status.state_hash));
        }
        told
    }));
    let ((), told) = tokio::join!(writing, looking);
    let mut hashes: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (index, hash) in told.into_iter().flatten() {
        let first = hashes.entry(index).or_insert_with(|| hash.to_vec());
        assert_eq!(first[..], hash[..], "two states at entry {index}");
    }
}

/// Who asks it for the members to ask each of them something must not be told that there are none.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_nobody_added_yet_does_not_say_that_there_are_no_members() {
    let mut cluster = cluster(1).await;
    let id = cluster.start_joining().unwrap();
    let joining = cluster.server(id);
    let answers = eventually("its door", WAIT_MAX, async || joining.status().await.ok()).await;
    assert!(!answers.unwrap().ready);
    let address = format!("http://{}", joining.endpoints().client);
    let mut client = ClusterClient::connect(address).await.unwrap();
    let refused = client.members(MembersRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    cluster.add_learner(id).await.unwrap();
    let knows = eventually("the log", WAIT_MAX, || {
        let mut client = client.clone();
        async move {
            let answer = client.members(MembersRequest {}).await.ok()?.into_inner();
            (answer.members.len() == 2).then_some(())
        }
    });
    knows.await.unwrap();
}
