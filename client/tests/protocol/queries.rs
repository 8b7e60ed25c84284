//! Queries on a stream: shared by all callers of a server, and given up for unary calls where there is none.

use std::time::Duration;

use futures_util::future::join_all;
use rollcall_client::{Error, ReadOptions, Registry, ServiceKey, v1};

use crate::fake::{Cluster, Server, eventually};
use crate::watch::config;

fn service(name: &str) -> ServiceKey {
    ServiceKey::new("prod/feed", name)
}

/// Servers whose queries are answered with an empty list.
async fn cluster(servers: u64) -> (Cluster, Vec<Server>) {
    let cluster = Cluster::default();
    cluster.lock().view = Some(v1::ServiceView {
        sign: Some(v1::Sign::default()),
        revision: 7,
        ..v1::ServiceView::default()
    });
    cluster.lock().revision = 9;
    let mut all = Vec::new();
    for id in 1..=servers {
        all.push(Server::start(id, &cluster).await);
    }
    (cluster, all)
}

fn connect(servers: &[Server]) -> Registry {
    Registry::connect(config(&servers.iter().collect::<Vec<_>>())).unwrap()
}

async fn ask(registry: &Registry, name: String) -> Result<String, Error> {
    let answer = registry.query(&service(&name), ReadOptions::local()).await?;
    assert_eq!((answer.header.revision, answer.value.revision), (9, 7));
    Ok(answer.value.key.service.to_string())
}

#[tokio::test]
async fn callers_share_one_stream_and_each_gets_its_own_answer_in_whatever_order_they_come() {
    let (cluster, servers) = cluster(1).await;
    servers[0].answer_together(20);
    let registry = connect(&servers);
    let names: Vec<String> = (0..20).map(|number| format!("s{number}")).collect();
    let answers = join_all(names.iter().map(|name| ask(&registry, name.clone()))).await;
    let answers: Vec<String> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, names);
    let cluster = cluster.lock();
    assert_eq!((cluster.discover_streams, cluster.discovered.len()), (1, 20));
    let timely =
        |(_, _, request): &(u64, u64, v1::DiscoverRequest)| request.timeout_ms > 0 && request.call > 0;
    assert!(cluster.discovered.iter().all(timely), "{:?}", cluster.discovered);
}

#[tokio::test]
async fn an_error_is_that_of_one_query() {
    let (cluster, servers) = cluster(1).await;
    let registry = connect(&servers);
    let (there, absent) = tokio::join!(ask(&registry, "there".into()), ask(&registry, "absent".into()));
    assert_eq!(there.unwrap(), "there");
    let absent = absent.unwrap_err();
    assert!(
        matches!(&absent, Error::ServiceNotFound { service, .. } if service == "absent"),
        "{absent:?}"
    );
    assert_eq!(ask(&registry, "again".into()).await.unwrap(), "again");
    assert_eq!(cluster.lock().discover_streams, 1);
}

#[tokio::test]
async fn a_server_without_such_streams_is_asked_by_calls_and_that_is_remembered() {
    let (cluster, servers) = cluster(1).await;
    servers[0].old(true);
    let registry = connect(&servers);
    for turn in 0..5 {
        let name = format!("s{turn}");
        assert_eq!(ask(&registry, name.clone()).await.unwrap(), name);
    }
    let all = ["a", "b", "c"].map(|name| ask(&registry, name.into()));
    assert!(join_all(all).await.iter().all(Result::is_ok));
    let cluster = cluster.lock();
    assert_eq!((cluster.queries, cluster.discover_streams), (8, 1));
    assert!(cluster.discovered.is_empty());
}

#[tokio::test]
async fn a_caller_that_gives_up_frees_its_place() {
    let (cluster, servers) = cluster(1).await;
    servers[0].mute(true);
    let registry = connect(&servers);
    // More than may be under way, one crowd after the other: those who find no place wait for one.
    for crowd in 1..=3 {
        let asking = join_all((0..200).map(|number| ask(&registry, format!("s{number}"))));
        let heard = async {
            eventually("the queries came", || {
                cluster.lock().discovered.len() >= crowd * 128
            })
            .await;
        };
        tokio::select! {
            _ = asking => panic!("nobody is answered"),
            () = heard => {}
        }
        assert_eq!(
            cluster.lock().discovered.len(),
            crowd * 128,
            "the rest waits at the client"
        );
    }
    servers[0].mute(false);
    assert_eq!(ask(&registry, "at last".into()).await.unwrap(), "at last");
    assert_eq!(cluster.lock().discover_streams, 1);
}

#[tokio::test]
async fn a_stream_that_breaks_is_opened_again_and_its_queries_are_asked_elsewhere() {
    let (cluster, servers) = cluster(2).await;
    let registry = connect(&servers);
    for _ in 0..4 {
        ask(&registry, "warm".into()).await.unwrap();
    }
    assert_eq!(cluster.lock().discover_streams, 2);
    // One is asked and says nothing, until its streams break.
    servers[0].mute(true);
    let breaking = async {
        eventually("the mute one was asked", || {
            let cluster = cluster.lock();
            let asked = |(server, _, request): &(u64, u64, v1::DiscoverRequest)| {
                let key = request.query.as_ref().and_then(|query| query.key.as_ref());
                *server == 1 && key.is_some_and(|key| key.service.starts_with("lost"))
            };
            cluster.discovered.iter().any(asked)
        })
        .await;
        servers[0].mute(false);
        servers[0].break_streams();
    };
    let asking = join_all((0..4).map(|number| ask(&registry, format!("lost{number}"))));
    let (answers, ()) = tokio::join!(asking, breaking);
    for answer in answers {
        assert!(answer.unwrap().starts_with("lost"));
    }
    // It was put aside for a while; then it has a stream again.
    let again = async {
        while cluster.lock().discover_streams < 3 {
            ask(&registry, "again".into()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let opened = tokio::time::timeout(Duration::from_secs(30), again).await;
    opened.expect("the stream that broke is opened again");
}

#[tokio::test]
async fn who_is_told_to_move_is_answered_and_asks_another_server() {
    let (cluster, servers) = cluster(2).await;
    let registry = connect(&servers);
    for _ in 0..4 {
        ask(&registry, "warm".into()).await.unwrap();
    }
    servers[0].send_askers_away().await;
    let before = cluster.lock().discovered.len();
    for turn in 0..20 {
        let name = format!("s{turn}");
        assert_eq!(ask(&registry, name.clone()).await.unwrap(), name);
    }
    let cluster = cluster.lock();
    let (mut first, mut second) = (0, 0);
    for (server, stream, _) in &cluster.discovered[before..] {
        match (server, stream) {
            (1, stream) if *stream <= 2 => first += 1,
            _ => second += 1,
        }
    }
    assert!(
        first <= 1 && second >= 19,
        "{first} on the stream that was to be left, {second} elsewhere"
    );
}
