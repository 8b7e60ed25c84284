//! Who may register, and who may do what: through real gRPC, from several addresses of loopback.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use rollcall_client::{Error, Registration, RegistryConfig, ServiceKey, SessionOptions};
use rollcall_jepsen::lab::{WAIT_MAX, eventually};
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::session_request::Request as Asked;
use rollcall_proto::v1::session_response::Response as Answered;
use rollcall_proto::v1::sessions_client::SessionsClient;
use rollcall_proto::v1::{self, ErrorCode};
use rollcall_server::config::Preset;
use rollcall_server::server::Server;
use sha2::{Digest, Sha256};
use support::alone::{Alone, PATIENCE, config, start, start_in};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

impl Alone {
    fn caller(&self) -> Caller {
        Caller::to(&self.server.addresses().client.to_string())
    }

    async fn metrics(&self) -> String {
        self.page("/metrics").await
    }
}

/// A client as the server sees it.
#[derive(Clone)]
struct Caller {
    server: String,
    channel: Channel,
    token: Option<String>,
    environment: Option<String>,
}

impl Caller {
    fn to(server: &str) -> Self {
        Self {
            server: server.into(),
            channel: Endpoint::new(format!("http://{server}")).unwrap().connect_lazy(),
            token: None,
            environment: None,
        }
    }

    /// Calling from another address of this machine.
    fn from(self, address: &str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        let endpoint = Endpoint::new(format!("http://{}", self.server)).unwrap();
        Self {
            channel: endpoint.local_address(Some(address)).connect_lazy(),
            ..self
        }
    }

    fn showing(self, token: &str) -> Self {
        let token = Some(format!("Bearer {token}"));
        Self { token, ..self }
    }

    fn claiming(self, environment: &str) -> Self {
        let environment = Some(environment.into());
        Self { environment, ..self }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value = |text: &String| MetadataValue::try_from(text.as_str()).unwrap();
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", value(token));
        }
        if let Some(environment) = &self.environment {
            request
                .metadata_mut()
                .insert("rollcall-environment", value(environment));
        }
        request
    }

    fn client(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel.clone())
    }

    async fn put_group(&self, group: &str, admission: v1::AdmissionList) -> Result<(), v1::Error> {
        let settings = v1::GroupSettings {
            auto_create: true,
            admission: Some(admission),
            ..v1::GroupSettings::default()
        };
        let request = v1::PutGroupRequest {
            group: group.into(),
            settings: Some(settings),
            ..v1::PutGroupRequest::default()
        };
        typed(self.client().put_group(self.request(request)).await)
    }

    async fn register(&self, node: v1::RegisterNode) -> Result<(), v1::Error> {
        self.register_all(vec![node]).await
    }

    async fn register_all(&self, nodes: Vec<v1::RegisterNode>) -> Result<(), v1::Error> {
        let request = v1::RegisterRequest {
            nodes,
            ..v1::RegisterRequest::default()
        };
        typed(self.client().register(self.request(request)).await)
    }

    async fn deregister(&self, key: v1::NodeKey) -> Result<(), v1::Error> {
        let node = v1::DeregisterNode {
            key: Some(key),
            expected: None,
        };
        let request = v1::DeregisterRequest {
            nodes: vec![node],
            ..v1::DeregisterRequest::default()
        };
        typed(self.client().deregister(self.request(request)).await)
    }

    async fn refused(&self, prefix: &str) -> v1::RefusedRegistrationsResponse {
        let request = v1::RefusedRegistrationsRequest {
            group_prefix: prefix.into(),
            limit: 0,
        };
        let answer = self.client().refused_registrations(self.request(request)).await;
        answer.unwrap().into_inner()
    }

    async fn nodes(&self, group: &str, service: &str) -> Vec<String> {
        let key = v1::ServiceKey {
            group: group.into(),
            service: service.into(),
        };
        let request = v1::QueryRequest {
            key: Some(key),
            ..v1::QueryRequest::default()
        };
        match self.client().query(self.request(request)).await {
            Ok(answer) => {
                let view = v1::ServiceView::decode(answer.into_inner().view.unwrap()).unwrap();
                view.nodes.into_iter().map(|node| node.id).collect()
            }
            Err(status) => {
                assert_eq!(error(&status).code(), ErrorCode::ServiceNotFound, "{status:?}");
                Vec::new()
            }
        }
    }

    async fn attend(&self) -> Result<Attending, v1::Error> {
        let (requests, stream) = mpsc::channel(64);
        let mut client = SessionsClient::new(self.channel.clone());
        let answers = client.attend(self.request(ReceiverStream::new(stream))).await;
        let mut attending = Attending {
            requests,
            answers: answers.map_err(|status| error(&status))?.into_inner(),
            session: 0,
        };
        let open = v1::OpenSession {
            client: "a provider".into(),
            ..v1::OpenSession::default()
        };
        match attending.ask(Asked::Open(open)).await {
            Answered::Opened(opened) => attending.session = opened.session,
            other => panic!("{other:?}"),
        }
        Ok(attending)
    }
}

