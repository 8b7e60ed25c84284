//! Tables without lines, one record a row, never wrapped: for eyes, `grep` and `awk`.

use comfy_table::{Cell, Color, ContentArrangement, presets};

/// How tables are printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) headers: bool,
    pub(crate) wide: bool,
    pub(crate) colors: bool,
}

/// When a column is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Always,
    Wide,
}

/// Columns, then rows of as many texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Shown)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns that are always shown.
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self {
            columns: columns.iter().map(|name| (*name, Shown::Always)).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds columns that are shown with `-o wide` only.
    pub(crate) fn wide(mut self, columns: &[&'static str]) -> Self {
        self.columns
            .extend(columns.iter().map(|name| (*name, Shown::Wide)));
        self
    }

    /// Adds a row: one text per column, the wide ones included.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "one cell per column");
        self.rows.push(cells);
    }

    /// A record of its own, a field a row; the columns need no names.
    pub(crate) fn fields(fields: Vec<(&'static str, String)>) -> Self {
        let mut table = Self::new(&["", ""]);
        for (field, value) in fields {
            table.row(vec![field.into(), value]);
        }
        table
    }

    /// As lines without trailing blanks. An empty table is empty: no lonely header.
    pub(crate) fn render(&self, look: Look) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let shown = |index: usize| look.wide || self.columns.get(index).is_some_and(|c| c.1 == Shown::Always);
        let visible: Vec<usize> = (0..self.columns.len()).filter(|index| shown(*index)).collect();
        let mut table = comfy_table::Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        if look.colors {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if look.headers && self.columns.iter().any(|column| !column.0.is_empty()) {
            table.set_header(visible.iter().map(|index| Cell::new(self.columns[*index].0)));
        }
        for row in &self.rows {
            table.add_row(
                visible
                    .iter()
                    .map(|index| cell(self.columns[*index].0, &row[*index])),
            );
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.trim_fmt()
    }
}

fn cell(column: &str, text: &str) -> Cell {
    // A line break in a label must not break the row.
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let text = if text.is_empty() { "-".into() } else { text };
    let color = match (column, text.as_str()) {
        ("STATE", "up") | ("READY", "yes") => Some(Color::Green),
        ("STATE", "suspect" | "draining" | "disabled") => Some(Color::Yellow),
        ("STATE", "down") | ("READY", "no") | ("HASH", "differs") => Some(Color::Red),
        _ => None,
    };
    match color {
        Some(color) => Cell::new(text).fg(color),
        None => Cell::new(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look {
        headers: true,
        wide: false,
        colors: false,
    };

    fn table() -> Table {
        let mut table = Table::new(&["NODE", "STATE"]).wide(&["SESSION"]);
        table.row(vec!["10.0.0.1:80".into(), "up".into(), "7".into()]);
        table.row(vec!["b".into(), "suspect".into(), String::new()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        assert_eq!(
            table().render(PLAIN),
            "NODE         STATE\n10.0.0.1:80  up\nb            suspect"
        );
    }

    #[test]
    fn wide_shows_every_column_and_a_dash_for_nothing() {
        let wide = table().render(Look {
            wide: true,
            headers: false,
            ..PLAIN
        });
        assert_eq!(wide, "10.0.0.1:80  up       7\nb            suspect  -");
    }

    #[test]
    fn colours_come_only_when_asked_for() {
        assert!(!table().render(PLAIN).contains('\u{1b}'));
        assert!(
            table()
                .render(Look {
                    colors: true,
                    ..PLAIN
                })
                .contains('\u{1b}')
        );
    }

    #[test]
    fn fields_have_no_header() {
        let table = Table::fields(vec![("id", "a".into()), ("labels", String::new())]);
        assert_eq!(table.render(PLAIN), "id      a\nlabels  -");
    }

    #[test]
    fn an_empty_table_prints_nothing() {
        assert_eq!(Table::new(&["NODE"]).render(PLAIN), "");
    }

    #[test]
    fn control_characters_stay_out_of_the_terminal() {
        let mut table = Table::new(&["NODE"]);
        table.row(vec!["a\u{1b}[31m\nb".into()]);
        assert_eq!(table.render(PLAIN), "NODE\na [31m b");
    }

    #[test]
    fn long_cells_are_not_wrapped() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec!["x".repeat(300), "y".into()]);
        assert_eq!(table.render(PLAIN).lines().count(), 2);
    }
}
