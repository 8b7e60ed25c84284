//! `rollcall status`: one line per server of the cluster.
//!
//! The servers are those `--addr` names and those they name as members. State hashes are comparable only at the
//! same applied index, so servers that have moved on are asked again, a few times.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::cluster_client::ClusterClient;
use serde::Serialize;
use tokio::time::Instant;

use crate::context::Context;
use crate::exit::{Failure, Nature, failure_of};
use crate::output::record::{Header, Member, hex, millis_text, role};
use crate::output::table::Table;
use crate::servers::connect;

/// How often servers are asked for comparable hashes.
const COMPARE_ROUNDS: u32 = 5;
/// Pause before they are asked again.
const COMPARE_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for one server, so that a dead one does not use up the time of all.
const SERVER_MAX: Duration = Duration::from_secs(2);

/// Arguments of `rollcall status`.
#[derive(Args, Debug)]
#[command(after_help = "\
Ends with 0 if a leader and a majority of the voters are ready, with 4 if not, and with 1 if the states of two
servers differ at the same index.")]
pub(crate) struct StatusArguments {}

/// Whether a server holds what the others hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum HashVerdict {
    /// At least one other server had the same hash at the same index, and none another.
    Equal,
    /// A server had another hash at the same index.
    Differs,
    /// No other server was seen at the same index.
    Unknown,
}

impl HashVerdict {
    fn text(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Differs => "differs",
            Self::Unknown => "-",
        }
    }
}

/// One server, as it described itself, or why it did not.
#[derive(Clone, Debug, Serialize)]
struct ServerStatus {
    server: u64,
    address: String,
    reachable: bool,
    error: Option<String>,
    ready: bool,
    not_ready_reason: String,
    role: &'static str,
    voter: bool,
    leader: u64,
    term: u64,
    revision: u64,
    lag: u64,
    last_log_index: u64,
    committed_index: u64,
    applied_index: u64,
    snapshot_index: u64,
    purged_index: u64,
    change_floor: u64,
    state_hash: String,
    state_hash_verdict: HashVerdict,
    groups: u64,
    services: u64,
    nodes: u64,
    sessions: u64,
    sessions_held: u64,
    watchers: u64,
    disk_full: bool,
    vote_withheld: bool,
    uptime_ms: u64,
    version: String,
    /// Where it takes heartbeats by datagram; empty: nowhere.
    heartbeat: String,
}

#[derive(Debug, Serialize)]
struct StatusBody {
    cluster: String,
    leader: u64,
    serving: bool,
    states_differ: bool,
    servers: Vec<ServerStatus>,
}

pub(crate) async fn run(context: &Context, _: &StatusArguments) -> Result<(), Failure> {
    let (addresses, members) = addresses_of(context).await;
    let mut hashes = Hashes::default();
    let mut seen = ask_all(context, &addresses).await;
    for round in 0..COMPARE_ROUNDS {
        hashes.note(&seen);
        if hashes.are_comparable(&seen) || round + 1 == COMPARE_ROUNDS {
            break;
        }
        tokio::time::sleep(COMPARE_PAUSE).await;
        seen = ask_all(context, &addresses).await;
    }
    let body = judge(seen, &members, &hashes);
    context.printer.print(&body, || status_table(&body.servers))?;
    verdict(&body)
}

/// Those named by `--addr`, and those the cluster names; a server is asked under one address only.
async fn addresses_of(context: &Context) -> (Vec<String>, Vec<Member>) {
    // If nobody can say, the addresses alone are asked, and what they lack shows.
    let members: Vec<Member> = match context.servers.members().await {
        Ok(answer) => answer.value.into_iter().map(Member::from).collect(),
        Err(_) => Vec::new(),
    };
    let mut addresses: Vec<String> = members
        .iter()
        .map(|m| m.client_address.clone())
        .filter(|a| !a.is_empty())
        .collect();
    for named in context.servers.addresses() {
        if !addresses.contains(named) {
            addresses.push(named.clone());
        }
    }
    (addresses, members)
}