/// A session on its stream.
struct Attending {
    requests: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
    session: u64,
}

impl Attending {
    async fn ask(&mut self, asked: Asked) -> Answered {
        let request = v1::SessionRequest {
            call: 1,
            session: self.session,
            request: Some(asked),
        };
        self.requests.send(request).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        answer.unwrap().unwrap().unwrap().response.unwrap()
    }

    async fn write(&mut self, asked: Asked) -> Result<(), v1::Error> {
        match self.ask(asked).await {
            Answered::Written(_) => Ok(()),
            Answered::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    async fn register(&mut self, node: v1::RegisterNode) -> Result<(), v1::Error> {
        self.write(Asked::Register(v1::RegisterRequest {
            nodes: vec![node],
            ..v1::RegisterRequest::default()
        }))
        .await
    }

    async fn drain(&mut self, key: v1::NodeKey) -> Result<(), v1::Error> {
        let node = v1::UpdateNode {
            key: Some(key),
            state: v1::NodeState::Draining.into(),
            ..v1::UpdateNode::default()
        };
        self.write(Asked::Update(v1::UpdateRequest {
            nodes: vec![node],
            ..v1::UpdateRequest::default()
        }))
        .await
    }
}

fn error(status: &Status) -> v1::Error {
    assert!(!status.details().is_empty(), "no typed error in {status:?}");
    v1::Error::decode(status.details()).unwrap()
}

fn typed<T>(answer: Result<tonic::Response<T>, Status>) -> Result<(), v1::Error> {
    answer.map(drop).map_err(|status| error(&status))
}

/// A node of service `feed` that lives without a session.
fn node(group: &str, port: u32) -> v1::RegisterNode {
    let address = v1::Address {
        name: "http".into(),
        host: "10.0.0.1".into(),
        port,
    };
    let registration = v1::Registration {
        addresses: vec![address],
        kind: v1::NodeKind::Static.into(),
        ..v1::Registration::default()
    };
    let key = v1::ServiceKey {
        group: group.into(),
        service: "feed".into(),
    };
    v1::RegisterNode {
        key: Some(key),
        registration: Some(registration),
        expected: None,
    }
}

fn ephemeral(group: &str, port: u32) -> v1::RegisterNode {
    let mut node = node(group, port);
    node.registration.as_mut().unwrap().kind = v1::NodeKind::Ephemeral.into();
    node
}

fn labelled(group: &str, port: u32, environment: &str) -> v1::RegisterNode {
    let mut node = node(group, port);
    let labels = &mut node.registration.as_mut().unwrap().labels;
    labels.insert("environment".into(), environment.into());
    node
}

fn key(group: &str, port: u32) -> v1::NodeKey {
    v1::NodeKey {
        group: group.into(),
        service: "feed".into(),
        node: format!("10.0.0.1:{port}"),
    }
}

fn cidrs(cidrs: &[&str]) -> v1::AdmissionList {
    v1::AdmissionList {
        cidrs: cidrs.iter().map(ToString::to_string).collect(),
        ..v1::AdmissionList::default()
    }
}

fn scopes(scopes: &[&str]) -> v1::AdmissionList {
    v1::AdmissionList {
        scopes: scopes.iter().map(ToString::to_string).collect(),
        ..v1::AdmissionList::default()
    }
}

fn environments(environments: &[&str]) -> v1::AdmissionList {
    v1::AdmissionList {
        environments: environments.iter().map(ToString::to_string).collect(),
        ..v1::AdmissionList::default()
    }
}

#[track_caller]
fn assert_not_admitted(answer: Result<(), v1::Error>, words: &str) {
    let error = answer.expect_err("it is not listed");
    assert_eq!(
        (error.code(), error.effect()),
        (ErrorCode::AdmissionRefused, v1::Effect::None),
        "{error:?}"
    );
    assert!(
        error.message.starts_with("RC-403: ") && error.message.contains(words),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_address_outside_the_list_registers_nothing_on_any_way() {
    let fixture = start(&[]).await;
    let (inside, outside) = (
        fixture.caller().from("127.0.9.1"),
        fixture.caller().from("127.0.8.1"),
    );
    inside.put_group("prod", cidrs(&["127.0.9.0/24"])).await.unwrap();
    inside
        .put_group("open", v1::AdmissionList::default())
        .await
        .unwrap();

    inside.register(node("prod", 1)).await.unwrap();
    let words = "address 127.0.8.1 is in none of its networks (127.0.9.0/24)";
    assert_not_admitted(outside.register(node("prod", 2)).await, words);
    let mut stream = outside.attend().await.unwrap();
    assert_not_admitted(stream.register(ephemeral("prod", 3)).await, words);
    // One node that is not admitted refuses the batch, also if another group admits the rest.
    assert_not_admitted(
        outside.register_all(vec![node("open", 4), node("prod", 4)]).await,
        words,
    );
    stream.register(ephemeral("open", 5)).await.unwrap();
    let mut admitted = inside.attend().await.unwrap();
    admitted.register(ephemeral("prod", 6)).await.unwrap();
    assert_eq!(inside.nodes("prod", "feed").await, ["10.0.0.1:1", "10.0.0.1:6"]);
    assert_eq!(inside.nodes("open", "feed").await, ["10.0.0.1:5"]);

    // What is in stays, and may leave; only registering is asked about.
    inside.put_group("prod", cidrs(&["127.0.7.0/24"])).await.unwrap();
    admitted.drain(key("prod", 6)).await.unwrap();
    assert_not_admitted(admitted.register(ephemeral("prod", 6)).await, "127.0.9.1");
    inside.deregister(key("prod", 1)).await.unwrap();
    assert_eq!(inside.nodes("prod", "feed").await, ["10.0.0.1:6"]);
}

#[tokio::test]
async fn admission_is_asked_before_everything_but_the_group_itself() {
    let fixture = start(&[]).await;
    let caller = fixture.caller().from("127.0.8.1");
    let settings = v1::GroupSettings {
        admission: Some(cidrs(&["10.0.0.0/8"])),
        services_max: 1,
        ..v1::GroupSettings::default()
    };
    let request = v1::PutGroupRequest {
        group: "prod".into(),
        settings: Some(settings),
        ..v1::PutGroupRequest::default()
    };
    caller.client().put_group(request).await.unwrap();
    // The service is missing and may not be created; a condition does not hold; the session is nobody's.
    let mut asked = node("prod", 1);
    asked.expected = Some(v1::Expected {
        condition: Some(v1::expected::Condition::Revision(77)),
    });
    let proof = v1::SessionProof {
        session: 4_711,
        secret: vec![0; 16].into(),
    };
    let request = v1::RegisterRequest {
        nodes: vec![asked],
        proof: Some(proof),
        ..v1::RegisterRequest::default()
    };
    assert_not_admitted(typed(caller.client().register(request).await), "127.0.8.1");
    let error = caller.register(node("prod/none", 1)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::GroupNotFound);
}

#[tokio::test]
async fn an_environment_is_claimed_by_connection_or_label_and_by_neither_wrongly() {
    let fixture = start(&[]).await;
    let silent = fixture.caller();
    silent
        .put_group("prod", environments(&["prod", "canary"]))
        .await
        .unwrap();
    let (prod, test) = (silent.clone().claiming("prod"), silent.clone().claiming("test"));

    assert_not_admitted(
        silent.register(node("prod", 1)).await,
        "no environment was claimed",
    );
    assert_not_admitted(
        test.register(node("prod", 1)).await,
        "environment \"test\" is not",
    );
    assert_not_admitted(
        test.register(labelled("prod", 1, "prod")).await,
        "environment \"test\" is not",
    );
    assert_not_admitted(
        prod.register(labelled("prod", 1, "test")).await,
        "environment \"test\" is not",
    );
    assert_eq!(prod.nodes("prod", "feed").await, Vec::<String>::new());
    prod.register(node("prod", 1)).await.unwrap();
    prod.register(labelled("prod", 2, "canary")).await.unwrap();
    silent.register(labelled("prod", 3, "canary")).await.unwrap();
    let mut stream = test.attend().await.unwrap();
    assert_not_admitted(
        stream.register(ephemeral("prod", 4)).await,
        "environment \"test\" is not",
    );
    let mut stream = prod.attend().await.unwrap();
    stream.register(ephemeral("prod", 4)).await.unwrap();

    let odd = silent.clone().claiming("p r");
    let error = odd.register(node("prod", 5)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error:?}");
    assert!(error.message.contains("rollcall-environment"), "{error:?}");
}

#[tokio::test]
async fn a_dry_run_lets_in_and_tells_who_would_not_have_been() {
    let fixture = start(&[]).await;
    let (inside, outside) = (
        fixture.caller().from("127.0.9.1"),
        fixture.caller().from("127.0.8.1"),
    );
    let list = v1::AdmissionList {
        dry_run: true,
        environments: vec!["prod".into()],
        ..cidrs(&["127.0.9.0/24"])
    };
    inside.put_group("prod", list.clone()).await.unwrap();
    inside
        .clone()
        .claiming("prod")
        .register(node("prod", 1))
        .await
        .unwrap();
    assert_eq!(inside.refused("").await.refused, []);
    let mut stream = outside.clone().claiming("test").attend().await.unwrap();
    stream.register(ephemeral("prod", 2)).await.unwrap();
    outside.register(node("prod", 3)).await.unwrap();
    inside.register(node("prod", 4)).await.unwrap();
    assert_eq!(inside.nodes("prod", "feed").await.len(), 4);

    let told = inside.refused("prod").await;
    let told: Vec<_> = told
        .refused
        .iter()
        .map(|entry| {
            assert!(entry.dry_run && entry.count == 1, "{entry:?}");
            let node = entry.node.as_ref().unwrap().node.as_str();
            (
                entry.rule(),
                entry.address.as_str(),
                entry.environment.as_str(),
                entry.client.as_str(),
                node,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (v1::AdmissionRule::Environment, "127.0.9.1", "", "", "10.0.0.1:4"),
            (v1::AdmissionRule::Address, "127.0.8.1", "", "", "10.0.0.1:3"),
            (
                v1::AdmissionRule::Address,
                "127.0.8.1",
                "test",
                "a provider",
                "10.0.0.1:2"
            ),
        ]
    );
    let metrics = fixture.metrics().await;
    let line = |rule: &str, verdict: &str, count: u32| {
        format!("rollcall_doors_not_admitted_total{{rule=\"{rule}\",verdict=\"{verdict}\"}} {count}\n")
    };
    assert!(metrics.contains(&line("address", "reported", 2)), "{metrics}");
    assert!(metrics.contains(&line("environment", "reported", 1)), "{metrics}");

    // In earnest, the same registrant is the same line.
    inside
        .put_group(
            "prod",
            v1::AdmissionList {
                dry_run: false,
                ..list
            },
        )
        .await
        .unwrap();
    assert_not_admitted(outside.register(node("prod", 5)).await, "127.0.8.1");
    let last = inside.refused("prod").await.refused.remove(0);
    assert_eq!(
        (last.count, last.dry_run, last.group.as_str()),
        (2, false, "prod")
    );
    assert_eq!(last.node, Some(key("prod", 5)));
    assert!(
        last.reason.contains("127.0.9.0/24") && last.first_ms >= last.last_ms,
        "{last:?}"
    );
    assert!(fixture.metrics().await.contains(&line("address", "refused", 1)));
}

#[tokio::test]
async fn the_refused_are_remembered_within_a_bound() {
    let fixture = start(&[]).await;
    let caller = fixture.caller();
    caller.put_group("prod", environments(&["prod"])).await.unwrap();
    for number in 0..515 {
        let caller = caller.clone().claiming(&format!("test-{number}"));
        assert_not_admitted(caller.register(node("prod", 1)).await, "RC-403");
    }
    let told = caller.refused("").await;
    assert_eq!((told.refused.len(), told.forgotten, told.more), (512, 3, false));
    assert_eq!(told.refused[0].environment, "test-514");
    assert_eq!(told.refused[511].environment, "test-3");
    let request = v1::RefusedRegistrationsRequest {
        group_prefix: "prod".into(),
        limit: 5,
    };
    let told = caller
        .client()
        .refused_registrations(request)
        .await
        .unwrap()
        .into_inner();
    assert!(told.refused.len() == 5 && told.more);
    assert_eq!(caller.refused("production").await.refused, []);
}

#[tokio::test]
async fn a_list_that_makes_no_sense_changes_nothing() {
    let fixture = start(&[]).await;
    let caller = fixture.caller();
    caller.put_group("prod", cidrs(&["10.0.0.0/8"])).await.unwrap();
    let many: Vec<String> = (0..65).map(|n| format!("10.{n}.0.0/16")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (list, code, words) in [
        (
            cidrs(&["10.0.0.0/8", "garbage"]),
            ErrorCode::InvalidArgument,
            "\"garbage\" is no network",
        ),
        (
            cidrs(&["10.0.0.0/33"]),
            ErrorCode::InvalidArgument,
            "33 cannot count",
        ),
        (
            cidrs(&["10.0.0.1/8"]),
            ErrorCode::InvalidArgument,
            "use 10.0.0.0/8",
        ),
        (
            scopes(&["Admin"]),
            ErrorCode::InvalidArgument,
            "settings.admission.scopes",
        ),
        (
            environments(&["a/b"]),
            ErrorCode::InvalidArgument,
            "settings.admission.environments",
        ),
        (
            cidrs(&many),
            ErrorCode::TooLarge,
            "settings.admission.cidrs is 65, at most 64",
        ),
    ] {
        let error = caller.put_group("prod", list).await.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.message.contains(words), "{error:?}");
    }
    let groups = caller
        .client()
        .list_groups(v1::ListGroupsRequest::default())
        .await
        .unwrap();
    let groups = groups.into_inner().groups;
    let prod = groups.iter().find(|group| group.group == "prod").unwrap();
    let kept = prod.settings.as_ref().unwrap().admission.clone();
    assert_eq!(kept, Some(cidrs(&["10.0.0.0/8"])));
    // 64 of each kind are taken, in whatever order, and the same list again is no change.
    caller.put_group("prod", cidrs(&many[..64])).await.unwrap();
}

fn hash(token: &str) -> String {
    Sha256::digest(token)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Writes a token file: name, token, scopes.
fn write_tokens(path: &Path, tokens: &[(&str, &str, &[&str])]) {
    let text: String = tokens
        .iter()
        .map(|(name, token, scopes)| {
            format!(
                "[[token]]\nname = {name:?}\nsha256 = {:?}\nscopes = {scopes:?}\n",
                hash(token)
            )
        })
        .collect();
    std::fs::write(path, text).unwrap();
}

const OPS: (&str, &str, &[&str]) = ("ops", "ops-secret", &["admin"]);
const FEED: (&str, &str, &[&str]) = ("feed", "feed-secret", &["register:prod"]);
const GUEST: (&str, &str, &[&str]) = ("guest", "guest-secret", &["register:test"]);

/// A server with tokens, and where they stand.
async fn start_with_tokens() -> (Alone, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    write_tokens(&path, &[OPS, FEED, GUEST]);
    let setting = format!("tokens.path={}", path.display());
    let config = config(folder.path(), &[&setting]);
    (start_in(folder, config).await, path)
}

fn code<T: std::fmt::Debug>(answer: Result<T, v1::Error>) -> (ErrorCode, String) {
    let error = answer.unwrap_err();
    assert_eq!(error.effect(), v1::Effect::None);
    (error.code(), error.message)
}

#[tokio::test]
async fn a_token_must_be_known_and_hold_the_scope() {
    let (fixture, _) = start_with_tokens().await;
    let nobody = fixture.caller();
    let ops = nobody.clone().showing(OPS.1);
    let (feed, guest) = (nobody.clone().showing(FEED.1), nobody.clone().showing(GUEST.1));
    let list = scopes(&["register:prod/feed"]);
    for caller in [&nobody, &feed] {
        let (code, message) = code(caller.put_group("prod/feed", list.clone()).await);
        assert_eq!(code, ErrorCode::NotPermitted);
        assert!(
            message.starts_with("RC-402: ") && message.contains("the scope admin"),
            "{message}"
        );
    }
    ops.put_group("prod/feed", list).await.unwrap();

    feed.register(node("prod/feed", 1)).await.unwrap();
    ops.register(node("prod/feed", 2)).await.unwrap();
    let words = "the token holds register:test, which does not cover";
    assert_not_admitted(guest.register(node("prod/feed", 3)).await, words);
    assert_not_admitted(
        nobody.register(node("prod/feed", 3)).await,
        "no token with scopes was shown",
    );
    let told = ops.refused("prod").await.refused;
    let told: Vec<_> = told
        .iter()
        .map(|entry| (entry.rule(), entry.token.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (v1::AdmissionRule::Scope, ""),
            (v1::AdmissionRule::Scope, "guest")
        ]
    );

    for stranger in ["ops", "ops-secret2", "ops-secre", &hash(OPS.1)] {
        let stranger = nobody.clone().showing(stranger);
        let (code, message) = code(stranger.register(node("prod/feed", 3)).await);
        assert_eq!(code, ErrorCode::Unauthenticated);
        assert!(message.starts_with("RC-401: "), "{message}");
        let refused = stranger.attend().await.err().unwrap();
        assert_eq!(refused.code(), ErrorCode::Unauthenticated);
        let query = v1::QueryRequest::default();
        let status = stranger
            .client()
            .query(stranger.request(query))
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        let mut watch = v1::watch_client::WatchClient::new(stranger.channel.clone());
        let status = watch
            .watch(stranger.request(tokio_stream::empty()))
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        let mut sessions = SessionsClient::new(stranger.channel.clone());
        let request = stranger.request(v1::ListSessionsRequest::default());
        let status = sessions.list_sessions(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        // How the servers do is told to everybody.
        let mut cluster = v1::cluster_client::ClusterClient::new(stranger.channel.clone());
        cluster
            .status(stranger.request(v1::StatusRequest {}))
            .await
            .unwrap();
    }
    assert_eq!(ops.nodes("prod/feed", "feed").await, ["10.0.0.1:1", "10.0.0.1:2"]);
}

#[tokio::test]
async fn operators_calls_take_the_scope_admin() {
    let (fixture, _) = start_with_tokens().await;
    let feed = fixture.caller().showing(FEED.1);
    let ops = fixture.caller().showing(OPS.1);
    macro_rules! refused {
        ($client:expr, $($method:ident($request:expr)),* $(,)?) => {
            $(
                let status = $client.$method(feed.request($request)).await.unwrap_err();
                let refusal = error(&status);
                assert_eq!(refusal.code(), ErrorCode::NotPermitted, "{}: {refusal:?}", stringify!($method));
                assert_eq!(status.code(), tonic::Code::PermissionDenied);
            )*
        };
    }
    refused!(
        feed.client(),
        put_group(v1::PutGroupRequest::default()),
        delete_group(v1::DeleteGroupRequest::default()),
        put_service(v1::PutServiceRequest::default()),
        delete_service(v1::DeleteServiceRequest::default()),
        set_override(v1::SetOverrideRequest::default()),
        clear_override(v1::ClearOverrideRequest::default()),
        confirm_removal(v1::ConfirmRemovalRequest::default()),
        set_storm(v1::SetStormRequest::default()),
        refused_registrations(v1::RefusedRegistrationsRequest::default()),
    );
    refused!(
        SessionsClient::new(feed.channel.clone()),
        end_session(v1::EndSessionRequest::default()),
    );
    refused!(
        v1::cluster_client::ClusterClient::new(feed.channel.clone()),
        add_learner(v1::AddLearnerRequest::default()),
        promote(v1::PromoteRequest::default()),
        remove(v1::RemoveRequest::default()),
        transfer_leadership(v1::TransferLeadershipRequest::default()),
        take_snapshot(v1::TakeSnapshotRequest {}),
    );
    let mut cluster = v1::cluster_client::ClusterClient::new(ops.channel.clone());
    cluster
        .take_snapshot(ops.request(v1::TakeSnapshotRequest {}))
        .await
        .unwrap();
    // Reading is open to everybody.
    let groups = feed
        .client()
        .list_groups(feed.request(v1::ListGroupsRequest::default()))
        .await;
    assert!(!groups.unwrap().into_inner().groups.is_empty());
}

#[tokio::test]
async fn with_tokens_a_word_about_nobodys_nodes_takes_a_scope_too() {
    let (fixture, _) = start_with_tokens().await;
    let nobody = fixture.caller();
    let (ops, feed, guest) = (
        nobody.clone().showing(OPS.1),
        nobody.clone().showing(FEED.1),
        nobody.clone().showing(GUEST.1),
    );
    ops.put_group("prod", v1::AdmissionList::default()).await.unwrap();
    feed.register(node("prod", 1)).await.unwrap();
    let mut stream = guest.attend().await.unwrap();
    stream.register(ephemeral("prod", 2)).await.unwrap();
    stream.drain(key("prod", 2)).await.unwrap();
    for (port, caller) in [(1, &nobody), (1, &guest), (2, &guest), (3, &guest)] {
        let (code, message) = code(caller.deregister(key("prod", port)).await);
        assert_eq!(code, ErrorCode::NotPermitted);
        assert!(message.contains("the scope register:prod"), "{message}");
    }
    let (code, _) = code(stream.drain(key("prod", 1)).await);
    assert_eq!(
        code,
        ErrorCode::NotPermitted,
        "a static node under somebody's session"
    );
    feed.deregister(key("prod", 1)).await.unwrap();
    ops.deregister(key("prod", 2)).await.unwrap();
    assert_eq!(ops.nodes("prod", "feed").await, Vec::<String>::new());
}

#[tokio::test]
async fn groups_of_mode_ap_are_asked_at_the_same_doors() {
    let (fixture, _) = start_with_tokens().await;
    let nobody = fixture.caller();
    let ops = nobody.clone().showing(OPS.1);
    let feed = nobody.clone().showing(FEED.1);
    let settings = v1::GroupSettings {
        mode: v1::GroupMode::Ap.into(),
        auto_create: true,
        admission: Some(environments(&["prod"])),
        ..v1::GroupSettings::default()
    };
    let request = v1::PutGroupRequest {
        group: "prod".into(),
        settings: Some(settings),
        ..v1::PutGroupRequest::default()
    };
    ops.client().put_group(ops.request(request)).await.unwrap();
    let listed = feed.clone().claiming("prod");
    let settled = async {
        while listed.register(node("prod", 1)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    assert_not_admitted(feed.register(node("prod", 2)).await, "no environment was claimed");
    let mut stream = nobody.attend().await.unwrap();
    assert_not_admitted(
        stream.register(ephemeral("prod", 3)).await,
        "no environment was claimed",
    );
    let mut stream = nobody.clone().claiming("prod").attend().await.unwrap();
    stream.register(ephemeral("prod", 4)).await.unwrap();
    stream.drain(key("prod", 4)).await.unwrap();
    let (code, _) = code(stream.drain(key("prod", 1)).await);
    assert_eq!(code, ErrorCode::NotPermitted);
    let told = ops.refused("prod").await.refused;
    let told: Vec<_> = told
        .iter()
        .map(|entry| (entry.token.as_str(), entry.client.as_str()))
        .collect();
    assert_eq!(told, [("", "a provider"), ("feed", "")]);
}

#[tokio::test]
async fn a_revoked_token_registers_nothing_more_on_a_stream_that_it_opened() {
    let (fixture, path) = start_with_tokens().await;
    let ops = fixture.caller().showing(OPS.1);
    ops.put_group("prod", scopes(&["register:prod"])).await.unwrap();
    let mut stream = fixture.caller().showing(FEED.1).attend().await.unwrap();
    stream.register(ephemeral("prod", 1)).await.unwrap();

    // Its scopes change, then it goes, and the stream is still the same.
    write_tokens(&path, &[OPS, (FEED.0, FEED.1, &["register:test"])]);
    let mut ports = 2_u32..;
    let mut wait_for = async |wanted: ErrorCode| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = stream.register(ephemeral("prod", ports.next().unwrap())).await;
            if answer.as_ref().is_err_and(|error| error.code() == wanted) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    wait_for(ErrorCode::AdmissionRefused).await;
    write_tokens(&path, &[OPS]);
    wait_for(ErrorCode::Unauthenticated).await;
    let open = Asked::Open(v1::OpenSession::default());
    let attach = Asked::Attach(v1::AttachSession {
        secret: vec![0; 16].into(),
    });
    for asked in [open, attach] {
        match stream.ask(asked).await {
            Answered::Error(error) => assert_eq!(error.code(), ErrorCode::Unauthenticated),
            other => panic!("{other:?}"),
        }
    }
    let close = Asked::Close(v1::CloseSession::default());
    stream.write(close).await.expect("it may go");
    drop(fixture.folder);
}

#[tokio::test]
async fn without_a_token_file_no_token_is_accepted_and_no_scope_is_held() {
    let fixture = start(&[]).await;
    let caller = fixture.caller();
    caller
        .put_group("prod", scopes(&["register:prod"]))
        .await
        .unwrap();
    assert_not_admitted(
        caller.register(node("prod", 1)).await,
        "no token with scopes was shown",
    );
    let (code, message) = code(caller.clone().showing("x").register(node("prod", 1)).await);
    assert_eq!(code, ErrorCode::Unauthenticated);
    assert!(message.contains("[tokens] path"), "{message}");
}

#[tokio::test]
async fn a_token_file_that_cannot_be_used_is_named_and_nothing_starts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    let data = folder.path().join("data");
    let setting = format!("tokens.path={}", path.display());
    let config = config(folder.path(), &[&setting]);
    for text in [None, Some("garbage"), Some("")] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let problem = Server::start(config.clone(), Preset::Dev)
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            problem.starts_with("RC-205: ") && problem.contains("tokens.toml"),
            "{problem}"
        );
        assert!(!data.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_shows_its_token_and_claim_and_tells_refusals_apart() {
    let (fixture, _) = start_with_tokens().await;
    let address = fixture.server.addresses().client.to_string();
    let ops = fixture.caller().showing(OPS.1);
    let list = v1::AdmissionList {
        environments: vec!["prod".into()],
        ..scopes(&["register:prod"])
    };
    ops.put_group("prod", list).await.unwrap();
    let config = || RegistryConfig::new([address.as_str()]);
    let open = async |config: RegistryConfig| {
        let registry = rollcall_client::Registry::connect(config).unwrap();
        registry.open_session(SessionOptions::default()).await
    };
    let service = ServiceKey::new("prod", "feed");
    let registration = |port| Registration::new("http", "10.0.0.1", port);

    let session = open(config().token(FEED.1).environment("prod")).await.unwrap();
    session.register(&service, registration(1)).await.unwrap();
    let stranger = open(config().token("stranger")).await;
    assert!(
        matches!(stranger, Err(Error::Unauthenticated { .. })),
        "{stranger:?}"
    );
    let lost = open(config().token(FEED.1)).await.unwrap();
    let refused = lost.register(&service, registration(2)).await.unwrap_err();
    let Error::AdmissionRefused { subject, message } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(subject, "prod");
    assert!(message.contains("no environment was claimed"), "{message}");

    let tool = rollcall_client::Registry::connect(config().token(FEED.1)).unwrap();
    let refused = tool.refused_registrations("", 0).await.unwrap_err();
    assert!(matches!(refused, Error::NotPermitted { .. }), "{refused:?}");
    let tool = rollcall_client::Registry::connect(config().token(OPS.1)).unwrap();
    let told = tool.refused_registrations("prod", 0).await.unwrap().value;
    assert_eq!((told.refused.len(), told.refused[0].token.as_str()), (1, "feed"));
    let groups = tool
        .all_groups("prod", rollcall_client::ReadOptions::default())
        .await
        .unwrap();
    assert_eq!(groups.value.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_that_took_a_registration_judges_it_whoever_leads_and_after_a_restart() {
    let mut cluster = support::cluster(3).await;
    let leader = cluster.leader(WAIT_MAX).await.unwrap();
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let (at_leader, at_follower) = (
        cluster.server(leader).address().to_owned(),
        cluster.server(follower).address().to_owned(),
    );
    Caller::to(&at_leader)
        .put_group("prod", cidrs(&["127.0.9.0/24"]))
        .await
        .unwrap();
    cluster.wait_converged(WAIT_MAX).await.unwrap();
    // The servers talk to each other from 127.0.0.1, which is not listed: only the client's address counts.
    for (port, server) in [(1, &at_leader), (2, &at_follower)] {
        Caller::to(server)
            .from("127.0.9.1")
            .register(node("prod", port))
            .await
            .unwrap();
        assert_not_admitted(
            Caller::to(server).register(node("prod", 9)).await,
            "127.0.0.1 is in none",
        );
    }
    assert_eq!(Caller::to(&at_leader).refused("prod").await.refused.len(), 1);

    // A group that is new elsewhere is known here before anybody enters it.
    for number in 0..20 {
        let group = format!("new-{number}");
        Caller::to(&at_leader)
            .put_group(&group, cidrs(&["127.0.9.0/24"]))
            .await
            .unwrap();
        assert_not_admitted(
            Caller::to(&at_follower).register(node(&group, 1)).await,
            "127.0.0.1 is in none",
        );
    }

    cluster.server(leader).kill9().await.unwrap();
    let judged = |server: String| async move {
        let answer = Caller::to(&server).register(node("prod", 9)).await;
        answer
            .err()
            .filter(|error| error.code() == ErrorCode::AdmissionRefused)
            .map(drop)
    };
    eventually("the list under another leader", WAIT_MAX, || {
        judged(at_follower.clone())
    })
    .await
    .unwrap();
    for id in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.server(id).kill9().await.unwrap();
    }
    for id in cluster.ids() {
        cluster.server(id).start().unwrap();
    }
    cluster.wait_ready(WAIT_MAX).await.unwrap();
    cluster.wait_converged(WAIT_MAX).await.unwrap();
    let inside = Caller::to(&at_follower).from("127.0.9.1");
    eventually("writes after the restart", WAIT_MAX, || async {
        inside.register(node("prod", 3)).await.ok()
    })
    .await
    .unwrap();
    assert_not_admitted(
        Caller::to(&at_follower).register(node("prod", 9)).await,
        "127.0.0.1 is in none",
    );
    assert_eq!(
        inside.nodes("prod", "feed").await,
        ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"]
    );
}
