//! etcd as Debian packages it (3.4): leases, keys below `/bench/<service>/`, one watch stream a connection.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use self::wire::kv_client::KvClient;
use self::wire::lease_client::LeaseClient;
use self::wire::maintenance_client::MaintenanceClient;
use self::wire::request_op::Request as Op;
use self::wire::watch_client::WatchClient;
use super::{Client, Dialect, Node, Product, Programs, Read, Ticket, channel};
use crate::board::Watcher;
use crate::server::{Ports, ServerPlan, first_line};

#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
mod wire {
    tonic::include_proto!("etcdserverpb");
}

pub(crate) struct Etcd;

#[tonic::async_trait]
impl Product for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn version(&self, programs: &Programs) -> Result<String> {
        let program = programs.peers.join("debian/usr/bin/etcd");
        let said = first_line(&program, &["--version"])?;
        Ok(said.rsplit(' ').next().unwrap_or_default().to_owned())
    }

    fn settings(&self) -> &'static str {
        "as it ships"
    }

    fn plan(
        &self,
        programs: &Programs,
        folder: &Path,
        servers: usize,
        _ttl: Duration,
    ) -> Result<Vec<ServerPlan>> {
        let mut ports = Ports::new();
        let addresses = (0..servers)
            .map(|_| Ok((ports.free()?, ports.free()?)))
            .collect::<Result<Vec<_>>>()?;
        let members: Vec<_> = addresses
            .iter()
            .enumerate()
            .map(|(index, (_, peer))| format!("s{index}=http://127.0.0.1:{peer}"))
            .collect();
        let plan = |(index, (client, peer)): (usize, &(u16, u16))| {
            let folder = folder.join(format!("etcd-{index}"));
            let client_url = format!("http://127.0.0.1:{client}");
            let peer_url = format!("http://127.0.0.1:{peer}");
            let mut plan = ServerPlan::new(programs.peers.join("debian/usr/bin/etcd"), &folder);
            plan.address = format!("127.0.0.1:{client}");
            plan.arguments = [
                "--name".into(),
                format!("s{index}"),
                "--data-dir".into(),
                folder.join("data").display().to_string(),
                "--listen-client-urls".into(),
                client_url.clone(),
                "--advertise-client-urls".into(),
                client_url,
                "--listen-peer-urls".into(),
                peer_url.clone(),
                "--initial-advertise-peer-urls".into(),
                peer_url,
                "--initial-cluster".into(),
                members.join(","),
                "--initial-cluster-token".into(),
                "bench".into(),
                "--initial-cluster-state".into(),
                "new".into(),
            ]
            .into();
            plan
        };
        Ok(addresses.iter().enumerate().map(plan).collect())
    }

    fn dialects(&self) -> Vec<Arc<dyn Dialect>> {
        vec![Arc::new(V3)]
    }

    async fn leader(&self, addresses: &[String]) -> Result<usize> {
        for (index, address) in addresses.iter().enumerate() {
            let mut maintenance = MaintenanceClient::new(channel(address).await?);
            let status = maintenance.status(wire::StatusRequest {}).await?.into_inner();
            if status.header.map(|header| header.member_id) == Some(status.leader) {
                return Ok(index);
            }
        }
        bail!("no etcd server leads")
    }
}

struct V3;

#[tonic::async_trait]
impl Dialect for V3 {
    fn name(&self) -> &'static str {
        ""
    }

    fn can(&self, read: Read) -> bool {
        matches!(read, Read::Local | Read::Linearizable)
    }

    async fn prepare(&self, _addresses: &[String], _services: &[Arc<str>]) -> Result<()> {
        Ok(())
    }

    async fn connect(
        &self,
        address: &str,
        _ttl: Duration,
        _ticket: Option<&Ticket>,
    ) -> Result<Arc<dyn Client>> {
        // A lease is kept alive at any server: nothing is to be done to go on with one.
        Ok(Arc::new(Connection {
            channel: channel(address).await?,
            keeper: tokio::sync::OnceCell::new(),
            watches: tokio::sync::OnceCell::new(),
        }))
    }
}

struct Connection {
    channel: Channel,
    keeper: tokio::sync::OnceCell<Keeper>,
    watches: tokio::sync::OnceCell<Watches>,
}

/// The stream of keep-alives; answers come in order.
struct Keeper {
    requests: mpsc::UnboundedSender<wire::LeaseKeepAliveRequest>,
    waiting: Arc<Mutex<VecDeque<oneshot::Sender<i64>>>>,
}

/// Who waits for a watch to be created, in order.
type Creating = Arc<Mutex<VecDeque<(oneshot::Sender<()>, Arc<Watcher>)>>>;

/// The stream of watches; their ids count from 0 in the order of creation.
struct Watches {
    requests: mpsc::UnboundedSender<wire::WatchRequest>,
    created: Creating,
    order: tokio::sync::Mutex<()>,
}