type Answer = (String, Result<wire::StatusResponse, Failure>);

async fn ask_all(context: &Context, addresses: &[String]) -> Vec<Answer> {
    let time = context.servers.timeout().min(SERVER_MAX);
    let ask = |address: String| async move {
        let answer = ask_one(&address, time).await;
        (address, answer)
    };
    let answers: Vec<Answer> = futures_util::future::join_all(addresses.iter().cloned().map(ask)).await;
    without_doubles(answers)
}

async fn ask_one(address: &str, time: Duration) -> Result<wire::StatusResponse, Failure> {
    let deadline = Instant::now() + time;
    let channel = connect(address, time).await?;
    match tokio::time::timeout_at(
        deadline,
        ClusterClient::new(channel).status(wire::StatusRequest {}),
    )
    .await
    {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failure_of(&status, Nature::Read)),
        Err(_) => Err(Failure::timeout(format!("no answer within {time:.1?}"))),
    }
}

/// The same server may be known under two addresses (a name and a number); the first one stays.
fn without_doubles(answers: Vec<Answer>) -> Vec<Answer> {
    let mut kept: Vec<Answer> = Vec::new();
    for (address, answer) in answers {
        let id = answer.as_ref().ok().map(server_of);
        let known = id.is_some_and(|id| {
            id != 0
                && kept
                    .iter()
                    .any(|(_, other)| other.as_ref().is_ok_and(|other| server_of(other) == id))
        });
        if !known {
            kept.push((address, answer));
        }
    }
    kept
}

fn server_of(answer: &wire::StatusResponse) -> u64 {
    answer.header.as_ref().map_or(0, |header| header.server)
}

/// Hashes seen so far, by applied index and server.
#[derive(Debug, Default)]
struct Hashes(BTreeMap<u64, BTreeMap<u64, Vec<u8>>>);

impl Hashes {
    fn note(&mut self, seen: &[Answer]) {
        for status in seen.iter().filter_map(|(_, answer)| answer.as_ref().ok()) {
            if !status.state_hash.is_empty() {
                let at = self.0.entry(status.applied_index).or_default();
                at.insert(server_of(status), status.state_hash.to_vec());
            }
        }
    }

    fn verdict(&self, server: u64) -> HashVerdict {
        let mut verdict = HashVerdict::Unknown;
        for at in self.0.values() {
            let Some(own) = at.get(&server) else { continue };
            for (other, hash) in at {
                if *other == server {
                    continue;
                }
                if hash != own {
                    return HashVerdict::Differs;
                }
                verdict = HashVerdict::Equal;
            }
        }
        verdict
    }

    fn are_comparable(&self, seen: &[Answer]) -> bool {
        let up: Vec<u64> = seen
            .iter()
            .filter_map(|(_, a)| a.as_ref().ok())
            .map(server_of)
            .collect();
        up.len() < 2
            || up
                .iter()
                .all(|server| self.verdict(*server) != HashVerdict::Unknown)
    }
}

fn judge(seen: Vec<Answer>, members: &[Member], hashes: &Hashes) -> StatusBody {
    let committed = seen
        .iter()
        .filter_map(|(_, a)| a.as_ref().ok())
        .map(|s| s.committed_index)
        .max()
        .unwrap_or(0);
    let header: Header = seen
        .iter()
        .find_map(|(_, a)| a.as_ref().ok())
        .and_then(|s| s.header.clone())
        .unwrap_or_default()
        .into();
    let mut servers: Vec<ServerStatus> = seen
        .into_iter()
        .map(|(address, answer)| describe(address, answer, members, committed, hashes))
        .collect();
    servers.sort_by(|a, b| (a.server == 0, a.server, &a.address).cmp(&(b.server == 0, b.server, &b.address)));
    let leader = servers
        .iter()
        .find(|s| s.reachable && s.role == "leader")
        .map_or(0, |s| s.server);
    let voters = servers.iter().filter(|s| s.voter).count();
    let ready = servers.iter().filter(|s| s.voter && s.ready).count();
    StatusBody {
        cluster: header.cluster,
        leader,
        serving: leader != 0 && ready * 2 > voters,
        states_differ: servers
            .iter()
            .any(|s| s.state_hash_verdict == HashVerdict::Differs),
        servers,
    }
}

