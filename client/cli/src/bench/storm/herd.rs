//! The watchers: each a stream of its own, all of which ask at the same moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use prost::Message;
use rollcall_client::ServiceKey;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::watch_client::WatchClient;
use rollcall_proto::v1::watch_frame::Frame;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::super::report::{histogram, record};
use super::egress::Egress;
use super::thread::on_thread;
use crate::exit::{Failure, Nature, failure_of};
use crate::progress::Progress;
use crate::servers::{ANSWER_BYTES_MAX, client_name, connect};

/// How a frame that brings a full list begins: field 2, its length follows.
const SNAPSHOT: u8 = 2 << 3 | 2;
/// Pause of a watcher that was refused without a hint.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// What the watchers want, and where.
#[derive(Clone, Debug)]
pub(super) struct HerdSettings {
    pub(super) addresses: Vec<String>,
    pub(super) connections: usize,
    pub(super) watchers: usize,
    pub(super) service: ServiceKey,
    pub(super) patience: Duration,
    pub(super) timeout: Duration,
}

/// They are connected, on a thread of their own, and ask for nothing yet.
#[derive(Debug)]
pub(super) struct Herd {
    go: oneshot::Sender<Go>,
    came: oneshot::Receiver<Option<Stampede>>,
}

/// They may ask. `over` is told when the last one is current, or patience has ended.
#[derive(Debug)]
struct Go {
    progress: Progress,
    over: watch::Sender<bool>,
}

/// What became of them.
#[derive(Debug)]
pub(super) struct Stampede {
    pub(super) egress: Arc<Egress>,
    /// Watchers that have the list of the servers.
    pub(super) current: u64,
    /// Full lists that came.
    pub(super) lists: u64,
    /// Times that a watcher was told to keep what it has.
    pub(super) kept: u64,
    /// Refusals and broken streams, by name; each was tried again.
    pub(super) errors: BTreeMap<String, u64>,
    /// From the moment at which all asked until a watcher was current.
    pub(super) to_current: Histogram<u64>,
    /// Until the last of them was, or patience ended.
    pub(super) lasted: Duration,
}

/// One watcher's part of it.
#[derive(Debug, Default)]
struct Watched {
    current_after: Option<Duration>,
    lists: u64,
    kept: u64,
    errors: BTreeMap<String, u64>,
}

impl Herd {
    /// Connects them.
    pub(super) async fn gather(settings: HerdSettings) -> Result<Self, Failure> {
        let (go, gone) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let came = on_thread("watchers", move || serve(settings, ready, gone))?;
        is_ready.await.map_err(|_| broken())??;
        Ok(Self { go, came })
    }

    /// All of them ask now; returns when the last one is current, or patience has ended.
    pub(super) async fn stampede(
        self,
        progress: Progress,
        over: watch::Sender<bool>,
    ) -> Result<Stampede, Failure> {
        self.go.send(Go { progress, over }).map_err(|_| broken())?;
        self.came.await.ok().flatten().ok_or_else(broken)
    }
}

fn broken() -> Failure {
    Failure::failed("the thread of watchers broke down")
}

/// `None`: nobody let them go.
async fn serve(
    settings: HerdSettings,
    ready: oneshot::Sender<Result<(), Failure>>,
    gone: oneshot::Receiver<Go>,
) -> Option<Stampede> {
    let mut channels = Vec::with_capacity(settings.connections);
    for index in 0..settings.connections {
        let address = &settings.addresses[index % settings.addresses.len()];
        match connect(address, settings.timeout).await {
            Ok(channel) => channels.push(channel),
            Err(failure) => {
                // Whoever asked may have given up.
                let _ = ready.send(Err(failure));
                return None;
            }
        }
    }
    let _ = ready.send(Ok(()));
    let go = gone.await.ok()?;
    Some(stampede(&settings, &channels, &go).await)
}

async fn stampede(settings: &HerdSettings, channels: &[Channel], go: &Go) -> Stampede {
    let began = Instant::now();
    let egress = Arc::new(Egress::new(began, settings.patience));
    let to_come = Arc::new(AtomicUsize::new(settings.watchers));
    let run = rand::random::<u32>();
    let mut watchers = JoinSet::new();
    for number in 0..settings.watchers {
        let watcher = Watcher {
            channel: channels[number % channels.len()].clone(),
            service: settings.service.clone(),
            consumer: format!("bench-{run:08x}-{number}"),
            egress: Arc::clone(&egress),
            began,
            ends: began + settings.patience,
            to_come: Arc::clone(&to_come),
            over: go.over.clone(),
        };
        let progress = go.progress.clone();
        watchers.spawn(async move { watcher.run(&progress).await });
    }
    let mut stampede = Stampede {
        egress,
        current: 0,
        lists: 0,
        kept: 0,
        errors: BTreeMap::new(),
        to_current: histogram(),
        lasted: Duration::ZERO,
    };
    while let Some(watched) = watchers.join_next().await {
        match watched {
            Ok(watched) => stampede.add(watched),
            Err(_) => stampede.fail("task_broke_down"),
        }
    }
    go.over.send_replace(true);
    stampede
}

impl Stampede {
    fn add(&mut self, watched: Watched) {
        if let Some(after) = watched.current_after {
            self.current += 1;
            record(&mut self.to_current, after);
            self.lasted = self.lasted.max(after);
        }
        self.lists += watched.lists;
        self.kept += watched.kept;
        for (label, count) in watched.errors {
            *self.errors.entry(label).or_default() += count;
        }
    }

