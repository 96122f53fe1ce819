//! A small reader over the spanned TOML tree, with the variables over it, that collects faults.
//!
//! A [`Section`] hands out its keys one by one. Reading goes on after a fault, so that all are reported
//! together: a reader returns an [`Outcome`], whose error only proves that the fault is in the report, and a
//! section's filler reads *every* key before its first `?`. Keys that no reader asked for are unknown, so
//! there is no list of keys beside the readers that could differ from them.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::DeTable;

use super::fault::{Fault, Place, quoted};
use super::field::{Field, in_order};
use super::source::Source;
use super::suggest::{did_you_mean, nearest};
use super::variables::{self, Variable, Variables, spelling};

/// The proof that a fault has been reported; made nowhere but where one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reported(());

/// A value, or a fault that has been reported.
pub(super) type Outcome<T> = Result<T, Reported>;

/// One reading of a configuration: what it is read from and what has been found.
pub(super) struct Reading<'a> {
    source: Option<&'a Source<'a>>,
    variables: &'a Variables<'a>,
    faults: Vec<Fault>,
    advice: Vec<String>,
    /// Every variable that somebody looked for, with the key that it stands for.
    asked: BTreeMap<String, String>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(source: Option<&'a Source<'a>>, variables: &'a Variables<'a>) -> Reading<'a> {
        Reading { source, variables, faults: Vec::new(), advice: Vec::new(), asked: BTreeMap::new() }
    }

    /// Reads the whole tree.
    pub(super) fn root<T>(
        &mut self,
        table: &'a DeTable<'a>,
        fill: impl FnOnce(&mut Section<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<T> {
        let content = Content { table: Some(table), origin: Origin::File, at: None };
        Section::fill(self, String::new(), Some(variables::PREFIX.to_owned()), content, fill)
    }

    /// Reports a fault.
    pub(super) fn report(&mut self, place: Place, key: &str, message: impl Into<String>) -> Reported {
        self.faults.push(Fault { place, key: key.to_owned(), message: message.into() });
        Reported(())
    }

    /// Reports the variables, of those that start with `prefix`, that nobody asked for.
    pub(super) fn refuse_unknown_variables(&mut self, prefix: &str) {
        for name in self.variables.names() {
            if name.starts_with(prefix) && !self.asked.contains_key(name) {
                let others: [&str; 3] = variables::OTHERS;
                let known = self.asked.keys().map(String::as_str).chain(others);
                let hint = unknown_variable_hint(name, known);
                self.report(Place::Variable(name.to_owned()), "", format!("unknown variable{hint}"));
            }
        }
    }

    /// Adds a remark that is no fault.
    pub(super) fn advise(&mut self, key: &str, advice: &str) {
        self.advice.push(format!("{key}: {advice}"));
    }

    pub(super) fn place(&self, origin: Origin<'_>, offset: Option<usize>) -> Place {
        match (origin, self.source, offset) {
            (Origin::Variable(name), ..) => Place::Variable(name.to_owned()),
            (Origin::File, Some(source), Some(offset)) => source.place(offset),
            (Origin::File, Some(source), None) => source.whole(),
            (Origin::File, None, _) => Place::Nowhere,
        }
    }

    /// The directory that relative paths are relative to: the file's, or the current one.
    pub(super) fn directory(&self, origin: Origin<'_>) -> &'a Path {
        match (origin, self.source) {
            (Origin::File, Some(source)) => source.directory(),
            _ => Path::new(""),
        }
    }

    /// The faults and the advice that have been collected.
    pub(super) fn findings(self) -> (Vec<Fault>, Vec<String>) {
        (self.faults, self.advice)
    }

    /// Every variable that somebody looked for, with the key that it stands for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> &BTreeMap<String, String> {
        &self.asked
    }

    /// Looks for a key's variable.
    fn variable(&mut self, name: String, key: &str) -> Option<&'a Variable<'a>> {
        let found = self.variables.get(&name);
        match self.asked.get(&name) {
            Some(other) if found.is_some() && other != key => {
                let message =
                    format!("stands for both {other} and {key}: rename a pool, or set it in the file");
                self.report(Place::Variable(name), "", message);
            }
            _ => {
                self.asked.insert(name, key.to_owned());
            }
        }
        found
    }
}

fn unknown_variable_hint<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    // Without the prefix, which would make any two short names look alike.
    let rest = |name: &'k str| name.strip_prefix("PREWARM_").unwrap_or(name);
    if let Some(near) = nearest(name.strip_prefix("PREWARM_").unwrap_or(name), known.map(rest)) {
        did_you_mean(&format!("PREWARM_{near}"))
    } else if name.starts_with("PREWARM_POOL_") {
        ": no pool has such a key; a pool that is not in the file needs PREWARM_POOL_<NAME>_IMAGE".into()
    } else {
        ": write PREWARM_<SECTION>_<KEY>, such as PREWARM_BROKER_URL".into()
    }
}

