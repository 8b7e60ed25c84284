//! Looks at the servers from outside: members, counters, memory, packets that the kernel dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use rollcall_proto::v1::cluster_client::ClusterClient;
use rollcall_proto::v1::{GossipMember, GossipState, MembersRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// How long a look may take.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// A channel to one server that connects when it is used, and again when it broke.
pub(super) fn channel(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint
        .connect_timeout(LOOK_MAX)
        .timeout(LOOK_MAX)
        .connect_lazy())
}

/// The members as a server knows them by gossip, itself included.
pub(super) async fn members_at(address: &str) -> anyhow::Result<Vec<GossipMember>> {
    members_through(channel(address)?).await
}

pub(super) async fn members_through(channel: Channel) -> anyhow::Result<Vec<GossipMember>> {
    let answer = ClusterClient::new(channel).members(MembersRequest {}).await?;
    Ok(answer.into_inner().gossip)
}

pub(super) fn is_alive(member: &GossipMember) -> bool {
    member.state() == GossipState::Alive
}

/// A view, for people: who is how, in which life. Members that are down are counted beyond a few.
pub(super) fn in_words(view: &anyhow::Result<Vec<GossipMember>>) -> String {
    match view {
        Ok(members) => {
            let told = members.iter().take(8).map(|member| {
                let state = member.state().as_str_name().trim_start_matches("GOSSIP_STATE_");
                format!(
                    "{} {state} epoch {} at {}",
                    member.server, member.epoch, member.address
                )
            });
            let told: Vec<String> = told.collect();
            format!("{} and {} more", told.join(", "), members.len().saturating_sub(8))
        }
        Err(error) => format!("nothing: {error:#}"),
    }
}

/// The counters that matter here, of one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    /// Packets dropped, by reason.
    pub(super) dropped: BTreeMap<String, u64>,
    pub(super) suspicions: u64,
    pub(super) unsent: u64,
}

impl Counters {
    pub(super) fn since(&self, before: &Self) -> Self {
        let dropped = self.dropped.iter().map(|(reason, count)| {
            let earlier = before.dropped.get(reason).copied().unwrap_or(0);
            (reason.clone(), count.saturating_sub(earlier))
        });
        Self {
            dropped: dropped.collect(),
            suspicions: self.suspicions.saturating_sub(before.suspicions),
            unsent: self.unsent.saturating_sub(before.unsent),
        }
    }
}

/// Reads a server's metrics page.
pub(super) async fn counters_at(http: &str) -> anyhow::Result<Counters> {
    let page = timeout(LOOK_MAX, page(http, "/metrics"))
        .await
        .with_context(|| format!("{http}/metrics does not answer"))??;
    let mut counters = Counters::default();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let Ok(value) = value.parse::<u64>() else {
            continue;
        };
        let reason = name
            .strip_prefix("rollcall_gossip_packets_dropped_total{reason=\"")
            .and_then(|rest| rest.strip_suffix("\"}"));
        match (reason, name) {
            (Some(reason), _) => _ = counters.dropped.insert(reason.to_owned(), value),
            (_, "rollcall_gossip_suspicions_total") => counters.suspicions = value,
            (_, "rollcall_gossip_packets_unsent_total") => counters.unsent = value,
            _ => {}
        }
    }
    Ok(counters)
}

async fn page(http: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    anyhow::ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "{http}{path}: {}",
        answer.lines().next().unwrap_or("nothing")
    );
    Ok(answer)
}

/// The memory that a process of this machine holds at the moment, in bytes.
pub(super) fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

/// Packets that the kernel dropped because a loopback port's buffer was full; `None` where that is not told.
pub(super) fn lost_in_kernel(gossip: SocketAddr) -> Option<u64> {
    let file = match gossip {
        SocketAddr::V4(_) => "/proc/net/udp",
        SocketAddr::V6(_) => "/proc/net/udp6",
    };
    let table = std::fs::read_to_string(file).ok()?;
    let port = format!(":{:04X}", gossip.port());
    let row = table.lines().find(|line| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|local| local.ends_with(&port))
    })?;
    row.split_whitespace().last()?.parse().ok()
}

/// What was seen of the members, over all looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Sightings {
    pub(super) looks: u64,
    pub(super) unanswered: u64,
    pub(super) suspects: u64,
    pub(super) downs: u64,
    pub(super) strangers: BTreeSet<u64>,
    pub(super) new_lives: u64,
    /// The first of these, in words.
    pub(super) first: Option<String>,
    baseline: BTreeMap<u64, u64>,
}

impl Sightings {
    /// As they are before anything is thrown: who is there, and in which of their lives.
    pub(super) fn starting_from(members: &[GossipMember]) -> Self {
        Self {
            baseline: members
                .iter()
                .map(|member| (member.server, member.epoch))
                .collect(),
            ..Self::default()
        }
    }

    /// Takes note of what a server answered, or that it did not.
    pub(super) fn look(&mut self, at: &str, answer: &anyhow::Result<Vec<GossipMember>>) {
        self.looks += 1;
        let members = match answer {
            Ok(members) => members,
            Err(error) => {
                self.unanswered += 1;
                self.note(|| format!("{at} did not tell its members: {error:#}"));
                return;
            }
        };
        for member in members {
            let (server, state) = (member.server, member.state());
            let Some(epoch) = self.baseline.get(&server).copied() else {
                self.strangers.insert(server);
                self.note(|| format!("{at} takes {server} for a member"));
                continue;
            };
            match state {
                GossipState::Alive => {}
                GossipState::Suspect => self.suspects += 1,
                GossipState::Down | GossipState::Displaced | GossipState::Unspecified => {
                    self.downs += 1;
                    self.note(|| format!("{at} says that {server} is {state:?}"));
                }
            }
            if member.epoch > epoch {
                self.new_lives += 1;
                self.baseline.insert(server, member.epoch);
                self.note(|| format!("{server} began epoch {} by {at}", member.epoch));
            }
        }
        let missing: Vec<u64> = self
            .baseline
            .keys()
            .filter(|server| members.iter().all(|member| member.server != **server))
            .copied()
            .collect();
        if !missing.is_empty() {
            self.downs += missing.len() as u64;
            self.note(|| format!("{at} forgot {missing:?}"));
        }
    }

    /// Whether it was there at the beginning.
    pub(super) fn is_known(&self, server: u64) -> bool {
        self.baseline.contains_key(&server)
    }

    /// Whether all of the beginning are alive in an answer. Strangers may be alive as well, until it is their turn to
    /// be probed.
    pub(super) fn is_healed(&self, members: &[GossipMember]) -> bool {
        let own = members
            .iter()
            .filter(|member| self.is_known(member.server) && is_alive(member));
        own.count() == self.baseline.len()
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.first.is_none() {
            self.first = Some(what());
        }
    }
}
