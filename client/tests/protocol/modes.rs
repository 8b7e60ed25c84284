//! The consumer's side of groups of both modes.

use std::time::Duration;

use crate::fake::{Cluster, Server, epoch_of, eventually};
use crate::watch::{
    config, current, delta, frame, ids, key, next, nodes, sign, snapshot, started, until, until_live,
};
use rollcall_client::{PollOptions, Registry, Source, WatchEvent, WatchTarget, v1};
use v1::GroupMode;
use v1::watch_frame::Frame;

fn half(frame: v1::WatchFrame) -> v1::WatchFrame {
    let frame = frame.frame.map(|frame| match frame {
        Frame::Started(started) => Frame::Started(v1::Started {
            half: true,
            ..started
        }),
        other => other,
    });
    v1::WatchFrame { frame }
}

#[tokio::test]
async fn at_another_server_an_equal_sign_brings_nothing_and_its_revisions_count_from_there() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    cluster.lock().ap_script = current(&["a"], 500);
    let registry = Registry::connect(config(&servers)).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    let view = until(&mut watch, |view| view.source == Source::Live).await;
    let first = servers
        .iter()
        .position(|server| server.id == cluster.lock().subscriptions[0].0)
        .unwrap();
    let epoch = epoch_of(servers[first].id);
    assert_eq!((view.mode, view.epoch), (GroupMode::Ap, epoch));
    servers[first]
        .send_ap(vec![delta(501, &["b"], &[], &["a", "b"])])
        .await;
    until(&mut watch, |view| view.revision == 501).await;
    eventually("the acknowledgement", || {
        cluster.lock().ap_acks.last() == Some(&(501, epoch))
    })
    .await;
    assert!(cluster.lock().acks.is_empty(), "nothing of CP groups was said");

    // The other one has the same list under its own revisions.
    cluster.lock().ap_script = vec![started(v1::StartKind::Current, 7, true)];
    servers[first].kill();
    let other = servers[1 - first];
    let view = until(&mut watch, |view| view.epoch == epoch_of(other.id)).await;
    assert_eq!(
        (ids(&view), view.source, view.as_of),
        (vec!["a", "b"], Source::Live, 7)
    );
    {
        let cluster = cluster.lock();
        let (_, subscribe) = cluster.subscriptions.last().unwrap();
        let resume = (subscribe.ap_after_revision, subscribe.ap_epoch);
        assert_eq!((resume, subscribe.after_revision), ((501, epoch), 0));
        assert_eq!(subscribe.known[0].sign, Some(view.sign.into()));
    }
    other.send_ap(vec![delta(8, &["c"], &["a"], &["b", "c"])]).await;
    let view = until(&mut watch, |view| view.revision == 8).await;
    assert_eq!(ids(&view), ["b", "c"]);
    assert_eq!(
        cluster.lock().subscriptions.len(),
        2,
        "nothing had to be asked for anew"
    );
}

#[tokio::test]
async fn a_prefix_is_live_when_both_modes_have_started_and_gone_is_what_neither_lists() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    let half_of = |revision, exists| half(started(v1::StartKind::Current, revision, exists));
    cluster.lock().script = vec![snapshot(&["a"], 5), half_of(5, true)];
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut watch = registry.watch(WatchTarget::group("prod")).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Snapshot { .. }));
    let early = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
    assert!(early.is_err(), "one half is not live: {early:?}");
    server
        .send_ap(vec![numbered(&cluster, half_of(900, false))])
        .await;
    let live = next(&mut watch).await;
    assert!(
        matches!(
            live,
            WatchEvent::Live {
                revision: 5,
                resumed: false,
                server: _
            }
        ),
        "{live:?}"
    );
    assert_eq!(watch.views()[0].mode, GroupMode::Cp);

    // The group has moved meanwhile, as it was: the first half does not list it, the second one does.
    {
        let mut cluster = cluster.lock();
        cluster.script = vec![half_of(9, false)];
        cluster.ap_script = vec![half_of(901, true)];
    }
    server.break_streams();
    assert!(matches!(next(&mut watch).await, WatchEvent::Interrupted { .. }));
    let live = next(&mut watch).await;
    assert!(matches!(live, WatchEvent::Live { .. }), "nothing left: {live:?}");
    let view = watch.views()[0].clone();
    assert_eq!(
        (ids(&view), view.mode, view.epoch),
        (vec!["a"], GroupMode::Ap, epoch_of(1))
    );

    // Now neither has it.
    cluster.lock().ap_script = vec![half_of(950, false)];
    server.break_streams();
    assert!(matches!(next(&mut watch).await, WatchEvent::Interrupted { .. }));
    let gone = next(&mut watch).await;
    assert!(
        matches!(&gone, WatchEvent::Gone { view } if !view.exists),
        "{gone:?}"
    );
    until_live(&mut watch).await;
}

