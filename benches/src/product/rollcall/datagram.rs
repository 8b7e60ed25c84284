//! Heartbeats by datagram (docs/heartbeats.md): a session without a connection. It is opened, and nodes are registered,
//! on a stream that is given up then.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use rollcall_proto::heartbeat::{
    Answer, DATAGRAM_BYTES_MAX, ENTRIES_MAX, EntriesWriter, HeartbeatKey, Kind, write_hello,
};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Connection, Voice};
use crate::board::Watcher;
use crate::product::{Client, Node, Read, Ticket};

/// What is not answered in this time is said again, so often.
const PATIENCE: Duration = Duration::from_millis(250);
const TRIES: usize = 20;

/// A client whose session needs no connection.
pub(super) struct Datagrams {
    voice: Voice,
    address: String,
    ttl: Duration,
    /// Until it is given up.
    connection: Mutex<Option<Arc<Connection>>>,
    beats: tokio::sync::OnceCell<Beats>,
}

struct Beats {
    socket: Arc<UdpSocket>,
    number: u64,
    saying: Mutex<Saying>,
    waiting: Waiting,
    reader: JoinHandle<()>,
}

/// Held while heartbeats leave, so that they leave in order.
#[derive(Default)]
struct Saying {
    counter: u64,
    keys: HashMap<u64, HeartbeatKey>,
}

/// In the order of their counters.
type Waiting = Arc<Mutex<VecDeque<Question>>>;

/// A datagram on its way.
struct Question {
    /// The counter of its last heartbeat.
    last: u64,
    sessions: usize,
    /// Of how many no answer has come.
    left: usize,
    answer: oneshot::Sender<Kind>,
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Beats {
    /// One datagram with a heartbeat of each, and the last one's counter. One that finds no room counts as lost on the way.
    fn send(&self, tickets: &[Ticket]) -> (u64, oneshot::Receiver<Kind>) {
        let (answer, answered) = oneshot::channel();
        let mut question = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        let mut writer = EntriesWriter::begin(&mut question, Kind::Beats, self.number);
        let mut saying = self.saying.lock();
        let Saying { counter, keys } = &mut *saying;
        for ticket in tickets {
            *counter += 1;
            let key = keys
                .entry(ticket.session)
                .or_insert_with(|| HeartbeatKey::of_secret(&ticket.secret));
            writer.push(
                &mut question,
                &key.entry(Kind::Beats, self.number, ticket.session, *counter),
            );
        }
        self.waiting.lock().push_back(Question {
            last: *counter,
            sessions: tickets.len(),
            left: tickets.len(),
            answer,
        });
        let _lost = self.socket.try_send(&question);
        (*counter, answered)
    }

    /// Says it again until it is answered.
    async fn renew(&self, tickets: &[Ticket]) -> Result<()> {
        for _ in 0..TRIES {
            let (counter, answered) = self.send(tickets);
            match tokio::time::timeout(PATIENCE, answered).await {
                Ok(Ok(Kind::Renewed)) => return Ok(()),
                Ok(Ok(other)) => bail!("the heartbeat was answered with {other:?}"),
                Ok(Err(_)) | Err(_) => self.waiting.lock().retain(|waiting| waiting.last != counter),
            }
        }
        bail!("no heartbeat was answered")
    }
}

impl Datagrams {
    pub(super) fn new(voice: Voice, address: &str, ttl: Duration, connection: Arc<Connection>) -> Self {
        Self {
            voice,
            address: address.to_owned(),
            ttl,
            connection: Mutex::new(Some(connection)),
            beats: tokio::sync::OnceCell::new(),
        }
    }

    fn connection(&self) -> Result<Arc<Connection>> {
        self.connection
            .lock()
            .clone()
            .context("the connection was given up")
    }

    async fn beats(&self, ticket: &Ticket) -> Result<&Beats> {
        self.beats.get_or_try_init(|| self.begin(ticket)).await
    }

