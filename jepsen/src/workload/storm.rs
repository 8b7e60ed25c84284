//! Hundreds of consumers that come back at once with lists that are not current, again and again, while nodes flap,
//! providers keep alive and register, and the storm switch is on; and once more when it was just turned off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use rollcall_proto::v1::watch_client::WatchClient;
use rollcall_proto::v1::watch_frame::Frame;
use rollcall_proto::v1::watch_request::Request;
use rollcall_proto::v1::watch_target::Target;
use rollcall_proto::v1::{
    ErrorCode, GroupMode, KnownSign, ReadMode, RegisterNode, ServiceKey, SetStormRequest, Sign, StormMode,
    StormRequest, Subscribe, WatchFrame, WatchRequest, WatchTarget,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use super::Stage;
use super::call::{Caller, Wrote, ms, options, persistent, reading, service};
use super::door::put_group;
use super::provider::Provider;
use crate::history::{Record, Stampede};
use crate::lab::{WAIT_MAX, eventually};
use crate::net::{HARNESS, Net};
use crate::seed::Seeded;

/// The group.
pub const GROUP: &str = "storm";
const SERVICE: &str = "stampede";
/// What a server may send in a second while the switch is on; servers are started with it.
pub const BUDGET: u64 = 1_500_000;
/// As servers are started.
const EPOCH: Duration = Duration::from_secs(1);
/// Of 10,000.
const SHARE: u32 = 2_000;
const NODES: u64 = 250;
/// In each node's metadata.
const FILLER: usize = 300;
const CONSUMERS_EACH: u64 = 30;
/// From one stampede to the next.
const ROUND: Duration = Duration::from_secs(20);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
const FLAP_EVERY: Duration = Duration::from_secs(2);
const OPEN_MAX: Duration = Duration::from_secs(2);

/// The lists that everybody wants.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    /// How long one is.
    bytes: u64,
}

/// Consumers, providers and meters at work.
#[derive(Debug)]
pub struct Storm {
    stage: Stage,
    prepared: Prepared,
    consumers: u64,
    rounds: Arc<watch::Sender<u64>>,
    current: Arc<AtomicU64>,
    tasks: JoinSet<()>,
    consuming: JoinSet<()>,
}

/// What all consumers share.
#[derive(Clone, Debug)]
struct Crowd {
    stage: Stage,
    rounds: watch::Receiver<u64>,
    /// How many are current, in this round.
    current: Arc<AtomicU64>,
    /// Bytes that were heard of each server, where nobody counts them outside.
    heard: Arc<Vec<AtomicU64>>,
}

impl Storm {
    /// Makes the group, the list and the switch.
    ///
    /// # Errors
    /// No server takes them in time.
    pub async fn prepare(stage: &Stage) -> anyhow::Result<Prepared> {
        put_group(&stage.addresses, GROUP, 10_000).await?;
        let bytes = eventually("a long list", WAIT_MAX, || async {
            let mut caller = Caller::to(stage.addresses.first()?).await?;
            let nodes = (0..NODES).map(|number| node(number, 0)).collect();
            let Wrote::Ok(_) = caller.register(options(), nodes).await else {
                return None;
            };
            let view = caller
                .view(key(), reading(ReadMode::Linearizable))
                .await
                .ok()?
                .1?;
            Some(view.encoded_len() as u64)
        });
        let prepared = Prepared { bytes: bytes.await? };
        set(stage, StormMode::On).await?;
        Ok(prepared)
    }

    /// Starts them. `net` counts what leaves the servers.
    #[must_use]
    pub fn start(stage: &Stage, prepared: Prepared, net: Option<Arc<Net>>) -> Self {
        let (rounds, listening) = watch::channel(0);
        let (rounds, current) = (Arc::new(rounds), Arc::new(AtomicU64::new(0)));
        let crowd = Crowd {
            stage: stage.clone(),
            rounds: listening,
            current: Arc::clone(&current),
            heard: Arc::new(stage.addresses.iter().map(|_| AtomicU64::new(0)).collect()),
        };
        let consumers = stage.clients * CONSUMERS_EACH;
        let (mut tasks, mut consuming) = (JoinSet::new(), JoinSet::new());
        for consumer in 0..consumers {
            let random = Seeded::fork(stage.seed, 110_000 + consumer);
            consuming.spawn(consume(crowd.clone(), consumer, random));
        }
        consuming.spawn(meter(crowd, net));
        let random = |purpose: u64| Seeded::fork(stage.seed, 120_000 + purpose);
        tasks.spawn(flap(stage.clone(), random(0)));
        for provider in 0..5 {
            tasks.spawn(keep(stage.clone(), random(1 + provider)));
        }
        tasks.spawn(stampedes(stage.clone(), consumers, prepared, Arc::clone(&rounds)));
        Self {
            stage: stage.clone(),
            prepared,
            consumers,
            rounds,
            current,
            tasks,
            consuming,
        }
    }

