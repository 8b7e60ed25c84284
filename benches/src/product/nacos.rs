//! r-nacos: Nacos 2.x over gRPC, JSON in an envelope. The connection is the session; instances live with it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::wire::Payload;
use self::wire::bi_request_stream_client::BiRequestStreamClient;
use self::wire::request_client::RequestClient;
use super::{Client, Dialect, Node, PORT, Product, Programs, Read, Ticket, channel};
use crate::board::Watcher;
use crate::server::{Ports, ServerPlan, first_line};

#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
mod wire {
    tonic::include_proto!("_");
}

const NAMESPACE: &str = "bench";
const GROUP: &str = "bench";
/// How long a connection may take until the server knows it.
const SETUP_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Nacos;

#[tonic::async_trait]
impl Product for Nacos {
    fn name(&self) -> &'static str {
        "r-nacos"
    }

    fn version(&self, programs: &Programs) -> Result<String> {
        let said = first_line(&programs.peers.join("rnacos/bin/rnacos"), &["--version"])?;
        Ok(said.rsplit(' ').next().unwrap_or_default().to_owned())
    }

    fn settings(&self) -> &'static str {
        "bound to 127.0.0.1; silent connections are noticed after the ttl where one is stated (15 s as it ships)"
    }

    fn plan(
        &self,
        programs: &Programs,
        folder: &Path,
        servers: usize,
        ttl: Duration,
    ) -> Result<Vec<ServerPlan>> {
        let mut ports = Ports::new();
        let mut plans: Vec<ServerPlan> = Vec::new();
        let mut first = String::new();
        for index in 0..servers {
            let (http, grpc, console) = (ports.free()?, ports.free()?, ports.free()?);
            let folder = folder.join(format!("rnacos-{index}"));
            let mut plan = ServerPlan::new(programs.peers.join("rnacos/bin/rnacos"), &folder);
            plan.address = format!("127.0.0.1:{grpc}");
            let mut set = |name: &str, value: String| plan.environment.push((name.to_owned(), value));
            set("RNACOS_HTTP_PORT", http.to_string());
            set("RNACOS_GRPC_PORT", grpc.to_string());
            set("RNACOS_HTTP_CONSOLE_PORT", console.to_string());
            set("RNACOS_SDK_HOST", "127.0.0.1".into());
            set("RNACOS_DATA_DIR", folder.join("data").display().to_string());
            set("RNACOS_RAFT_NODE_ID", (index + 1).to_string());
            set("RNACOS_RAFT_NODE_ADDR", format!("127.0.0.1:{grpc}"));
            set("RNACOS_RAFT_AUTO_INIT", (index == 0).to_string());
            if index == 0 {
                first = format!("127.0.0.1:{grpc}");
            } else {
                set("RNACOS_RAFT_JOIN_ADDR", first.clone());
                plan.after_the_first = true;
            }
            if ttl < Duration::from_secs(15) {
                set(
                    "RNACOS_GRPC_DETECTION_TIMEOUT_SECOND",
                    ttl.as_secs().max(1).to_string(),
                );
            }
            plans.push(plan);
        }
        Ok(plans)
    }

    fn dialects(&self) -> Vec<Arc<dyn Dialect>> {
        vec![Arc::new(Grpc)]
    }

    async fn leader(&self, _addresses: &[String]) -> Result<usize> {
        // Instances are replicated without a leader.
        Ok(0)
    }

    fn sessions_survive_a_restart(&self) -> bool {
        false
    }
}

struct Grpc;

#[tonic::async_trait]
impl Dialect for Grpc {
    fn name(&self) -> &'static str {
        ""
    }

    fn can(&self, read: Read) -> bool {
        read == Read::Local
    }

    async fn prepare(&self, _addresses: &[String], _services: &[Arc<str>]) -> Result<()> {
        Ok(())
    }

    async fn connect(
        &self,
        address: &str,
        _ttl: Duration,
        ticket: Option<&Ticket>,
    ) -> Result<Arc<dyn Client>> {
        if ticket.is_some() {
            bail!("a session cannot move to another connection");
        }
        Ok(Arc::new(Connection::connect(address).await?))
    }
}

