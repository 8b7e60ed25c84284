//! The page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::piece::{DRAWN_MAX, draw};
use super::plot::{Axis, escape, latencies, throughput, timeline};
use super::smallest::smallest;
use crate::campaign::{Findings, Options};
use crate::checker::{Verdict, linear};
use crate::history::{Fault, Heartbeats, Operation, Record, pair};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: light-dark(#1c2430, #e4e8ee); --paper: light-dark(#fff, #14181f);
  --soft: light-dark(#5c6675, #98a2b1); --line: light-dark(#e3e7ec, #2a313c); --band: light-dark(#f4a26133, #f4a26126);
  --fault: light-dark(#e07b39, #d9803f); --read: light-dark(#2f6fde, #6ea0ff); --write: light-dark(#1d8a5f, #45c08f);
  --bad: light-dark(#c22b3a, #ff6b78); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1160px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li { color: var(--soft); } code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { color: var(--ink); background: var(--line); padding: .8rem; border-radius: 6px; overflow-x: auto; white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .35rem .8rem .35rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--soft); font-weight: 500; }
.good { color: var(--write); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .label { fill: var(--ink); } .band { fill: var(--band); } .fault { fill: var(--fault); rx: 2px; }
.grid { stroke: var(--line); } .read { fill: var(--read); fill-opacity: .55; } .write { fill: var(--write); fill-opacity: .55; }
.unknown { fill: var(--bad); } .bar { fill: var(--read); fill-opacity: .7; }
.idle { fill: none; stroke: var(--fault); } .leads { stroke: var(--soft); stroke-dasharray: 2 3; } .step { fill-opacity: .35; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); } .seen td { font-size: 13px; }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin: 0 .3rem 0 1rem; vertical-align: -1px; }
";

/// Findings of one judge that are in sight at once: what comes below, the faults above all, tells as much.
const IN_SIGHT: usize = 2;
/// Findings of one judge that are shown; more are in the history.
const SHOWN_MAX: usize = 12;
/// Pieces that are drawn.
const PIECES_MAX: usize = 6;

/// The page of a run. It needs nothing but itself.
#[must_use]
pub fn page(options: &Options, findings: &Findings) -> String {
    let mut operations: Vec<&Operation> = Vec::new();
    let mut faults: Vec<Fault> = Vec::new();
    let mut leads: Vec<(Duration, u64, u64)> = Vec::new();
    for record in &findings.records {
        match record {
            Record::Operation(operation) => operations.push(operation),
            Record::Fault(fault) => faults.push(fault.clone()),
            Record::Heartbeats(Heartbeats::Leads { server, term, time }) => {
                leads.push((*time, *server, *term));
            }
            _ => {}
        }
    }
    faults.sort_by_key(|fault| fault.time);
    let last = findings.records.iter().map(Record::time).max();
    let axis = Axis {
        length: last.unwrap_or_default().as_secs_f64(),
    };

    let mut html = String::new();
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Rollcall under faults, seed {seed}</title><style>{STYLE}</style>\n\
         <h1>Rollcall under faults: {outcome}</h1>\n<p>Seed <code>{seed}</code>, {servers} servers, {seconds} s of \
         faults. Again: <code>{again}</code></p>\n",
        seed = options.seed,
        servers = options.servers,
        seconds = options.length.as_secs(),
        again = escape(&options.command_line()),
        outcome = outcome(findings.is_good()),
    );
    verdicts(&findings.verdicts, &mut html);
    pieces(&findings.verdicts, &operations, &mut html);
    html.push_str("<h2>The run</h2><ul>");
    for figure in &findings.figures {
        let _ = write!(html, "<li>{}</li>", escape(figure));
    }
    for left_out in &findings.left_out {
        let _ = write!(html, "<li>not possible here: {}</li>", escape(left_out));
    }
    let _ = write!(
        html,
        "</ul>\n<h2>Faults<span class=\"key\" style=\"background:var(--fault)\"></span>seen to bite\
         <span class=\"key\" style=\"border:1px solid var(--fault)\"></span>not</h2>\n{}",
        timeline(&faults, &leads, axis)
    );
    seen(&faults, &mut html);
    let paired = pair(operations);
    if !paired.is_empty() {
        let _ = write!(
            html,
            "<h2>Latency<span class=\"key\" style=\"background:var(--read)\"></span>reads\
             <span class=\"key\" style=\"background:var(--write)\"></span>writes\
             <span class=\"key\" style=\"background:var(--bad)\"></span>unknown outcome (at their beginning)</h2>\n{}\
             <h2>Operations per second</h2>\n{}",
            latencies(&paired, &faults, axis),
            throughput(&paired, &faults, axis)
        );
    }
    html.push_str("</html>\n");
    html
}

/// What was seen of each fault.
fn seen(faults: &[Fault], html: &mut String) {
    if faults.is_empty() {
        return;
    }
    html.push_str("<details><summary>what was seen of each</summary><table class=\"seen\">\n");
    for fault in faults {
        let _ = writeln!(
            html,
            "<tr><td>{:.1} s<td>{:.1} s<td>{}<td>{}</tr>",
            fault.time.as_secs_f64(),
            fault.end.as_secs_f64(),
            escape(&fault.what),
            escape(&fault.effect)
        );
    }
    html.push_str("</table></details>\n");
}

/// The smallest wrong pieces of the registers' histories.
fn pieces(verdicts: &[Verdict], operations: &[&Operation], html: &mut String) {
    let wrong = |verdict: &Verdict| verdict.checker == linear::NAME && !verdict.findings.is_empty();
    if !verdicts.iter().any(wrong) {
        return;
    }
    let mut keys: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        keys.entry(operation.key).or_default().push(operation);
    }
    let mut drawn = 0;
    for (key, of) in keys {
        if drawn == PIECES_MAX {
            break;
        }
        let Some(pieces) = smallest(&of) else { continue };
        drawn += 1;
        let _ = writeln!(
            html,
            "<h2 class=\"bad\">Register {key}: {} operations that no order explains</h2>",
            pieces.len()
        );
        if pieces.len() <= DRAWN_MAX {
            html.push_str(&draw(key, &pieces));
        }
    }
    html.push_str(
        "<p>Each bar is an operation, from its request to its answer; moments stand in their order, not to scale. What \
         is not needed to be wrong was taken away.</p>\n",
    );
}

fn outcome(good: bool) -> &'static str {
    if good {
        "<span class=\"good\">no violation</span>"
    } else {
        "<span class=\"bad\">violations</span>"
    }
}

