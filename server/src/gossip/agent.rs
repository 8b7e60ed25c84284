//! The task that owns the socket: packets in, the core, packets out.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rollcall_core::ids::ServerId;
use tokio::net::UdpSocket;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::board::{Board, NEWS_BYTES_MAX, News, Topic};
use super::epoch::EpochFile;
use super::identity::Identity;
use super::key_file::{self, KeyFileError};
use super::metrics::{GossipMetrics, KindLabel, ReasonLabel, StateLabel};
use super::packet::{Envelope, PACKET_BYTES_MAX};
use super::seeds::{Seeds, look_up};
use super::swim::{Event, MemberState, MemberView, Swim, SwimSettings};
use super::timing::Timing;
use crate::config::GossipConfig;
use crate::pulse;
use crate::store::StoreError;

/// Most packets that are read before the core is ticked and what it says is sent.
const BATCH: usize = 256;
/// Most packets that are read after a pause, before anything is held against anybody.
const BACKLOG: usize = 8_192;
/// Own news that wait for the core.
const PUBLISH_MAX: usize = 64;
/// News that wait for a subscriber before the oldest are lost to it.
const DELIVERIES_MAX: usize = 1_024;
/// Pause between two tries to look up the own address.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);
/// Alarms about one server come at most this often.
const ALARM_EVERY: Duration = Duration::from_secs(30);
/// How often members and health are counted.
const GAUGES_EVERY: Duration = Duration::from_millis(200);
/// How long the last packets may take.
const LEAVING_MAX: Duration = Duration::from_millis(500);

/// Why gossip did not start. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum GossipStartError {
    /// Correct the key file.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// The gossip epoch cannot be written.
    #[error(transparent)]
    Epoch(#[from] StoreError),
}

/// Why news were not published. Nothing was sent; publish the then latest again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// They are too long for a packet.
    #[error("news have {bytes} bytes, at most {NEWS_BYTES_MAX} are allowed")]
    TooLong {
        /// How many there are.
        bytes: usize,
    },
    /// Too many wait already.
    #[error("{PUBLISH_MAX} news wait to be sent")]
    Full,
    /// Gossip has ended.
    #[error("gossip has ended")]
    Ended,
}

/// How gossip is set up.
pub struct GossipOptions {
    /// Name of the cluster: packets of another are dropped.
    pub cluster: String,
    /// This server.
    pub server: ServerId,
    /// Its data folder, which this process owns.
    pub data: PathBuf,
    /// Where others send to, `host:port`; looked up until it is found.
    pub advertise: String,
    /// Whom to ask to be let in.
    pub seeds: Seeds,
    /// The rest.
    pub config: GossipConfig,
    /// What is counted.
    pub metrics: GossipMetrics,
}

/// This server, in its own eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfView {
    /// Its identity; `None` until its own address is found.
    pub identity: Option<Identity>,
    /// How often it refuted a suspicion in this epoch.
    pub incarnation: u16,
    /// Since when it takes part.
    pub since: Instant,
    /// Another server has its id and a later epoch; it takes no part.
    pub displaced: bool,
}