fn describe(
    address: String,
    answer: Result<wire::StatusResponse, Failure>,
    members: &[Member],
    committed: u64,
    hashes: &Hashes,
) -> ServerStatus {
    let (status, error) = match answer {
        Ok(status) => (status, None),
        Err(failure) => (wire::StatusResponse::default(), Some(failure.message)),
    };
    let reachable = error.is_none();
    let member = members.iter().find(|member| {
        member.client_address == address || (reachable && member.server == server_of(&status))
    });
    let server = if reachable {
        server_of(&status)
    } else {
        member.map_or(0, |member| member.server)
    };
    ServerStatus {
        server,
        address,
        reachable,
        error,
        ready: status.ready,
        role: if reachable {
            role(status.role())
        } else {
            "unreachable"
        },
        voter: member.is_some_and(|member| member.voter),
        leader: status.leader,
        term: status.term,
        revision: status.revision,
        lag: if reachable {
            committed.saturating_sub(status.applied_index)
        } else {
            0
        },
        last_log_index: status.last_log_index,
        committed_index: status.committed_index,
        applied_index: status.applied_index,
        snapshot_index: status.snapshot_index,
        purged_index: status.purged_index,
        change_floor: status.change_floor,
        state_hash: hex(&status.state_hash),
        state_hash_verdict: hashes.verdict(server),
        groups: status.groups,
        services: status.services,
        nodes: status.nodes,
        sessions: status.sessions,
        sessions_held: status.sessions_held,
        watchers: status.watchers,
        disk_full: status.disk_full,
        vote_withheld: status.vote_withheld,
        uptime_ms: status.uptime_ms,
        version: status.version,
        heartbeat: status.heartbeat,
        not_ready_reason: status.not_ready_reason,
    }
}

fn status_table(servers: &[ServerStatus]) -> Table {
    let mut table = Table::new(&[
        "SERVER", "ADDRESS", "READY", "ROLE", "VOTER", "TERM", "REVISION", "LAG", "HASH", "NODES", "HELD",
        "WATCHERS", "NOTE",
    ])
    .wide(&[
        "APPLIED",
        "COMMITTED",
        "SNAPSHOT",
        "PURGED",
        "FLOOR",
        "SESSIONS",
        "UPTIME",
        "VERSION",
        "STATE-HASH",
    ]);
    for server in servers {
        let number = |value: u64| {
            if server.reachable {
                value.to_string()
            } else {
                String::new()
            }
        };
        table.row(vec![
            if server.server == 0 {
                String::new()
            } else {
                server.server.to_string()
            },
            server.address.clone(),
            if server.ready { "yes" } else { "no" }.into(),
            server.role.into(),
            if server.voter { "yes" } else { "no" }.into(),
            number(server.term),
            number(server.revision),
            number(server.lag),
            server.state_hash_verdict.text().into(),
            number(server.nodes),
            number(server.sessions_held),
            number(server.watchers),
            note(server),
            number(server.applied_index),
            number(server.committed_index),
            number(server.snapshot_index),
            number(server.purged_index),
            number(server.change_floor),
            number(server.sessions),
            millis_text(server.uptime_ms),
            server.version.clone(),
            server.state_hash.clone(),
        ]);
    }
    table
}

fn note(server: &ServerStatus) -> String {
    let mut notes: Vec<&str> = Vec::new();
    notes.extend(server.error.as_deref());
    if !server.not_ready_reason.is_empty() {
        notes.push(&server.not_ready_reason);
    }
    if server.disk_full {
        notes.push("disk full");
    }
    if server.vote_withheld {
        notes.push("vote withheld");
    }
    notes.join("; ")
}