fn verdicts(verdicts: &[Verdict], html: &mut String) {
    html.push_str("<h2>Judges</h2><table><tr><th>judge<th>judged<th>found<th>figures</tr>\n");
    for verdict in verdicts {
        let found = match (verdict.findings.len(), verdict.undecided.len()) {
            (0, 0) if verdict.judged > 0 => "<span class=\"good\">nothing</span>".to_owned(),
            (0, 0) => "<span class=\"bad\">had nothing to judge</span>".to_owned(),
            (found, undecided) => {
                format!("<span class=\"bad\">{found} violations, {undecided} undecided</span>")
            }
        };
        let _ = writeln!(
            html,
            "<tr><td>{}<td>{}<td>{found}<td>{}</tr>",
            escape(verdict.checker),
            verdict.judged,
            escape(&verdict.figures.join("; "))
        );
    }
    html.push_str("</table>\n");
    for verdict in verdicts {
        for (number, finding) in verdict.findings.iter().take(SHOWN_MAX).enumerate() {
            if number == IN_SIGHT {
                let more = verdict.findings.len() - IN_SIGHT;
                let checker = escape(verdict.checker);
                let _ = writeln!(html, "<details><summary>{more} more of {checker}</summary>");
            }
            let _ = writeln!(
                html,
                "<h2 class=\"bad\">{} at {:.3?}</h2><pre>{}</pre>",
                escape(verdict.checker),
                finding.at,
                escape(&finding.what)
            );
        }
        if verdict.findings.len() > SHOWN_MAX {
            let more = verdict.findings.len() - SHOWN_MAX;
            let _ = writeln!(html, "<p>and {more} in the history</p>");
        }
        if verdict.findings.len() > IN_SIGHT {
            html.push_str("</details>\n");
        }
        for undecided in &verdict.undecided {
            let _ = writeln!(html, "<pre>undecided: {}</pre>", escape(undecided));
        }
    }
}
