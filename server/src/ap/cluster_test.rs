//! AP groups on three whole servers in this process, over loopback.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rollcall_core::ap::{SessionSeed, Standing};
use rollcall_core::directory::{
    Address, Command, DeregisterNode, Expected, GroupMode, GroupSettings, NodeKind, NodeState, RegisterNode,
    Registration, Request,
};
use rollcall_core::ids::{NodeKey, RequestId, ServerId, ServiceKey, SessionId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::upkeep::others_here;
use super::{Acknowledged, Ap};
use crate::config::{Config, GossipPreset, MemberConfig, Preset};
use crate::raft::ProposeError;
use crate::server::{Server, StartError};

/// Nothing here takes long; this bounds what goes wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const TTL_MS: u32 = 2_000;

struct Site {
    config: Config,
    server: Option<Server>,
}

pub(super) struct Cluster {
    sites: Vec<Site>,
    _folder: tempfile::TempDir,
}

/// A port that is free for TCP and UDP alike, and that the system gives to nobody while a server of a test is away.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 5_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(super) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub(super) fn service() -> ServiceKey {
    ServiceKey {
        group: "edge".parse().expect("a good name"),
        service: "feed".parse().expect("a good name"),
    }
}

fn node(id: &str) -> NodeKey {
    NodeKey {
        service: service(),
        node: id.parse().expect("a good name"),
    }
}

pub(super) fn request(command: Command) -> Request {
    Request {
        id: RequestId(rand::random()),
        command,
    }
}

pub(super) fn register(session: Option<SessionId>, id: &str) -> Request {
    let registration = Registration {
        id: node(id).node,
        addresses: vec![Address {
            name: "grpc".into(),
            host: "10.0.0.1".into(),
            port: 80,
        }]
        .into(),
        weight: 100,
        labels: Default::default(),
        metadata: Default::default(),
        kind: Some(match session {
            Some(_) => NodeKind::Ephemeral,
            None => NodeKind::Persistent,
        }),
        state: NodeState::Up,
    };
    request(Command::Register {
        session,
        nodes: vec![RegisterNode {
            key: service(),
            registration,
            expected: Expected::Any,
        }],
    })
}

pub(super) fn deregister(id: &str) -> Request {
    request(Command::Deregister {
        session: None,
        nodes: vec![DeregisterNode {
            key: node(id),
            expected: Expected::Any,
        }],
    })
}

pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn config(id: u64, members: &[MemberConfig], folder: &Path, adjust: &impl Fn(&mut Config)) -> Config {
    let mut config = Config::default();
    let own = &members[usize::try_from(id).expect("few") - 1];
    let address = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    config.cluster.id = id;
    config.cluster.members = members.to_vec();
    config.listen.peer = address(&own.peer);
    config.listen.client = address(&own.client);
    config.listen.http = address("127.0.0.1:0");
    config.storage.data = folder.join(id.to_string());
    config.raft.heartbeat_interval = Duration::from_millis(50);
    config.raft.election_timeout_min = Duration::from_millis(300);
    config.raft.election_timeout_max = Duration::from_millis(600);
    config.gossip.preset = GossipPreset::Local;
    config.ap.repair_interval = Duration::from_millis(200);
    adjust(&mut config);
    config
}