    fn fail(&mut self, label: &str) {
        *self.errors.entry(label.into()).or_default() += 1;
    }
}

struct Watcher {
    channel: Channel,
    service: ServiceKey,
    consumer: String,
    egress: Arc<Egress>,
    began: Instant,
    ends: Instant,
    /// Watchers that are not current yet.
    to_come: Arc<AtomicUsize>,
    over: watch::Sender<bool>,
}

impl Watcher {
    /// Asks until it is current, and then listens until all are.
    async fn run(self, progress: &Progress) -> Watched {
        let mut over = self.over.subscribe();
        let mut watched = Watched::default();
        let mut stream = None;
        let becoming_current = async {
            loop {
                match self.follow(&mut watched).await {
                    Ok(current) => return stream = Some(current),
                    Err(failure) => {
                        *watched.errors.entry(failure.label()).or_default() += 1;
                        let hint = Duration::from_millis(failure.retry_after_ms.into());
                        tokio::time::sleep(hint.max(REFUSED_PAUSE)).await;
                    }
                }
            }
        };
        tokio::select! {
            () = becoming_current => {}
            () = tokio::time::sleep_until(self.ends) => return watched,
        }
        watched.current_after = Some(self.began.elapsed());
        progress.add(1);
        if self.to_come.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.over.send_replace(true);
        }
        // Changes go on while others are served.
        if let Some((_requests, mut answers)) = stream {
            let listening = async {
                while let Ok(Some(message)) = answers.message().await {
                    self.egress.count(message.encoded_len(), Instant::now());
                }
            };
            tokio::select! {
                () = listening => {}
                () = tokio::time::sleep_until(self.ends) => {}
                _ = over.wait_for(|over| *over) => {}
            }
        }
        watched
    }

    /// Opens a stream and subscribes, again and again as told, until the subscription is live.
    async fn follow(&self, watched: &mut Watched) -> Result<Following, Failure> {
        let refused = |status: tonic::Status| failure_of(&status, Nature::Read);
        let lost = || Failure::unavailable("the watch stream was closed");
        let (requests, outgoing) = mpsc::channel(4);
        let mut subscription = 1;
        requests
            .send(self.subscribe(subscription))
            .await
            .map_err(|_| lost())?;
        let mut answers = WatchClient::new(self.channel.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .watch(ReceiverStream::new(outgoing))
            .await
            .map_err(refused)?
            .into_inner();
        loop {
            let message = answers.message().await.map_err(refused)?.ok_or_else(lost)?;
            self.egress.count(message.encoded_len(), Instant::now());
            for frame in message.frames {
                // Lists are counted, not read: reading them is not what is measured.
                if frame.first() == Some(&SNAPSHOT) {
                    watched.lists += 1;
                    continue;
                }
                match decode(frame)? {
                    Some(Frame::Started(_)) => return Ok((requests, answers)),
                    Some(Frame::Rejected(rejected)) => return Err(rejected.error.unwrap_or_default().into()),
                    Some(Frame::MoveOn(_)) => return Err(lost()),
                    Some(Frame::KeepCache(keep)) => {
                        watched.kept += 1;
                        tokio::time::sleep(Duration::from_millis(keep.retry_after_ms.into())).await;
                        subscription += 1;
                        requests
                            .send(self.subscribe(subscription))
                            .await
                            .map_err(|_| lost())?;
                    }
                    _ => {}
                }
            }
        }
    }

    fn subscribe(&self, subscription: u64) -> wire::WatchRequest {
        let target = wire::WatchTarget {
            target: Some(wire::watch_target::Target::Service((&self.service).into())),
        };
        // The sign of no list: what this watcher holds is not what the servers have.
        let known = wire::KnownSign {
            key: Some((&self.service).into()),
            sign: Some(wire::Sign { high: 1, low: 1 }),
            ..wire::KnownSign::default()
        };
        let subscribe = wire::Subscribe {
            subscription,
            target: Some(target),
            known: vec![known],
            ..wire::Subscribe::default()
        };
        wire::WatchRequest {
            client: client_name(),
            consumer: self.consumer.clone(),
            request: Some(wire::watch_request::Request::Subscribe(subscribe)),
        }
    }
}

/// Both halves of a stream; the asking one is held open.
type Following = (mpsc::Sender<wire::WatchRequest>, Streaming<wire::WatchResponse>);

fn decode(frame: tonic::codegen::Bytes) -> Result<Option<Frame>, Failure> {
    wire::WatchFrame::decode(frame)
        .map(|frame| frame.frame)
        .map_err(|e| Failure::failed(format!("a watch frame cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_known_by_its_first_byte() {
        let frame = |frame| wire::WatchFrame { frame: Some(frame) }.encode_to_vec();
        let list = frame(Frame::Snapshot(wire::ServiceSnapshot::default()));
        assert_eq!(list[0], SNAPSHOT);
        for other in [
            Frame::Started(wire::Started::default()),
            Frame::Delta(wire::ServiceDelta::default()),
            Frame::KeepCache(wire::KeepCache::default()),
        ] {
            assert_ne!(frame(other)[0], SNAPSHOT);
        }
    }
}
