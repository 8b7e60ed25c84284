//! One connection to ZooKeeper, and its session: requests overlap, answers are told apart by their number.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::jute::{self, Reader, Writer};
use crate::board::Watcher;
use crate::product::{Client, Node, Read, Ticket};

/// Largest answer taken.
const ANSWER_MAX: usize = 64 << 20;

pub(super) struct Connection {
    shared: Arc<Shared>,
    session: Ticket,
}

struct Shared {
    out: tokio::sync::Mutex<OwnedWriteHalf>,
    next: AtomicI32,
    broken: AtomicBool,
    waiting: Mutex<HashMap<i32, oneshot::Sender<Vec<u8>>>>,
    pings: Mutex<VecDeque<oneshot::Sender<Vec<u8>>>>,
    watchers: Mutex<HashMap<String, Vec<Arc<Watcher>>>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The reader holds the other half, and ends when the server closes in turn.
        let shared = Arc::clone(&self.shared);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _closed = shared.out.lock().await.shutdown().await;
            });
        }
    }
}

impl Connection {
    pub(super) async fn connect(address: &str, ttl: Duration, ticket: Option<&Ticket>) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reading, mut writing) = stream.into_split();
        let mut reading = BufReader::new(reading);
        let none = Ticket {
            session: 0,
            secret: vec![0; 16],
            ..Ticket::default()
        };
        let known = ticket.unwrap_or(&none);
        let hello = Writer::new()
            .int(0)
            .long(0)
            .int(i32::try_from(ttl.as_millis())?)
            .long(known.session as i64)
            .bytes(&known.secret)
            .flag(false);
        writing.write_all(&hello.finish()).await?;
        let answer = frame(&mut reading).await.context("the session was refused")?;
        let mut answer = Reader(&answer);
        let _version = answer.int()?;
        let granted = answer.int()?;
        let session = Ticket {
            session: answer.long()? as u64,
            secret: answer.bytes()?.to_vec(),
            ..Ticket::default()
        };
        ensure!(granted > 0 && session.session != 0, "the session has expired");
        let shared = Arc::new(Shared {
            out: tokio::sync::Mutex::new(writing),
            next: AtomicI32::new(1),
            broken: AtomicBool::new(false),
            waiting: Mutex::default(),
            pings: Mutex::default(),
            watchers: Mutex::default(),
        });
        tokio::spawn(read(Arc::clone(&shared), reading));
        Ok(Self { shared, session })
    }

    /// The answer's code.
    pub(super) async fn create(&self, path: &str, ephemeral: bool) -> Result<i32> {
        let (code, _) = self
            .shared
            .call(jute::CREATE, |w| jute::create(w, path, ephemeral))
            .await?;
        Ok(code)
    }

    async fn multi(&self, steps: impl FnOnce(Writer) -> Writer) -> Result<()> {
        let end = |w: Writer| w.int(-1).flag(true).int(-1);
        let (code, body) = self.shared.call(jute::MULTI, |w| end(steps(w))).await?;
        jute::check(code)?;
        // Each result begins with its kind; -1 is an error, and then all of them are.
        ensure!(Reader(&body).int()? != -1, "the transaction failed");
        Ok(())
    }
}

fn step(request: Writer, code: i32) -> Writer {
    request.int(code).flag(false).int(-1)
}

impl Shared {
    /// Sends a request, returns the answer's code and body.
    async fn call(&self, code: i32, body: impl FnOnce(Writer) -> Writer) -> Result<(i32, Vec<u8>)> {
        let (answer, answered) = oneshot::channel();
        let xid = if code == jute::PING {
            jute::PING_XID
        } else {
            self.next.fetch_add(1, Ordering::Relaxed)
        };
        let request = body(Writer::new().int(xid).int(code)).finish();
        {
            let mut out = self.out.lock().await;
            if code == jute::PING {
                self.pings.lock().push_back(answer);
            } else {
                self.waiting.lock().insert(xid, answer);
            }
            ensure!(!self.broken.load(Ordering::SeqCst), "the connection is lost");
            out.write_all(&request).await?;
        }
        let answer = answered.await.context("the connection is lost")?;
        let mut reader = Reader(&answer);
        let _zxid = reader.long()?;
        let code = reader.int()?;
        Ok((code, reader.0.to_vec()))
    }

    async fn children(&self, path: &str, watch: bool) -> Result<Vec<u8>> {
        let (code, body) = self
            .call(jute::GET_CHILDREN, |w| w.text(path).flag(watch))
            .await?;
        jute::check(code)?;
        Ok(body)
    }

