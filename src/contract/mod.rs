//! What publishers see: the job message ([`job`], [`content`]), the replies ([`event`], [`artifact`]), requests to all workers ([`control`]), and the names of exchanges,
//! queues and headers ([`topology`]). JSON Schema is generated from these types ([`schema`]), and a document of the whole ([`asyncapi`]), so that they
//! can't drift from what the worker accepts and sends.

pub mod artifact;
pub mod asyncapi;
pub mod content;
pub mod control;
pub mod event;
pub mod job;
pub mod schema;
pub mod topology;

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

/// The name of a pool, which is also its jobs' routing key.
///
/// Limited to what is safe as part of a queue's name, a container label and a metric label: ASCII
/// letters, digits, `-`, `_` and `.`, at most 64, starting with a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct PoolName(String);

/// Why a string is no pool name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a pool name: use 1 to 64 ASCII letters, digits, '-', '_' or '.', starting with a letter or a digit"
)]
pub struct BadPoolName(String);

impl PoolName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`BadPoolName`] says what is allowed.
    pub fn new(name: impl Into<String>) -> Result<PoolName, BadPoolName> {
        let name = name.into();
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if first && rest && name.len() <= 64 { Ok(PoolName(name)) } else { Err(BadPoolName(name)) }
    }

    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text, or its first `most` characters: names and values of a message are quoted in errors, and may be as long as it.
pub(crate) fn brief(text: &str, most: usize) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

impl std::str::FromStr for PoolName {
    type Err = BadPoolName;

    fn from_str(s: &str) -> Result<PoolName, BadPoolName> {
        PoolName::new(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_names_are_safe_in_queue_names_and_labels() {
        for good in ["build", "a", "7", "Build-2_x.y", &"a".repeat(64)] {
            assert!(PoolName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "é", "a\n", "a#", &"a".repeat(65)] {
            assert!(PoolName::new(bad).is_err(), "{bad}");
        }
    }
}
