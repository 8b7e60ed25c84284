//! One session stream: requests come pipelined, answers go by call number.
//!
//! Writes are proposed in the order in which they were read and answered as they finish, so many at once; at
//! the bound the stream is not read until answers are out. Heartbeats wait for the leader beside them, with a
//! bound of their own, so that no write waits behind a heartbeat. What a session may do here it may do only
//! after it was opened on, or attached to, this very stream.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use rollcall_core::directory::{Command, Refusal, RegisterNode};
use rollcall_core::ids::{NodeKey, SessionId};
use rollcall_proto::v1::{self, session_request::Request, session_response::Response};
use tonic::{Status, Streaming};

use super::convert::{self, bounded};
use super::doors::Doors;
use super::lease;
use super::metrics::StreamCalls;
use super::oversize::of_transport;
use super::sessions;
use super::speaker::{self, Company, Speaker, lives_by_records_alone};
use super::status::{self, DoorError, of_refusal};
use crate::access::Principal;
use crate::session::{Haste, HeldSession};

/// Most heartbeats of one stream that wait for the leader; beyond it they are refused at once.
const RENEWALS_MAX: usize = 64;
/// Whoever sends a heartbeat so soon behind the answer to one waits for each before sending the next.
const CLOSE_BEHIND: Duration = Duration::from_millis(20);
/// Of a stream whose writes under way have so many bytes nothing more is read: a client that takes no answers must not use up the
/// room that all have.
const WRITES_BYTES_MAX: usize = 4 << 20;
/// Most answers that wait for the client to read them.
const ANSWERS_MAX: usize = 64;
/// How long a closing server works on what it has taken in.
const CLOSING_GRACE: Duration = Duration::from_secs(1);
/// How many events of a busy stream are dealt with between two looks at whether it is to end.
const TURNS_BETWEEN_LOOKS: u64 = 64;
/// A session's share of the time over which sessions leave a closing server.
const SLOT: Duration = Duration::from_millis(2);

type Answer = Result<Response, v1::Error>;

/// What a finished request means for the stream.
enum Effect {
    Nothing,
    Attached(Seat),
    Ended(Vec<SessionId>),
}

/// A session's place on the stream; given up when dropped.
struct Seat {
    speaker: Arc<Speaker>,
    _held: HeldSession,
}

impl Seat {
    fn new(doors: &Doors, speaker: Arc<Speaker>) -> Self {
        Self {
            _held: doors.holder.attached(speaker.id()),
            speaker,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    /// A write, or a question to the leader, that may bring a session to this stream.
    Coming,
    Renewal,
}

struct Done {
    call: u64,
    bytes: usize,
    kind: Kind,
    answer: Answer,
    effect: Effect,
}

/// A request under way.
struct Work {
    call: u64,
    bytes: usize,
    kind: Kind,
    task: Task,
}

impl Future for Work {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let (answer, effect) = std::task::ready!(self.task.as_mut().poll(cx));
        Poll::Ready(Done {
            call: self.call,
            bytes: self.bytes,
            kind: self.kind,
            answer,
            effect,
        })
    }
}

/// Serves a stream; the answers.
pub(super) fn attend(
    doors: Doors,
    by: Principal,
    inbound: Streaming<v1::SessionRequest>,
) -> impl Stream<Item = Result<v1::SessionResponse, Status>> {
    let answers = Answers::default();
    doors.metrics.session_streams.inc();
    let attendance = Attendance {
        doors,
        by,
        attached: BTreeMap::new(),
        works: FuturesUnordered::new(),
        writes: 0,
        writes_bytes: 0,
        coming: 0,
        renewals: 0,
        renewed_at: None,
        answers: answers.clone(),
    };
    Attended {
        work: Some(Box::pin(attendance.run(inbound))),
        answers,
    }
}

type Told = Result<v1::SessionResponse, Status>;

/// Answers that wait for whoever sends them.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<VecDeque<Told>>>);

/// A stream's answers. The work behind them is done by whoever sends them, when there is room to send: no task and no
/// wake-up stands between a request and its answer, and what came in together leaves together.
struct Attended {
    /// `None`: it is done.
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    answers: Answers,
}

impl Stream for Attended {
    type Item = Told;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Told>> {
        let next = || self.answers.0.lock().pop_front();
        if let Some(answer) = next() {
            return Poll::Ready(Some(answer));
        }
        let Some(work) = &mut self.work else {
            return Poll::Ready(None);
        };
        let done = work.as_mut().poll(cx).is_ready();
        if done {
            self.work = None;
        }
        match self.answers.0.lock().pop_front() {
            None if !done => Poll::Pending,
            // Those behind it are asked for next, and after them the work's next step.
            answer => Poll::Ready(answer),
        }
    }
}

struct Attendance {
    doors: Doors,
    /// Whose stream it is.
    by: Principal,
    attached: BTreeMap<SessionId, Seat>,
    works: FuturesUnordered<Work>,
    writes: usize,
    /// Of the writes under way.
    writes_bytes: usize,
    /// Writes that may bring a session here.
    coming: usize,
    renewals: usize,
    /// When a heartbeat was last answered.
    renewed_at: Option<Instant>,
    answers: Answers,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.doors.metrics.session_streams.dec();
    }
}