    /// Turns the switch off, and lets everybody come once more in that moment.
    pub async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
        if set(&self.stage, StormMode::Off).await.is_ok() {
            self.current.store(0, Ordering::Release);
            begin(&self.stage, self.consumers, self.prepared, &self.rounds);
            let all = eventually("everybody current", ROUND, || async {
                (self.current.load(Ordering::Acquire) >= self.consumers).then_some(())
            });
            let _ = all.await;
            tokio::time::sleep(ms(1_500)).await;
        }
        self.consuming.abort_all();
        while self.consuming.join_next().await.is_some() {}
    }
}

fn key() -> ServiceKey {
    service(GROUP, SERVICE)
}

fn node(number: u64, value: u64) -> RegisterNode {
    let mut node = persistent(&key(), &format!("n{number}"), value);
    if let Some(registration) = &mut node.registration {
        registration.metadata.insert("filler".into(), "x".repeat(FILLER));
    }
    node
}

/// Sets the switch; returns when every server follows.
async fn set(stage: &Stage, mode: StormMode) -> anyhow::Result<()> {
    let request = SetStormRequest {
        group: GROUP.into(),
        mode: mode.into(),
        share_basis_points: SHARE,
        author: "lab".into(),
        reason: "a stampede".into(),
        ..SetStormRequest::default()
    };
    eventually("the switch", WAIT_MAX, || async {
        for address in &stage.addresses {
            if let Some(mut caller) = Caller::to(address).await
                && caller.registry.set_storm(request.clone()).await.is_ok()
            {
                return Some(());
            }
        }
        None
    })
    .await?;
    for address in &stage.addresses {
        eventually("the switch at every server", WAIT_MAX, || async {
            let mut caller = Caller::to(address).await?;
            let storm = caller
                .registry
                .storm(StormRequest::default())
                .await
                .ok()?
                .into_inner();
            let of_group = storm.records.iter().find(|record| record.group == GROUP)?;
            (of_group.engaged == (mode == StormMode::On)).then_some(())
        })
        .await?;
    }
    stage.history.record(Record::Stampede(Stampede::Switch {
        on: mode == StormMode::On,
        share: SHARE,
        epoch: EPOCH,
        budget: BUDGET,
        time: stage.history.now(),
    }));
    Ok(())
}

fn begin(stage: &Stage, consumers: u64, prepared: Prepared, rounds: &watch::Sender<u64>) {
    stage.history.record(Record::Stampede(Stampede::Begins {
        consumers,
        bytes: prepared.bytes,
        time: stage.history.now(),
    }));
    rounds.send_modify(|round| *round += 1);
}

async fn stampedes(stage: Stage, consumers: u64, prepared: Prepared, rounds: Arc<watch::Sender<u64>>) {
    while stage.goes_on() {
        begin(&stage, consumers, prepared, &rounds);
        let until = stage.history.now() + ROUND;
        while stage.goes_on() && stage.history.now() < until {
            tokio::time::sleep(ms(50)).await;
        }
    }
}

/// One consumer: comes anew with each round, and stays until the next.
async fn consume(mut crowd: Crowd, number: u64, mut random: Seeded) {
    let name = format!("c{number}");
    let mut round = 0;
    loop {
        if *crowd.rounds.borrow_and_update() == round && crowd.rounds.changed().await.is_err() {
            return;
        }
        round = *crowd.rounds.borrow_and_update();
        let mut wanted = true;
        let mut at = number;
        while *crowd.rounds.borrow() == round {
            let server = usize::try_from(at).unwrap_or(0) % crowd.stage.addresses.len();
            let mut changed = crowd.rounds.clone();
            tokio::select! {
                _ = attend(&crowd, &name, server, round, &mut wanted) => {}
                _ = changed.changed() => {}
            }
            at += 1;
            tokio::time::sleep(ms(50 + random.below(400))).await;
        }
    }
}