impl Cluster {
    pub(super) async fn start(servers: u64, adjust: impl Fn(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("there is room");
        let members: Vec<MemberConfig> = (1..=servers)
            .map(|id| MemberConfig {
                id,
                peer: format!("127.0.0.1:{}", free_port()),
                client: format!("127.0.0.1:{}", free_port()),
                http: String::new(),
            })
            .collect();
        let configs = (1..=servers).map(|id| config(id, &members, folder.path(), &adjust));
        let sites = configs.map(|config| Site { config, server: None });
        let mut cluster = Self {
            sites: sites.collect(),
            _folder: folder,
        };
        for id in 1..=servers {
            cluster.begin(id).await;
        }
        cluster.define().await;
        cluster
    }

    fn site(&mut self, id: u64) -> &mut Site {
        &mut self.sites[usize::try_from(id).expect("few") - 1]
    }

    pub(super) async fn begin(&mut self, id: u64) {
        let config = self.site(id).config.clone();
        // Between two lives of a server the system may give its port to somebody else for a while.
        let is_taken = |error: &StartError| match error {
            StartError::Listen(error) => error.source.kind() == ErrorKind::AddrInUse,
            _ => false,
        };
        let until = soon();
        let server = loop {
            match Server::start(config.clone(), Preset::None).await {
                Err(error) if is_taken(&error) && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                started => break started,
            }
        };
        self.site(id).server = Some(server.expect("it starts"));
    }

    pub(super) async fn end(&mut self, id: u64) {
        let server = self.site(id).server.take();
        server.expect("it runs").shutdown().await;
    }

    pub(super) fn ap(&self, id: u64) -> &Ap {
        let site = &self.sites[usize::try_from(id).expect("few") - 1];
        site.server.as_ref().expect("it runs").ap()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Server> {
        self.sites.iter().filter_map(|site| site.server.as_ref())
    }

    /// Creates the group, and waits until every server has it.
    async fn define(&self) {
        let settings = GroupSettings {
            mode: GroupMode::Ap,
            auto_create: true,
            ..GroupSettings::default()
        };
        let command = Command::PutGroup {
            group: service().group,
            settings,
            expected: Expected::Any,
        };
        self.propose(command).await;
        self.wait_ready().await;
    }

    /// Until it is decided: a leader may change meanwhile.
    pub(super) async fn propose(&self, command: Command) {
        let first = self.running().next().expect("one runs");
        let (request, until) = (request(command), soon());
        loop {
            match first.consensus().propose(request.clone(), until).await {
                Err(ProposeError::Unknown { .. } | ProposeError::Unavailable { .. })
                    if Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                decided => return drop(decided.expect("it is decided")),
            }
        }
    }

    async fn wait_ready(&self) {
        for server in self.running() {
            let is_ready =
                || server.ap().is_loaded() && server.ap().view().read().group(&service().group).is_some();
            eventually("the server has the group", is_ready).await;
        }
    }

    /// Waits until every running server lists exactly these, and all agree on the sign.
    pub(super) async fn wait_listed(&self, expected: &[&str]) {
        for server in self.running() {
            let id = server.consensus().status().server;
            eventually(&format!("server {id} lists {expected:?}"), || {
                listed(server.ap()) == expected
            })
            .await;
        }
        let signs = self.running().map(|server| {
            let view = server.ap().view().read();
            view.service(&service()).map(|service| service.sign)
        });
        let signs: Vec<_> = signs.collect();
        assert!(signs.windows(2).all(|pair| pair[0] == pair[1]), "{signs:?}");
    }

    pub(super) async fn stop(mut self) {
        for site in &mut self.sites {
            if let Some(server) = site.server.take() {
                server.shutdown().await;
            }
        }
    }
}

pub(super) fn listed(ap: &Ap) -> Vec<String> {
    let view = ap.view().read();
    let nodes = view
        .service(&service())
        .into_iter()
        .flat_map(|service| service.nodes.keys());
    nodes.map(|id| id.to_string()).collect()
}

pub(super) async fn write(ap: &Ap, request: Request) -> Acknowledged {
    ap.write(request, 1, soon()).await.expect("it is written")
}

async fn open(ap: &Ap) -> SessionId {
    let opened = ap.open_session([7; 32], TTL_MS, "test".into(), soon()).await;
    opened.expect("it is opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_writes_all_list_and_the_service_is_defined_for_all() {
    let cluster = Cluster::start(3, |_| {}).await;
    for (server, id) in [(1, "a"), (2, "b"), (3, "c")] {
        let written = write(cluster.ap(server), register(None, id)).await;
        assert_eq!((written.acks, written.outcome.changed), (1, true));
    }
    cluster.wait_listed(&["a", "b", "c"]).await;
    write(cluster.ap(2), deregister("a")).await;
    cluster.wait_listed(&["b", "c"]).await;
    for server in cluster.running() {
        let directory = server.consensus().directory().clone();
        eventually("the service is defined", || {
            directory.read().service(&service()).is_some()
        })
        .await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_heard_of_is_told_apart_from_who_may_be_on_the_way() {
    let mut cluster = Cluster::start(2, |_| {}).await;
    let heard_of = |ap: &Ap, heard_of| others_here(&ap.inner) == [(ServerId(2), heard_of)].into();
    eventually("it is heard of", || heard_of(cluster.ap(1), true)).await;
    cluster.end(2).await;
    cluster.end(1).await;
    cluster.begin(1).await;
    assert!(
        heard_of(cluster.ap(1), false),
        "whatever it is told now it does not hear"
    );
    cluster.begin(2).await;
    eventually("it is heard of again", || heard_of(cluster.ap(1), true)).await;
    cluster.stop().await;
}

/// What is written there while the answer is on its way is not here: the age must not hide it.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_late_answer_makes_nobody_younger() {
    let cluster = Cluster::start(2, |_| {}).await;
    eventually("they agree", || cluster.ap(1).has_agreed()).await;
    let (inner, other) = (cluster.ap(1).inner.clone(), cluster.ap(2).inner.clone());
    let looking = tokio::task::spawn_blocking(move || {
        let wait_while = |patience: Duration, goes_on: &dyn Fn() -> bool| {
            let until = Instant::now() + patience;
            while goes_on() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        // A second: whoever waits for the desk holds a thread of the runtime, and a question from before waits as well.
        let as_of_the_question = || {
            let desk = other.desk.lock();
            let (before, asked) = (inner.agreed_at(), inner.metrics.comparisons.get());
            wait_while(Duration::from_secs(1), &|| {
                inner.metrics.comparisons.get() == asked
            });
            let released_at = std::time::Instant::now();
            let is_held = inner.agreed_at() == before;
            drop(desk);
            wait_while(PATIENCE, &|| inner.agreed_at() == before);
            let agreed_at = inner.agreed_at();
            assert!(agreed_at > before, "they agree again");
            is_held && agreed_at < Some(released_at)
        };
        // On a busy machine the next answer may be here before this one is looked at.
        (0..20).any(|_| as_of_the_question())
    });
    assert!(looking.await.expect("it looks"), "as of the question");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_gossip_the_logs_are_polled() {
    let cluster = Cluster::start(3, |config| config.gossip.enabled = false).await;
    for (server, id) in [(1, "a"), (2, "b"), (3, "c")] {
        write(cluster.ap(server), register(None, id)).await;
    }
    cluster.wait_listed(&["a", "b", "c"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_damaged_record_does_not_start_and_says_which() {
    let mut cluster = Cluster::start(1, |_| {}).await;
    write(cluster.ap(1), register(None, "a")).await;
    cluster.end(1).await;
    let config = cluster.site(1).config.clone();
    let flip_last_bit = || {
        let options = rocksdb::Options::default();
        let families = ["default", "log", "meta", "rows"];
        let path = config.storage.data.join("log");
        let db = rocksdb::DB::open_cf(&options, path, families).expect("the server is closed");
        let family = db.cf_handle("rows").expect("it was opened");
        let rows = db.iterator_cf(&family, rocksdb::IteratorMode::End);
        let (key, mut row) = rows
            .map(|row| row.expect("it can be read"))
            .next()
            .expect("there is a record");
        let last = row.len() - 1;
        row[last] ^= 1;
        db.put_cf(&family, &key, &row).expect("it can be written");
        row.last().copied()
    };
    let spoilt = flip_last_bit();
    let refused = Server::start(config.clone(), Preset::None).await;
    let problem = refused.err().expect("it is refused").to_string();
    assert!(
        problem.starts_with("RC-302") && problem.contains("feed") && problem.contains("checksum"),
        "{problem}"
    );
    // Nothing was changed: once repaired it starts.
    assert_eq!(flip_last_bit().map(|last| last ^ 1), spoilt);
    cluster.begin(1).await;
    cluster.wait_ready().await;
    assert_eq!(listed(cluster.ap(1)), ["a"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_for_two_disks_says_on_how_many_it_is() {
    let mut cluster = Cluster::start(2, |_| {}).await;
    let session = open(cluster.ap(1)).await;
    let second_is_there = || !cluster.ap(1).inner.others_here().is_empty();
    eventually("the other server is there", second_is_there).await;
    let written = cluster.ap(1).write(register(Some(session), "a"), 2, soon()).await;
    assert_eq!(written.expect("it is written").acks, 2);
    assert_eq!(listed(cluster.ap(2)), ["a"], "with its session");
    cluster.end(2).await;
    let written = cluster.ap(1).write(register(Some(session), "b"), 2, soon()).await;
    assert_eq!(written.expect("it is written").acks, 1);
    cluster.stop().await;
}

/// A client that was not answered, or was told of one disk, says the same again.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_for_two_disks_that_is_repeated_says_on_how_many_it_is_now() {
    let cluster = Cluster::start(2, |_| {}).await;
    let second_is_there = || !cluster.ap(1).inner.others_here().is_empty();
    eventually("the other server is there", second_is_there).await;
    // The other takes no records with such stamps, by whatever way they come.
    cluster.ap(1).shift_clock(60_000);
    let asked = register(None, "a");
    for is_repeat in [false, true] {
        let written = cluster.ap(1).write(asked.clone(), 2, soon()).await;
        let written = written.expect("it is written");
        assert_eq!((written.acks, written.outcome.repeated), (1, is_repeat));
        assert!(listed(cluster.ap(2)).is_empty());
    }
    cluster.ap(2).shift_clock(60_000);
    let written = cluster.ap(1).write(asked, 2, soon()).await;
    let written = written.expect("it is written");
    assert_eq!((written.acks, written.outcome.repeated), (2, true));
    assert_eq!(listed(cluster.ap(2)), ["a"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_has_its_own_records_and_pulls_the_others() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    write(cluster.ap(3), register(None, "of3")).await;
    cluster.wait_listed(&["of3"]).await;
    let (epoch, log) = (cluster.ap(3).epoch(), cluster.ap(3).status().log);
    cluster.end(3).await;
    for number in 0..100 {
        write(cluster.ap(1), register(None, &format!("n{number:03}"))).await;
    }
    write(cluster.ap(2), deregister("of3")).await;
    cluster.begin(3).await;
    let expected: Vec<String> = (0..100).map(|number| format!("n{number:03}")).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    cluster.wait_listed(&expected).await;
    assert_ne!(cluster.ap(3).epoch(), epoch);
    assert_eq!(cluster.ap(3).status().log, log);
    let others = cluster.ap(3).status().origins;
    assert_eq!(others.len(), 2);
    let ap = cluster.ap(3);
    eventually("all logs are followed", || {
        ap.status()
            .origins
            .iter()
            .all(|origin| origin.head == origin.followed)
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_all_servers_were_stopped() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let session = open(cluster.ap(1)).await;
    write(cluster.ap(1), register(Some(session), "ephemeral")).await;
    write(cluster.ap(2), register(None, "persistent")).await;
    cluster.wait_listed(&["ephemeral", "persistent"]).await;
    for id in 1..=3 {
        cluster.end(id).await;
    }
    // One alone, without a quorum.
    cluster.begin(2).await;
    cluster.wait_ready().await;
    assert_eq!(listed(cluster.ap(2)), ["ephemeral", "persistent"]);
    write(cluster.ap(2), register(None, "alone")).await;
    cluster.begin(1).await;
    cluster.begin(3).await;
    for id in [1, 3] {
        let ap = cluster.ap(id);
        eventually("the write of the one alone is here", || {
            listed(ap).contains(&"alone".to_owned())
        })
        .await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_its_disk_shows_and_writes_nothing_before_it_asked_the_others() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    write(cluster.ap(1), register(None, "a")).await;
    cluster.wait_listed(&["a"]).await;
    for id in 1..=3 {
        cluster.end(id).await;
    }
    std::fs::remove_dir_all(&cluster.site(3).config.storage.data).expect("it was there");
    cluster.begin(3).await;
    let refused = cluster.ap(3).write(register(None, "b"), 1, soon()).await;
    assert!(
        matches!(refused, Err(ProposeError::Unavailable { .. })),
        "{refused:?}"
    );
    assert!(!cluster.ap(3).is_loaded());
    cluster.begin(1).await;
    cluster.begin(2).await;
    cluster.wait_ready().await;
    cluster.wait_listed(&["a"]).await;
    write(cluster.ap(3), register(None, "b")).await;
    cluster.wait_listed(&["a", "b"]).await;
    cluster.stop().await;
}

fn seed_of(ap: &Ap, id: SessionId) -> SessionSeed {
    let session = ap.session(id).expect("it is known");
    SessionSeed {
        id,
        secret_digest: session.secret_digest,
        ttl_ms: session.ttl_ms,
        client: session.client,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_session_lapses_at_its_holder_and_one_that_is_heard_does_not() {
    let cluster = Cluster::start(2, |_| {}).await;
    let (heard, silent) = (open(cluster.ap(1)).await, open(cluster.ap(1)).await);
    write(cluster.ap(1), register(Some(heard), "heard")).await;
    write(cluster.ap(1), register(None, "static")).await;
    write(cluster.ap(1), register(None, "static2")).await;
    write(cluster.ap(1), register(None, "static3")).await;
    write(cluster.ap(1), register(None, "static4")).await;
    write(cluster.ap(1), register(Some(silent), "silent")).await;
    let until = Instant::now() + PATIENCE;
    let expected = ["heard", "static", "static2", "static3", "static4"];
    while listed(cluster.ap(2)) != expected {
        assert!(Instant::now() < until, "{:?}", listed(cluster.ap(2)));
        let verdict = cluster.ap(1).renew(&[heard]);
        assert_eq!(verdict, Default::default());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(cluster.ap(1).renew(&[silent]).not_found, [silent]);
    assert_eq!(cluster.ap(2).session(silent), None);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_to_another_server_is_judged_there() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let session = open(cluster.ap(1)).await;
    write(cluster.ap(1), register(Some(session), "a")).await;
    cluster.wait_listed(&["a"]).await;
    let seed = seed_of(cluster.ap(2), session);
    cluster.ap(2).claim(seed, soon()).await.expect("it is claimed");
    let (ap, left) = (cluster.ap(2).clone(), CancellationToken::new());
    let client = tokio::spawn(left.clone().run_until_cancelled_owned(async move {
        loop {
            assert_eq!(ap.renew(&[session]), Default::default());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }));
    cluster.end(1).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(u64::from(TTL_MS) * 2) {
        assert_eq!(listed(cluster.ap(3)), ["a"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    left.cancel();
    assert!(client.await.expect("every heartbeat was answered").is_none());
    let known = cluster.ap(3).session(session).expect("it lives");
    assert_eq!(
        (known.holder, known.claim, known.standing),
        (ServerId(2), 2, Standing::Held)
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_judges_what_a_server_leaves_that_is_down() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let session = open(cluster.ap(1)).await;
    for id in ["p1", "p2", "p3", "p4"] {
        write(cluster.ap(2), register(None, id)).await;
    }
    write(cluster.ap(1), register(Some(session), "a")).await;
    cluster.wait_listed(&["a", "p1", "p2", "p3", "p4"]).await;
    let left_at = Instant::now();
    cluster.end(1).await;
    cluster.wait_listed(&["p1", "p2", "p3", "p4"]).await;
    assert!(
        left_at.elapsed() >= Duration::from_millis(TTL_MS.into()),
        "a full ttl was given"
    );
    // The client was there all the time, cut off with its server.
    cluster.begin(1).await;
    cluster.wait_ready().await;
    let ap = cluster.ap(1);
    eventually("the lapse is known", || ap.session(session).is_none()).await;
    assert_eq!(ap.renew(&[session]).undecided, [session]);
    cluster.wait_listed(&["a", "p1", "p2", "p3", "p4"]).await;
    assert_eq!(cluster.ap(1).renew(&[session]), Default::default());
    cluster.stop().await;
}

fn is_refused(ap: &Ap) -> bool {
    ap.status().origins.iter().any(|origin| origin.ahead.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_far_ahead_delays_its_own_news_and_wins_over_nobody() {
    let cluster = Cluster::start(2, |_| {}).await;
    write(cluster.ap(1), register(None, "before")).await;
    cluster.wait_listed(&["before"]).await;
    cluster.ap(1).shift_clock(5_000);
    write(cluster.ap(1), register(None, "ahead")).await;
    let ap = cluster.ap(2);
    eventually("the clock is refused", || is_refused(ap)).await;
    assert_eq!(listed(ap), ["before"]);
    write(ap, register(None, "meanwhile")).await;
    // Once its time has come it is taken.
    cluster.wait_listed(&["ahead", "before", "meanwhile"]).await;
    eventually("the clock is believed again", || !is_refused(ap)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_are_forgotten_and_a_server_that_was_away_for_longer_begins_anew() {
    let mut cluster = Cluster::start(3, |config| {
        config.ap.tombstone_retention = Duration::from_secs(2);
    })
    .await;
    write(cluster.ap(1), register(None, "gone")).await;
    write(cluster.ap(1), register(None, "stays")).await;
    cluster.wait_listed(&["gone", "stays"]).await;
    let log = cluster.ap(3).status().log;
    cluster.end(3).await;
    write(cluster.ap(1), deregister("gone")).await;
    cluster.wait_listed(&["stays"]).await;
    for id in [1, 2] {
        let ap = cluster.ap(id);
        eventually("the tombstone is forgotten", || ap.status().records == 1).await;
    }
    cluster.begin(3).await;
    cluster.wait_ready().await;
    cluster.wait_listed(&["stays"]).await;
    assert_ne!(cluster.ap(3).status().log, log);
    assert_eq!(cluster.ap(3).status().records, 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_servers_away_for_longer_than_that_keep_what_they_had() {
    let mut cluster = Cluster::start(3, |config| {
        config.ap.tombstone_retention = Duration::from_secs(1);
    })
    .await;
    write(cluster.ap(1), register(None, "persistent")).await;
    cluster.wait_listed(&["persistent"]).await;
    for id in 1..=3 {
        cluster.end(id).await;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    for id in 1..=3 {
        cluster.begin(id).await;
    }
    cluster.wait_ready().await;
    cluster.wait_listed(&["persistent"]).await;
    cluster.stop().await;
}

/// The two that are started first know less than the third, and agree that what they have counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_one_server_heard_before_all_were_away_counts_when_it_is_back_as_the_last() {
    let retention = Duration::from_secs(6);
    let mut cluster = Cluster::start(3, |config| config.ap.tombstone_retention = retention).await;
    for id in ["gone", "stays"] {
        write(cluster.ap(1), register(None, id)).await;
    }
    cluster.wait_listed(&["gone", "stays"]).await;
    let log = cluster.ap(2).status().log;
    cluster.end(3).await;
    cluster.end(1).await;
    write(cluster.ap(2), register(None, "late")).await;
    write(cluster.ap(2), deregister("gone")).await;
    cluster.end(2).await;
    tokio::time::sleep(retention + Duration::from_millis(500)).await;
    cluster.begin(1).await;
    cluster.begin(3).await;
    cluster.wait_ready().await;
    cluster.wait_listed(&["gone", "stays"]).await;
    // Once more, in which it could forget that it is to wait for the third.
    cluster.end(1).await;
    cluster.begin(1).await;
    cluster.begin(2).await;
    cluster.wait_ready().await;
    cluster.wait_listed(&["late", "stays"]).await;
    assert_eq!(cluster.ap(2).status().log, log, "it goes on with what it had");
    // And then what ended is forgotten, by all.
    for server in cluster.running() {
        eventually("it is forgotten", || server.ap().status().records == 2).await;
    }
    cluster.stop().await;
}

/// The one that is started first was away while the others forgot what it still has.
#[tokio::test(flavor = "multi_thread")]
async fn of_servers_that_were_all_away_for_long_those_count_that_went_on_for_longer() {
    let retention = Duration::from_secs(2);
    let mut cluster = Cluster::start(3, |config| config.ap.tombstone_retention = retention).await;
    write(cluster.ap(1), register(None, "gone")).await;
    cluster.wait_listed(&["gone"]).await;
    cluster.end(1).await;
    write(cluster.ap(2), deregister("gone")).await;
    write(cluster.ap(2), register(None, "late")).await;
    cluster.wait_listed(&["late"]).await;
    for id in [2, 3] {
        let ap = cluster.ap(id);
        eventually("it is forgotten", || ap.status().records == 1).await;
    }
    cluster.end(2).await;
    cluster.end(3).await;
    tokio::time::sleep(retention + Duration::from_millis(500)).await;
    cluster.begin(1).await;
    cluster.begin(2).await;
    cluster.wait_ready().await;
    cluster.wait_listed(&["late"]).await;
    cluster.begin(3).await;
    cluster.wait_ready().await;
    cluster.wait_listed(&["late"]).await;
    cluster.stop().await;
}

/// As a door asks before it reads: whether a server shows something else.
fn shows_other_than(ap: &Ap, all: &[&str]) -> bool {
    let is_there = ap.view().read().group(&service().group).is_some();
    is_there && ap.is_loaded() && listed(ap) != all
}

/// Two that were away would drop what they have for the third, of which they get nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_dropped_for_a_server_that_goes_before_all_it_has_is_fetched() {
    let retention = Duration::from_secs(2);
    let mut cluster = Cluster::start(3, |config| config.ap.tombstone_retention = retention).await;
    for id in ["gone", "stays"] {
        write(cluster.ap(1), register(None, id)).await;
    }
    cluster.wait_listed(&["gone", "stays"]).await;
    cluster.end(1).await;
    cluster.end(2).await;
    write(cluster.ap(3), deregister("gone")).await;
    let third = cluster.ap(3).clone();
    eventually("it is forgotten", || third.status().records == 1).await;
    third.inner.mute.fetch.store(true, Ordering::Release);
    for id in [1, 2] {
        cluster.begin(id).await;
    }
    for id in [1, 2] {
        let ap = cluster.ap(id);
        eventually("it has tried again and again", || {
            assert!(
                ![1, 2]
                    .into_iter()
                    .any(|id| shows_other_than(cluster.ap(id), &["stays"]))
            );
            ap.inner.metrics.comparisons.get() >= 5
        })
        .await;
    }
    cluster.end(3).await;
    cluster.wait_ready().await;
    cluster.wait_listed(&["gone", "stays"]).await;
    cluster.stop().await;
}

/// One of two that went early hears that the third knows better, and then nothing from it for a while.
#[tokio::test(flavor = "multi_thread")]
async fn who_said_that_it_knows_better_is_waited_for_though_it_does_not_answer() {
    let retention = Duration::from_secs(2);
    let mut cluster = Cluster::start(3, |config| config.ap.tombstone_retention = retention).await;
    write(cluster.ap(1), register(None, "gone")).await;
    cluster.wait_listed(&["gone"]).await;
    cluster.end(1).await;
    cluster.end(3).await;
    write(cluster.ap(2), deregister("gone")).await;
    write(cluster.ap(2), register(None, "late")).await;
    let second = cluster.ap(2).clone();
    eventually("it is forgotten", || second.status().records == 1).await;
    drop(second);
    cluster.end(2).await;
    tokio::time::sleep(retention + Duration::from_millis(500)).await;

    let mute = |ap: &Ap, muted| ap.inner.mute.compare.store(muted, Ordering::Release);
    cluster.begin(2).await;
    cluster.begin(1).await;
    // Else the second would be sure at once.
    mute(cluster.ap(1), true);
    let answered_at = |cluster: &Cluster, server| cluster.ap(1).inner.origins.answered_at(ServerId(server));
    eventually("it has heard of it", || answered_at(&cluster, 2).is_some()).await;
    mute(cluster.ap(2), true);
    cluster.begin(3).await;
    for _ in 0..5 {
        let before = answered_at(&cluster, 3);
        eventually("it has asked the other", || {
            assert!(!shows_other_than(cluster.ap(1), &["late"]));
            answered_at(&cluster, 3) > before
        })
        .await;
    }
    for id in [1, 2] {
        mute(cluster.ap(id), false);
    }
    cluster.wait_ready().await;
    cluster.wait_listed(&["late"]).await;
    cluster.stop().await;
}
