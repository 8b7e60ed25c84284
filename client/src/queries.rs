//! Queries of one server: many on one stream, answered by call number, for a fraction of what as many calls cost.
//!
//! The stream is opened by the first query, which travels with the opening, and closed when nothing was asked for a
//! while. A server that knows no such stream is asked by unary calls, and for a stream again after some time. When
//! a stream ends, what was asked on it and not answered is asked elsewhere by the callers' own rules: queries change
//! nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use rollcall_proto::v1;
use rollcall_proto::v1::discover_response::Answer;
use rollcall_proto::v1::registry_client::RegistryClient;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

use crate::config::{RegistryConfig, millis};
use crate::endpoint::Channel;

/// Most queries under way on one stream; further callers wait for a place. Servers let twice as many wait, so that those
/// whose callers gave up are no reason for a refusal.
const UNDER_WAY_MAX: usize = 128;
/// So often a query is put on a stream that turns out to be over; then it is asked alone.
const OPENINGS_MAX: usize = 3;
/// A stream on which nothing was asked for so long, or up to twice as long, is closed.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// A server that knew no such stream is asked for one again after this time: it may be a newer one by then.
const UNARY_FOR: Duration = Duration::from_secs(600);

/// How one server is asked. Connects to nothing by itself.
#[derive(Debug, Default)]
pub(crate) struct Queries {
    way: Mutex<Way>,
}

#[derive(Debug, Default)]
enum Way {
    /// Nothing was asked yet, or the last stream is over.
    #[default]
    Unopened,
    Stream(Arc<Stream>),
    /// It knows no such stream.
    Unary {
        until: Instant,
    },
}

impl Queries {
    /// Asks. Whoever drops the future frees its place. `patience`: how long the caller waits.
    ///
    /// # Errors
    /// The server's word as it would be that of a unary call, or what befell the connection.
    pub(crate) async fn ask(
        &self,
        channel: &Channel,
        config: &RegistryConfig,
        query: v1::QueryRequest,
        patience: Duration,
    ) -> Result<Response<v1::QueryResponse>, Status> {
        for _ in 0..OPENINGS_MAX {
            let Some(stream) = self.stream(channel, config) else {
                break;
            };
            match stream.ask(query.clone(), patience).await {
                Told::Answer(answer) => return answer.map(Response::new),
                Told::Nothing(Silence::Over) => self.forget(&stream),
                Told::Nothing(Silence::NotKnown) => {
                    *self.way.lock() = Way::Unary {
                        until: Instant::now() + UNARY_FOR,
                    };
                }
                Told::Nothing(Silence::Oversize) => {
                    self.forget(&stream);
                    break;
                }
                Told::Nothing(Silence::Lost(status)) => {
                    self.forget(&stream);
                    return Err(status);
                }
            }
        }
        let mut registry =
            RegistryClient::new(channel.clone()).max_decoding_message_size(config.message_bytes_max);
        registry.query(query).await
    }

    /// The stream, opened if need be; `None`: there is none to be had.
    fn stream(&self, channel: &Channel, config: &RegistryConfig) -> Option<Arc<Stream>> {
        let mut way = self.way.lock();
        match &*way {
            Way::Stream(stream) => return Some(Arc::clone(stream)),
            Way::Unary { until } if Instant::now() < *until => return None,
            Way::Unary { .. } | Way::Unopened => {}
        }
        let stream = Stream::open(channel.clone(), config);
        *way = Way::Stream(Arc::clone(&stream));
        Some(stream)
    }

    /// Opens another one next time, unless that has happened.
    fn forget(&self, over: &Arc<Stream>) {
        let mut way = self.way.lock();
        if matches!(&*way, Way::Stream(stream) if Arc::ptr_eq(stream, over)) {
            *way = Way::Unopened;
        }
    }
}

/// What a caller is told.
#[derive(Debug)]
enum Told {
    Answer(Result<v1::QueryResponse, Status>),
    Nothing(Silence),
}

/// Why there is no answer.
#[derive(Clone, Debug)]
enum Silence {
    /// The stream was over before this was asked: another one may do.
    Over,
    /// The server knows no such stream.
    NotKnown,
    /// Some message was larger than one side accepts: asked alone, each query has its own answer.
    Oversize,
    /// The stream broke, or the server closes.
    Lost(Status),
}

impl Silence {
    fn of(status: Status) -> Self {
        match status.code() {
            Code::Unimplemented => Self::NotKnown,
            Code::OutOfRange | Code::InvalidArgument => Self::Oversize,
            _ => Self::Lost(status),
        }
    }
}

#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<v1::DiscoverRequest>,
    room: Semaphore,
    callers: Arc<Mutex<Callers>>,
}

/// Who waits for an answer.
#[derive(Debug, Default)]
struct Callers {
    waiting: BTreeMap<u64, oneshot::Sender<Told>>,
    last_call: u64,
    /// Something was asked since this was looked at.
    asked: bool,
    /// Why nobody may ask any more.
    over: Option<Silence>,
}