struct Shared {
    members: RwLock<Vec<MemberView>>,
    own: RwLock<SelfView>,
    board: Mutex<Option<Arc<Mutex<Board>>>>,
    publish: mpsc::Sender<(Topic, Vec<u8>)>,
    deliveries: broadcast::Sender<Arc<News>>,
    head_interval: Duration,
    #[cfg(test)]
    pause: tokio::sync::RwLock<()>,
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Gossip {
    shared: Arc<Shared>,
}

impl Gossip {
    /// Starts it on a socket. The task leaves the cluster and ends when `stop` is cancelled.
    ///
    /// # Errors
    /// See [`GossipStartError`].
    pub fn start(
        options: GossipOptions,
        socket: UdpSocket,
        stop: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>), GossipStartError> {
        let keys = match &options.config.key_file {
            Some(path) => key_file::read(path)?,
            None => Vec::new(),
        };
        if keys.is_empty() {
            tracing::warn!("gossip is neither encrypted nor authenticated: no gossip.key_file");
        }
        let epoch_file = EpochFile::in_folder(&options.data);
        let unwritten = |error| StoreError::folder(options.data.join("gossip-epoch"), error);
        let epoch = epoch_file.begin(1).map_err(unwritten)?;
        let timing = Timing::preset(options.config.preset);
        let (publish, published) = mpsc::channel(PUBLISH_MAX);
        let (deliveries, _) = broadcast::channel(DELIVERIES_MAX);
        let shared = Arc::new(Shared {
            members: RwLock::default(),
            own: RwLock::new(SelfView {
                identity: None,
                incarnation: 0,
                since: Instant::now(),
                displaced: false,
            }),
            board: Mutex::default(),
            publish,
            deliveries,
            head_interval: timing.head_interval,
            #[cfg(test)]
            pause: tokio::sync::RwLock::default(),
        });
        let envelope = Envelope::new(&options.cluster, keys);
        let gossip = Self {
            shared: shared.clone(),
        };
        let task = tokio::spawn(async move {
            let ipv4 = socket.local_addr().is_ok_and(|address| address.is_ipv4());
            let found = stop
                .run_until_cancelled(own_address(&options.advertise, ipv4))
                .await;
            let Some(address) = found else {
                return;
            };
            let identity = Identity {
                server: options.server,
                address,
                epoch,
            };
            tracing::info!(%identity, sealed = envelope.is_sealed(), "gossip");
            let settings = SwimSettings {
                identity,
                envelope,
                timing: timing.clone(),
                members_max: options.config.members_max,
                seed: rand::random(),
                cookie_secret: rand::random(),
            };
            let swim = Swim::new(settings, Instant::now());
            *shared.board.lock() = Some(swim.board().clone());
            let agent = Agent {
                swim,
                socket,
                shared,
                published,
                metrics: options.metrics,
                epoch_file,
                timing,
                alarmed_at: None,
                counted_at: Instant::now(),
                shown: BTreeSet::new(),
            };
            agent.run(options.seeds, ipv4, stop).await;
        });
        Ok((gossip, task))
    }

    /// The other servers, by id: those down as well, until they are forgotten.
    #[must_use]
    pub fn members(&self) -> Vec<MemberView> {
        self.shared.members.read().clone()
    }

    /// This server.
    #[must_use]
    pub fn own(&self) -> SelfView {
        *self.shared.own.read()
    }

    /// Tells every server; what this server said before on the topic is forgotten.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(&self, topic: Topic, bytes: &[u8]) -> Result<(), PublishError> {
        if bytes.len() > NEWS_BYTES_MAX {
            return Err(PublishError::TooLong { bytes: bytes.len() });
        }
        let sent = self.shared.publish.try_send((topic, bytes.to_vec()));
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::Full,
            mpsc::error::TrySendError::Closed(_) => PublishError::Ended,
        })
    }

    /// News of the other servers as they come. A subscriber that falls 1,024 behind is told so and reads
    /// [`Self::on_topic`].
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<News>> {
        self.shared.deliveries.subscribe()
    }

    /// The latest news of each server on a topic, this server's own included.
    #[must_use]
    pub fn on_topic(&self, topic: Topic) -> Vec<News> {
        let board = self.shared.board.lock();
        board
            .as_ref()
            .map_or_else(Vec::new, |board| board.lock().on_topic(topic))
    }

    /// How often a server should tell how far it is, at least.
    pub(crate) fn head_interval(&self) -> Duration {
        self.shared.head_interval
    }

    /// Stops the task, as the system's SIGSTOP would, until the guard is dropped.
    #[cfg(test)]
    pub(crate) async fn pause(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.shared.pause.write().await
    }
}

async fn own_address(advertise: &str, ipv4: bool) -> SocketAddr {
    loop {
        if let Some(address) = look_up(advertise, ipv4).await {
            return address;
        }
        tracing::warn!(advertise, "own gossip address not found, trying again");
        tokio::time::sleep(LOOKUP_PAUSE).await;
    }
}

struct Agent {
    swim: Swim,
    socket: UdpSocket,
    shared: Arc<Shared>,
    published: mpsc::Receiver<(Topic, Vec<u8>)>,
    metrics: GossipMetrics,
    epoch_file: EpochFile,
    timing: Timing,
    alarmed_at: Option<Instant>,
    counted_at: Instant,
    /// The members that metrics show.
    shown: BTreeSet<ServerId>,
}