/// What happens next on a stream.
enum Event {
    Finished(Done),
    Asked(v1::SessionRequest),
    /// The client has nothing more to ask.
    AskedAll,
    Unreadable(Status),
    Closing,
}

impl Attendance {
    /// Until the stream ends; its sessions live on until they are attached elsewhere or lapse.
    async fn run(mut self, mut inbound: Streaming<v1::SessionRequest>) {
        let closing = self.doors.closing.clone();
        let mut closing = pin!(closing.cancelled());
        for turn in 0_u64.. {
            // It is shared by all streams, or locked: a busy stream looks at it now and then.
            let mut closes = |cx: &mut Context<'_>| closing.as_mut().poll(cx).map(|()| Event::Closing);
            let event = poll_fn(|cx| {
                if turn.is_multiple_of(TURNS_BETWEEN_LOOKS)
                    && let Poll::Ready(event) = closes(cx)
                {
                    return Poll::Ready(event);
                }
                match self.poll_work(&mut inbound, cx) {
                    Poll::Pending => closes(cx),
                    ready @ Poll::Ready(_) => ready,
                }
            });
            match event.await {
                Event::Finished(done) => self.finish(done).await,
                Event::Asked(message) => self.take(message).await,
                Event::AskedAll => return self.finish_all().await,
                Event::Unreadable(refusal) => {
                    let refusal = match of_transport(&refusal) {
                        Some(error) => {
                            self.doors.metrics.error(&error);
                            status::status(&error)
                        }
                        None => refusal,
                    };
                    return self.tell(Err(refusal)).await;
                }
                Event::Closing => return self.close().await,
            }
        }
    }

    /// What is finished goes before what is asked, so that a stream that asks for more than it may gets its answers.
    fn poll_work(
        &mut self,
        inbound: &mut Streaming<v1::SessionRequest>,
        cx: &mut Context<'_>,
    ) -> Poll<Event> {
        if !self.works.is_empty()
            && let Poll::Ready(Some(done)) = self.works.poll_next_unpin(cx)
        {
            return Poll::Ready(Event::Finished(done));
        }
        if self.writes >= self.doors.session.in_flight_max || self.writes_bytes >= WRITES_BYTES_MAX {
            return Poll::Pending;
        }
        inbound.poll_next_unpin(cx).map(|asked| match asked {
            Some(Ok(message)) => Event::Asked(message),
            Some(Err(refusal)) => Event::Unreadable(refusal),
            None => Event::AskedAll,
        })
    }

    /// Tells the client to move on, and finishes what was taken in.
    async fn close(&mut self) {
        // Few sessions need not be spread over all of it.
        let enough = SLOT.saturating_mul(u32::try_from(self.doors.holder.held()).unwrap_or(u32::MAX));
        let spread = self.doors.session.move_spread.min(enough);
        let spread = u32::try_from(spread.as_millis()).unwrap_or(u32::MAX);
        let advice = v1::MoveAdvice {
            after_ms: rand::random_range(0..=spread),
            servers: self.doors.other_servers(),
            reason: "the server is closing".into(),
        };
        let work = async {
            self.say(0, Response::Move(advice)).await;
            self.finish_all().await;
        };
        // What is not answered by then is not answered at all.
        let _late = tokio::time::timeout(CLOSING_GRACE, work).await;
    }

    async fn finish_all(&mut self) {
        while let Some(done) = self.works.next().await {
            self.finish(done).await;
        }
    }