fn verdict(body: &StatusBody) -> Result<(), Failure> {
    if body.servers.iter().all(|server| !server.reachable) {
        return Err(Failure::unavailable("no server can be reached"));
    }
    if body.states_differ {
        return Err(Failure::failed("servers hold different states at the same index"));
    }
    if !body.serving {
        return Err(Failure::unavailable(match body.leader {
            0 => "no leader answers".to_owned(),
            leader => format!("server {leader} leads, but no majority of the voters is ready"),
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn status(server: u64, applied: u64, hash: u8, role: wire::MemberRole) -> Answer {
        let answer = wire::StatusResponse {
            header: Some(wire::ResponseHeader {
                server,
                cluster: "c".into(),
                ..Default::default()
            }),
            role: role.into(),
            leader: 1,
            applied_index: applied,
            committed_index: applied,
            state_hash: vec![hash; 16].into(),
            ready: true,
            ..wire::StatusResponse::default()
        };
        (format!("s{server}:7400"), Ok(answer))
    }

    fn members(count: u64) -> Vec<Member> {
        (1..=count)
            .map(|server| {
                wire::Member {
                    server,
                    client_address: format!("s{server}:7400"),
                    voter: true,
                    ..wire::Member::default()
                }
                .into()
            })
            .collect()
    }

    fn judged(seen: Vec<Answer>, count: u64) -> StatusBody {
        let mut hashes = Hashes::default();
        hashes.note(&seen);
        judge(seen, &members(count), &hashes)
    }

    const LEADER: wire::MemberRole = wire::MemberRole::Leader;
    const FOLLOWER: wire::MemberRole = wire::MemberRole::Follower;

    #[test]
    fn three_equal_servers_are_fine() {
        let body = judged(
            vec![
                status(1, 9, 7, LEADER),
                status(2, 9, 7, FOLLOWER),
                status(3, 9, 7, FOLLOWER),
            ],
            3,
        );
        assert!(verdict(&body).is_ok());
        assert!(
            body.servers
                .iter()
                .all(|s| s.state_hash_verdict == HashVerdict::Equal)
        );
    }

    #[test]
    fn other_hashes_at_another_index_prove_nothing() {
        let body = judged(vec![status(1, 9, 7, LEADER), status(2, 8, 6, FOLLOWER)], 2);
        assert!(verdict(&body).is_ok());
        assert_eq!(body.servers[1].lag, 1);
        assert!(
            body.servers
                .iter()
                .all(|s| s.state_hash_verdict == HashVerdict::Unknown)
        );
    }

    #[test]
    fn other_hashes_at_the_same_index_are_a_failure() {
        let body = judged(vec![status(1, 9, 7, LEADER), status(2, 9, 6, FOLLOWER)], 2);
        assert_eq!(verdict(&body).unwrap_err().exit, Exit::Failed);
    }

    #[test]
    fn one_of_three_is_no_quorum() {
        let dead = |server: u64| (format!("s{server}:7400"), Err(Failure::unavailable("refused")));
        let body = judged(vec![status(1, 9, 7, LEADER), dead(2), dead(3)], 3);
        assert_eq!(verdict(&body).unwrap_err().exit, Exit::Unavailable);
        assert_eq!(body.servers[2].server, 3);
        let body = judged(
            vec![status(1, 9, 7, LEADER), status(2, 9, 7, FOLLOWER), dead(3)],
            3,
        );
        assert!(verdict(&body).is_ok());
    }

    #[test]
    fn a_server_known_by_two_addresses_is_one_server() {
        let mut double = status(1, 9, 7, LEADER);
        double.0 = "localhost:7400".into();
        assert_eq!(without_doubles(vec![status(1, 9, 7, LEADER), double]).len(), 1);
    }
}
