//! Throws packets and watches.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rollcall_proto::v1::GossipMember;
use tokio::net::UdpSocket;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;

use super::load::Load;
use super::relay::Relay;
use super::report::{Report, ServerReport};
use super::shot::{Armory, Class, Mark, Tally};
use super::wire::Who;
use super::witness::{self, Counters, Sightings};
use crate::lab::eventually;

/// Packets leave in volleys this far apart.
const VOLLEY_EVERY: Duration = Duration::from_millis(10);
/// Members, records and memory are looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Memory that a server may come to hold beyond what it held when it was warm: a log that grows, not a leak.
const RESIDENT_MORE_MAX: u64 = 64 << 20;
/// The share of the time after which a server counts as warm.
const WARM_AFTER: f64 = 0.2;
/// How long members may take to find together again after forged packets.
const HEAL_MAX: Duration = Duration::from_secs(90);
/// A heartbeat that takes this long is as good as not served: half the ttl.
const BEAT_MAX: Duration = Duration::from_secs(5);
/// Packets of the members themselves that may be dropped meanwhile, such as late answers.
const OWN_DROPS_MAX: u64 = 200;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The name of the servers' cluster.
    pub cluster: String,
    /// Their key, if they have one.
    pub key: Option<[u8; 32]>,
    /// Seed of every packet.
    pub seed: u64,
    /// How long.
    pub time: Duration,
    /// Packets a second, over all targets.
    pub rate: u32,
    /// Forge packets of members as well. Membership may suffer then, and must heal.
    pub insider: bool,
}

/// A server to throw at.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it receives gossip.
    pub gossip: SocketAddr,
    /// Its client address, `host:port`.
    pub client: String,
    /// Its HTTP address, `host:port`.
    pub http: String,
    /// Its process, if that is on this machine.
    pub pid: Option<u32>,
}

/// A target while it is thrown at.
struct Aim<'a> {
    target: &'a Target,
    channel: Channel,
    relay: Option<&'a Relay>,
    mark: Mark,
    before: Counters,
    lost_before: Option<u64>,
    resident: Vec<u64>,
    sent: u64,
    /// By the reason, where there is but one.
    sent_for: BTreeMap<&'static str, u64>,
}

/// Throws packets at the targets for the time of the plan. `relays`: what stands before each target and records;
/// without them what the targets answer to strangers is all that can be replayed.
///
/// # Errors
/// A target cannot be reached at the beginning, or the workload cannot be started.
pub async fn attack(plan: &Plan, targets: &[Target], relays: &[Relay]) -> anyhow::Result<Report> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let own = facing(targets.first().context("no target")?.gossip).await?;
    let socket = UdpSocket::bind((own, 0)).await?;
    let sink = UdpSocket::bind((own, 0)).await?;
    let armory = Armory::new(&plan.cluster, plan.key, sink.local_addr()?, &mut random);
    let mut aims = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        aims.push(aim(target, relays.get(index)).await?);
    }
    let first = aims.first().context("no target")?;
    let baseline = witness::members_through(first.channel.clone()).await?;
    let mut sightings = Sightings::starting_from(&baseline);
    let addresses: Vec<String> = targets.iter().map(|target| target.client.clone()).collect();
    let load = Load::start(&addresses).await?;

    let mut gun = Gun {
        plan,
        armory,
        socket,
        sink,
        answers: Vec::new(),
        tally: Tally::default(),
        aimed_at: 0,
        due: 0.0,
    };
    let begun = Instant::now();
    let mut volleys = tokio::time::interval(VOLLEY_EVERY);
    // A late volley is not made up for: the rate is a bound.
    volleys.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked_at = begun;
    while begun.elapsed() < plan.time {
        volleys.tick().await;
        gun.fire(&mut aims, &mut random).await;
        if looked_at.elapsed() >= LOOK_EVERY {
            looked_at = Instant::now();
            look(&mut aims, &mut sightings, &gun.answers).await;
        }
    }
    let healed = match plan.insider {
        true => Some(heal(&aims, &sightings).await),
        false => None,
    };
    let (met, beats, writes) = load.stop().await;
    let mut report = Report {
        seed: plan.seed,
        time: plan.time,
        sealed: plan.key.is_some(),
        insider: plan.insider,
        tally: gun.tally,
        looks: [sightings.looks, sightings.unanswered],
        seen: [sightings.suspects, sightings.downs, sightings.new_lives],
        strangers: sightings.strangers.len() as u64,
        beats,
        writes,
        sessions: [met.lost, met.broken],
        healed_after: healed.as_ref().and_then(|healed| healed.as_ref().ok().copied()),
        ..Report::default()
    };
    for aim in &aims {
        let (server, broken) = judge_server(aim, plan).await;
        report.servers.push(server);
        report.broken.extend(broken);
    }
    if let Some(Err(seen)) = healed {
        report.broken.push(seen);
    }
    judge(&mut report, plan, &sightings, met.first);
    Ok(report)
}