type Watchers = Arc<Mutex<HashMap<String, Vec<Arc<Watcher>>>>>;

struct Connection {
    requests: RequestClient<tonic::transport::Channel>,
    /// Held as long as the connection is to last.
    _outgoing: mpsc::Sender<Payload>,
    watchers: Watchers,
}

fn payload(kind: &str, body: &Value) -> Payload {
    Payload {
        metadata: Some(wire::Metadata {
            r#type: kind.into(),
            headers: HashMap::new(),
            client_ip: "127.0.0.1".into(),
        }),
        body: Some(wire::Body {
            type_url: String::new(),
            value: body.to_string().into(),
        }),
    }
}

impl Connection {
    async fn connect(address: &str) -> Result<Self> {
        let channel = channel(address).await?;
        let requests = RequestClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let (outgoing, rest) = mpsc::channel(64);
        let setup = json!({
            "clientVersion": "Nacos-Rust-Client:v2.1.0", "tenant": NAMESPACE,
            "labels": { "source": "sdk", "module": "naming" }, "module": "internal",
        });
        outgoing.send(payload("ConnectionSetupRequest", &setup)).await?;
        let mut pushes = BiRequestStreamClient::new(channel)
            .max_decoding_message_size(64 << 20)
            .request_bi_stream(ReceiverStream::new(rest))
            .await?
            .into_inner();
        let watchers = Watchers::default();
        let (seen_by, answers) = (Arc::clone(&watchers), outgoing.downgrade());
        tokio::spawn(async move {
            while let Ok(Some(push)) = pushes.message().await {
                let Some(answers) = answers.upgrade() else { break };
                if let Some(answer) = take(&push, &seen_by)
                    && answers.send(answer).await.is_err()
                {
                    break;
                }
            }
        });
        let connection = Self {
            requests,
            _outgoing: outgoing,
            watchers,
        };
        // The stream is taken up behind the answer; until then calls are refused as unregistered.
        let deadline = tokio::time::Instant::now() + SETUP_MAX;
        while let Err(error) = connection.idle().await {
            if tokio::time::Instant::now() > deadline {
                return Err(error.context("the connection was not taken up"));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(connection)
    }

    async fn call(&self, kind: &str, body: &Value) -> Result<bytes::Bytes> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            result_code: u16,
            message: Option<String>,
        }
        let answer = self
            .requests
            .clone()
            .request(payload(kind, body))
            .await?
            .into_inner();
        let body = answer.body.context("an answer without a body")?.value;
        let head: Head = serde_json::from_slice(&body)?;
        if head.result_code != 200 {
            bail!(
                "{kind}: {} {}",
                head.result_code,
                head.message.unwrap_or_default()
            );
        }
        Ok(body)
    }

    fn named(&self, service: &str) -> Value {
        json!({ "module": "naming", "namespace": NAMESPACE, "serviceName": service, "groupName": GROUP })
    }
}

/// What the server sent unasked, and the answer that it waits for.
fn take(push: &Payload, watchers: &Watchers) -> Option<Payload> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Push {
        request_id: Option<String>,
        service_name: Option<String>,
    }
    let kind = push.metadata.as_ref()?.r#type.as_str();
    let body = &push.body.as_ref()?.value;
    let head: Push = serde_json::from_slice(body).ok()?;
    if kind == "NotifySubscriberRequest" {
        for watcher in watchers
            .lock()
            .get(head.service_name.as_deref()?)
            .into_iter()
            .flatten()
        {
            watcher.see_mark(newest_mark(body));
        }
    }
    let answer = json!({ "resultCode": 200, "errorCode": 0, "message": "", "requestId": head.request_id });
    let kind = kind.strip_suffix("Request")?;
    Some(payload(&format!("{kind}Response"), &answer))
}