/// Where a value was written.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// In the file.
    File,
    /// In the variable of that name.
    Variable(&'a str),
}

/// What stands in a section.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    /// Nothing if nobody wrote the section.
    pub(super) table: Option<&'a DeTable<'a>>,
    /// Where it was written.
    pub(super) origin: Origin<'a>,
    /// The offset at which it starts.
    pub(super) at: Option<usize>,
}

/// A table whose keys are fixed.
pub(super) struct Section<'r, 'a> {
    reading: &'r mut Reading<'a>,
    path: String,
    /// What the names of its keys' variables start with; none where keys have no variables.
    variable: Option<String>,
    content: Content<'a>,
    asked: Vec<&'static str>,
    /// Required keys that aren't there, with what to write.
    missing: Vec<(&'static str, String)>,
}

impl<'r, 'a> Section<'r, 'a> {
    pub(super) fn fill<T>(
        reading: &'r mut Reading<'a>,
        path: String,
        variable: Option<String>,
        content: Content<'a>,
        fill: impl FnOnce(&mut Section<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<T> {
        let mut section =
            Section { reading, path, variable, content, asked: Vec::new(), missing: Vec::new() };
        let filled = fill(&mut section);
        let all_known = section.refuse_unknown_keys();
        section.report_missing_keys();
        all_known.and(filled)
    }

    /// The key's value, if it has one.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Field<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<Option<T>> {
        self.field(key).map(|mut field| read(&mut field)).transpose()
    }

    /// The key's value, or the default.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&mut Field<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<T> {
        self.optional(key, read).map(|value| value.unwrap_or(default))
    }

    /// The key's value, which must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&mut Field<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<T> {
        let value = self.optional(key, read)?;
        value.ok_or_else(|| {
            self.missing.push((key, format!("'{key}' is missing: write {key} = {example}")));
            // It is, as soon as the section has been filled.
            Reported(())
        })
    }

