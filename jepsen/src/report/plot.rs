//! Plots as inline SVG: time to the right, faults as bands behind everything.

use std::fmt::Write as _;
use std::time::Duration;

use crate::history::{Fault, Function, Operation, Outcome};

const WIDTH: f64 = 1_120.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 10.0;
/// Most points drawn; beyond, every so manieth is.
const POINTS_MAX: usize = 8_000;
const SECONDS: [f64; 6] = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0];

/// A stretch of time, and how to draw it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Seconds shown.
    pub(super) length: f64,
}

impl Axis {
    fn x(self, at: Duration) -> f64 {
        LEFT + (at.as_secs_f64() / self.length.max(0.001)).min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn open(self, height: f64, label: &str) -> String {
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{label}\">\n")
    }

    fn bands(self, faults: &[Fault], top: f64, bottom: f64, svg: &mut String) {
        for fault in faults {
            let (from, to) = (self.x(fault.time), self.x(fault.end));
            let _ = writeln!(
                svg,
                "<rect class=\"band\" x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{}\"/>",
                (to - from).max(1.0),
                bottom - top
            );
        }
    }

    fn ticks(self, bottom: f64, svg: &mut String) {
        let step = [1_u32, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_800, 3_600]
            .into_iter()
            .find(|step| self.length / f64::from(*step) <= 14.0)
            .unwrap_or(7_200);
        for second in (0_u32..)
            .step_by(step as usize)
            .take_while(|second| f64::from(*second) <= self.length)
        {
            let x = self.x(Duration::from_secs(second.into()));
            let _ = writeln!(
                svg,
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
                bottom + 14.0
            );
        }
    }
}

/// One row per fault, in the order in which they began; below them, who led from when on.
pub(super) fn timeline(faults: &[Fault], leads: &[(Duration, u64, u64)], axis: Axis) -> String {
    let height = |rows: usize| u32::try_from(rows).map_or(0.0, f64::from) * 17.0;
    let bottom = height(faults.len() + 1);
    let mut svg = axis.open(bottom + 24.0, "faults over time");
    for (at, server, term) in leads {
        let x = axis.x(*at);
        let _ = writeln!(
            svg,
            "<line class=\"leads\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom}\"><title>server {server} \
             leads in term {term} from {at:.1?} on</title></line><text class=\"tick\" x=\"{:.1}\" y=\"{}\">{server}\
             </text>",
            x + 3.0,
            bottom - 3.0
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">leader</text>",
        LEFT - 6.0,
        bottom - 3.0
    );
    for (row, fault) in faults.iter().enumerate() {
        let (y, from, to) = (height(row), axis.x(fault.time), axis.x(fault.end));
        let class = if fault.bit { "fault" } else { "fault idle" };
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"13\"><title>{}</title></rect>",
            (to - from).max(2.0),
            escape(&fault.effect)
        );
        // Beside the bar, on the side where there is room.
        let (x, anchor) = if from > WIDTH * 0.6 {
            (from - 4.0, "end")
        } else {
            (to + 4.0, "start")
        };
        let _ = writeln!(
            svg,
            "<text class=\"label\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            y + 11.0,
            escape(&fault.what)
        );
    }
    axis.ticks(bottom, &mut svg);
    svg.push_str("</svg>\n");
    svg
}

/// Latencies on a logarithmic scale, by outcome.
pub(super) fn latencies(paired: &[(&Operation, Outcome)], faults: &[Fault], axis: Axis) -> String {
    const BOTTOM: f64 = 300.0;
    let y = |seconds: f64| {
        let share = (seconds.clamp(SECONDS[0], 10.0).log10() - SECONDS[0].log10()) / 5.0;
        BOTTOM - share * (BOTTOM - 10.0)
    };
    let mut svg = axis.open(BOTTOM + 20.0, "latencies over time");
    axis.bands(faults, 0.0, BOTTOM, &mut svg);
    for second in SECONDS {
        let label = if second < 1.0 {
            format!("{} ms", second * 1_000.0)
        } else {
            format!("{second} s")
        };
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT,
            y(second),
            y(second),
            LEFT - 6.0,
            y(second) + 4.0
        );
    }
    for (operation, outcome) in paired.iter().step_by(paired.len().div_ceil(POINTS_MAX).max(1)) {
        let (class, height) = match outcome {
            Outcome::Ok { at, .. } => {
                let class = if operation.function == Function::Read {
                    "read"
                } else {
                    "write"
                };
                (class, y(at.saturating_sub(operation.time).as_secs_f64()))
            }
            // Their ends say nothing: they stand at the upper edge.
            Outcome::Fail => continue,
            Outcome::Unknown => ("unknown", 5.0),
        };
        let x = axis.x(operation.time);
        let _ = writeln!(
            svg,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{height:.1}\" r=\"1.6\"/>"
        );
    }
    axis.ticks(BOTTOM, &mut svg);
    svg.push_str("</svg>\n");
    svg
}

/// Operations that ended well, second by second.
pub(super) fn throughput(paired: &[(&Operation, Outcome)], faults: &[Fault], axis: Axis) -> String {
    const BOTTOM: f64 = 120.0;
    let mut seconds: Vec<u32> = Vec::new();
    for (_, outcome) in paired {
        if let Outcome::Ok { at, .. } = outcome {
            let second = usize::try_from(at.as_secs()).unwrap_or(0);
            if seconds.len() <= second {
                seconds.resize(second + 1, 0);
            }
            seconds[second] += 1;
        }
    }
    let most = f64::from(seconds.iter().copied().max().unwrap_or(1).max(1));
    let mut svg = axis.open(BOTTOM + 20.0, "operations per second over time");
    axis.bands(faults, 0.0, BOTTOM, &mut svg);
    for (second, count) in seconds.iter().enumerate() {
        let height = f64::from(*count) / most * (BOTTOM - 12.0);
        let x = axis.x(Duration::from_secs(second as u64));
        let next = axis.x(Duration::from_secs(second as u64 + 1));
        let _ = writeln!(
            svg,
            "<rect class=\"bar\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
            BOTTOM - height,
            (next - x - 1.0).max(0.5)
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"tick\" x=\"{}\" y=\"16\" text-anchor=\"end\">{most}/s</text>",
        LEFT - 6.0
    );
    axis.ticks(BOTTOM, &mut svg);
    svg.push_str("</svg>\n");
    svg
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
