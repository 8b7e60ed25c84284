//! Bars as SVG: readable on light and dark pages, each group to its own scale.

use std::fmt::Write as _;

/// Bars that are compared with each other.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) label: String,
    pub(super) bars: Vec<Bar>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) series: String,
    pub(super) value: f64,
    pub(super) text: String,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 130.0;
const LONGEST: f64 = 460.0;
const BAR: f64 = 14.0;
const STEP: f64 = 18.0;
const TOP: f64 = 44.0;

fn colour(series: &str) -> &'static str {
    match series {
        "Rollcall" => "#d9480f",
        "etcd" => "#4c8bc0",
        "ZooKeeper" => "#6a9f58",
        "r-nacos" => "#967aa1",
        _ => "#8a8a8a",
    }
}

/// The picture.
pub(super) fn bars(title: &str, groups: &[Group]) -> String {
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = TOP + rows as f64 * STEP + groups.len() as f64 * 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#808080\">\n\
         <text x=\"8\" y=\"22\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
        escaped(&format!("{title}; each group to its own scale"))
    );
    let mut y = TOP;
    for group in groups {
        let _infallible = writeln!(
            svg,
            "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}</text>",
            y + 10.0,
            escaped(&group.label)
        );
        y += 18.0;
        let longest = group
            .bars
            .iter()
            .map(|bar| bar.value)
            .fold(f64::MIN_POSITIVE, f64::max);
        for bar in &group.bars {
            let length = (bar.value.max(0.0) / longest * LONGEST).max(1.0);
            let middle = y + BAR - 3.0;
            let _infallible = writeln!(
                svg,
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{middle}\">{}</text>",
                LEFT - 8.0,
                escaped(&bar.series),
                colour(&bar.series),
                LEFT + length + 8.0,
                escaped(&bar.text)
            );
            y += STEP;
        }
        y += 16.0;
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_bar_fills_the_width() {
        let bar = |series: &str, value| Bar {
            series: series.into(),
            value,
            text: "a < b".into(),
        };
        let group = Group {
            label: "g".into(),
            bars: vec![bar("Rollcall", 1.0), bar("etcd", 4.0)],
        };
        let svg = bars("t", &[group]);
        assert!(svg.contains("width=\"460.0\"") && svg.contains("width=\"115.0\""));
        assert!(svg.contains("a &lt; b") && !svg.contains("a < b"));
    }
}