impl Agent {
    async fn run(mut self, seeds: Seeds, ipv4: bool, stop: CancellationToken) {
        let (found, mut seeds_found) = mpsc::channel(1);
        let seeking = stop.child_token();
        let backoff = self.timing.seed_backoff;
        let seeker = tokio::spawn(seek(seeds, ipv4, backoff, found, seeking.clone()));
        let mut ticks = pulse::ticks(self.timing.tick);
        // Longer than any packet, so that one too long is noticed.
        let mut buffer = vec![0; PACKET_BYTES_MAX + 1];
        self.show();
        loop {
            #[cfg(test)]
            {
                let shared = self.shared.clone();
                let _running = shared.pause.read().await;
            }
            let rests = self.swim.rest_if_idle();
            tokio::select! {
                () = stop.cancelled() => break,
                readable = self.socket.readable() => {
                    if readable.is_ok() {
                        self.receive(&mut buffer, BATCH);
                    }
                }
                _ = ticks.tick(), if !rests => {
                    self.receive(&mut buffer, BACKLOG);
                    self.swim.handle_tick(Instant::now());
                }
                Some((topic, bytes)) = self.published.recv() => {
                    if !self.swim.publish(topic, &bytes) {
                        tracing::debug!(?topic, "news not taken");
                    }
                }
                Some(addresses) = seeds_found.recv() => self.call(&addresses),
            }
            self.perform().await;
        }
        self.swim.leave();
        let _ = tokio::time::timeout(LEAVING_MAX, self.flush()).await;
        seeking.cancel();
        let _ = seeker.await;
    }

