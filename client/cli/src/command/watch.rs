//! `rollcall watch`: each change as it comes, resumed after losses by the client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use rollcall_client::{RemovalCause, RemovedNode, ServiceKey, ServiceView, WatchEvent, WatchTarget};
use rollcall_proto::v1 as wire;
use serde::Serialize;
use tokio::time::Instant;

use crate::context::Context;
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::names::Target;
use crate::output::Printer;
use crate::output::guard::{Guard, guard_text};
use crate::output::record::{Node, map_text};
use crate::talk::say;

/// Arguments of `rollcall watch`.
#[derive(Args, Debug)]
#[command(after_help = "\
group/service is one service; with a slash at the end, or without any slash, it is a prefix of groups; / is
everything. Lines: = a service as a whole, + a node is new, ~ a node changed, - a node is gone, x the service
is gone, ! what its removal guard says now. A revision with (ap) counts the steps of one server and starts anew at
another. Runs until Ctrl-C, through losses of servers; the first connection must be made within --timeout.
With -o json, one JSON document a line.")]
pub(crate) struct WatchArguments {
    /// What to watch
    #[arg(value_name = "SERVICE|PREFIX")]
    target: Target,
    /// End after so many changes (what is there at the beginning is not a change, nor what a removal guard says)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    changes: Option<u64>,
}

/// What kind of line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum EventKind {
    /// The whole service; single changes before it are not known.
    Snapshot,
    /// One revision's change.
    Change,
    /// The service does not exist, or not any more.
    Gone,
    /// Its removal guard says something else.
    Guard,
}