/// A server keeps the metadata that an instance first came with, whatever is registered later: so it is the weight that
/// carries the mark, and is above 1 if there is one.
fn weight(node: &Node) -> f64 {
    1.0 + node.mark as f64
}

fn newest_mark(body: &[u8]) -> u64 {
    const WEIGHT: &[u8] = b"\"weight\":";
    let mut newest = 0;
    let mut rest = body;
    while let Some(at) = rest.iter().position(|byte| *byte == b':') {
        let (before, after) = rest.split_at(at + 1);
        if before.ends_with(WEIGHT) {
            let digits = after.iter().take_while(|byte| byte.is_ascii_digit());
            let weight = digits.fold(0, |weight, digit| weight * 10 + u64::from(digit - b'0'));
            newest = newest.max(weight.saturating_sub(1));
        }
        rest = after;
    }
    newest
}

fn instance(node: &Node) -> Value {
    json!({
        "ip": node.host(), "port": PORT, "weight": weight(node), "healthy": true, "enabled": true, "ephemeral": true,
        "clusterName": "DEFAULT", "serviceName": &*node.service, "metadata": { "data": node.payload() },
    })
}

#[tonic::async_trait]
impl Client for Connection {
    async fn open(&self, _ttl: Duration) -> Result<Ticket> {
        Ok(Ticket::default())
    }

    async fn register(&self, _ticket: &Ticket, nodes: &[Node]) -> Result<()> {
        let first = nodes.first().context("nothing to register")?;
        let mut request = self.named(&first.service);
        let kind = if let [node] = nodes {
            request["type"] = "registerInstance".into();
            request["instance"] = instance(node);
            "InstanceRequest"
        } else {
            request["type"] = "batchRegisterInstance".into();
            request["instances"] = nodes.iter().map(instance).collect();
            "BatchInstanceRequest"
        };
        self.call(kind, &request).await?;
        Ok(())
    }

    async fn replace(&self, ticket: &Ticket, _old: &Node, new: &Node) -> Result<()> {
        self.register(ticket, std::slice::from_ref(new)).await
    }

    async fn renew(&self, _ticket: &Ticket) -> Result<()> {
        self.idle().await
    }

    async fn discover(&self, service: &str, _read: Read) -> Result<usize> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            service_info: Info,
        }
        #[derive(Deserialize)]
        struct Info {
            hosts: Option<Vec<IgnoredAny>>,
        }
        let mut request = self.named(service);
        request["cluster"] = "".into();
        request["healthyOnly"] = false.into();
        let answer = self.call("ServiceQueryRequest", &request).await?;
        let answer: Answer = serde_json::from_slice(&answer)?;
        Ok(answer.service_info.hosts.map_or(0, |hosts| hosts.len()))
    }

    async fn watch(&self, service: &Arc<str>, watcher: Arc<Watcher>) -> Result<()> {
        self.watchers
            .lock()
            .entry(service.to_string())
            .or_default()
            .push(watcher);
        let mut request = self.named(service);
        request["subscribe"] = true.into();
        request["clusters"] = "".into();
        self.call("SubscribeServiceRequest", &request).await?;
        Ok(())
    }

    async fn close(&self, _ticket: &Ticket) -> Result<()> {
        // It ends with the connection.
        Ok(())
    }

    async fn idle(&self) -> Result<()> {
        self.call("HealthCheckRequest", &json!({ "module": "internal" }))
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_in_the_weight() {
        let service: Arc<str> = "s".into();
        let nodes: Vec<_> = (0..3)
            .map(|mark| instance(&Node::new(&service, 1, 20).marked(mark * 7)))
            .collect();
        let body = json!({ "serviceInfo": { "hosts": nodes } }).to_string();
        assert_eq!(newest_mark(body.as_bytes()), 14);
        assert_eq!(newest_mark(b"{\"weight\":"), 0);
    }
}