/// The address of this machine that a target answers to.
async fn facing(target: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(target).await?;
    Ok(socket.local_addr()?.ip())
}

async fn aim<'a>(target: &'a Target, relay: Option<&'a Relay>) -> anyhow::Result<Aim<'a>> {
    let channel = witness::channel(&target.client)?;
    let members = witness::members_through(channel.clone())
        .await
        .with_context(|| format!("asking {} for its members", target.client))?;
    let own = members
        .iter()
        .find(|member| member.own)
        .context("gossip is off at a target")?;
    Ok(Aim {
        target,
        channel,
        relay,
        mark: Mark {
            own: who(own)?,
            others: others(&members)?,
            record: Vec::new(),
            others_record: Vec::new(),
        },
        before: witness::counters_at(&target.http).await?,
        lost_before: witness::lost_in_kernel(target.gossip),
        resident: Vec::new(),
        sent: 0,
        sent_for: BTreeMap::new(),
    })
}

fn who(member: &GossipMember) -> anyhow::Result<Who> {
    Ok(Who {
        server: member.server,
        epoch: member.epoch,
        address: member.address.parse()?,
    })
}

fn others(members: &[GossipMember]) -> anyhow::Result<Vec<(Who, u16)>> {
    let others = members.iter().filter(|member| !member.own);
    others
        .map(|member| {
            let incarnation = u16::try_from(member.incarnation).unwrap_or(u16::MAX);
            Ok((who(member)?, incarnation))
        })
        .collect()
}

struct Gun<'a> {
    plan: &'a Plan,
    armory: Armory,
    socket: UdpSocket,
    sink: UdpSocket,
    /// What the targets answered to strangers, the last of it.
    answers: Vec<Vec<u8>>,
    tally: Tally,
    aimed_at: usize,
    /// Packets that may leave by now, and parts of one.
    due: f64,
}

impl Gun<'_> {
    async fn fire(&mut self, aims: &mut [Aim<'_>], random: &mut StdRng) {
        self.due += f64::from(self.plan.rate) * VOLLEY_EVERY.as_secs_f64();
        while self.due >= 1.0 {
            self.due -= 1.0;
            self.aimed_at = (self.aimed_at + 1) % aims.len();
            let aim = &mut aims[self.aimed_at];
            let forge = self.plan.insider && rand::Rng::random_bool(random, 0.3);
            let classes: &[Class] = match forge {
                true => &Class::INSIDER,
                false => &Class::OUTSIDER,
            };
            let class = *classes.choose(random).unwrap_or(&Class::Garbage);
            let Some(shot) = self.armory.make(class, &aim.mark, random) else {
                continue;
            };
            // A system that takes no more has a full buffer: the volley is over.
            if self.socket.send_to(&shot.bytes, aim.target.gossip).await.is_err() {
                return;
            }
            *self.tally.by_class.entry(shot.class).or_default() += 1;
            if !shot.reasons.is_empty() {
                aim.sent += 1;
            }
            if let [reason] = shot.reasons[..] {
                *aim.sent_for.entry(reason).or_default() += 1;
            }
        }
        let mut buffer = [0; 2_048];
        while let Ok((length, _)) = self.sink.try_recv_from(&mut buffer) {
            if self.answers.len() >= 256 {
                self.answers.remove(0);
            }
            self.answers.push(buffer[..length].to_vec());
        }
    }
}