/// One line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Event {
    time: String,
    /// In mode ap: of the one server that the watch is at, in its epoch. 0: not known.
    revision: u64,
    /// How the group is replicated; null: not known.
    mode: Option<&'static str>,
    /// In mode ap: the life of the server that counts the revision; else 0.
    epoch: u64,
    group: String,
    service: String,
    event: EventKind,
    /// The server could not send every change in time.
    lagged: bool,
    /// How many nodes there are afterwards.
    nodes: usize,
    sign: String,
    added: Vec<Node>,
    changed: Vec<Changed>,
    removed: Vec<Removed>,
    /// What the removal guard says afterwards; null: nothing.
    guard: Option<Guard>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Changed {
    before: Node,
    after: Node,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Removed {
    id: String,
    cause: &'static str,
}

/// What has been printed so far, to tell new nodes from changed ones.
#[derive(Debug, Default)]
struct Roll(BTreeMap<ServiceKey, BTreeMap<String, Node>>);

/// What differs from what was printed.
#[derive(Clone, Debug, Default, PartialEq)]
struct Difference {
    added: Vec<Node>,
    changed: Vec<Changed>,
    removed: Vec<Removed>,
}

impl Roll {
    /// The whole service is this now.
    fn replace(&mut self, service: &ServiceKey, nodes: Vec<Node>) -> Difference {
        let held = self.0.entry(service.clone()).or_default();
        let gone: Vec<String> = held
            .keys()
            .filter(|id| !nodes.iter().any(|node| node.id == **id))
            .cloned()
            .collect();
        let removed = gone
            .into_iter()
            .map(|id| Removed { id, cause: "unknown" })
            .collect();
        self.change(service, nodes, removed)
    }

    /// These nodes are new or different, those are gone.
    fn change(&mut self, service: &ServiceKey, put: Vec<Node>, removed: Vec<Removed>) -> Difference {
        let held = self.0.entry(service.clone()).or_default();
        let mut difference = Difference::default();
        for removal in removed {
            if held.remove(&removal.id).is_some() {
                difference.removed.push(removal);
            }
        }
        for node in put {
            match held.insert(node.id.clone(), node.clone()) {
                None => difference.added.push(node),
                Some(before) if before != node => difference.changed.push(Changed { before, after: node }),
                Some(_) => {}
            }
        }
        difference
    }

    /// The service is gone, and its nodes with it; `None`: it was not known.
    fn forget(&mut self, service: &ServiceKey) -> Option<Difference> {
        let nodes = self.0.remove(service)?;
        let removed = nodes
            .into_keys()
            .map(|id| Removed { id, cause: "unknown" })
            .collect();
        Some(Difference {
            removed,
            ..Difference::default()
        })
    }

    /// Those that were printed and are not among these were deleted in changes that were left out.
    fn gone_unseen(&mut self, there: &[Arc<ServiceView>]) -> Vec<Event> {
        let there = there.iter().filter(|view| view.exists);
        let there: BTreeSet<&ServiceKey> = there.map(|view| &view.key).collect();
        let printed: Vec<ServiceKey> = self.0.keys().cloned().collect();
        let gone = printed.into_iter().filter(|key| !there.contains(key));
        gone.filter_map(|key| Some(gone_unseen(&key, self.forget(&key)?)))
            .collect()
    }
}

/// Prints until the interrupt, a lasting refusal, or the wanted number of changes.
pub(crate) async fn run(
    context: &Context,
    arguments: &WatchArguments,
    mut interrupt: Interrupt,
) -> Result<(), Failure> {
    let target = match &arguments.target {
        Target::Service(service) => WatchTarget::Service(service.clone()),
        Target::Prefix(prefix) => WatchTarget::group(prefix),
    };
    let mut watch = context.servers.registry().watch(target).await?;
    let mut reader = Reader {
        printer: context.printer,
        roll: Roll::default(),
        changes_left: arguments.changes,
        live: false,
        last_reason: None,
    };
    let first_by = Instant::now() + context.servers.timeout();
    loop {
        // An event counts before the end of the patience: a slow reader on stdout has both wait.
        let event = tokio::select! {
            biased;
            () = interrupt.requested() => return Ok(()),
            event = watch.next() => event,
            () = tokio::time::sleep_until(first_by), if !reader.live => return Err(reader.never_live(context)),
        };
        if reader.take(event, watch.target())? == Next::End {
            return Ok(());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Go,
    End,
}

struct Reader {
    printer: Printer,
    roll: Roll,
    changes_left: Option<u64>,
    live: bool,
    last_reason: Option<String>,
}

impl Reader {
    fn take(&mut self, event: WatchEvent, target: &WatchTarget) -> Result<Next, Failure> {
        // There is no snapshot on disk here: what is told of services comes from a server.
        self.live |= !matches!(
            event,
            WatchEvent::Interrupted { .. } | WatchEvent::Rejected { .. }
        );
        match event {
            WatchEvent::Snapshot { view, lagged } => self.snapshot(&view, lagged)?,
            WatchEvent::Changed { view, put, removed } => {
                let put = put.iter().map(|node| node_of(node)).collect();
                let removed = removed.iter().map(removed_of).collect();
                let difference = self.roll.change(&view.key, put, removed);
                self.print(&event_of(&view, EventKind::Change, false, difference))?;
                return Ok(self.count_change());
            }
            WatchEvent::Guard { view, .. } => {
                self.print(&event_of(&view, EventKind::Guard, false, Difference::default()))?;
            }
            WatchEvent::Gone { view } => {
                if let Some(difference) = self.roll.forget(&view.key) {
                    self.print(&event_of(&view, EventKind::Gone, false, difference))?;
                    return Ok(self.count_change());
                }
                talk(&format!("{} does not exist yet", view.key));
            }
            WatchEvent::Live {
                revision,
                resumed,
                server,
            } => {
                let how = if resumed {
                    "resumed without a gap"
                } else {
                    "from the current state"
                };
                talk(&format!("live at server {server}, revision {revision}, {how}"));
            }
            WatchEvent::Interrupted { reason } => {
                talk(&format!("interrupted: {reason}; looking for a server"));
                self.last_reason = Some(reason.to_string());
            }
            WatchEvent::Rejected { error } if error.is_transient() => {
                talk(&format!("refused for now: {error}"));
                self.last_reason = Some(error.to_string());
            }
            WatchEvent::Rejected { error } => {
                let failure = Failure::failed(format!("{target} cannot be watched: {error}"));
                return Err(Failure {
                    exit: crate::exit::exit_of_client(&error),
                    ..failure
                });
            }
            WatchEvent::Lagged { views } => return self.lagged(&views),
            // What later clients add is not for this version to print.
            _ => {}
        }
        Ok(Next::Go)
    }

    /// What is there now; what was there and is not was deleted in what was left out.
    fn lagged(&mut self, views: &[Arc<ServiceView>]) -> Result<Next, Failure> {
        for gone in self.roll.gone_unseen(views) {
            self.print(&gone)?;
            if self.count_change() == Next::End {
                return Ok(Next::End);
            }
        }
        // One that was asked for by name is told of also while it does not exist.
        for view in views.iter().filter(|view| view.exists) {
            self.snapshot(view, true)?;
        }
        Ok(Next::Go)
    }

    fn snapshot(&mut self, view: &ServiceView, lagged: bool) -> Result<(), Failure> {
        let difference = self
            .roll
            .replace(&view.key, view.nodes.iter().map(|node| node_of(node)).collect());
        self.print(&event_of(view, EventKind::Snapshot, lagged, difference))
    }

    fn print(&self, event: &Event) -> Result<(), Failure> {
        if self.printer.is_json() {
            self.printer.json_line(event)
        } else {
            self.printer
                .text(&lines(event, self.printer.is_wide(), self.printer.colors()))
        }
    }

    fn count_change(&mut self) -> Next {
        match self.changes_left.as_mut() {
            None => Next::Go,
            Some(left) => {
                *left = left.saturating_sub(1);
                if *left == 0 { Next::End } else { Next::Go }
            }
        }
    }

    fn never_live(&self, context: &Context) -> Failure {
        let reason = self.last_reason.as_deref().unwrap_or("no server answered");
        Failure::unavailable(format!(
            "no watch within {:?}: {reason}",
            context.servers.timeout()
        ))
    }
}

fn talk(sentence: &str) {
    say(format_args!("{} {sentence}", now()));
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

fn node_of(node: &rollcall_client::Node) -> Node {
    wire::Node::from(node).into()
}

fn removed_of(removed: &RemovedNode) -> Removed {
    let cause = match removed.cause {
        RemovalCause::Deregistered => "deregistered",
        RemovalCause::Expired => "expired",
        RemovalCause::SessionClosed => "session_closed",
        _ => "unknown",
    };
    Removed {
        id: removed.id.clone(),
        cause,
    }
}

fn event_of(view: &ServiceView, event: EventKind, lagged: bool, difference: Difference) -> Event {
    Event {
        time: now(),
        revision: view.revision,
        mode: match view.mode {
            wire::GroupMode::Unspecified => None,
            wire::GroupMode::Cp => Some("cp"),
            wire::GroupMode::Ap => Some("ap"),
        },
        epoch: view.epoch,
        group: view.key.group.to_string(),
        service: view.key.service.to_string(),
        event,
        lagged,
        nodes: view.nodes.len(),
        sign: format!("{:032x}", view.sign.0),
        added: difference.added,
        changed: difference.changed,
        removed: difference.removed,
        guard: view.guard.map(Guard::from),
    }
}

/// A service is gone, at which revision is not known.
fn gone_unseen(service: &ServiceKey, difference: Difference) -> Event {
    Event {
        time: now(),
        revision: 0,
        mode: None,
        epoch: 0,
        group: service.group.to_string(),
        service: service.service.to_string(),
        event: EventKind::Gone,
        lagged: true,
        nodes: 0,
        sign: format!("{:032x}", 0),
        added: difference.added,
        changed: difference.changed,
        removed: difference.removed,
        guard: None,
    }
}

/// The event as people read it: one line a node.
fn lines(event: &Event, wide: bool, colors: bool) -> String {
    let paint = |color: &str, text: String| {
        if colors {
            format!("\u{1b}[{color}m{text}\u{1b}[0m")
        } else {
            text
        }
    };
    let mode = match event.mode {
        Some("ap") => "(ap)",
        _ => "",
    };
    let head = format!(
        "{} {}{mode} {}/{}",
        event.time, event.revision, event.group, event.service
    );
    let guard = || {
        let text = guard_text(event.guard.as_ref());
        paint("35", format!("{head} ! guard {text}"))
    };
    let mut lines = Vec::new();
    match event.event {
        EventKind::Snapshot => {
            let lagged = if event.lagged {
                ", changes before it were skipped"
            } else {
                ""
            };
            lines.push(format!("{head} = {} nodes{lagged}", event.nodes));
            if event.guard.is_some() {
                lines.push(guard());
            }
        }
        EventKind::Guard => lines.push(guard()),
        EventKind::Gone => lines.push(paint("31", format!("{head} x gone"))),
        EventKind::Change => {}
    }
    for node in &event.added {
        lines.push(paint("32", format!("{head} + {}", node_text(node, wide))));
    }
    for change in &event.changed {
        lines.push(paint(
            "33",
            format!("{head} ~ {} {}", change.after.id, change_text(change)),
        ));
    }
    for removed in &event.removed {
        lines.push(paint("31", format!("{head} - {} {}", removed.id, removed.cause)));
    }
    if lines.is_empty() {
        lines.push(format!("{head} ~ settings"));
    }
    lines.join("\n")
}

fn node_text(node: &Node, wide: bool) -> String {
    let mut words = vec![
        node.id.clone(),
        node.state_text().into(),
        format!("weight={}", node.weight),
        node.addresses_text(),
    ];
    if !node.labels.is_empty() {
        words.push(map_text(&node.labels));
    }
    if wide {
        words.extend([
            node.kind.to_owned(),
            format!("session={}", node.session),
            map_text(&node.metadata),
        ]);
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// What is different, field by field.
fn change_text(change: &Changed) -> String {
    let (before, after) = (&change.before, &change.after);
    let mut words = Vec::new();
    let mut note = |name: &str, old: String, new: String| {
        if old != new {
            words.push(format!("{name} {}->{}", dash(&old), dash(&new)));
        }
    };
    note("state", before.state_text().into(), after.state_text().into());
    note("weight", before.weight.to_string(), after.weight.to_string());
    note("addresses", before.addresses_text(), after.addresses_text());
    note("labels", map_text(&before.labels), map_text(&after.labels));
    note("kind", before.kind.into(), after.kind.into());
    note("session", before.session.to_string(), after.session.to_string());
    note(
        "incarnation",
        before.incarnation.to_string(),
        after.incarnation.to_string(),
    );
    if before.metadata != after.metadata {
        words.push("metadata".into());
    }
    if before.r#override != after.r#override {
        words.push("override".into());
    }
    if words.is_empty() {
        "registered again".into()
    } else {
        words.join(" ")
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, weight: u32) -> Node {
        wire::Node {
            id: id.into(),
            weight,
            state: wire::NodeState::Up.into(),
            kind: wire::NodeKind::Ephemeral.into(),
            addresses: vec![wire::Address {
                name: "http".into(),
                host: "h".into(),
                port: 80,
            }],
            ..wire::Node::default()
        }
        .into()
    }

    fn key() -> ServiceKey {
        ServiceKey::new("prod", "feed")
    }

    fn event(event: EventKind, difference: Difference) -> Event {
        Event {
            time: "T".into(),
            revision: 7,
            mode: Some("cp"),
            epoch: 0,
            group: "prod".into(),
            service: "feed".into(),
            event,
            lagged: false,
            nodes: 1,
            sign: String::new(),
            added: difference.added,
            changed: difference.changed,
            removed: difference.removed,
            guard: None,
        }
    }

    #[test]
    fn new_changed_and_gone_nodes_are_told_apart() {
        let mut roll = Roll::default();
        let first = roll.replace(&key(), vec![node("a", 1), node("b", 1)]);
        assert_eq!(
            (first.added.len(), first.changed.len(), first.removed.len()),
            (2, 0, 0)
        );
        let removed = vec![Removed {
            id: "b".into(),
            cause: "expired",
        }];
        let second = roll.change(&key(), vec![node("a", 2), node("c", 1)], removed);
        assert_eq!(second.added, [node("c", 1)]);
        assert_eq!(
            second.changed,
            [Changed {
                before: node("a", 1),
                after: node("a", 2)
            }]
        );
        assert_eq!(
            second.removed,
            [Removed {
                id: "b".into(),
                cause: "expired"
            }]
        );
    }

    #[test]
    fn a_snapshot_tells_only_what_differs() {
        let mut roll = Roll::default();
        roll.replace(&key(), vec![node("a", 1), node("b", 1)]);
        let again = roll.replace(&key(), vec![node("b", 1), node("c", 1)]);
        assert_eq!(again.added, [node("c", 1)]);
        assert!(again.changed.is_empty());
        assert_eq!(
            again.removed,
            [Removed {
                id: "a".into(),
                cause: "unknown"
            }]
        );
    }

    #[test]
    fn a_service_is_gone_once() {
        let mut roll = Roll::default();
        roll.replace(&key(), vec![]);
        assert_eq!(roll.forget(&key()), Some(Difference::default()));
        assert_eq!(roll.forget(&key()), None);
    }

    #[test]
    fn what_was_deleted_while_the_reader_was_slow_is_told_with_its_nodes() {
        let view = |service: &str, nodes: &[&str]| {
            let nodes = nodes.iter().map(|id| wire::Node {
                id: (*id).into(),
                ..wire::Node::default()
            });
            Arc::new(ServiceView::given(wire::ServiceView {
                key: Some((&ServiceKey::new("prod", service)).into()),
                nodes: nodes.collect(),
                ..wire::ServiceView::default()
            }))
        };
        let (stays, goes) = (view("stays", &["a"]), view("goes", &["b", "c"]));
        let mut roll = Roll::default();
        for view in [&stays, &goes] {
            let nodes = view.nodes.iter().map(|node| node_of(node)).collect();
            roll.replace(&view.key, nodes);
        }
        let told = roll.gone_unseen(&[stays]);
        let [gone] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!((gone.event, gone.service.as_str()), (EventKind::Gone, "goes"));
        let removed = gone.removed.iter().map(|node| (node.id.as_str(), node.cause));
        assert_eq!(removed.collect::<Vec<_>>(), [("b", "unknown"), ("c", "unknown")]);
        assert!(lines(gone, false, false).ends_with("- c unknown"), "{gone:?}");
        assert_eq!(roll.gone_unseen(&[]).len(), 1, "the other one was still there");
    }

    #[test]
    fn a_single_service_that_was_deleted_while_the_reader_was_slow_is_gone_and_counts() {
        let printing = crate::flags::Printing {
            output: crate::flags::Form::Json,
            no_headers: false,
        };
        let mut reader = Reader {
            printer: Printer::new(&printing),
            roll: Roll::default(),
            changes_left: Some(2),
            live: true,
            last_reason: None,
        };
        let mut view = ServiceView::given(wire::ServiceView {
            key: Some((&key()).into()),
            ..wire::ServiceView::default()
        });
        reader.roll.replace(&key(), vec![node("a", 1)]);
        view.exists = false;
        let gone = [Arc::new(view)];
        assert_eq!(reader.lagged(&gone).unwrap(), Next::Go);
        assert_eq!(reader.changes_left, Some(1));
        assert!(reader.roll.0.is_empty(), "{:?}", reader.roll);
        // Nothing of it was printed since: no news.
        assert_eq!(reader.lagged(&gone).unwrap(), Next::Go);
        assert_eq!((reader.changes_left, reader.roll.0.len()), (Some(1), 0));
    }

    #[test]
    fn lines_show_signs_and_fields() {
        let mut roll = Roll::default();
        let first = event(EventKind::Snapshot, roll.replace(&key(), vec![node("a", 1)]));
        assert_eq!(
            lines(&first, false, false),
            "T 7 prod/feed = 1 nodes\nT 7 prod/feed + a up weight=1 http=h:80"
        );
        let mut heavier = node("a", 5);
        heavier.state = "draining";
        let second = event(EventKind::Change, roll.change(&key(), vec![heavier], vec![]));
        assert_eq!(
            lines(&second, false, false),
            "T 7 prod/feed ~ a state up->draining weight 1->5"
        );
        let removed = vec![Removed {
            id: "a".into(),
            cause: "expired",
        }];
        let third = event(EventKind::Change, roll.change(&key(), vec![], removed));
        assert_eq!(lines(&third, false, false), "T 7 prod/feed - a expired");
        assert_eq!(
            lines(&event(EventKind::Change, Difference::default()), false, false),
            "T 7 prod/feed ~ settings"
        );
        assert!(lines(&third, false, true).starts_with("\u{1b}[31m"));
        let mut guarded = event(EventKind::Guard, Difference::default());
        let said = wire::GuardStatus {
            window_began: 6,
            removed: 1,
            baseline: 4,
            ..wire::GuardStatus::default()
        };
        guarded.guard = Some(said.into());
        let line = "T 7 prod/feed ! guard not engaged; 1 of 4 lapsed away in the window since revision 6";
        assert_eq!(lines(&guarded, false, false), line);
        guarded.event = EventKind::Snapshot;
        assert_eq!(
            lines(&guarded, false, false),
            format!("T 7 prod/feed = 1 nodes\n{line}")
        );
    }

    #[test]
    fn the_json_names_are_stable() {
        let json = serde_json::to_string(&event(EventKind::Gone, Difference::default())).unwrap();
        assert_eq!(
            json,
            "{\"time\":\"T\",\"revision\":7,\"mode\":\"cp\",\"epoch\":0,\"group\":\"prod\",\"service\":\"feed\",\
             \"event\":\"gone\",\"lagged\":false,\"nodes\":1,\"sign\":\"\",\"added\":[],\"changed\":[],\"removed\":[],\
             \"guard\":null}"
        );
    }
}