    async fn finish(&mut self, done: Done) {
        match done.kind {
            Kind::Write | Kind::Coming => {
                self.writes -= 1;
                self.writes_bytes -= done.bytes;
                self.coming -= usize::from(done.kind == Kind::Coming);
            }
            Kind::Renewal => {
                self.renewals -= 1;
                self.renewed_at = Some(Instant::now());
            }
        }
        match done.effect {
            Effect::Nothing => {}
            Effect::Attached(seat) => _ = self.attached.insert(seat.speaker.id(), seat),
            Effect::Ended(sessions) => sessions
                .iter()
                .for_each(|session| _ = self.attached.remove(session)),
        }
        self.reply(done.call, done.answer).await;
    }

    async fn reply(&mut self, call: u64, answer: Answer) {
        let response = answer.unwrap_or_else(|error| {
            self.doors.metrics.error(&error);
            tracing::debug!(call, code = error.code().as_str_name(), message = %error.message, "refused");
            Response::Error(error)
        });
        self.say(call, response).await;
    }

    async fn say(&mut self, call: u64, response: Response) {
        let response = v1::SessionResponse {
            call,
            response: Some(response),
        };
        self.tell(Ok(response)).await;
    }

    /// Waits for room; whoever makes room comes here next.
    async fn tell(&mut self, answer: Told) {
        let mut answer = Some(answer);
        poll_fn(|_| {
            let mut waiting = self.answers.0.lock();
            if waiting.len() >= ANSWERS_MAX {
                return Poll::Pending;
            }
            waiting.extend(answer.take());
            Poll::Ready(())
        })
        .await;
    }

    async fn take(&mut self, message: v1::SessionRequest) {
        let call = message.call;
        match self.begin(message) {
            Ok((bytes, kind, task)) => {
                match kind {
                    Kind::Write | Kind::Coming => {
                        self.writes += 1;
                        self.writes_bytes += bytes;
                        self.coming += usize::from(kind == Kind::Coming);
                    }
                    Kind::Renewal => self.renewals += 1,
                }
                let work = Work {
                    call,
                    bytes,
                    kind,
                    task,
                };
                self.works.push(work);
            }
            Err(error) => self.reply(call, Err(error)).await,
        }
    }

    /// What is to be done for a request of so many bytes, or why nothing is.
    fn begin(&mut self, message: v1::SessionRequest) -> Result<(usize, Kind, Task), v1::Error> {
        let bytes = self.doors.check_size(&message)?;
        let (kind, task) = self.task_of(message)?;
        Ok((bytes, kind, task))
    }

    fn task_of(&mut self, message: v1::SessionRequest) -> Result<(Kind, Task), v1::Error> {
        let session = message.session;
        let request = convert::required("request", message.request).map_err(|e| of_refusal(&e))?;
        counter(&self.doors.metrics.stream_calls, &request).inc();
        match request {
            Request::Renew(renew) => Ok((Kind::Renewal, self.renew(session, renew)?)),
            Request::Open(open) => Ok((Kind::Coming, self.open(open)?)),
            Request::Attach(attach) => self.attach(session, &attach),
            Request::Register(request) => {
                let speaker = self.own(session)?;
                let nodes = convert::register_nodes_from(request.nodes, self.doors.limits.batch_max);
                let nodes = nodes.map_err(|e| of_refusal(&e))?;
                Ok((Kind::Write, self.register(request.options, speaker, nodes)?))
            }
            Request::Deregister(request) => {
                let speaker = self.own(session)?;
                let nodes = convert::deregister_nodes_from(request.nodes, self.doors.limits.batch_max);
                let nodes = nodes.map_err(|e| of_refusal(&e))?;
                self.check_word_on(speaker.id(), nodes.iter().map(|node| &node.key))?;
                let session = Some(speaker.id());
                let command = Command::Deregister { session, nodes };
                Ok((Kind::Write, self.write(request.options, speaker, command)))
            }
            Request::Update(request) => {
                let speaker = self.own(session)?;
                let nodes = convert::update_nodes_from(request.nodes, self.doors.limits.batch_max);
                let nodes = nodes.map_err(|e| of_refusal(&e))?;
                self.check_word_on(speaker.id(), nodes.iter().map(|node| &node.key))?;
                let session = Some(speaker.id());
                let command = Command::Update { session, nodes };
                Ok((Kind::Write, self.write(request.options, speaker, command)))
            }
            Request::Close(close) => {
                let session = self.own(session)?.id();
                Ok((Kind::Write, self.end(session, close.options)))
            }
        }
    }