/// A start of the subscription that was asked for last.
fn numbered(cluster: &Cluster, frame: v1::WatchFrame) -> v1::WatchFrame {
    let number = cluster.lock().subscriptions.last().unwrap().1.subscription;
    let frame = frame.frame.map(|frame| match frame {
        Frame::Started(started) => Frame::Started(v1::Started {
            subscription: number,
            ..started
        }),
        other => other,
    });
    v1::WatchFrame { frame }
}

#[tokio::test]
async fn a_subscription_that_ends_because_its_group_moved_is_asked_for_again_and_no_node_is_lost() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    cluster.lock().script = current(&["a"], 5);
    let registry = Registry::connect(config(&[&server])).unwrap();
    let mut events = registry.watch(key()).await.unwrap();
    until_live(&mut events).await;
    {
        let mut cluster = cluster.lock();
        cluster.script = Vec::new();
        let mut start = started(v1::StartKind::Current, 40, true);
        if let Some(Frame::Started(started)) = &mut start.frame {
            started.directory_revision = 9;
        }
        cluster.ap_script = vec![start];
    }
    let over = v1::KeepCache {
        subscription: cluster.lock().subscriptions.last().unwrap().1.subscription,
        retry_after_ms: 20,
    };
    server.send(vec![frame(Frame::KeepCache(over))]).await;
    let live = next(&mut events).await;
    assert!(
        matches!(live, WatchEvent::Live { revision: 40, .. }),
        "nothing left: {live:?}"
    );
    let view = events.views()[0].clone();
    assert_eq!(
        (ids(&view), view.mode, view.source),
        (vec!["a"], GroupMode::Ap, Source::Live)
    );
    // A server that has not heard of the move must not say that there is nothing.
    server.break_streams();
    until_live(&mut events).await;
    let cluster = cluster.lock();
    assert_eq!(cluster.subscriptions.last().unwrap().1.after_revision, 9);
}

#[tokio::test]
async fn a_server_that_stays_not_ready_for_a_subscription_is_left_for_another() {
    let cluster = Cluster::default();
    let servers = [
        &Server::start(1, &cluster).await,
        &Server::start(2, &cluster).await,
    ];
    let rejected = v1::Rejected {
        subscription: 1,
        error: Some(v1::Error {
            code: v1::ErrorCode::NotReady.into(),
            message: "it has not loaded its AP groups yet".into(),
            ..v1::Error::default()
        }),
    };
    cluster.lock().script = vec![frame(Frame::Rejected(rejected))];
    let registry = Registry::connect(config(&servers)).unwrap();
    let mut watch = registry.watch_service(&key()).await.unwrap();
    eventually("the other server is asked", || {
        let cluster = cluster.lock();
        let asked: std::collections::BTreeSet<u64> =
            cluster.subscriptions.iter().map(|(server, _)| *server).collect();
        asked.len() == 2
    })
    .await;
    {
        let mut cluster = cluster.lock();
        cluster.script = Vec::new();
        cluster.ap_script = current(&["a"], 5);
    }
    let view = until(&mut watch, |view| view.source == Source::Live).await;
    assert_eq!(ids(&view), ["a"]);
}

#[tokio::test]
async fn a_poll_hears_that_an_ap_group_is_gone_and_calls_its_service_live_no_longer() {
    let cluster = Cluster::default();
    let server = Server::start(1, &cluster).await;
    {
        let mut cluster = cluster.lock();
        (cluster.revision, cluster.queried_in_ap, cluster.no_quorum) = (12, true, true);
        cluster.view = Some(v1::ServiceView {
            key: Some((&key()).into()),
            sign: sign(&["a"]),
            revision: 12,
            nodes: nodes(&["a"]),
            ..v1::ServiceView::default()
        });
    }
    let registry = Registry::connect(config(&[&server])).unwrap();
    let options = PollOptions::every(Duration::from_millis(50));
    let mut watch = registry.poll(&[key()], options).unwrap().pop().unwrap();
    let view = until(&mut watch, |view| view.source == Source::Live).await;
    assert_eq!((ids(&view), view.mode), (vec!["a"], GroupMode::Ap));
    assert_eq!(cluster.lock().sure_signs, 0, "while nothing is in doubt");

    // Nodes, service and group leave within a round. Nobody is sure of it: what is held stays, and nobody vouches for it.
    cluster.lock().view = None;
    let view = until(&mut watch, |view| view.source != Source::Live).await;
    assert_eq!((view.exists, view.source), (true, Source::Cache));
    assert!(cluster.lock().sure_signs > 0);

    cluster.lock().no_quorum = false;
    let view = until(&mut watch, |view| view.source == Source::Live).await;
    assert!(!view.exists && view.nodes.is_empty());
}