    /// Says hello where the server said that it listens.
    async fn begin(&self, ticket: &Ticket) -> Result<Beats> {
        ensure!(
            !ticket.heartbeat.is_empty(),
            "the server takes no heartbeats by datagram"
        );
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
        let to = match ticket.heartbeat.strip_prefix(':') {
            Some(port) => format!("{host}:{port}"),
            None => ticket.heartbeat.clone(),
        };
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        socket.connect(&to).await?;
        let number = hello(&socket).await?;
        let waiting = Waiting::default();
        let reader = tokio::spawn(read(Arc::clone(&socket), Arc::clone(&waiting)));
        Ok(Beats {
            socket,
            number,
            saying: Mutex::default(),
            waiting,
            reader,
        })
    }
}

async fn hello(socket: &UdpSocket) -> Result<u64> {
    let mut question = Vec::new();
    write_hello(&mut question, &[7; 16]);
    let mut answer = [0; DATAGRAM_BYTES_MAX];
    for _ in 0..TRIES {
        socket.send(&question).await?;
        if let Ok(came) = tokio::time::timeout(PATIENCE, socket.recv(&mut answer)).await
            && let Ok(Answer::Challenge { number, .. }) = Answer::read(&answer[..came?])
        {
            return Ok(number);
        }
    }
    bail!("the server does not answer datagrams")
}

async fn read(socket: Arc<UdpSocket>, waiting: Waiting) {
    let mut bytes = [0; DATAGRAM_BYTES_MAX];
    while let Ok(came) = socket.recv(&mut bytes).await {
        if let Ok(Answer::Verdicts { kind, entries, .. }) = Answer::read(&bytes[..came]) {
            let mut waiting = waiting.lock();
            for entry in entries {
                // What was acknowledged later holds for what was asked before of the same session.
                while waiting
                    .front()
                    .is_some_and(|asked| asked.sessions == 1 && asked.last < entry.counter)
                    && let Some(asked) = waiting.pop_front()
                {
                    let _gone = asked.answer.send(kind);
                }
                let Some(asked) = waiting.front_mut().filter(|asked| entry.counter <= asked.last) else {
                    continue;
                };
                asked.left -= 1;
                if (asked.left == 0 || kind != Kind::Renewed)
                    && let Some(asked) = waiting.pop_front()
                {
                    let _gone = asked.answer.send(kind);
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Client for Datagrams {
    async fn open(&self, ttl: Duration) -> Result<Ticket> {
        let ticket = self.connection()?.open(ttl).await?;
        self.beats(&ticket).await?;
        Ok(ticket)
    }

    /// And gives the connection up.
    async fn register(&self, ticket: &Ticket, nodes: &[Node]) -> Result<()> {
        self.connection()?.register(ticket, nodes).await?;
        self.connection.lock().take();
        Ok(())
    }

    async fn replace(&self, ticket: &Ticket, old: &Node, new: &Node) -> Result<()> {
        self.connection()?.replace(ticket, old, new).await
    }

    async fn renew(&self, ticket: &Ticket) -> Result<()> {
        self.beats(ticket)
            .await?
            .renew(std::slice::from_ref(ticket))
            .await
    }

    async fn renew_all(&self, tickets: &[Ticket]) -> Result<()> {
        let first = tickets.first().context("whose heartbeat?")?;
        ensure!(tickets.len() <= ENTRIES_MAX, "they do not fit into one datagram");
        self.beats(first).await?.renew(tickets).await
    }

    async fn discover(&self, service: &str, read: Read) -> Result<usize> {
        let connection = self.connection.lock().clone();
        match connection {
            Some(connection) => connection.discover(service, read).await,
            None => {
                self.voice
                    .dial(&self.address)
                    .await?
                    .discover(service, read)
                    .await
            }
        }
    }

    async fn watch(&self, service: &Arc<str>, watcher: Arc<Watcher>) -> Result<()> {
        self.connection()?.watch(service, watcher).await
    }

    async fn close(&self, ticket: &Ticket) -> Result<()> {
        let connection = self.connection.lock().clone();
        if let Some(connection) = connection {
            return connection.close(ticket).await;
        }
        let again = crate::product::Dialect::connect(&self.voice, &self.address, self.ttl, Some(ticket));
        again.await?.close(ticket).await
    }
}
