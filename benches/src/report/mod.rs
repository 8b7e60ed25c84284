//! What was measured, for people: lines while it runs, the table of goals, everything else, plots.

mod goals;
mod plot;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use self::goals::{GOALS, Goal, Reached};
use crate::bare::{BARE, FLOORS};
use crate::results::{Results, Row, Spread};

/// The generated part of the report stands between these.
const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// One row, while the course runs.
pub(crate) fn line(row: &Row) -> String {
    let mut line = format!("{:<22} {} x {:<20}", row.workload, row.servers, name(row));
    let metrics = row
        .runs
        .first()
        .map(|run| run.0.keys().cloned().collect::<Vec<_>>());
    for metric in metrics.unwrap_or_default() {
        if let Some(spread) = row.spread(&metric) {
            let _infallible = write!(line, " {metric}={}", number(spread.median));
        }
    }
    if let Some(note) = &row.note {
        let _infallible = write!(line, " NOTE: {note}");
    }
    line
}

fn name(row: &Row) -> String {
    format!("{} {}", row.product, row.dialect).trim_end().to_owned()
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 99.5 {
        let whole = format!("{value:.0}");
        let mut grouped = String::new();
        for (index, digit) in whole.char_indices() {
            let left = whole.len() - index;
            if index > 0 && left % 3 == 0 && !grouped.ends_with('-') {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        grouped
    } else if size >= 9.95 {
        format!("{value:.1}")
    } else if size == 0.0 {
        "0".to_owned()
    } else {
        format!("{value:.2}")
    }
}

fn spread_text(spread: Spread, scale: f64) -> String {
    let (median, min, max) = (spread.median * scale, spread.min * scale, spread.max * scale);
    if number(min) == number(max) {
        number(median)
    } else {
        format!("{} ({}-{})", number(median), number(min), number(max))
    }
}

/// Products that took part, other than Rollcall.
fn peers(results: &Results) -> Vec<&str> {
    let names = results.entrants.iter().map(|entrant| entrant.product.as_str());
    names.filter(|name| *name != "Rollcall").collect()
}

/// The table of goals, in Markdown.
pub(crate) fn table(results: &Results) -> String {
    let peers = peers(results);
    let mut text = String::new();
    let heads: Vec<_> = peers.iter().map(|peer| format!(" {peer} |")).collect();
    let _infallible = writeln!(
        text,
        "| workload |{} Rollcall | Rollcall / best peer | target | reached |\n|---|{}---|---|---|---|",
        heads.concat(),
        "---|".repeat(peers.len())
    );
    for goal in GOALS {
        let cell = |product: &str, dialect: &str| -> String {
            let row = results.row(goal.workload, goal.servers, product, dialect);
            match row.map(|row| (row.spread(goal.metric), &row.note)) {
                Some((Some(spread), _)) => spread_text(spread, goal.scale),
                Some((None, Some(_))) => "failed, see below".to_owned(),
                _ => "-".to_owned(),
            }
        };
        let peer_cells: Vec<_> = peers
            .iter()
            .map(|peer| format!(" {} |", cell(peer, "")))
            .collect();
        let (ratio, reached) = goal.judge(results);
        let ratio = ratio.map_or("-".to_owned(), |(ratio, peer)| {
            format!("{} ({peer})", number(ratio))
        });
        let reached = match reached {
            Reached::Yes => "yes",
            Reached::No => "**no**",
            Reached::Open => "-",
        };
        let _infallible = writeln!(
            text,
            "| {} |{} {} | {ratio} | {} | {reached} |",
            goal.title,
            peer_cells.concat(),
            cell("Rollcall", goal.dialect),
            goal.target,
        );
    }
    text
}

/// What no server can go below, in Markdown; empty if it was not measured.
fn floors(results: &Results) -> String {
    let mut text = String::new();
    for (workload, metric, what) in FLOORS {
        let row = results.row(workload, 1, BARE, "");
        if let Some(spread) = row.and_then(|row| row.spread(metric)) {
            let _infallible = writeln!(text, "| {what} | {} |", spread_text(spread, 1.0));
        }
    }
    if text.is_empty() {
        return text;
    }
    format!("\nThe bare machine, which no server can go below:\n\n| what | |\n|---|---|\n{text}")
}

/// Every row, with what is common to most.
fn details(results: &Results) -> String {
    const COLUMNS: [(&str, &str); 6] = [
        ("rate_per_s", "a second"),
        ("p50_ms", "p50 ms"),
        ("p99_ms", "p99 ms"),
        ("server_cpu_us", "server CPU us"),
        ("load_cpu_us", "load CPU us"),
        ("wire_bytes", "bytes on the wire"),
    ];
    let heads: Vec<_> = COLUMNS.iter().map(|(_, head)| format!(" {head} |")).collect();
    let mut text = format!(
        "| workload | servers | who |{} more | others' CPU |\n|---|---|---|{}---|---|\n",
        heads.concat(),
        "---|".repeat(COLUMNS.len())
    );
    let mut rows: Vec<_> = results.rows.iter().collect();
    rows.sort_by_key(|row| {
        (
            goals::order(&row.workload),
            row.workload.clone(),
            row.servers,
            name(row),
        )
    });
    for row in rows {
        let metrics = row
            .runs
            .iter()
            .flat_map(|run| run.0.keys())
            .collect::<std::collections::BTreeSet<_>>();
        let rest = metrics
            .into_iter()
            .filter(|metric| *metric != "others_share" && COLUMNS.iter().all(|(column, _)| column != metric))
            .filter_map(|metric| Some(format!("{metric} {}", spread_text(row.spread(metric)?, 1.0))));
        let mut more: Vec<_> = rest.collect();
        more.extend(
            row.note
                .as_ref()
                .map(|note| format!("*{}*", note.replace('|', "/").replace('\n', " "))),
        );
        let cells = COLUMNS.iter().map(|(metric, _)| {
            let spread = row.spread(metric);
            format!(
                " {} |",
                spread.map_or(String::new(), |spread| spread_text(spread, 1.0))
            )
        });
        let others = row
            .spread("others_share")
            .map_or(String::new(), |share| format!("{:.0} %", share.median * 100.0));
        let _infallible = writeln!(
            text,
            "| {} | {} | {} |{} {} | {others} |",
            row.workload,
            row.servers,
            name(row),
            cells.collect::<String>(),
            more.join("; ")
        );
    }
    text
}

fn heading(results: &Results) -> String {
    let machine = |key: &str| match &results.machine[key] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut text = format!(
        "Measured {} on {} processors ({}), {} GiB, Linux {}; scale `{}`, {} s in all.\n\n",
        results.began,
        machine("processors"),
        machine("model"),
        machine("memory_gib"),
        machine("kernel"),
        results.scale,
        results.took_s
    );
    for entrant in &results.entrants {
        let _infallible = writeln!(
            text,
            "- {} {}: {}",
            entrant.product, entrant.version, entrant.settings
        );
    }
    for (product, why) in &results.absent {
        let _infallible = writeln!(text, "- {product} was not measured: {why}");
    }
    text
}

/// Renews the report's generated part, the plots beside it, and the results they come from.
pub(crate) fn write(results: &Results, folder: &Path) -> Result<()> {
    let plots = folder.join("plots");
    std::fs::create_dir_all(&plots)?;
    let mut images = String::new();
    for (file, title, goals) in goals::plotted() {
        let bars: Vec<_> = goals.iter().filter_map(|goal| bars(results, goal)).collect();
        if bars.is_empty() {
            continue;
        }
        std::fs::write(plots.join(file), plot::bars(title, &bars))?;
        let _infallible = writeln!(images, "![{title}](plots/{file})\n");
    }
    let generated = format!(
        "{BEGIN}\n{}\n{}\nMedian and range of the runs; the ratio is that of medians, to the peer that is \
         named: the best of the run, or the one that the target speaks of.\n{}\n{images}<details><summary>All rows</summary>\n\n{}\n</details>\n{END}",
        heading(results),
        table(results),
        floors(results),
        details(results)
    );
    let readme = folder.join("README.md");
    let text =
        std::fs::read_to_string(&readme).with_context(|| format!("{} is not there", readme.display()))?;
    let (before, rest) = text
        .split_once(BEGIN)
        .context("the report has no place for figures")?;
    let (_, after) = rest
        .split_once(END)
        .context("the report's place for figures has no end")?;
    std::fs::write(&readme, format!("{before}{generated}{after}"))?;
    std::fs::write(folder.join("results.json"), serde_json::to_vec_pretty(results)?)?;
    println!("the report is in {}", readme.display());
    Ok(())
}

/// A goal's bars: who, how much, and how it is written.
fn bars(results: &Results, goal: &Goal) -> Option<plot::Group> {
    let mut bars = Vec::new();
    let contenders =
        std::iter::once(("Rollcall", goal.dialect)).chain(peers(results).into_iter().map(|peer| (peer, "")));
    for (product, dialect) in contenders {
        let row = results.row(goal.workload, goal.servers, product, dialect);
        if let Some(spread) = row.and_then(|row| row.spread(goal.metric)) {
            bars.push(plot::Bar {
                series: product.to_owned(),
                value: spread.median * goal.scale,
                text: spread_text(spread, goal.scale),
            });
        }
    }
    (!bars.is_empty()).then(|| plot::Group {
        label: goal.title.to_owned(),
        bars,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let written: Vec<_> = [1_234_567.0, 123.4, 99.6, 12.34, 1.234, 0.0, 0.123, -1_500.0]
            .map(number)
            .into();
        assert_eq!(
            written,
            ["1,234,567", "123", "100", "12.3", "1.23", "0", "0.12", "-1,500"]
        );
    }
}