    /// A section within this one. It exists even if nobody wrote it, since it has defaults and variables.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        fill: impl FnOnce(&mut Section<'_, 'a>) -> Outcome<T>,
    ) -> Outcome<T> {
        let (content, fits) = self.subtable(key);
        let (path, variable) = (self.path_of(key), self.variable_of(key));
        // Filled even if it doesn't fit: its keys must be asked for, or their variables would be unknown.
        let filled = Section::fill(self.reading, path, variable, content, fill);
        fits.and(filled)
    }

    /// Passes over keys that exist and aren't wanted this time.
    pub(super) fn pass_over(&mut self, keys: &[&'static str]) {
        self.asked.extend_from_slice(keys);
    }

    /// A section for each name that the user gave within `key`, in the order of the file, and then for those
    /// that only variables give. Of these, the one of the key `required` tells where the name ends.
    pub(super) fn named<T>(
        &mut self,
        key: &'static str,
        required: &'static str,
        fill: impl Fn(&mut Section<'_, 'a>, &str) -> Outcome<T>,
    ) -> Outcome<Vec<T>> {
        let (content, fits) = self.subtable(key);
        let (path, variable) = (self.path_of(key), self.variable_of(key));
        let mut all = Vec::new();
        for (name, value) in content.table.into_iter().flat_map(in_order) {
            let (name, path) = (name.get_ref(), join(&path, name.get_ref()));
            let Some(table) = value.get_ref().as_table() else {
                let place = self.reading.place(content.origin, Some(value.span().start));
                let message = format!("not a section: {key} has sections of its own, write [{key}.NAME]");
                all.push(Err(self.reading.report(place, &path, message)));
                continue;
            };
            let content = Content { table: Some(table), at: Some(value.span().start), ..content };
            let variable = variable.as_ref().map(|prefix| format!("{prefix}_{}", spelling(name)));
            all.push(Section::fill(self.reading, path, variable, content, |section| fill(section, name)));
        }
        for found in variable.iter().flat_map(|prefix| self.reading.variables.named(prefix, required)) {
            if !self.reading.asked.contains_key(found.variable) {
                let name = found.name.to_lowercase();
                let content = Content { table: None, origin: Origin::Variable(found.variable), at: None };
                let (path, prefix) = (join(&path, &name), Some(found.prefix.to_owned()));
                all.push(Section::fill(self.reading, path, prefix, content, |section| fill(section, &name)));
            }
        }
        fits.and(all.into_iter().collect())
    }

    /// A key that takes either a table or one plain value in its place. The table's keys have variables in
    /// both cases; these are laid over the plain value.
    pub(super) fn shorthand<P, T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Field<'_, 'a>) -> Outcome<P>,
        fill: impl FnOnce(&mut Section<'_, 'a>, Option<P>) -> Outcome<T>,
    ) -> Outcome<T> {
        let (path, variable) = (self.path_of(key), self.variable_of(key));
        let mut content = Content { table: None, ..self.content };
        let mut plain = Ok(None);
        if let Some(mut field) = self.field(key) {
            content = field.content();
            if content.table.is_none() {
                plain = read(&mut field).map(Some);
            }
        }
        Section::fill(self.reading, path, variable, content, |section| match plain {
            Ok(plain) => fill(section, plain),
            // As above: its keys must be asked for.
            Err(reported) => fill(section, None).and(Err(reported)),
        })
    }

    /// Reports a fault of the value that a key has.
    pub(super) fn wrong(&mut self, key: &'static str, message: impl Into<String>) -> Reported {
        let path = self.path_of(key);
        let place = match self.field(key) {
            Some(field) => field.place(),
            None => self.reading.place(self.content.origin, self.content.at),
        };
        self.reading.report(place, &path, message)
    }

    /// Reports a fault of the section as a whole.
    pub(super) fn wrong_at_all(&mut self, message: impl Into<String>) -> Reported {
        let place = self.reading.place(self.content.origin, self.content.at);
        self.reading.report(place, &self.path, message)
    }

    /// Adds a remark that is no fault.
    pub(super) fn advise(&mut self, advice: &str) {
        self.reading.advise(&self.path, advice);
    }

    /// The key's value: its variable's, or else the table's.
    fn field(&mut self, key: &'static str) -> Option<Field<'_, 'a>> {
        self.asked.push(key);
        let path = self.path_of(key);
        let variable = self.variable_of(key).and_then(|name| self.reading.variable(name, &path));
        if let Some(variable) = variable {
            return Some(Field::of_variable(self.reading, path, variable));
        }
        let value = self.content.table?.get(key)?;
        Some(Field::new(self.reading, path, self.content.origin, value))
    }

    /// The table that stands at a key, and whether what stands there is one.
    fn subtable(&mut self, key: &'static str) -> (Content<'a>, Outcome<()>) {
        self.asked.push(key);
        let mut content = Content { table: None, ..self.content };
        let Some(value) = self.content.table.and_then(|table| table.get(key)) else {
            return (content, Ok(()));
        };
        content.at = Some(value.span().start);
        content.table = value.get_ref().as_table();
        if content.table.is_some() {
            return (content, Ok(()));
        }
        let path = self.path_of(key);
        let place = self.reading.place(content.origin, content.at);
        (content, Err(self.reading.report(place, &path, format!("not a section: write [{path}]"))))
    }

    fn refuse_unknown_keys(&mut self) -> Outcome<()> {
        let mut outcome = Ok(());
        for (key, value) in self.content.table.into_iter().flat_map(in_order) {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let near = nearest(name, self.asked.iter().copied());
            // A required key that is misspelt is one fault, not two.
            self.missing.retain(|(missing, _)| near != Some(missing));
            let kind = if self.path.is_empty() && value.get_ref().is_table() { "section" } else { "key" };
            let hint = near.map_or_else(|| self.known_keys(), did_you_mean);
            let place = self.reading.place(self.content.origin, Some(key.span().start));
            let message = format!("unknown {kind} {}{hint}", quoted(name));
            outcome = Err(self.reading.report(place, &self.path, message));
        }
        outcome
    }

    fn report_missing_keys(&mut self) {
        for (_, message) in std::mem::take(&mut self.missing) {
            self.wrong_at_all(message);
        }
    }

    fn known_keys(&self) -> String {
        let mut known = self.asked.clone();
        known.sort_unstable();
        known.dedup();
        format!("; known are {}", known.join(", "))
    }

    fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    fn variable_of(&self, key: &str) -> Option<String> {
        self.variable.as_ref().map(|prefix| format!("{prefix}_{}", spelling(key)))
    }
}

/// A key's name after that of what it is in, quoted where TOML would want it quoted.
pub(super) fn join(path: &str, key: &str) -> String {
    let is_bare =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let dot = if path.is_empty() { "" } else { "." };
    if is_bare { format!("{path}{dot}{key}") } else { format!("{path}{dot}{}", quoted(key)) }
}
