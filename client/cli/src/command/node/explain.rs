//! `rollcall node explain`.

use clap::Args;
use rollcall_client::NodeKey;
use serde::Serialize;

use crate::context::Context;
use crate::exit::Failure;
use crate::flags::Reading;
use crate::names;
use crate::output::guard::{Guard, guard_text};
use crate::output::record::{Header, Node, Override, Registration, map_text, millis_text, nonzero_text};
use crate::output::table::Table;

/// Arguments of `node explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainNode {
    /// group/service/node
    node: NodeKey,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Serialize)]
struct ExplainBody {
    header: Header,
    listed: bool,
    node: Option<Node>,
    registration: Option<Registration>,
    r#override: Option<Override>,
    reasons: Vec<String>,
    session_lapses_in_ms: u64,
    guard: Option<Guard>,
}

pub(super) async fn run(context: &Context, explain: &ExplainNode) -> Result<(), Failure> {
    let answer = context
        .servers
        .registry()
        .explain(&explain.node, explain.reading.options())
        .await?;
    let said = answer.value;
    let body = ExplainBody {
        header: answer.header.into(),
        listed: said.listed,
        node: said.node.map(Node::from),
        registration: said.registration.map(Registration::from),
        r#override: said.over.map(Override::from),
        reasons: said.reasons,
        session_lapses_in_ms: said.session_lapses_in.map_or(0, names::millis),
        guard: said.guard.map(Guard::from),
    };
    context.printer.print(&body, || explain_table(explain, &body))
}

fn explain_table(explain: &ExplainNode, body: &ExplainBody) -> Table {
    let mut fields = vec![
        ("node", explain.node.to_string()),
        ("listed", if body.listed { "yes" } else { "no" }.into()),
    ];
    fields.extend(body.reasons.iter().map(|reason| ("because", reason.clone())));
    if let Some(node) = &body.node {
        fields.push(("state", node.state_text().into()));
        fields.push(("weight", node.weight.to_string()));
        fields.push(("session", nonzero_text(node.session)));
    }
    if body.session_lapses_in_ms > 0 {
        fields.push(("session lapses in", millis_text(body.session_lapses_in_ms)));
    }
    if let Some(said) = &body.registration {
        fields.push((
            "registrant said",
            format!(
                "{} {} weight={} labels={}",
                said.kind,
                said.state,
                said.weight
                    .map_or_else(|| "default".into(), |weight| weight.to_string()),
                map_text(&said.labels)
            ),
        ));
    }
    if let Some(said) = &body.r#override {
        fields.push(("operator said", said.text()));
    }
    if body.guard.is_some() {
        fields.push(("guard of its service", guard_text(body.guard.as_ref())));
    }
    Table::fields(fields)
}