async fn look(aims: &mut [Aim<'_>], sightings: &mut Sightings, answers: &[Vec<u8>]) {
    for index in 0..aims.len() {
        let aim = &mut aims[index];
        let answer = witness::members_through(aim.channel.clone()).await;
        sightings.look(&aim.target.client, &answer);
        if let Ok(members) = &answer
            && let Ok(mut known) = others(members)
        {
            known.retain(|(who, _)| sightings.is_known(who.server));
            aim.mark.others = known;
            if let Some(own) = members.iter().find(|member| member.own)
                && let Ok(own) = who(own)
            {
                aim.mark.own = own;
            }
        }
        if let Some(pid) = aim.target.pid {
            aim.resident.extend(witness::resident(pid));
        }
        aim.mark.record = match aim.relay {
            Some(relay) => relay.record(),
            None => answers.to_vec(),
        };
        let elsewhere = aims
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .filter_map(|(_, aim)| aim.relay);
        let elsewhere = elsewhere.flat_map(Relay::record).collect();
        aims[index].mark.others_record = elsewhere;
    }
}

/// Waits until all are alive again in the eyes of all.
async fn heal(aims: &[Aim<'_>], sightings: &Sightings) -> Result<Duration, String> {
    let since = Instant::now();
    let healed = eventually("all members alive again", HEAL_MAX, || async {
        for aim in aims {
            let members = witness::members_through(aim.channel.clone()).await.ok()?;
            if !sightings.is_healed(&members) {
                return None;
            }
        }
        Some(since.elapsed())
    });
    match healed.await {
        Ok(after) => Ok(after),
        Err(late) => {
            let mut seen = late.to_string();
            for aim in aims {
                let members = witness::members_through(aim.channel.clone()).await;
                let views = witness::in_words(&members);
                seen.push_str(&format!("\n  {} sees {views}", aim.target.client));
            }
            Err(seen)
        }
    }
}

async fn judge_server(aim: &Aim<'_>, plan: &Plan) -> (ServerReport, Vec<String>) {
    let name = aim.target.gossip.to_string();
    let mut broken = Vec::new();
    let after = match witness::counters_at(&aim.target.http).await {
        Ok(after) => after,
        Err(error) => {
            broken.push(format!("{name}: {error:#}"));
            Counters::default()
        }
    };
    let counted = after.since(&aim.before);
    let lost = aim
        .lost_before
        .zip(witness::lost_in_kernel(aim.target.gossip))
        .map(|(before, after)| after.saturating_sub(before));
    let total: u64 = counted.dropped.values().sum();
    let slack = lost.unwrap_or(aim.sent / 50);
    if total + slack < aim.sent {
        broken.push(format!(
            "{name}: {} bad packets, {total} counted as dropped, {slack} lost on the way",
            aim.sent
        ));
    }
    // What a member says may be forged beyond telling.
    if !plan.insider {
        if total > aim.sent + slack + OWN_DROPS_MAX + aim.sent / 100 {
            broken.push(format!(
                "{name}: {} bad packets, but {total} counted as dropped",
                aim.sent
            ));
        }
        for (reason, sent) in &aim.sent_for {
            let found = counted.dropped.get(*reason).copied().unwrap_or(0);
            if found + slack < *sent {
                broken.push(format!(
                    "{name}: {sent} packets should be dropped as {reason}, {found} were"
                ));
            }
        }
    }
    let resident = memory(&aim.resident);
    if let Some([warm, _, most]) = resident
        && most > warm + RESIDENT_MORE_MAX
    {
        broken.push(format!("{name}: memory grew from {warm} to {most} bytes"));
    }
    let server = ServerReport {
        address: name,
        sent: aim.sent,
        dropped: counted.dropped,
        lost,
        resident,
        suspicions: counted.suspicions,
    };
    (server, broken)
}

/// When it was warm, at the end, and the most since it was warm.
fn memory(resident: &[u64]) -> Option<[u64; 3]> {
    let warm_at = (resident.len() as f64 * WARM_AFTER) as usize;
    let since_warm = resident.get(warm_at..)?;
    Some([
        *since_warm.first()?,
        *since_warm.last()?,
        *since_warm.iter().max()?,
    ])
}

fn judge(report: &mut Report, plan: &Plan, sightings: &Sightings, trouble: Option<String>) {
    let mut broken = Vec::new();
    if plan.insider {
        if report.healed_after.is_none() {
            broken.push(format!(
                "the members were not all alive again within {HEAL_MAX:?}"
            ));
        }
    } else if sightings.downs + sightings.new_lives + report.strangers > 0 {
        let first = sightings.first.as_deref().unwrap_or("a member changed");
        broken.push(format!("membership changed: {first}"));
    }
    if sightings.unanswered > sightings.looks / 100 {
        let first = sightings.first.as_deref().unwrap_or("no answer");
        broken.push(format!(
            "{} of {} looks unanswered: {first}",
            sightings.unanswered, sightings.looks
        ));
    }
    if report.sessions[0] > 0 {
        broken.push(format!(
            "{} sessions were lost: {}",
            report.sessions[0],
            trouble.as_deref().unwrap_or("gone")
        ));
    }
    if report.beats.count == 0 || report.beats.slowest > BEAT_MAX {
        broken.push(format!("heartbeats were not served: {}", report.beats));
    }
    report.broken.extend(broken);
}
