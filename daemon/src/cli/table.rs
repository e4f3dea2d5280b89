//! Tables, sizes and ages as people read them.

use std::time::Duration;

use bytesize::ByteSize;

/// Where the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Lines of cells under a head.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Align>,
    lines: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(super) fn new(columns: &[(&str, Align)]) -> Self {
        let head = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { columns: columns.iter().map(|(_, align)| *align).collect(), lines: vec![head] }
    }

    /// Adds a line, with a cell for each column.
    pub(super) fn line(&mut self, cells: impl IntoIterator<Item = String>) {
        let line: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        assert_eq!(line.len(), self.columns.len(), "a cell for each column");
        self.lines.push(line);
    }

    /// The table, or `empty` when it has no line.
    pub(super) fn or(&self, empty: &str) -> String {
        if self.lines.len() == 1 { format!("{empty}\n") } else { self.to_string() }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| self.lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for line in &self.lines {
            let mut text = String::new();
            for ((cell, align), width) in line.iter().zip(&self.columns).zip(&widths) {
                let width = *width;
                text.push_str(&match align {
                    Align::Left => format!("{cell:<width$}  "),
                    Align::Right => format!("{cell:>width$}  "),
                });
            }
            writeln!(to, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// `name: value` lines, the values below each other.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default() + 1;
    facts.iter().map(|(name, value)| format!("{:<width$} {}", format!("{name}:"), printable(value)).trim_end().to_owned() + "\n").collect()
}

/// A size: `512.0 MiB`.
pub(super) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).to_string()
}

/// A time in its biggest unit, and the next one while it matters: `45s`, `1h 30m`, `12d`.
pub(super) fn time(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let place = UNITS.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let (unit, name) = UNITS[place];
    let (count, rest) = (seconds / unit, seconds % unit);
    match UNITS.get(place + 1) {
        Some((next, next_name)) if count < 10 && rest >= *next => format!("{count}{name} {}{next_name}", rest / next),
        _ => format!("{count}{name}"),
    }
}

/// How long ago a moment was, as the API tells moments: RFC 3339, or milliseconds since 1970.
pub(super) fn age(moment: &serde_json::Value, now: jiff::Timestamp) -> String {
    let then = match moment {
        serde_json::Value::String(text) => text.parse::<jiff::Timestamp>().ok(),
        serde_json::Value::Number(number) => number.as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()),
        _ => None,
    };
    match then {
        // The other node's clock may be a little ahead.
        Some(then) => time(Duration::try_from(now.duration_since(then)).unwrap_or_default().as_secs()) + " ago",
        None => "-".to_owned(),
    }
}

/// Names come from other nodes and from clients: nothing in them may command the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&[("NAME", Align::Left), ("TAGS", Align::Right), ("NOTE", Align::Left)]);
        table.line(["team/app", "7", "x"].map(str::to_owned));
        table.line(["ü", "1024", ""].map(str::to_owned));
        assert_eq!(table.to_string(), "NAME      TAGS  NOTE\nteam/app     7  x\nü         1024\n");
        assert_eq!(Table::new(&[("NAME", Align::Left)]).or("no repositories"), "no repositories\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&[("NAME", Align::Left)]);
        table.line(["a\u{1b}[2Jb\n".to_owned()]);
        assert_eq!(table.to_string(), "NAME\na?[2Jb?\n");
    }

    #[test]
    fn times_are_short() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (5400, "1h 30m"),
            (36_000 + 1800, "10h"),
            (86_400, "1d"),
            (9 * 86_400 + 7200, "9d 2h"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(time(seconds), expected);
        }
    }

    #[test]
    fn ages_are_read_from_either_form() {
        let now: jiff::Timestamp = "2026-11-23T12:00:00Z".parse().expect("a time");
        assert_eq!(age(&"2026-11-23T11:30:00Z".into(), now), "30m ago");
        assert_eq!(age(&(now.as_millisecond() - 90_000).into(), now), "1m 30s ago");
        assert_eq!(age(&"2026-11-23T12:00:09Z".into(), now), "0s ago");
        assert_eq!(age(&"yesterday".into(), now), "-");
        assert_eq!(age(&serde_json::Value::Null, now), "-");
    }

    #[test]
    fn facts_stand_below_each_other() {
        assert_eq!(facts(&[("node", "a".to_owned()), ("up", String::new())]), "node: a\nup:\n");
    }
}
