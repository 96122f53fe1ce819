//! A configuration file's text, and the positions in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault::{Place, Position};

/// A file that has been read.
pub(super) struct Source<'t> {
    name: Arc<str>,
    directory: PathBuf,
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Source<'t> {
    pub(super) fn new(name: &Path, text: &'t str) -> Source<'t> {
        // Editors show no byte order mark, so it must not count as a column.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Source {
            name: name.to_string_lossy().into(),
            directory: name.parent().unwrap_or(Path::new("")).to_owned(),
            text,
            line_starts: std::iter::once(0).chain(newlines.map(|(offset, _)| offset + 1)).collect(),
        }
    }

    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// What relative paths in the file are relative to.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file as a whole.
    pub(super) fn whole(&self) -> Place {
        Place::File { file: self.name.clone(), position: None }
    }

    /// The place of a byte.
    pub(super) fn place(&self, offset: usize) -> Place {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self.line_starts[line - 1];
        // In characters; the parser may point past the end, or between the bytes of one.
        let column =
            self.text[start..].char_indices().take_while(|(at, c)| start + at + c.len_utf8() <= offset);
        let column = column.count() + 1;
        Place::File { file: self.name.clone(), position: Some(Position { line, column }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_are_those_of_an_editor() {
        let source = Source::new(Path::new("a/b.toml"), "\u{feff}é = 1\r\nb = 2\n");
        let at = |offset| source.place(offset).to_string();
        assert_eq!(at(0), "a/b.toml:1:1: ");
        assert_eq!(at(1), "a/b.toml:1:1: ", "inside a character");
        assert_eq!(at(5), "a/b.toml:1:5: ", "after a character of two bytes");
        assert_eq!(at(8), "a/b.toml:2:1: ");
        assert_eq!(at(12), "a/b.toml:2:5: ");
        assert_eq!(at(999), "a/b.toml:3:1: ", "past the end");
        assert_eq!(source.directory(), Path::new("a"));
    }
}