/// One stream, until it breaks.
async fn attend(
    crowd: &Crowd,
    name: &str,
    server: usize,
    round: u64,
    wanted: &mut bool,
) -> anyhow::Result<()> {
    let history = &crowd.stage.history;
    let record = |line| history.record(Record::Stampede(line));
    let number = server as u64 + 1;
    let endpoint = Endpoint::from_shared(format!("http://{}", crowd.stage.addresses[server]))?
        .connect_timeout(OPEN_MAX)
        .http2_keep_alive_interval(OPEN_MAX)
        .keep_alive_timeout(OPEN_MAX * 10);
    let channel = tokio::time::timeout(OPEN_MAX, endpoint.connect()).await??;
    let (requests, outgoing) = mpsc::channel(4);
    let mut client = WatchClient::new(channel).max_decoding_message_size(64 << 20);
    let subscribe = |subscription| {
        let held = KnownSign {
            key: Some(key()),
            // What it has is not what there is.
            sign: Some(Sign { high: round, low: 1 }),
            ..KnownSign::default()
        };
        WatchRequest {
            request: Some(Request::Subscribe(Subscribe {
                subscription,
                target: Some(WatchTarget {
                    target: Some(Target::Service(key())),
                }),
                known: vec![held],
                ..Subscribe::default()
            })),
            client: "lab".into(),
            consumer: name.into(),
        }
    };
    let mut subscription = 1;
    requests.send(subscribe(subscription)).await?;
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let opening = client.watch(outgoing);
    let mut answers = tokio::time::timeout(OPEN_MAX, opening).await??.into_inner();
    while let Some(answer) = answers.message().await? {
        for encoded in answer.frames {
            crowd.heard[server].fetch_add(encoded.len() as u64, Ordering::Relaxed);
            let time = history.now();
            match WatchFrame::decode(encoded)?.frame {
                Some(Frame::Snapshot(_)) => record(Stampede::Listed {
                    consumer: name.into(),
                    server: number,
                    time,
                }),
                Some(Frame::Started(_)) if std::mem::take(wanted) => {
                    crowd.current.fetch_add(1, Ordering::AcqRel);
                    record(Stampede::Current {
                        consumer: name.into(),
                        time,
                    });
                }
                Some(Frame::KeepCache(keep)) => {
                    let retry = ms(keep.retry_after_ms.into());
                    record(Stampede::Kept {
                        consumer: name.into(),
                        retry,
                        time,
                    });
                    tokio::time::sleep(retry).await;
                    subscription += 1;
                    requests.send(subscribe(subscription)).await?;
                }
                Some(Frame::Rejected(_) | Frame::MoveOn(_)) => return Ok(()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// What every server has sent to clients, counted outside, where there is a network of ours.
async fn meter(crowd: Crowd, net: Option<Arc<Net>>) {
    loop {
        for (server, _) in crowd.stage.servers() {
            let bytes = match &net {
                Some(net) => {
                    let clients = net.clients();
                    clients
                        .iter()
                        .chain([&HARNESS])
                        .map(|client| net.bytes(server, *client))
                        .sum()
                }
                None => {
                    let index = usize::try_from(server - 1).unwrap_or(0);
                    crowd.heard[index].load(Ordering::Relaxed)
                }
            };
            crowd.stage.history.record(Record::Stampede(Stampede::Egress {
                server,
                bytes,
                time: crowd.stage.history.now(),
            }));
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}

/// One node after the other changes, again and again.
async fn flap(stage: Stage, mut random: Seeded) {
    let mut value = 1;
    while stage.goes_on() {
        let until = stage.history.now() + FLAP_EVERY;
        let (_, address) = stage.any_server(&mut random);
        if let Some(mut caller) = Caller::to(&address).await {
            value += 1;
            let nodes = vec![node(value % NODES, value)];
            vital(&stage, "registration", &caller.register(options(), nodes).await);
        }
        while stage.goes_on() && stage.history.now() < until {
            tokio::time::sleep(ms(50)).await;
        }
    }
}

/// A provider that registers and keeps alive.
async fn keep(stage: Stage, mut random: Seeded) {
    while stage.goes_on() {
        let opened = Provider::open(
            &stage.addresses,
            Duration::from_secs(3),
            GroupMode::Cp,
            &mut random,
        )
        .await;
        let Some(mut provider) = opened else {
            tokio::time::sleep(ms(200)).await;
            continue;
        };
        let id = format!("s{}", provider.session);
        let _ = provider.register(GROUP, "providers", &id).await;
        while stage.goes_on() {
            tokio::time::sleep(if provider.is_attached() { ms(300) } else { ms(50) }).await;
            let beat = provider.beat(&stage, &mut random).await;
            let Some(acknowledged) = beat.acknowledged else {
                continue;
            };
            stage.history.record(Record::Stampede(Stampede::Vital {
                what: "heartbeat".into(),
                shed: !acknowledged,
                time: stage.history.now(),
            }));
            if !acknowledged {
                break;
            }
        }
    }
}

fn vital(stage: &Stage, what: &str, wrote: &Wrote) {
    let shed = match wrote {
        Wrote::Ok(_) => false,
        Wrote::Nothing(error) if error.code() == ErrorCode::Overloaded => true,
        Wrote::Nothing(_) | Wrote::Unknown => return,
    };
    stage.history.record(Record::Stampede(Stampede::Vital {
        what: what.into(),
        shed,
        time: stage.history.now(),
    }));
}
