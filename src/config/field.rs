//! One value of the configuration, its place, and how values within it are reached.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::fault::{Place, quoted};
use super::reader::{Content, Origin, Outcome, Reading, Reported, Section, join};
use super::variables::Variable;

/// A value that stands somewhere. Readers of a type are functions `&mut Field -> Outcome<T>`, so that
/// they can be put together: `list(text)`, `within(size, …)`.
pub(super) struct Field<'r, 'a> {
    reading: &'r mut Reading<'a>,
    path: String,
    origin: Origin<'a>,
    offset: Option<usize>,
    value: &'a DeValue<'a>,
    /// The variable's text, where the value is that of a variable.
    text: Option<&'a str>,
}

impl<'r, 'a> Field<'r, 'a> {
    pub(super) fn new(
        reading: &'r mut Reading<'a>,
        path: String,
        origin: Origin<'a>,
        value: &'a Spanned<DeValue<'a>>,
    ) -> Field<'r, 'a> {
        let offset = Some(value.span().start);
        Field { reading, path, origin, offset, value: value.get_ref(), text: None }
    }

    pub(super) fn of_variable(
        reading: &'r mut Reading<'a>,
        path: String,
        variable: &'a Variable<'a>,
    ) -> Field<'r, 'a> {
        let origin = Origin::Variable(variable.name);
        Field { reading, path, origin, offset: None, value: &variable.value, text: Some(variable.text) }
    }

    /// The value.
    pub(super) fn value(&self) -> &'a DeValue<'a> {
        self.value
    }

    /// The value where text is wanted: a variable is text whatever it looks like.
    pub(super) fn text(&self) -> Option<&'a str> {
        self.text.or_else(|| self.value.as_str())
    }

    /// Where it is written.
    pub(super) fn place(&self) -> Place {
        self.reading.place(self.origin, self.offset)
    }

    /// A path in the value, taken from where the value is written.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.reading.directory(self.origin).join(path)
    }

    /// Reports a fault. The message must not contain a value that may be secret.
    pub(super) fn wrong(&mut self, message: impl Into<String>) -> Reported {
        let place = self.place();
        self.reading.report(place, &self.path, message)
    }

    /// Reports that the value isn't what is wanted: `'2 gigs' is not …`.
    pub(super) fn is_not(&mut self, wanted: &str) -> Reported {
        let message = format!("{} is not {wanted}", self.shown());
        self.wrong(message)
    }

    /// Adds a remark that is no fault.
    pub(super) fn advise(&mut self, advice: &str) {
        self.reading.advise(&self.path, advice);
    }

    /// The value as it may stand in a message.
    pub(super) fn shown(&self) -> String {
        match self.value {
            _ if self.text.is_some() => quoted(self.text.unwrap_or_default()),
            DeValue::String(text) => quoted(text),
            DeValue::Integer(number) => quoted(&number.to_string()),
            DeValue::Float(number) => quoted(number.as_str()),
            DeValue::Boolean(flag) => quoted(&flag.to_string()),
            DeValue::Datetime(time) => quoted(&time.to_string()),
            DeValue::Array(_) => "an array".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        }
    }

    /// The value as the content of a section.
    pub(super) fn content(&self) -> Content<'a> {
        Content { table: self.value.as_table(), origin: self.origin, at: self.offset }
    }

    /// The value as a table with fixed keys.
    pub(super) fn section<T>(
        &mut self,
        wanted: &str,
        fill: impl FnOnce(&mut Section<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<T> {
        if !self.value.is_table() {
            return Err(self.is_not(wanted));
        }
        let content = self.content();
        Section::fill(self.reading, self.path.clone(), None, content, fill)
    }

    /// Reads each element of an array.
    pub(super) fn each<T>(
        &mut self,
        wanted: &str,
        mut read: impl FnMut(&mut Field<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<Vec<T>> {
        let Some(items) = self.value.as_array() else { return Err(self.is_not(wanted)) };
        let mut all = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", self.path);
            all.push(read(&mut Field::new(self.reading, path, self.origin, item)));
        }
        all.into_iter().collect()
    }

    /// Reads each entry of a table whose keys are the user's own, in the order of the file.
    pub(super) fn entries<T>(
        &mut self,
        wanted: &str,
        mut read: impl FnMut(&str, &mut Field<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<Vec<T>> {
        let Some(table) = self.value.as_table() else { return Err(self.is_not(wanted)) };
        let mut all = Vec::with_capacity(table.len());
        for (key, value) in in_order(table) {
            let path = join(&self.path, key.get_ref());
            all.push(read(key.get_ref(), &mut Field::new(self.reading, path, self.origin, value)));
        }
        all.into_iter().collect()
    }
}

/// A table's entries in the order in which they were written; the parser sorts them by key.
pub(super) fn in_order<'a>(
    table: &'a DeTable<'a>,
) -> impl Iterator<Item = (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries.into_iter()
}
