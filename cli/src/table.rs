//! Tables and figures as text.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use rustix::termios::tcgetwinsize;
use std::io::IsTerminal as _;
use usher_shared::quantity::Millicores;

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Text(&'static str),
    /// To the right, so that figures can be compared at a glance.
    Number(&'static str),
}

/// Rows under headings, without rules. Fits the terminal where there is one, else as wide as needed.
pub(crate) fn render<R>(columns: &[Column], rows: R) -> String
where
    R: IntoIterator<Item = Vec<String>>,
{
    render_to(columns, rows, terminal_width())
}

fn render_to<R>(columns: &[Column], rows: R, width: Option<u16>) -> String
where
    R: IntoIterator<Item = Vec<String>>,
{
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width);
    }
    table.set_header(columns.iter().map(|column| match column {
        Column::Text(name) | Column::Number(name) => *name,
    }));
    table.add_rows(rows);
    for (at, column) in columns.iter().enumerate() {
        if let Some(set) = table.column_mut(at) {
            set.set_padding((0, 2));
            if matches!(column, Column::Number(_)) {
                set.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The terminal's columns when standard output is one.
fn terminal_width() -> Option<u16> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let width = tcgetwinsize(&out).ok()?.ws_col;
    (width > 0).then_some(width)
}

/// Parts per million as a plain figure: 1,030,000 is `1.03`.
pub(crate) fn ppm(ppm: u64) -> String {
    let hundredths = (ppm + 5_000) / 10_000;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// CPU in cores: 250 millicores are `0.25`.
pub(crate) fn cores(cpu: Millicores) -> String {
    ppm(u64::from(cpu.get()) * 1_000)
}

/// Bytes in the unit that leaves up to four digits.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// `1 team`, `7 teams`.
pub(crate) fn count(number: u64, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{number} {one}s")
    }
}

/// What stands where there is nothing to say.
pub(crate) const NONE: &str = "-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_headings_and_figures_to_the_right() {
        let text = render_to(
            &[
                Column::Text("NODE"),
                Column::Number("TEAMS"),
                Column::Text("STATE"),
            ],
            [
                vec!["node-1".to_owned(), "7".to_owned(), "ready".to_owned()],
                vec!["n".to_owned(), "1200".to_owned(), "dead".to_owned()],
            ],
            None,
        );
        assert_eq!(
            text,
            "NODE    TEAMS  STATE\nnode-1      7  ready\nn        1200  dead\n"
        );
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [ppm(1_030_000), ppm(0), ppm(4_999), ppm(995_000)],
            ["1.03", "0.00", "0.00", "1.00"]
        );
        assert_eq!(cores(Millicores::clamped(250)), "0.25");
        assert_eq!([bytes(9_999), bytes(41_943_040)], ["9999 B", "41 MB"]);
        assert_eq!([count(1, "team"), count(0, "team")], ["1 team", "0 teams"]);
    }
}