    /// A watch fired, and is spent: the list is read again with a new one.
    async fn read_again(self: Arc<Self>, path: String) {
        if let Ok(children) = self.children(&path, true).await {
            for watcher in self.watchers.lock().get(&path).into_iter().flatten() {
                watcher.see(&children);
            }
        }
    }
}

async fn frame(reading: &mut BufReader<OwnedReadHalf>) -> Result<Vec<u8>> {
    let length = usize::try_from(reading.read_i32().await?)?;
    ensure!(length <= ANSWER_MAX, "an answer of {length} bytes");
    let mut frame = vec![0; length];
    reading.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn read(shared: Arc<Shared>, mut reading: BufReader<OwnedReadHalf>) {
    while let Ok(mut message) = frame(&mut reading).await {
        let Ok(xid) = Reader(&message).int() else { break };
        if xid == jute::EVENT_XID {
            let mut event = Reader(&message[4..]);
            let path = (|| {
                event.long()?;
                event.int()?;
                let (_kind, _state) = (event.int()?, event.int()?);
                anyhow::Ok(String::from_utf8_lossy(event.bytes()?).into_owned())
            })();
            if let Ok(path) = path {
                tokio::spawn(Arc::clone(&shared).read_again(path));
            }
            continue;
        }
        let waiter = if xid == jute::PING_XID {
            shared.pings.lock().pop_front()
        } else {
            shared.waiting.lock().remove(&xid)
        };
        if let Some(waiter) = waiter {
            let _gone = waiter.send(message.split_off(4));
        }
    }
    shared.broken.store(true, Ordering::SeqCst);
    shared.waiting.lock().clear();
    shared.pings.lock().clear();
}

fn path_of(node: &Node) -> String {
    format!("/bench/{}/{};{}", node.service, node.id(), node.payload())
}

#[tonic::async_trait]
impl Client for Connection {
    async fn open(&self, _ttl: Duration) -> Result<Ticket> {
        Ok(self.session.clone())
    }

    async fn register(&self, _ticket: &Ticket, nodes: &[Node]) -> Result<()> {
        if let [node] = nodes {
            // It is there: whoever asks again, after an answer was lost, has what was asked for.
            return match self.create(&path_of(node), true).await? {
                jute::NODE_EXISTS => Ok(()),
                code => jute::check(code),
            };
        }
        let steps = |request| {
            nodes.iter().fold(request, |request, node| {
                jute::create(step(request, jute::CREATE), &path_of(node), true)
            })
        };
        self.multi(steps).await
    }

    async fn replace(&self, _ticket: &Ticket, old: &Node, new: &Node) -> Result<()> {
        let steps = |request| {
            let deleted = step(request, jute::DELETE).text(&path_of(old)).int(-1);
            jute::create(step(deleted, jute::CREATE), &path_of(new), true)
        };
        self.multi(steps).await
    }

    async fn renew(&self, _ticket: &Ticket) -> Result<()> {
        let (code, _) = self.shared.call(jute::PING, |w| w).await?;
        jute::check(code)
    }

    async fn discover(&self, service: &str, read: Read) -> Result<usize> {
        let path = format!("/bench/{service}");
        let list = self.shared.children(&path, false);
        let children = if read == Read::Linearizable {
            // Answered in order: the list is read behind the sync.
            let sync = self.shared.call(jute::SYNC, |w| w.text(&path));
            let (synced, children) = tokio::join!(biased; sync, list);
            jute::check(synced?.0)?;
            children?
        } else {
            list.await?
        };
        let mut reader = Reader(&children);
        let count = usize::try_from(reader.int()?)?;
        for _ in 0..count {
            let _name = std::str::from_utf8(reader.bytes()?)?;
        }
        Ok(count)
    }

    async fn watch(&self, service: &Arc<str>, watcher: Arc<Watcher>) -> Result<()> {
        let path = format!("/bench/{service}");
        self.shared
            .watchers
            .lock()
            .entry(path.clone())
            .or_default()
            .push(watcher);
        self.shared.children(&path, true).await?;
        Ok(())
    }

    async fn close(&self, _ticket: &Ticket) -> Result<()> {
        // A follower may hang up before it answers.
        match self.shared.call(jute::CLOSE, |w| w).await {
            Ok((code, _)) => jute::check(code),
            Err(_) => Ok(()),
        }
    }

    async fn idle(&self) -> Result<()> {
        self.renew(&self.session).await
    }
}
