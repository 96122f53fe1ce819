//! What is wrong with a configuration, and where.

use std::fmt;
use std::sync::Arc;

/// Where a fault is. The order is that of the report: the whole, then the file from top to bottom, then
/// the variables by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// No single place: something is missing.
    Nowhere,
    /// In a file; without a position, the file as a whole.
    File {
        /// The file's name as it was given.
        file: Arc<str>,
        /// Where in it.
        position: Option<Position>,
    },
    /// In a `PREWARM_…` variable.
    Variable(String),
}

/// A position in a file, as editors count: from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Nowhere => Ok(()),
            Place::File { file, position: None } => write!(f, "{file}: "),
            Place::File { file, position: Some(Position { line, column }) } => {
                write!(f, "{file}:{line}:{column}: ")
            }
            Place::Variable(name) => write!(f, "{name}: "),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where it is written.
    pub place: Place,
    /// The key, such as `pool.build.memory`; empty where there is none.
    pub key: String,
    /// What is wrong, and what would be right. Never contains a secret.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All that is wrong with a configuration, at least one fault, in the order of their places. Displayed one
/// a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn new(mut faults: Vec<Fault>) -> Faults {
        faults.sort();
        Faults(faults)
    }

    pub(super) fn one(place: Place, message: impl Into<String>) -> Faults {
        Faults(vec![Fault { place, key: String::new(), message: message.into() }])
    }

    /// Each fault.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A user's text as it may stand in a message: on one line, not too long, nothing that moves the cursor.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let shown: String = text.chars().take(LONGEST).flat_map(printable).collect();
    let more = if text.chars().nth(LONGEST).is_some() { "…" } else { "" };
    format!("'{shown}{more}'")
}

fn printable(c: char) -> Vec<char> {
    if matches!(c, '"' | '\'' | '\\') { vec![c] } else { c.escape_debug().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(position: Option<Position>) -> Place {
        Place::File { file: "f.toml".into(), position }
    }

    #[test]
    fn faults_are_sorted_by_place_and_shown_one_a_line() {
        let fault = |place, key: &str| Fault { place, key: key.into(), message: "is wrong".into() };
        let faults = Faults::new(vec![
            fault(Place::Variable("PREWARM_B".into()), "b"),
            fault(file(Some(Position { line: 10, column: 1 })), "ten"),
            fault(file(Some(Position { line: 9, column: 20 })), "nine"),
            fault(Place::Variable("PREWARM_A".into()), "a"),
            fault(file(None), ""),
            fault(Place::Nowhere, ""),
        ]);
        let expected = "is wrong\nf.toml: is wrong\nf.toml:9:20: nine: is wrong\nf.toml:10:1: ten: is wrong\n\
                        PREWARM_A: a: is wrong\nPREWARM_B: b: is wrong";
        assert_eq!(faults.to_string(), expected);
    }

    #[test]
    fn a_quoted_text_stays_on_its_line() {
        assert_eq!(quoted("2 gigs"), "'2 gigs'");
        assert_eq!(quoted("a\nb\u{1b}[31m\u{202e}é\""), "'a\\nb\\u{1b}[31m\\u{202e}é\"'");
        assert_eq!(quoted(&"é".repeat(61)), format!("'{}…'", "é".repeat(60)));
    }
}
