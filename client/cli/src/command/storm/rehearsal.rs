//! `rollcall storm rehearse`: what would be sent, asked of every server for its own watchers and added up.

use clap::{Args, ValueEnum};
use rollcall_client::ServiceKey;
use rollcall_proto::v1 as wire;
use rollcall_proto::v1::rehearse_storm_request::Subject;
use serde::Serialize;

use crate::context::Context;
use crate::exit::Failure;
use crate::output::table::Table;
use crate::units::{basis_points, bytes_text, percent};

/// Arguments of `storm rehearse`.
#[derive(Args, Debug)]
#[command(
    after_help = "Each server counts what it would send to the watch streams that are open at it now; nothing is sent. \
                  With the switch off, each node's change goes by itself, and full lists go at once. With it on, changes \
                  of a service go together, and full lists in turn within the server's egress budget \
                  (storm.egress_bytes_per_second). A removal guard that holds nodes back makes it less."
)]
pub(crate) struct RehearseStorm {
    /// What happens (default: restart of a service, loss of a zone)
    event: Option<Event>,
    /// To all nodes of this service
    #[arg(
        long,
        value_name = "GROUP/SERVICE",
        required_unless_present = "zone",
        conflicts_with = "zone"
    )]
    service: Option<ServiceKey>,
    /// To the nodes whose label `zone` has this value, in every service
    #[arg(long)]
    zone: Option<String>,
    /// Share of the consumers that the switch, if it is on, serves at a time
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = basis_points)]
    share: u32,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Event {
    /// The nodes leave
    Loss,
    /// The nodes leave and come back
    Restart,
    /// Every watcher asks for full lists again, as after a network failure
    Refetch,
}

#[derive(Debug, PartialEq, Serialize)]
struct Rehearsal {
    event: &'static str,
    share_basis_points: u32,
    /// Every server answered.
    complete: bool,
    services: u64,
    nodes: u64,
    watchers: u64,
    /// Of all servers; the longest time of any.
    off: Sent,
    on: Sent,
    servers: Vec<ServerRehearsal>,
}

/// One server's part.
#[derive(Debug, PartialEq, Serialize)]
struct ServerRehearsal {
    server: u64,
    address: String,
    watchers: u64,
    budget_bytes_per_s: u64,
    off: Sent,
    on: Sent,
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Sent {
    frames: u64,
    bytes: u64,
    /// At the egress budget, and not before the switch allows it.
    seconds: f64,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Restart => "restart",
            Self::Refetch => "refetch",
        }
    }

    fn to_wire(self) -> wire::RehearsedEvent {
        match self {
            Self::Loss => wire::RehearsedEvent::Loss,
            Self::Restart => wire::RehearsedEvent::Restart,
            Self::Refetch => wire::RehearsedEvent::Refetch,
        }
    }
}

pub(crate) async fn run(context: &Context, rehearse: RehearseStorm) -> Result<(), Failure> {
    let (subject, usual) = match (rehearse.service, rehearse.zone) {
        (Some(service), _) => (Subject::Service((&service).into()), Event::Restart),
        (None, zone) => (Subject::Zone(zone.unwrap_or_default()), Event::Loss),
    };
    let event = rehearse.event.unwrap_or(usual);
    let request = wire::RehearseStormRequest {
        subject: Some(subject),
        event: event.to_wire().into(),
        share_basis_points: rehearse.share,
    };
    let members = context.servers.members().await?.value;
    let asked = members.into_iter().map(|member| async {
        let answer = ask(context, &member.client_address, &request).await;
        (member, answer)
    });
    let mut answers = futures_util::future::join_all(asked).await;
    answers.sort_by_key(|(member, _)| member.server);
    let rehearsal = add_up(event, rehearse.share, answers)?;
    context.printer.print(&rehearsal, || table(&rehearsal))?;
    if rehearsal.complete {
        return Ok(());
    }
    Err(Failure::unavailable(
        "a server did not answer, and what its watchers would be sent is missing",
    ))
}

async fn ask(
    context: &Context,
    address: &str,
    request: &wire::RehearseStormRequest,
) -> Result<wire::RehearseStormResponse, Failure> {
    let server = context.servers.only(address)?;
    Ok(server.rehearse_storm(request).await?)
}

type Answer = (wire::Member, Result<wire::RehearseStormResponse, Failure>);

/// An error only if no server answered.
fn add_up(event: Event, share: u32, answers: Vec<Answer>) -> Result<Rehearsal, Failure> {
    let mut rehearsal = Rehearsal {
        event: event.name(),
        share_basis_points: share,
        complete: true,
        services: 0,
        nodes: 0,
        watchers: 0,
        off: Sent::default(),
        on: Sent::default(),
        servers: Vec::with_capacity(answers.len()),
    };
    let mut failed = None;
    for (member, answer) in answers {
        let (part, error) = match answer {
            Ok(part) => (part, None),
            Err(failure) => {
                let error = failure.to_string();
                failed = Some(failure);
                (wire::RehearseStormResponse::default(), Some(error))
            }
        };
        let (off, on) = of(&part);
        rehearsal.complete &= error.is_none();
        rehearsal.services = rehearsal.services.max(part.services);
        rehearsal.nodes = rehearsal.nodes.max(part.nodes);
        rehearsal.watchers += part.watchers;
        rehearsal.off.add(off);
        rehearsal.on.add(on);
        rehearsal.servers.push(ServerRehearsal {
            server: member.server,
            address: member.client_address,
            watchers: part.watchers,
            budget_bytes_per_s: part.budget_bytes_per_s,
            off,
            on,
            error,
        });
    }
    match failed {
        Some(failure) if rehearsal.servers.iter().all(|server| server.error.is_some()) => Err(failure),
        _ => Ok(rehearsal),
    }
}

