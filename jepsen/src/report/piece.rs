//! A piece of a register's history, drawn: a lane for each process, a bar for each operation.

use std::fmt::Write as _;

use super::plot::escape;
use super::smallest::Piece;
use crate::history::Function;

const WIDTH: f64 = 1_120.0;
const LEFT: f64 = 90.0;
const LANE: f64 = 30.0;
/// Longest piece that is drawn; beyond, the text of the finding must do.
pub(super) const DRAWN_MAX: usize = 60;
/// So narrow a bar still has room for its label beside it.
const BAR_MIN: f64 = 6.0;

/// Not to scale: moments stand side by side in their order, so that what overlaps and what does not is plain.
pub(super) fn draw(key: u64, pieces: &[Piece]) -> String {
    let mut processes: Vec<u64> = pieces.iter().map(|piece| piece.process).collect();
    processes.sort_unstable();
    processes.dedup();
    let mut moments: Vec<_> = pieces
        .iter()
        .flat_map(|piece| [Some(piece.begin), piece.end.map(|(at, _)| at)])
        .flatten()
        .collect();
    moments.sort_unstable();
    moments.dedup();
    let place = |index: usize| u32::try_from(index).map_or(0.0, f64::from);
    let step = (WIDTH - LEFT - 150.0) / place(moments.len().max(2) - 1);
    let x = |at| LEFT + place(moments.partition_point(|moment| *moment < at)) * step;
    let bottom = place(processes.len()) * LANE;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"register {key}, the operations that do not fit\">\n",
        bottom + 26.0
    );
    for (lane, process) in processes.iter().enumerate() {
        let y = place(lane) * LANE;
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">process {process}</text>\
             <line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{}\" y2=\"{}\"/>",
            LEFT - 10.0,
            y + 18.0,
            y + LANE,
            y + LANE
        );
    }
    for piece in pieces {
        let lane = processes.partition_point(|process| *process < piece.process);
        let y = place(lane) * LANE + 5.0;
        let from = x(piece.begin);
        let to = piece.end.map_or(WIDTH - 40.0, |(at, _)| x(at));
        let class = match (piece.end, &piece.function) {
            (None, _) => "unknown",
            (_, Function::Read) => "read",
            (_, Function::Write(_) | Function::Cas(..)) => "write",
        };
        let _ = writeln!(
            svg,
            "<rect class=\"{class} step\" x=\"{from:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"20\">\
             <title>{}</title></rect><text class=\"label\" x=\"{:.1}\" y=\"{}\">{}</text>",
            (to - from).max(BAR_MIN),
            escape(&when(piece)),
            from + 4.0,
            y + 14.0,
            escape(&label(piece))
        );
    }
    let times = moments.first().zip(moments.last());
    if let Some((first, last)) = times {
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{LEFT}\" y=\"{y}\">{first:.3?}</text>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{y}\">{last:.3?}</text>",
            x(*last),
            y = bottom + 16.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn label(piece: &Piece) -> String {
    let written = |value: Option<u64>| value.map_or("nothing".to_owned(), |value| value.to_string());
    let what = match (&piece.function, piece.end) {
        (Function::Read, Some((_, seen))) => format!("reads {}", written(seen)),
        (Function::Read, None) => "reads".into(),
        (Function::Write(new), _) => format!("writes {new}"),
        (Function::Cas(old, new), _) => format!("{} → {new}", written(*old)),
    };
    if piece.end.is_some() {
        what
    } else {
        format!("{what} ?")
    }
}

fn when(piece: &Piece) -> String {
    match piece.end {
        Some((at, _)) => format!("{:?} to {at:?}", piece.begin),
        None => format!("from {:?}, outcome unknown", piece.begin),
    }
}
