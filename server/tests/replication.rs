//! Replication in one process: several servers on loopback, each with a folder and a peer listener of its own.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rollcall_core::directory::{
    Address, Command, Expected, GroupSettings, Outcome, RegisterNode, Registration, Request,
};
use rollcall_core::ids::{RequestId, Revision, ServerId, ServiceKey, SessionId, Term};
use rollcall_jepsen::lab::one_clean_of;
use rollcall_server::raft::types::PeerAddresses;
use rollcall_server::raft::{
    Confirmed, Consensus, Freshness, Initialized, LeaderDesk, Leadership, MemberRole, MembershipError,
    NotLeader, ProposeError, RenewalVerdict, ReplicationOptions, SessionDeadline, StartError,
};
use rollcall_server::store::StoreError;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

const PATIENCE: Duration = Duration::from_secs(30);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Polls until the condition gives something.
async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = soon();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Server {
    id: u64,
    data: PathBuf,
    port: u16,
    tune: fn(&mut ReplicationOptions),
    running: Option<(Consensus, CancellationToken)>,
}

struct Desk;

#[tonic::async_trait]
impl LeaderDesk for Desk {
    async fn record_renewals(
        &self,
        from: ServerId,
        sessions: Vec<SessionId>,
    ) -> Result<RenewalVerdict, NotLeader> {
        let undecided = vec![SessionId(from.0)];
        Ok(RenewalVerdict {
            not_found: sessions.into_iter().filter(|session| session.0 > 100).collect(),
            undecided,
        })
    }

    fn deadlines(&self, sessions: &[SessionId]) -> Vec<SessionDeadline> {
        let deadline = |session: &SessionId| SessionDeadline {
            session: *session,
            lapses_in: Duration::from_millis(session.0),
            holder: Some(ServerId(3)),
        };
        sessions.iter().map(deadline).collect()
    }
}

impl Server {
    async fn new(folder: &Path, id: u64, tune: fn(&mut ReplicationOptions)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let data = folder.join(format!("server-{id}"));
        let mut server = Self {
            id,
            data,
            port,
            tune,
            running: None,
        };
        server.start_on(listener).await.unwrap();
        server
    }

    fn addresses(&self) -> PeerAddresses {
        PeerAddresses {
            peer_address: format!("127.0.0.1:{}", self.port),
            ..PeerAddresses::default()
        }
    }

    async fn start_on(&mut self, listener: TcpListener) -> Result<(), StartError> {
        let mut options =
            ReplicationOptions::new("test", ServerId(self.id), self.addresses(), self.data.clone());
        options.disk_reserve = 0;
        (self.tune)(&mut options);
        let consensus = Consensus::start(options).await?;
        let desk: Arc<dyn LeaderDesk> = Arc::new(Desk);
        consensus.set_desk(&desk);
        let stop = CancellationToken::new();
        let serve = tonic::transport::Server::builder()
            .add_service(consensus.peer_service())
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        tokio::spawn(async move {
            let _desk = desk;
            serve.await
        });
        self.running = Some((consensus, stop));
        Ok(())
    }

    async fn try_start(&mut self) -> Result<(), StartError> {
        let port = self.port;
        let bind = async || TcpListener::bind(("127.0.0.1", port)).await.ok();
        let listener = eventually("the port is free again", bind).await;
        self.start_on(listener).await
    }

    async fn start(&mut self) {
        self.try_start().await.unwrap();
    }

    /// Ends it without a handover.
    async fn kill(&mut self) {
        if let Some((consensus, stop)) = self.running.take() {
            stop.cancel();
            consensus.halt().await;
        }
    }

    fn consensus(&self) -> &Consensus {
        &self.running.as_ref().expect("the server runs").0
    }
}

/// A cluster of `count` voters, started and with a leader.
async fn cluster(folder: &Path, count: u64, tune: fn(&mut ReplicationOptions)) -> Vec<Server> {
    let mut servers = Vec::new();
    for id in 1..=count {
        servers.push(Server::new(folder, id, tune).await);
    }
    let members = members(&servers);
    let starts = servers
        .iter()
        .map(|server| server.consensus().initialize(members.clone()));
    for start in futures_util::future::join_all(starts).await {
        start.unwrap();
    }
    leader(&servers).await;
    servers
}