impl Callers {
    fn answer(&mut self, call: u64, answer: Result<v1::QueryResponse, Status>) {
        // Nobody waits any more: the caller gave up.
        if let Some(caller) = self.waiting.remove(&call) {
            let _gone = caller.send(Told::Answer(answer));
        }
    }

    fn end(&mut self, silence: &Silence) {
        for caller in std::mem::take(&mut self.waiting).into_values() {
            let _gone = caller.send(Told::Nothing(silence.clone()));
        }
        // Whoever comes from now on was not on it, and may open another.
        self.over = Some(match silence {
            Silence::NotKnown => Silence::NotKnown,
            Silence::Over | Silence::Oversize | Silence::Lost(_) => Silence::Over,
        });
    }
}

/// A caller's place among those who wait; given up when dropped.
struct Place<'a> {
    callers: &'a Mutex<Callers>,
    call: u64,
    _room: SemaphorePermit<'a>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.callers.lock().waiting.remove(&self.call);
    }
}

impl Stream {
    /// Begins to open one. Callers may ask at once.
    fn open(channel: Channel, config: &RegistryConfig) -> Arc<Self> {
        let (requests, outgoing) = mpsc::channel(UNDER_WAY_MAX);
        let callers = Arc::<Mutex<Callers>>::default();
        let client = RegistryClient::new(channel).max_decoding_message_size(config.message_bytes_max);
        let listening = listen(client, outgoing, Arc::clone(&callers), config.attempt_timeout);
        tokio::spawn(listening);
        Arc::new(Self {
            requests,
            room: Semaphore::new(UNDER_WAY_MAX),
            callers,
        })
    }

    async fn ask(&self, query: v1::QueryRequest, patience: Duration) -> Told {
        let Ok(room) = self.room.acquire().await else {
            return Told::Nothing(Silence::Over);
        };
        let (answer, answered) = oneshot::channel();
        let call = {
            let mut callers = self.callers.lock();
            if let Some(silence) = &callers.over {
                return Told::Nothing(silence.clone());
            }
            callers.asked = true;
            callers.last_call += 1;
            let call = callers.last_call;
            callers.waiting.insert(call, answer);
            call
        };
        let _place = Place {
            callers: &self.callers,
            call,
            _room: room,
        };
        let request = v1::DiscoverRequest {
            call,
            query: Some(query),
            timeout_ms: u32::try_from(millis(patience)).unwrap_or(u32::MAX).max(1),
        };
        // If the stream takes nothing any more, its end is told to everybody who waits.
        let _over = self.requests.send(request).await;
        answered.await.unwrap_or(Told::Nothing(Silence::Over))
    }
}

/// Opens the stream and hands out its answers until it is over, or nobody has asked anything for a while.
async fn listen(
    mut client: RegistryClient<Channel>,
    outgoing: mpsc::Receiver<v1::DiscoverRequest>,
    callers: Arc<Mutex<Callers>>,
    opening_max: Duration,
) {
    let opening = client.discover(ReceiverStream::new(outgoing));
    let silence = match tokio::time::timeout(opening_max, opening).await {
        Ok(Ok(response)) => hear(response.into_inner(), &callers).await,
        Ok(Err(status)) => Silence::of(status),
        Err(_) => Silence::Lost(Status::deadline_exceeded(
            "the stream of queries was not opened in time",
        )),
    };
    callers.lock().end(&silence);
}

async fn hear(mut incoming: Streaming<v1::DiscoverResponse>, callers: &Mutex<Callers>) -> Silence {
    let mut idle = tokio::time::interval(IDLE_MAX);
    idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    idle.reset();
    loop {
        tokio::select! {
            message = incoming.message() => match message {
                Ok(Some(message)) => match message.answer {
                    Some(Answer::Found(found)) => callers.lock().answer(message.call, Ok(found)),
                    Some(Answer::Error(error)) => callers.lock().answer(message.call, Err(status_of(&error))),
                    // What is under way is still answered; what comes next goes to another server.
                    Some(Answer::Move(advice)) => {
                        let lost = Silence::Lost(Status::unavailable(advice.reason));
                        callers.lock().over.get_or_insert(lost);
                    }
                    None => {
                        let empty = Status::internal("the server sent an answer without content");
                        callers.lock().answer(message.call, Err(empty));
                    }
                },
                Ok(None) => return Silence::Lost(Status::unavailable("the server ended the stream of queries")),
                Err(status) => return Silence::of(status),
            },
            _ = idle.tick() => {
                let mut callers = callers.lock();
                if callers.waiting.is_empty() && !std::mem::take(&mut callers.asked) {
                    callers.end(&Silence::Over);
                    return Silence::Over;
                }
            }
        }
    }
}

/// The error of one query as a unary call would bring it.
fn status_of(error: &v1::Error) -> Status {
    Status::with_details(Code::Unknown, error.message.clone(), error.encode_to_vec().into())
}
