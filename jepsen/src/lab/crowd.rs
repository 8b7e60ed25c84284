//! Many providers on one stream: each with a session and a node of its own, all of them heard from or silent at
//! the same moment.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rollcall_proto::v1::session_request::Request;
use rollcall_proto::v1::session_response::Response;
use rollcall_proto::v1::sessions_client::SessionsClient;
use rollcall_proto::v1::{
    Address, OpenSession, RegisterNode, RegisterRequest, Registration, Renew, ServiceKey, SessionRequest,
    SessionResponse,
};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::reading::{ASK_MAX, way_to};

const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Requests under way.
const PIPELINE: usize = 128;

/// Sessions on one stream of one server, each with one node. Dropping it is the death of all of them at once.
#[derive(Debug)]
pub struct Crowd {
    requests: mpsc::Sender<SessionRequest>,
    answers: Streaming<SessionResponse>,
    call: u64,
    /// Their ids, in the order of the nodes.
    pub sessions: Vec<u64>,
}

impl Crowd {
    /// Opens `count` sessions at the server at `address`, and registers node `name-0`, `name-1`, ... under them.
    ///
    /// # Errors
    /// The server does not answer within thirty seconds, or refuses.
    pub async fn register(
        address: &str,
        ttl: Duration,
        (group, service, name): (&str, &str, &str),
        count: usize,
    ) -> anyhow::Result<Self> {
        let (requests, outgoing) = mpsc::channel(PIPELINE);
        let mut client = SessionsClient::new(way_to(address, ASK_MAX, ASK_MAX)?);
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let answers = client.attend(outgoing).await?.into_inner();
        let mut crowd = Self {
            requests,
            answers,
            call: 0,
            sessions: Vec::new(),
        };
        let ttl_ms = u64::try_from(ttl.as_millis())?;
        let open = Request::Open(OpenSession {
            ttl_ms,
            client: "crowd".into(),
            ..OpenSession::default()
        });
        for answer in crowd.ask_all(vec![(0, open); count]).await? {
            match answer {
                Response::Opened(opened) => crowd.sessions.push(opened.session),
                other => bail!("the answer to an opening was {other:?}"),
            }
        }
        let key = ServiceKey {
            group: group.into(),
            service: service.into(),
        };
        let registrations = crowd.sessions.iter().enumerate().map(|(number, session)| {
            let registration = Registration {
                id: format!("{name}-{number}"),
                addresses: vec![Address {
                    name: "tcp".into(),
                    host: "127.0.0.1".into(),
                    port: 1,
                }],
                ..Registration::default()
            };
            let node = RegisterNode {
                key: Some(key.clone()),
                registration: Some(registration),
                expected: None,
            };
            let register = RegisterRequest {
                nodes: vec![node],
                ..RegisterRequest::default()
            };
            (*session, Request::Register(register))
        });
        for answer in crowd.ask_all(registrations.collect()).await? {
            ensure!(
                matches!(answer, Response::Written(_)),
                "the answer to a registration was {answer:?}"
            );
        }
        Ok(crowd)
    }

    /// One heartbeat of all of them; how many sessions were not found.
    ///
    /// # Errors
    /// The server does not answer within thirty seconds, or with something else.
    pub async fn renew(&mut self) -> anyhow::Result<usize> {
        let sessions = self.sessions.clone();
        match self
            .ask_all(vec![(0, Request::Renew(Renew { sessions }))])
            .await?
            .pop()
        {
            Some(Response::Renewed(renewed)) => Ok(renewed.not_found.len()),
            other => bail!("the answer to a heartbeat was {other:?}"),
        }
    }

    /// Asks one after the other without waiting; the answers in the order of the questions.
    async fn ask_all(&mut self, questions: Vec<(u64, Request)>) -> anyhow::Result<Vec<Response>> {
        let first = self.call + 1;
        let count = questions.len() as u64;
        self.call += count;
        let requests = self.requests.clone();
        let asking = async move {
            for (call, (session, request)) in (first..).zip(questions) {
                let message = SessionRequest {
                    call,
                    session,
                    request: Some(request),
                };
                requests.send(message).await.context("the stream is closed")?;
            }
            anyhow::Ok(())
        };
        let mut answered = BTreeMap::new();
        let answers = &mut self.answers;
        let hearing = async {
            while (answered.len() as u64) < count {
                let answer = answers.message().await?.context("the server ended the stream")?;
                if answer.call >= first {
                    answered.insert(answer.call, answer.response.context("an answer without content")?);
                }
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(ANSWER_MAX, async { tokio::try_join!(asking, hearing) })
            .await
            .context("no answer")??;
        Ok(answered.into_values().collect())
    }
}