fn members(servers: &[Server]) -> BTreeMap<ServerId, PeerAddresses> {
    servers
        .iter()
        .map(|server| (ServerId(server.id), server.addresses()))
        .collect()
}

/// Index of the running server that leads.
async fn leader(servers: &[Server]) -> usize {
    eventually("a leader", async || {
        let leads = |server: &Server| {
            server
                .running
                .as_ref()
                .is_some_and(|(consensus, _)| consensus.leadership().borrow().leading)
        };
        servers.iter().position(leads)
    })
    .await
}

fn request(command: Command) -> Request {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Request {
        id: RequestId(u128::from(id)),
        command,
    }
}

fn put_group(name: &str) -> Request {
    let settings = GroupSettings {
        auto_create: true,
        ..GroupSettings::default()
    };
    request(Command::PutGroup {
        group: name.parse().unwrap(),
        settings,
        expected: Expected::Any,
    })
}

fn service(name: &str) -> ServiceKey {
    ServiceKey {
        group: "prod".parse().unwrap(),
        service: name.parse().unwrap(),
    }
}

fn register(node: &str) -> Request {
    let registration = Registration {
        id: node.parse().unwrap(),
        addresses: vec![Address {
            name: "grpc".into(),
            host: "10.0.0.1".into(),
            port: 80,
        }]
        .into(),
        weight: 100,
        labels: BTreeMap::new().into(),
        metadata: [("padding".to_owned(), "x".repeat(500))].into(),
        kind: Some(rollcall_core::directory::NodeKind::Persistent),
        state: Default::default(),
    };
    let node = RegisterNode {
        key: service("feed"),
        registration,
        expected: Expected::Any,
    };
    request(Command::Register {
        session: None,
        nodes: vec![node],
    })
}