    /// A session of this stream.
    fn own(&self, session: u64) -> Result<Arc<Speaker>, v1::Error> {
        let session = convert::session_from(session).map_err(|e| of_refusal(&e))?;
        match self.attached.get(&session) {
            Some(seat) => Ok(seat.speaker.clone()),
            None => Err(DoorError::NotAttached { session }.into()),
        }
    }

    fn check_room(&self) -> Result<(), v1::Error> {
        let size_max = self.doors.session.per_stream_max;
        let count = self.attached.len() + self.coming + 1;
        bounded("sessions on one stream", count, size_max).map_err(|e| of_refusal(&e))
    }

    fn renew(&self, session: u64, renew: v1::Renew) -> Result<Task, v1::Error> {
        if self.renewals >= RENEWALS_MAX {
            let problem = format!("{RENEWALS_MAX} heartbeats of this stream wait for the leader already");
            return Err(DoorError::Overloaded {
                problem,
                retry_after: Duration::from_secs(1),
            }
            .into());
        }
        let size_max = self.doors.session.per_stream_max;
        bounded("sessions in one heartbeat", renew.sessions.len(), size_max).map_err(|e| of_refusal(&e))?;
        let named = if renew.sessions.is_empty() {
            vec![session]
        } else {
            renew.sessions
        };
        let mut sessions = named
            .into_iter()
            .map(|session| self.own(session))
            .collect::<Result<Vec<_>, _>>()?;
        sessions.sort_unstable_by_key(|speaker| speaker.id());
        sessions.dedup_by_key(|speaker| speaker.id());
        sessions.shrink_to_fit();
        let doors = self.doors.clone();
        let began = Instant::now();
        let haste = match self.renewed_at {
            Some(at) if began.saturating_duration_since(at) < CLOSE_BEHIND => Haste::AtOnce,
            Some(_) | None => Haste::None,
        };
        Ok(Box::pin(async move {
            let outcome = speaker::renew(&doors, &sessions, haste, Company::OneClient).await;
            doors.metrics.renew_seconds.observe(began.elapsed().as_secs_f64());
            match outcome {
                Ok(outcome) => {
                    let ids = |sessions: &[SessionId]| sessions.iter().map(|session| session.0).collect();
                    let renewed = v1::Renewed {
                        sessions: ids(&outcome.renewed),
                        not_found: ids(&outcome.not_found),
                    };
                    (Ok(Response::Renewed(renewed)), Effect::Ended(outcome.not_found))
                }
                Err(error) => (Err(error), Effect::Nothing),
            }
        }))
    }

    fn open(&mut self, open: v1::OpenSession) -> Result<Task, v1::Error> {
        self.doors.look_again(&mut self.by)?;
        self.check_room()?;
        if let Some(Err(retry_after)) = self
            .by
            .address
            .map(|peer| self.doors.new_sessions.try_take(peer, Instant::now()))
        {
            let problem = "too many new sessions from this address".into();
            return Err(DoorError::Overloaded { problem, retry_after }.into());
        }
        let doors = self.doors.clone();
        Ok(Box::pin(async move {
            match lease::open(&doors, open).await {
                Ok((opened, speaker)) => {
                    let seat = Seat::new(&doors, Arc::new(speaker));
                    (Ok(Response::Opened(opened)), Effect::Attached(seat))
                }
                Err(error) => (Err(error), Effect::Nothing),
            }
        }))
    }

    fn attach(&mut self, session: u64, attach: &v1::AttachSession) -> Result<(Kind, Task), v1::Error> {
        self.doors.look_again(&mut self.by)?;
        let session = convert::session_from(session).map_err(|e| of_refusal(&e))?;
        let secret = convert::secret_from(&attach.secret).map_err(|e| of_refusal(&e))?;
        if !self.attached.contains_key(&session) {
            self.check_room()?;
        }
        let doors = self.doors.clone();
        if let Some(verdict) = sessions::verify_here(&doors.reader, session, &secret) {
            let seed = verdict?;
            // Attached at once, so that what the client sends behind this finds the session here.
            let seat = self.attached.entry(session);
            let seat = seat.or_insert_with(|| Seat::new(&doors, Arc::new(Speaker::attending(seed))));
            let speaker = seat.speaker.clone();
            return Ok((
                Kind::Write,
                Box::pin(async move { attached(&doors, speaker).await }),
            ));
        }
        let coming = async move {
            match sessions::verify(&doors.reader, session, &secret, doors.limits.read_timeout).await {
                Ok(seed) => attached(&doors, Arc::new(Speaker::attending(seed))).await,
                Err(error) => (Err(error), Effect::Nothing),
            }
        };
        Ok((Kind::Coming, Box::pin(coming)))
    }