/// What one server would send, with the switch off and on.
fn of(part: &wire::RehearseStormResponse) -> (Sent, Sent) {
    let at_budget = |bytes: u64| bytes as f64 / part.budget_bytes_per_s.max(1) as f64;
    let spread = if part.bytes_on == 0 {
        0.0
    } else {
        part.spread_on_ms as f64 / 1e3
    };
    let sent = |frames, bytes, at_least: f64| Sent {
        frames,
        bytes,
        seconds: (at_budget(bytes).max(at_least) * 1e3).round() / 1e3,
    };
    (
        sent(part.frames_off, part.bytes_off, 0.0),
        sent(part.frames_on, part.bytes_on, spread),
    )
}

impl Sent {
    /// Servers send side by side.
    fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.seconds = self.seconds.max(other.seconds);
    }

    fn cells(self) -> [String; 2] {
        [bytes_text(self.bytes), format!("{:.1} s", self.seconds)]
    }
}

fn table(rehearsal: &Rehearsal) -> Table {
    let mut table =
        Table::new(&["SERVER", "WATCHERS", "OFF", "TAKES", "ON", "TAKES"]).wide(&["ADDRESS", "ERROR"]);
    let mut row = |name: String, watchers: u64, off: Sent, on: Sent, address: &str, error: Option<&str>| {
        let [off_bytes, off_takes] = off.cells();
        let [on_bytes, on_takes] = on.cells();
        let cells = match error {
            None => [watchers.to_string(), off_bytes, off_takes, on_bytes, on_takes],
            Some(_) => std::array::from_fn(|_| "?".into()),
        };
        let mut cells: Vec<String> = std::iter::once(name).chain(cells).collect();
        cells.extend([address.to_owned(), error.unwrap_or_default().to_owned()]);
        table.row(cells);
    };
    for server in &rehearsal.servers {
        let error = server.error.as_deref();
        row(
            server.server.to_string(),
            server.watchers,
            server.off,
            server.on,
            &server.address,
            error,
        );
    }
    let what = format!(
        "{} of {} nodes in {} services, share {}",
        rehearsal.event,
        rehearsal.nodes,
        rehearsal.services,
        percent(rehearsal.share_basis_points)
    );
    row(
        "all".into(),
        rehearsal.watchers,
        rehearsal.off,
        rehearsal.on,
        &what,
        None,
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(server: u64) -> wire::Member {
        wire::Member {
            server,
            client_address: format!("s{server}:7400"),
            ..wire::Member::default()
        }
    }

    fn part(watchers: u64, bytes_off: u64, bytes_on: u64) -> wire::RehearseStormResponse {
        wire::RehearseStormResponse {
            services: 1,
            nodes: 10,
            watchers,
            frames_off: watchers * 10,
            bytes_off,
            frames_on: watchers,
            bytes_on,
            budget_bytes_per_s: 1_000,
            spread_on_ms: 500,
            ..wire::RehearseStormResponse::default()
        }
    }

    #[test]
    fn servers_send_side_by_side() {
        let answers = vec![
            (member(1), Ok(part(2, 4_000, 200))),
            (member(2), Ok(part(3, 6_000, 900))),
        ];
        let rehearsal = add_up(Event::Loss, 1_000, answers).unwrap();
        assert_eq!(
            (rehearsal.watchers, rehearsal.nodes, rehearsal.complete),
            (5, 10, true)
        );
        let sent = |frames, bytes, seconds| Sent {
            frames,
            bytes,
            seconds,
        };
        assert_eq!(rehearsal.off, sent(50, 10_000, 6.0));
        // The first waits for more changes, the second for its budget.
        assert_eq!(rehearsal.servers[0].on, sent(2, 200, 0.5));
        assert_eq!(rehearsal.on, sent(5, 1_100, 0.9));
    }

    #[test]
    fn a_server_that_does_not_answer_is_named_and_all_of_them_are_an_error() {
        let down = || Err(Failure::unavailable("down"));
        let answers = vec![(member(1), Ok(part(2, 4_000, 200))), (member(2), down())];
        let rehearsal = add_up(Event::Restart, 1_000, answers).unwrap();
        assert!(!rehearsal.complete && rehearsal.servers[1].error.is_some());
        assert_eq!(rehearsal.watchers, 2);
        assert!(add_up(Event::Restart, 1_000, vec![(member(1), down())]).is_err());
    }
}