impl Connection {
    async fn keeper(&self) -> Result<Keeper> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let waiting: Arc<Mutex<VecDeque<oneshot::Sender<i64>>>> = Arc::default();
        let mut leases = LeaseClient::new(self.channel.clone());
        // The server answers the call itself only with the first message.
        let waiters = Arc::clone(&waiting);
        tokio::spawn(async move {
            let Ok(answers) = leases
                .lease_keep_alive(UnboundedReceiverStream::new(outgoing))
                .await
            else {
                waiters.lock().clear();
                return;
            };
            let mut answers = answers.into_inner();
            while let Ok(Some(answer)) = answers.message().await {
                if let Some(waiter) = waiters.lock().pop_front() {
                    let _gone = waiter.send(answer.ttl);
                }
            }
            waiters.lock().clear();
        });
        Ok(Keeper { requests, waiting })
    }

    async fn watches(&self) -> Result<Watches> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let created = Creating::default();
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        let creating = Arc::clone(&created);
        tokio::spawn(async move {
            let Ok(answers) = client.watch(UnboundedReceiverStream::new(outgoing)).await else {
                return;
            };
            let mut answers = answers.into_inner();
            let mut watchers = std::collections::HashMap::new();
            while let Ok(Some(answer)) = answers.message().await {
                if answer.created
                    && let Some((live, watcher)) = creating.lock().pop_front()
                {
                    watchers.insert(answer.watch_id, watcher);
                    let _gone = live.send(());
                }
                if let Some(watcher) = watchers.get(&answer.watch_id) {
                    for kv in answer.events.iter().filter_map(|event| event.kv.as_ref()) {
                        watcher.see(&kv.value);
                    }
                }
            }
        });
        Ok(Watches {
            requests,
            created,
            order: tokio::sync::Mutex::default(),
        })
    }
}

fn put(ticket: &Ticket, node: &Node) -> wire::PutRequest {
    wire::PutRequest {
        key: format!("/bench/{}/{}", node.service, node.id()).into(),
        value: node.payload().into(),
        lease: ticket.session as i64,
    }
}

/// Everything below a service.
fn range(service: &str) -> (String, String) {
    (format!("/bench/{service}/"), format!("/bench/{service}0"))
}

#[tonic::async_trait]
impl Client for Connection {
    async fn open(&self, ttl: Duration) -> Result<Ticket> {
        let request = wire::LeaseGrantRequest {
            ttl: ttl.as_secs().max(1) as i64,
            id: 0,
        };
        let granted = LeaseClient::new(self.channel.clone())
            .lease_grant(request)
            .await?
            .into_inner();
        ensure!(granted.error.is_empty(), "no lease: {}", granted.error);
        Ok(Ticket {
            session: granted.id as u64,
            ..Ticket::default()
        })
    }

    async fn register(&self, ticket: &Ticket, nodes: &[Node]) -> Result<()> {
        let mut kv = KvClient::new(self.channel.clone());
        if let [node] = nodes {
            kv.put(put(ticket, node)).await?;
        } else {
            let success = nodes.iter().map(|node| wire::RequestOp {
                request: Some(Op::RequestPut(put(ticket, node))),
            });
            let txn = wire::TxnRequest {
                success: success.collect(),
                failure: Vec::new(),
            };
            ensure!(
                kv.txn(txn).await?.into_inner().succeeded,
                "the transaction failed"
            );
        }
        Ok(())
    }

    async fn replace(&self, ticket: &Ticket, _old: &Node, new: &Node) -> Result<()> {
        self.register(ticket, std::slice::from_ref(new)).await
    }

    async fn renew(&self, ticket: &Ticket) -> Result<()> {
        let keeper = self.keeper.get_or_try_init(|| self.keeper()).await?;
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = keeper.waiting.lock();
            waiting.push_back(answer);
            let request = wire::LeaseKeepAliveRequest {
                id: ticket.session as i64,
            };
            keeper.requests.send(request).context("the stream has ended")?;
        }
        ensure!(
            answered.await.context("the stream has ended")? > 0,
            "the lease is gone"
        );
        Ok(())
    }

    async fn discover(&self, service: &str, read: Read) -> Result<usize> {
        let (key, range_end) = range(service);
        let request = wire::RangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            serializable: read != Read::Linearizable,
            ..wire::RangeRequest::default()
        };
        let mut kv = KvClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        Ok(kv.range(request).await?.into_inner().kvs.len())
    }

    async fn watch(&self, service: &Arc<str>, watcher: Arc<Watcher>) -> Result<()> {
        let watches = self.watches.get_or_try_init(|| self.watches()).await?;
        let (live, lives) = oneshot::channel();
        let (key, range_end) = range(service);
        let create = wire::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision: 0,
        };
        {
            let _order = watches.order.lock().await;
            watches.created.lock().push_back((live, watcher));
            let request = wire::WatchRequest {
                request_union: Some(wire::watch_request::RequestUnion::CreateRequest(create)),
            };
            watches.requests.send(request).context("the stream has ended")?;
        }
        lives.await.context("the watch was not created")
    }

    async fn close(&self, ticket: &Ticket) -> Result<()> {
        let request = wire::LeaseRevokeRequest {
            id: ticket.session as i64,
        };
        LeaseClient::new(self.channel.clone())
            .lease_revoke(request)
            .await?;
        Ok(())
    }
}
