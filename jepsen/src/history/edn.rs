//! Histories in the form that Jepsen's own tools read: one map a line, `:type`, `:f`, `:process`, `:value`, `:time` in
//! nanoseconds and a dense `:index`. A record is an independent key, so values are pairs of the key and the value as
//! Jepsen's `independent` writes them. Faults are operations of the process `:nemesis`.
//!
//! What is not about registers has no form there that a checker knows; it stays in the JSON lines alone.

use std::fmt::Write as _;
use std::io::{BufRead, Write};

use anyhow::{Context, bail};
use serde_json::Value;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Beginnings and ends of operations.
    pub operations: usize,
    /// Beginnings and ends of faults.
    pub faults: usize,
    /// Lines about something else.
    pub left_out: usize,
}

/// Turns the JSON lines of a history into EDN, in the order of their times.
///
/// # Errors
/// A line is not one of a history, or cannot be read or written.
pub fn export(lines: impl BufRead, mut edn: impl Write) -> anyhow::Result<Exported> {
    let mut exported = Exported::default();
    let mut maps: Vec<(u64, String)> = Vec::new();
    for (number, line) in lines.lines().enumerate() {
        let line = line.context("reading the history")?;
        let read = || -> anyhow::Result<Vec<(u64, String)>> {
            let line: Value = serde_json::from_str(&line)?;
            match line.get("type").and_then(Value::as_str) {
                Some("invoke" | "ok" | "fail" | "info") => Ok(vec![operation(&line)?]),
                Some("fault") => fault(&line),
                Some(_) => Ok(Vec::new()),
                None => bail!("it has no type"),
            }
        };
        let read = read().with_context(|| format!("line {}", number + 1))?;
        match read.len() {
            0 => exported.left_out += 1,
            1 => exported.operations += 1,
            both => exported.faults += both,
        }
        maps.extend(read);
    }
    // Faults are written down when they have ended. The order of one process's lines stays.
    maps.sort_by_key(|(time, _)| *time);
    for (index, (_, map)) in maps.iter().enumerate() {
        writeln!(edn, "{{{map}, :index {index}}}").context("writing EDN")?;
    }
    edn.flush().context("writing EDN")?;
    Ok(exported)
}

fn operation(line: &Value) -> anyhow::Result<(u64, String)> {
    let word = |name: &str| line.get(name).and_then(Value::as_str);
    let number = |name: &str| line.get(name).and_then(Value::as_u64);
    let kind = word("type").context("it has no type")?;
    let function = word("f").context("it has no f")?;
    if !matches!(function, "read" | "write" | "cas") {
        bail!("f is {function:?}");
    }
    let process = number("process").context("it has no process")?;
    let key = number("key").context("it has no key")?;
    let time = nanoseconds(line, "time")?;
    let mut map = format!(":type :{kind}, :f :{function}, :value [{key} ");
    write_value(line.get("value").unwrap_or(&Value::Null), &mut map)?;
    let _ = write!(map, "], :process {process}, :time {time}");
    if let Some(revision) = number("rev") {
        let _ = write!(map, ", :rev {revision}");
    }
    Ok((time, map))
}

fn fault(line: &Value) -> anyhow::Result<Vec<(u64, String)>> {
    let what = line.get("what").and_then(Value::as_str).unwrap_or("");
    let event = |name: &str, at: &str| -> anyhow::Result<(u64, String)> {
        let time = nanoseconds(line, at)?;
        let mut map = format!(":type :info, :f :{name}, :value ");
        write_value(&Value::from(what), &mut map)?;
        let _ = write!(map, ", :process :nemesis, :time {time}");
        Ok((time, map))
    };
    Ok(vec![event("start", "time")?, event("stop", "end")?])
}

/// Milliseconds with decimals, as the lines have them.
fn nanoseconds(line: &Value, name: &str) -> anyhow::Result<u64> {
    let ms = line
        .get(name)
        .and_then(Value::as_f64)
        .with_context(|| format!("it has no {name}"))?;
    if !(0.0..1e12).contains(&ms) {
        bail!("{name} is {ms}");
    }
    let time = std::time::Duration::from_micros((ms * 1_000.0).round() as u64);
    Ok(u64::try_from(time.as_nanos())?)
}

fn write_value(value: &Value, edn: &mut String) -> anyhow::Result<()> {
    match value {
        Value::Null => edn.push_str("nil"),
        Value::Bool(_) | Value::Number(_) => {
            let _ = write!(edn, "{value}");
        }
        Value::String(text) => {
            edn.push('"');
            for character in text.chars() {
                match character {
                    '"' => edn.push_str("\\\""),
                    '\\' => edn.push_str("\\\\"),
                    '\n' => edn.push_str("\\n"),
                    character => edn.push(character),
                }
            }
            edn.push('"');
        }
        Value::Array(items) => {
            edn.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    edn.push(' ');
                }
                write_value(item, edn)?;
            }
            edn.push(']');
        }
        Value::Object(_) => bail!("a value is a map"),
    }
    Ok(())
}

#[cfg(test)]
#[path = "edn_test.rs"]
mod tests;