/// Repeats what is unknown: the request id makes that safe.
async fn write(server: &Server, request: Request) -> Outcome {
    loop {
        match server.consensus().propose(request.clone(), soon()).await {
            Ok(outcome) => return outcome,
            Err(ProposeError::Unknown { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Ends all servers, so that no thread of the storage outlives the test.
async fn end(servers: impl IntoIterator<Item = Server>) {
    for mut server in servers {
        server.kill().await;
    }
}

async fn read(server: &Server, mode: Freshness) -> (Confirmed, Revision) {
    let confirmed = server.consensus().confirm(mode, soon()).await.unwrap();
    (confirmed, server.consensus().directory().read().revision())
}

fn node_count(server: &Server) -> usize {
    let directory = server.consensus().directory().read();
    directory
        .service(&service("feed"))
        .map_or(0, |service| service.nodes.len())
}

/// Waits until all running servers have applied the same and says so by their hash.
async fn agree(servers: &[Server]) {
    eventually("equal states", async || {
        let states = servers
            .iter()
            .filter(|server| server.running.is_some())
            .map(|server| {
                let directory = server.consensus().directory().read();
                (directory.revision(), directory.state_hash())
            });
        let states: Vec<_> = states.collect();
        states.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_and_reads_work_at_every_server() {
    let folder = tempfile::tempdir().unwrap();
    let servers = cluster(folder.path(), 3, |_| {}).await;
    write(&servers[0], put_group("prod")).await;
    for (at, server) in servers.iter().enumerate() {
        let written = write(server, register(&format!("node-{at}"))).await.revision;
        for reader in &servers {
            for mode in [Freshness::Linearizable, Freshness::Leased] {
                assert!(read(reader, mode).await.1 >= written);
            }
        }
    }
    // A refusal travels back from the leader as it is.
    for server in &servers {
        let refused = request(Command::DeleteGroup {
            group: "none".parse().unwrap(),
            expected: Expected::Any,
        });
        let error = server.consensus().propose(refused, soon()).await.unwrap_err();
        assert!(matches!(error, ProposeError::Refused(_)), "{error}");
    }
    agree(&servers).await;
    for server in &servers {
        let status = server.consensus().status();
        assert!(!status.disk_full && !status.vote_withheld && !status.diverged && status.stopped.is_none());
        let loaded = async || server.consensus().is_loaded().then_some(());
        eventually("loaded", loaded).await;
        let age = async || server.consensus().local_age();
        assert!(eventually("an age", age).await < PATIENCE);
    }
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_at_all_servers_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let servers = Arc::new(cluster(folder.path(), 3, |options| options.compare_every = 16).await);
    write(&servers[0], put_group("prod")).await;
    let writers = (0..60).map(|writer| {
        let servers = servers.clone();
        tokio::spawn(async move {
            for number in 0..20 {
                write(&servers[writer % 3], register(&format!("node-{writer}-{number}"))).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    agree(&servers).await;
    assert!(servers.iter().all(|server| node_count(server) == 1_200));
    assert!(servers.iter().all(|server| !server.consensus().status().diverged));
    end(Arc::into_inner(servers).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_leader_costs_little_time_and_no_write() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = cluster(folder.path(), 3, |_| {}).await;
    write(&servers[0], put_group("prod")).await;
    for round in 0..3 {
        let old = leader(&servers).await;
        let term = servers[old].consensus().leadership().borrow().term;
        write(&servers[old], register(&format!("before-{round}"))).await;
        let survivor = (old + 1) % 3;
        servers[old].kill().await;
        let died = Instant::now();
        write(&servers[survivor], register(&format!("after-{round}"))).await;
        let outage = died.elapsed();
        eprintln!("writes were back after {outage:?}");
        assert!(outage < Duration::from_secs(30), "{outage:?}");
        assert!(servers[survivor].consensus().leadership().borrow().term > term);
        servers[old].start().await;
        agree(&servers).await;
    }
    assert!(servers.iter().all(|server| node_count(server) == 6));
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_restarts_from_its_disks() {
    let folder = tempfile::tempdir().unwrap();
    let small = |options: &mut ReplicationOptions| {
        options.snapshot_after_entries = 20;
        options.log_keep_entries = 5;
    };
    let mut servers = cluster(folder.path(), 3, small).await;
    write(&servers[0], put_group("prod")).await;
    for number in 0..50 {
        write(&servers[number % 3], register(&format!("node-{number}"))).await;
    }
    agree(&servers).await;
    let purged = async || {
        servers
            .iter()
            .all(|server| server.consensus().status().purged_index.is_some())
            .then_some(())
    };
    eventually("all logs were purged", purged).await;
    let revision = servers[0].consensus().directory().read().revision();
    for server in &mut servers {
        server.kill().await;
    }
    for server in &mut servers {
        server.start().await;
        assert_eq!(
            server
                .consensus()
                .initialize(BTreeMap::from([(ServerId(server.id), server.addresses())]))
                .await
                .unwrap(),
            Initialized::Already
        );
    }
    leader(&servers).await;
    for server in &servers {
        assert_eq!(read(server, Freshness::Linearizable).await.1, revision);
        assert_eq!(node_count(server), 50);
    }
    write(&servers[0], register("later")).await;
    agree(&servers).await;
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn membership_grows_from_one_to_three_and_shrinks_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let small = |options: &mut ReplicationOptions| {
        options.snapshot_after_entries = 20;
        options.log_keep_entries = 0;
    };
    let mut servers = cluster(folder.path(), 1, small).await;
    write(&servers[0], put_group("prod")).await;
    for number in 0..60 {
        write(&servers[0], register(&format!("node-{number}"))).await;
    }
    for id in 2..=3 {
        let learner = Server::new(folder.path(), id, small).await;
        let addresses = learner.addresses();
        servers[0]
            .consensus()
            .add_learner(ServerId(id), addresses, soon())
            .await
            .unwrap();
        servers.push(learner);
        // The log no longer reaches back, so the state came as a snapshot.
        agree(&servers).await;
        let installed = servers.last().unwrap().consensus().status();
        assert!(installed.snapshot_index.is_some(), "{installed:?}");
        // Asked at a follower: the leader does it.
        let asked = servers.last().unwrap().consensus();
        asked.promote(ServerId(id), soon()).await.unwrap();
    }
    let voters = servers[0]
        .consensus()
        .members()
        .iter()
        .filter(|member| member.voter)
        .count();
    assert_eq!(voters, 3);
    write(&servers[2], register("three")).await;

    // The leader itself goes first.
    let old = leader(&servers).await;
    let id = ServerId(servers[old].id);
    servers[old].consensus().remove(id, false, soon()).await.unwrap();
    let mut gone = servers.remove(old);
    let new = leader(&servers).await;
    gone.kill().await;
    write(&servers[new], register("two")).await;
    let other = ServerId(servers[1 - new].id);
    servers[new]
        .consensus()
        .remove(other, false, soon())
        .await
        .unwrap();
    servers[1 - new].kill().await;
    write(&servers[new], register("one")).await;
    assert_eq!(servers[new].consensus().members().len(), 1);
    assert_eq!(node_count(&servers[new]), 63);
    let own = ServerId(servers[new].id);
    assert!(servers[new].consensus().remove(own, false, soon()).await.is_err());
    end(servers).await;
}

/// A server alone rests between writes. It shows itself to others as soon as there are any: nobody seeks election.
#[tokio::test(flavor = "multi_thread")]
async fn who_led_nobody_but_itself_shows_itself_to_those_who_join() {
    one_clean_of(3, leads_whoever_joins).await;
}

async fn leads_whoever_joins() -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = cluster(folder.path(), 1, |_| {}).await;
    write(&servers[0], put_group("prod")).await;
    for id in 2..=3 {
        let learner = Server::new(folder.path(), id, |_| {}).await;
        let (first, addresses) = (servers[0].consensus(), learner.addresses());
        first.add_learner(ServerId(id), addresses, soon()).await.unwrap();
        first.promote(ServerId(id), soon()).await.unwrap();
        servers.push(learner);
    }
    let leads = *servers[0].consensus().leadership().borrow();
    // Longer than any election timeout.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let known = |server: &Server| *server.consensus().leadership().borrow();
    let known: Vec<_> = servers.iter().map(known).collect();
    end(servers).await;
    let still = |known: &Leadership| (known.term, known.leader) == (leads.term, Some(ServerId(1)));
    if known.iter().all(still) {
        Ok(())
    } else {
        Err(format!("{leads:?} before, {known:?} now"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_on_demand_and_at_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = cluster(folder.path(), 3, |_| {}).await;
    write(&servers[0], put_group("prod")).await;
    let old = leader(&servers).await;
    let to = ServerId(servers[(old + 1) % 3].id);
    let deadline = soon();
    while let Err(error) = servers[old]
        .consensus()
        .transfer_leadership(Some(to), deadline)
        .await
    {
        let again = matches!(error, MembershipError::Unavailable { .. }) && Instant::now() < deadline;
        assert!(again, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let new = leader(&servers).await;
    assert_eq!(ServerId(servers[new].id), to);
    assert_eq!(servers[new].consensus().status().role, MemberRole::Leader);

    let (consensus, stop) = servers[new].running.take().unwrap();
    let began = Instant::now();
    consensus.shutdown().await;
    stop.cancel();
    let survivor = servers.iter().find(|server| server.running.is_some()).unwrap();
    write(survivor, register("after")).await;
    eprintln!("handed over and written after {:?}", began.elapsed());
    assert!(!consensus.stopped().await.is_empty());
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_is_bound_to_the_leaders_term() {
    let folder = tempfile::tempdir().unwrap();
    let servers = cluster(folder.path(), 3, |_| {}).await;
    let leading = leader(&servers).await;
    let term = servers[leading].consensus().leadership().borrow().term;
    assert_eq!(
        servers[leading].consensus().confirm_leadership(soon()).await,
        Ok(term)
    );
    servers[leading]
        .consensus()
        .propose_in_term(term, put_group("prod"), soon())
        .await
        .unwrap();
    let wrong = servers[leading]
        .consensus()
        .propose_in_term(Term(term.0 + 1), put_group("prod"), soon())
        .await;
    assert!(
        matches!(wrong, Err(ProposeError::Unavailable { .. })),
        "{wrong:?}"
    );
    let follower = &servers[(leading + 1) % 3];
    let elsewhere = follower
        .consensus()
        .propose_in_term(term, put_group("prod"), soon())
        .await;
    assert!(
        matches!(elsewhere, Err(ProposeError::Unavailable { .. })),
        "{elsewhere:?}"
    );
    assert!(follower.consensus().confirm_leadership(soon()).await.is_err());
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_and_deadlines_reach_the_leaders_desk() {
    let folder = tempfile::tempdir().unwrap();
    let servers = cluster(folder.path(), 3, |_| {}).await;
    let known = async || {
        servers
            .iter()
            .all(|server| server.consensus().leadership().borrow().leader.is_some())
            .then_some(())
    };
    eventually("everyone knows the leader", known).await;
    for server in &servers {
        let sessions = [1, 2, 101, 102].map(SessionId).to_vec();
        let verdict = server
            .consensus()
            .report_renewals(sessions.clone(), soon())
            .await
            .unwrap();
        assert_eq!(verdict.not_found, [SessionId(101), SessionId(102)]);
        assert_eq!(verdict.undecided, [SessionId(server.id)]);
        let deadlines = server
            .consensus()
            .session_deadlines(sessions, soon())
            .await
            .unwrap();
        assert_eq!(deadlines.len(), 4);
        assert_eq!(deadlines[2].lapses_in, Duration::from_millis(101));
    }
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_confirmed_and_the_caller_learns_what_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = cluster(folder.path(), 3, |_| {}).await;
    write(&servers[0], put_group("prod")).await;
    let leading = leader(&servers).await;
    for other in [(leading + 1) % 3, (leading + 2) % 3] {
        servers[other].kill().await;
    }
    let shortly = || Instant::now() + Duration::from_millis(300);
    let lonely = servers[leading].consensus();
    let written = lonely.propose(register("lost"), shortly()).await.unwrap_err();
    assert!(matches!(written, ProposeError::Unknown { .. }), "{written}");
    assert!(lonely.confirm(Freshness::Linearizable, shortly()).await.is_err());
    assert!(lonely.confirm_leadership(shortly()).await.is_err());
    end(servers).await;
}

/// The file that holds the newest log records of a server.
fn write_ahead_log(data: &Path) -> PathBuf {
    let files = std::fs::read_dir(data.join("log"))
        .unwrap()
        .map(|item| item.unwrap().path());
    let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_disk_forgot_withholds_its_vote_until_it_has_caught_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = cluster(folder.path(), 3, |_| {}).await;
    write(&servers[0], put_group("prod")).await;
    for number in 0..20 {
        write(&servers[0], register(&format!("node-{number}"))).await;
    }
    agree(&servers).await;
    let forgetful = (leader(&servers).await + 1) % 3;
    servers[forgetful].kill().await;
    let path = write_ahead_log(&servers[forgetful].data);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 2_000]).unwrap();

    // With the other follower gone too, the cluster needs the forgetful one's vote, and does not get it.
    let others: Vec<_> = (0..3).filter(|other| *other != forgetful).collect();
    for other in &others {
        servers[*other].kill().await;
    }
    servers[forgetful].start().await;
    assert!(servers[forgetful].consensus().status().vote_withheld);
    servers[others[0]].start().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!servers[others[0]].consensus().leadership().borrow().leading);

    servers[others[1]].start().await;
    leader(&servers).await;
    let earned = async || (!servers[forgetful].consensus().status().vote_withheld).then_some(());
    eventually("the vote is earned back", earned).await;
    agree(&servers).await;
    assert_eq!(node_count(&servers[forgetful]), 20);
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_folder_was_lost_joins_and_does_not_begin_a_second_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = cluster(folder.path(), 3, |_| {}).await;
    write(&servers[0], put_group("prod")).await;
    write(&servers[0], register("node")).await;
    agree(&servers).await;
    let lost = (leader(&servers).await + 1) % 3;
    servers[lost].kill().await;
    std::fs::remove_dir_all(&servers[lost].data).unwrap();
    servers[lost].start().await;
    let members = members(&servers);
    let initialized = servers[lost].consensus().initialize(members).await.unwrap();
    assert_eq!(initialized, Initialized::Joining);
    agree(&servers).await;
    let earned = async || (!servers[lost].consensus().status().vote_withheld).then_some(());
    eventually("the vote is earned back", earned).await;
    assert_eq!(node_count(&servers[lost]), 1);
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_server_that_lost_acknowledged_entries_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = cluster(folder.path(), 1, |_| {}).await;
    write(&servers[0], put_group("prod")).await;
    for number in 0..20 {
        write(&servers[0], register(&format!("node-{number}"))).await;
    }
    servers[0].kill().await;
    let path = write_ahead_log(&servers[0].data);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 2_000]).unwrap();
    let error = servers[0].try_start().await.unwrap_err();
    assert!(
        matches!(error, StartError::Store(StoreError::Forgotten { .. })),
        "{error}"
    );
    std::fs::remove_file(servers[0].data.join("mark")).unwrap();
    servers[0].start().await;
    leader(&servers).await;
    end(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_another_cluster_or_server_are_refused() {
    use rollcall_proto::v1::peer_client::PeerClient;
    use rollcall_proto::v1::{ProbeRequest, ReadIndexRequest};
    let folder = tempfile::tempdir().unwrap();
    let servers = cluster(folder.path(), 1, |_| {}).await;
    let address = format!("http://{}", servers[0].addresses().peer_address);
    let mut client = PeerClient::connect(address).await.unwrap();
    let probe = |cluster: &str, from, to| ProbeRequest {
        cluster: cluster.into(),
        from,
        to,
    };
    assert!(
        client
            .probe(probe("test", 2, 1))
            .await
            .unwrap()
            .into_inner()
            .in_operation
    );
    for wrong in [
        probe("west", 2, 1),
        probe("test", 2, 3),
        probe("test", 1, 1),
        probe("test", 0, 1),
    ] {
        let status = client.probe(wrong.clone()).await.unwrap_err();
        assert!(status.message().contains("RC-112"), "{wrong:?}: {status}");
    }
    let read = ReadIndexRequest {
        cluster: "west".into(),
        from: 2,
        to: 1,
        leased: false,
        ..ReadIndexRequest::default()
    };
    assert!(client.read_index(read).await.is_err());
    end(servers).await;
}

/// A small file system, unmounted in the end; `None` where we may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => {
                eprintln!("skipped: mounting a small disk needs root");
                None
            }
        }
    }

    /// Leaves this much room.
    fn fill(&self, left: u64) -> PathBuf {
        let path = self.0.path().join("ballast");
        let mut file = std::fs::File::create(&path).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length - left).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_keeps_reads_and_recovers_by_itself() {
    let Some(disk) = SmallDisk::mount("192m") else {
        return;
    };
    let reserved = |options: &mut ReplicationOptions| options.disk_reserve = 64 << 20;
    let servers = cluster(disk.0.path(), 1, reserved).await;
    write(&servers[0], put_group("prod")).await;
    let ballast = disk.fill(48 << 20);
    let refused = async || {
        let error = servers[0]
            .consensus()
            .propose(register("refused"), soon())
            .await
            .err()?;
        matches!(error, ProposeError::DiskFull).then_some(())
    };
    eventually("writes are refused", refused).await;
    assert!(servers[0].consensus().status().disk_full);
    read(&servers[0], Freshness::Linearizable).await;
    std::fs::remove_file(ballast).unwrap();
    let accepted = async || {
        servers[0]
            .consensus()
            .propose(register("accepted"), soon())
            .await
            .ok()
    };
    eventually("writes are accepted", accepted).await;
    end(servers).await;
}
