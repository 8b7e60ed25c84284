//! A provider that does exactly what it is told, and nothing by itself: no heartbeat, no reconnect.

use std::time::Duration;

use anyhow::{Context, bail};
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use rollcall_proto::v1::sessions_client::SessionsClient;
use rollcall_proto::v1::{
    Address, AttachSession, Error, GroupMode, OpenSession, RegisterNode, RegisterRequest, Registration,
    Renew, ServiceKey, SessionRequest, SessionResponse,
};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::reading::{ASK_MAX, way_to};

const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A stream of one server with one session on it.
#[derive(Debug)]
pub struct Attending {
    requests: mpsc::Sender<SessionRequest>,
    answers: Streaming<SessionResponse>,
    call: u64,
    /// The session's id.
    pub session: u64,
    /// Proves ownership at any server.
    pub secret: Vec<u8>,
    /// What the server granted.
    pub ttl: Duration,
}

impl Attending {
    /// Opens a session at the server at `address`.
    ///
    /// # Errors
    /// The server does not answer within ten seconds, or refuses.
    pub async fn open(address: &str, ttl: Duration) -> anyhow::Result<Self> {
        Self::open_for(address, ttl, GroupMode::Unspecified).await
    }

    /// The same, for nodes in groups of this mode.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_for(address: &str, ttl: Duration, mode: GroupMode) -> anyhow::Result<Self> {
        let mut attending = Self::stream(address).await?;
        let ttl_ms = u64::try_from(ttl.as_millis())?;
        let open = OpenSession {
            options: None,
            ttl_ms,
            client: "lab".into(),
            mode: mode.into(),
        };
        match attending.ask(Request::Open(open)).await? {
            Response::Opened(opened) => {
                attending.session = opened.session;
                attending.secret = opened.secret.to_vec();
                attending.ttl = Duration::from_millis(opened.ttl_ms);
                Ok(attending)
            }
            other => bail!("the answer to an opening was {other:?}"),
        }
    }

    /// Takes a session up at the server at `address`; `Err` inside: that server's refusal.
    ///
    /// # Errors
    /// The server does not answer within ten seconds.
    pub async fn attach(address: &str, session: u64, secret: &[u8]) -> anyhow::Result<Result<Self, Error>> {
        let mut attending = Self::stream(address).await?;
        attending.session = session;
        attending.secret = secret.to_vec();
        let attach = AttachSession {
            secret: secret.to_vec().into(),
        };
        match attending.ask(Request::Attach(attach)).await? {
            Response::Attached(attached) => {
                attending.ttl = Duration::from_millis(attached.ttl_ms);
                Ok(Ok(attending))
            }
            Response::Error(refused) => Ok(Err(refused)),
            other => bail!("the answer to an attachment was {other:?}"),
        }
    }

    /// Registers a node with one address.
    ///
    /// # Errors
    /// The server does not answer within ten seconds, or refuses.
    pub async fn register(&mut self, group: &str, service: &str, id: &str) -> anyhow::Result<u64> {
        let address = Address {
            name: "tcp".into(),
            host: "127.0.0.1".into(),
            port: 1,
        };
        let node = RegisterNode {
            key: Some(ServiceKey {
                group: group.into(),
                service: service.into(),
            }),
            registration: Some(Registration {
                id: id.into(),
                addresses: vec![address],
                ..Registration::default()
            }),
            expected: None,
        };
        let register = RegisterRequest {
            options: None,
            proof: None,
            nodes: vec![node],
        };
        match self.ask(Request::Register(register)).await? {
            Response::Written(written) => Ok(written.revision),
            other => bail!("the answer to a registration was {other:?}"),
        }
    }

    /// One heartbeat; `true`: acknowledged, `false`: the session was not found.
    ///
    /// # Errors
    /// The server does not answer within ten seconds, or with something else.
    pub async fn renew(&mut self) -> anyhow::Result<bool> {
        match self.ask(Request::Renew(Renew { sessions: Vec::new() })).await? {
            Response::Renewed(renewed) if renewed.not_found.contains(&self.session) => Ok(false),
            Response::Renewed(renewed) if renewed.sessions.contains(&self.session) => Ok(true),
            other => bail!("the answer to a heartbeat was {other:?}"),
        }
    }

    async fn stream(address: &str) -> anyhow::Result<Self> {
        let (requests, outgoing) = mpsc::channel(16);
        let mut client = SessionsClient::new(way_to(address, ASK_MAX, ASK_MAX)?);
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let answers = client.attend(outgoing).await?.into_inner();
        Ok(Self {
            requests,
            answers,
            call: 0,
            session: 0,
            secret: Vec::new(),
            ttl: Duration::ZERO,
        })
    }

    async fn ask(&mut self, request: Request) -> anyhow::Result<Response> {
        self.call += 1;
        let call = self.call;
        let message = SessionRequest {
            call,
            session: self.session,
            request: Some(request),
        };
        self.requests
            .send(message)
            .await
            .context("the stream is closed")?;
        let answer = async {
            loop {
                let answer = self
                    .answers
                    .message()
                    .await?
                    .context("the server ended the stream")?;
                if answer.call == call {
                    return answer.response.context("an answer without content");
                }
            }
        };
        tokio::time::timeout(ANSWER_MAX, answer)
            .await
            .context("no answer")?
    }
}