    fn end(&self, session: SessionId, options: Option<v1::WriteOptions>) -> Task {
        let doors = self.doors.clone();
        Box::pin(async move {
            match lease::close(&doors, session, options.as_ref()).await {
                Ok(written) => (
                    Ok(Response::Written(doors.writer.response(&written))),
                    Effect::Ended(vec![session]),
                ),
                Err(error) => (Err(error), Effect::Nothing),
            }
        })
    }

    fn register(
        &mut self,
        options: Option<v1::WriteOptions>,
        speaker: Arc<Speaker>,
        nodes: Vec<RegisterNode>,
    ) -> Result<Task, v1::Error> {
        let session = speaker.id();
        self.doors.look_again(&mut self.by)?;
        let admitted = self
            .doors
            .admit_here(&self.by, Some(session), &nodes)
            .transpose()?;
        let (doors, by) = (self.doors.clone(), self.by.clone());
        // All of it in one piece: a part that is made before is copied into the whole, twice.
        Ok(Box::pin(async move {
            // Else the leader has to be asked about a group first.
            if admitted.is_none()
                && let Err(error) = Box::pin(doors.admit(&by, Some(session), &nodes)).await
            {
                return (Err(error), Effect::Nothing);
            }
            let session = Some(session);
            let command = Command::Register { session, nodes };
            let written = doors.writer.write(options.as_ref(), command, Some(&speaker));
            let answer = written
                .await
                .map(|written| Response::Written(doors.writer.response(&written)));
            (answer, Effect::Nothing)
        }))
    }

    /// Whether this stream's caller may speak for these nodes.
    fn check_word_on<'a>(
        &mut self,
        session: SessionId,
        nodes: impl Iterator<Item = &'a NodeKey>,
    ) -> Result<(), v1::Error> {
        self.doors.look_again(&mut self.by)?;
        self.doors.check_word_on(&self.by, Some(session), nodes)
    }

    fn write(&self, options: Option<v1::WriteOptions>, speaker: Arc<Speaker>, command: Command) -> Task {
        let doors = self.doors.clone();
        Box::pin(async move {
            let written = doors
                .writer
                .write(options.as_ref(), command, Some(&speaker))
                .await;
            (
                written.map(|written| Response::Written(doors.writer.response(&written))),
                Effect::Nothing,
            )
        })
    }
}

type Task = Pin<Box<dyn Future<Output = (Answer, Effect)> + Send>>;

/// Attaching is a sign of life: it is answered when those who judge the session have counted it.
async fn attached(doors: &Doors, speaker: Arc<Speaker>) -> (Answer, Effect) {
    let seat = Seat::new(doors, speaker.clone());
    let session = speaker.id();
    match speaker::renew(
        doors,
        std::slice::from_ref(&speaker),
        Haste::None,
        Company::OneClient,
    )
    .await
    {
        Ok(outcome) if outcome.renewed.contains(&session) => {
            let reader = &doors.reader;
            let header = if lives_by_records_alone(reader, session) {
                reader.view_write_header(reader.ap().view().read().revision())
            } else {
                reader.write_header(reader.consensus().directory().read().revision())
            };
            let attached = v1::Attached {
                header: Some(header),
                ttl_ms: speaker.ttl_ms().into(),
                nodes: speaker.nodes(reader).iter().map(convert::node_key).collect(),
                heartbeat: doors.heartbeat.clone(),
            };
            (Ok(Response::Attached(attached)), Effect::Attached(seat))
        }
        Ok(outcome) if outcome.not_found.contains(&session) => {
            let refusal = Refusal::SessionNotFound { session };
            (Err(of_refusal(&refusal)), Effect::Ended(outcome.not_found))
        }
        Ok(_) => (Err(DoorError::Undecided { session }.into()), Effect::Nothing),
        Err(error) => (Err(error), Effect::Nothing),
    }
}

fn counter<'a>(calls: &'a StreamCalls, request: &Request) -> &'a Counter {
    match request {
        Request::Open(_) => &calls.open,
        Request::Attach(_) => &calls.attach,
        Request::Renew(_) => &calls.renew,
        Request::Register(_) => &calls.register,
        Request::Deregister(_) => &calls.deregister,
        Request::Update(_) => &calls.update,
        Request::Close(_) => &calls.close,
    }
}