    /// Reads what is there, within a bound.
    fn receive(&mut self, buffer: &mut [u8], packets_max: usize) {
        for _ in 0..packets_max {
            match self.socket.try_recv_from(buffer) {
                Ok((length, _)) => self.swim.handle_packet(&buffer[..length], Instant::now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Such as the echo of a packet that nobody received.
                Err(_) => {}
            }
        }
    }

    /// Asks seeds that are not among the members to be let in.
    fn call(&mut self, addresses: &[SocketAddr]) {
        let known: Vec<SocketAddr> = self
            .swim
            .members()
            .filter(|view| view.state != MemberState::Down)
            .map(|view| view.identity.address)
            .collect();
        for address in addresses.iter().filter(|address| !known.contains(address)) {
            self.swim.announce(*address, Instant::now());
        }
    }

    /// Does what the core says.
    async fn perform(&mut self) {
        let mut changed = false;
        loop {
            let events = self.swim.take_events();
            if events.is_empty() {
                break;
            }
            for event in events {
                changed |= self.on_event(event).await;
            }
        }
        for news in self.swim.board().lock().take_fresh() {
            // Nobody may be listening.
            let _ = self.shared.deliveries.send(Arc::new(news));
        }
        self.flush_ready();
        if changed || self.counted_at.elapsed() >= GAUGES_EVERY {
            self.show();
        }
    }

    /// True: the view has changed.
    async fn on_event(&mut self, event: Event) -> bool {
        match event {
            Event::Sent(kind) => _ = self.metrics.sent.get_or_create(&KindLabel { kind }).inc(),
            Event::Received(kind) => _ = self.metrics.received.get_or_create(&KindLabel { kind }).inc(),
            Event::Dropped(reason) => {
                let reason = reason.name();
                self.metrics.dropped.get_or_create(&ReasonLabel { reason }).inc();
            }
            Event::Unsent => _ = self.metrics.unsent.inc(),
            Event::RefutedOwn => _ = self.metrics.refuted_own.inc(),
            Event::Changed { view, before } => {
                self.on_changed(&view, before);
                return true;
            }
            Event::Forgotten(identity) => {
                tracing::info!(member = %identity, "member forgotten");
                return true;
            }
            Event::Renew { at_least } => self.begin_life(at_least).await,
            Event::Duplicate { known, other } => self.alarm(&known, &other),
            Event::Displaced { by } => {
                tracing::error!(
                    %by,
                    "RC-204: another server has this one's id and a later epoch: this one takes no part in gossip \
                     while that one is there; stop one of the two"
                );
                return true;
            }
        }
        false
    }

    fn on_changed(&self, view: &MemberView, before: Option<MemberState>) {
        let member = view.identity;
        match (before, view.state) {
            (_, MemberState::Suspect) => {
                self.metrics.suspicions.inc();
                tracing::info!(%member, incarnation = view.incarnation, "member suspect");
            }
            (Some(MemberState::Suspect), MemberState::Alive) => {
                self.metrics.refutations.inc();
                tracing::info!(%member, incarnation = view.incarnation, "suspicion refuted");
            }
            (_, MemberState::Alive) => tracing::info!(%member, "member alive"),
            (_, MemberState::Down) => tracing::warn!(%member, "member down"),
        }
    }

    fn alarm(&mut self, known: &Identity, other: &Identity) {
        self.metrics.duplicates.inc();
        if self.alarmed_at.is_none_or(|at| at.elapsed() >= ALARM_EVERY) {
            self.alarmed_at = Some(Instant::now());
            tracing::error!(
                one = %known,
                other = %other,
                "RC-204: one server id at two addresses; the higher epoch holds"
            );
        }
    }

    async fn begin_life(&mut self, at_least: u64) {
        let file = self.epoch_file.clone();
        let begun = crate::ground::spawn_blocking(move || file.begin(at_least)).await;
        let epoch = match begun {
            Ok(Ok(epoch)) => {
                tracing::info!(epoch, "back in gossip with a new epoch");
                Some(epoch)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot write the gossip epoch");
                None
            }
            Err(error) => {
                tracing::error!(%error, "cannot write the gossip epoch");
                None
            }
        };
        self.swim.renewed(epoch, Instant::now());
    }

    /// Sends what can be sent without waiting; of UDP, the rest is as good as lost.
    fn flush_ready(&mut self) {
        while let Some((to, packet)) = self.swim.take_outgoing() {
            if self.socket.try_send_to(&packet, to).is_err() {
                self.metrics.unsent.inc();
            }
        }
    }

    async fn flush(&mut self) {
        while let Some((to, packet)) = self.swim.take_outgoing() {
            if self.socket.send_to(&packet, to).await.is_err() {
                self.metrics.unsent.inc();
            }
        }
    }

    /// Shows the view to others.
    fn show(&mut self) {
        self.counted_at = Instant::now();
        let members: Vec<MemberView> = self.swim.members().copied().collect();
        let identity = self.swim.identity();
        for state in [MemberState::Alive, MemberState::Suspect, MemberState::Down] {
            let others = members.iter().filter(|view| view.state == state).count();
            let own = usize::from(state == MemberState::Alive && !self.swim.is_displaced());
            let gauge = self
                .metrics
                .members
                .get_or_create(&StateLabel { state: state.name() });
            gauge.set(i64::try_from(others + own).unwrap_or(i64::MAX));
        }
        for gone in self.shown.extract_if(.., |shown| {
            members.iter().all(|view| view.identity.server != *shown)
        }) {
            self.metrics.hide_member(gone.0);
        }
        for view in &members {
            let MemberView {
                identity,
                state,
                incarnation,
                ..
            } = *view;
            self.shown.insert(identity.server);
            self.metrics
                .show_member(identity.server.0, state, identity.epoch, incarnation);
        }
        let own = match self.swim.is_displaced() {
            true => MemberState::Down,
            false => MemberState::Alive,
        };
        let incarnation = self.swim.incarnation();
        self.metrics
            .show_member(identity.server.0, own, identity.epoch, incarnation);
        self.metrics
            .epoch
            .set(i64::try_from(identity.epoch).unwrap_or(i64::MAX));
        self.metrics.health.set(self.swim.health().score().into());
        self.metrics.displaced.set(self.swim.is_displaced().into());
        let late = self.swim.shifted_total().as_millis();
        self.metrics.late_ms.set(i64::try_from(late).unwrap_or(i64::MAX));
        *self.shared.members.write() = members;
        let mut own = self.shared.own.write();
        if own.identity != Some(identity) {
            own.since = Instant::now();
        }
        own.identity = Some(identity);
        own.incarnation = self.swim.incarnation();
        own.displaced = self.swim.is_displaced();
    }
}

/// Looks seeds up, ever more rarely, for as long as the agent lives.
async fn seek(
    seeds: Seeds,
    ipv4: bool,
    (first, most): (Duration, Duration),
    found: mpsc::Sender<Vec<SocketAddr>>,
    stop: CancellationToken,
) {
    let mut pause = first;
    loop {
        let looking = async {
            let addresses = seeds.look_up(ipv4).await.into_iter().collect();
            // The agent has not taken the last ones yet: it will.
            let _ = found.try_send(addresses);
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
        };
        if stop.run_until_cancelled(looking).await.is_none() {
            return;
        }
        pause = (pause * 2).min(most);
    }
}
