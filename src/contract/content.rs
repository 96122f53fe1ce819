//! What a job brings and what is wanted of it: bytes as text or base64, files by their paths, patterns for artifacts.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use super::job::{Text, bare};
use crate::init::glob::PATH_MAX;

/// Most files of one job, whatever its pool allows.
pub const FILES_MAX: usize = 1000;

/// Most patterns in `artifacts`.
pub const PATTERNS_MAX: usize = 100;

/// Longest path in bytes: the kernel's limit, with room for the end mark and for what a pattern grows by.
const PATH_LEN: usize = PATH_MAX - 8;

/// Longest name in a path in bytes (`NAME_MAX`).
const NAME_LEN: usize = 255;

/// Permission bits of a file that names none.
pub const MODE: u16 = 0o644;

/// With or without padding, and whatever the last character's unused bits are: both are common, and neither is ambiguous.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What is base64, as a schema says it.
const BASE64_PATTERN: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}(?:==)?|[A-Za-z0-9+/]{3}=?)?$";

/// No NUL, no component `..`, none that is too long, something beside `/` and `.`, and not below prewarm's own directory.
const PATH_PATTERN: &str = "^(?!\\.?(?:/\\.?)*$)(?!(?:[^\\u0000]*/)?\\.\\.(?:/|$))(?![^\\u0000]*[^/\\u0000]{256})(?!/(?:\\.?/)*\\.prewarm(?:/|$))[^\\u0000]+$";

/// The same, and it doesn't end like a directory's.
const FILE_PATTERN: &str = "^(?!(?:[^\\u0000]*/)?\\.?$)(?!(?:[^\\u0000]*/)?\\.\\.(?:/|$))(?![^\\u0000]*[^/\\u0000]{256})(?!/(?:\\.?/)*\\.prewarm(?:/|$))[^\\u0000]+$";

/// Bytes: `"text"`, `{"text": "…"}` or `{"base64": "…"}`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content(pub Bytes);

/// How many; never which.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A file that a job brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where: absolute, or from the job's working directory.
    pub path: String,
    /// What is in it.
    pub content: Content,
    /// Permission bits.
    pub mode: u16,
}

/// The files that a job brings, in the order of the message, each path once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files(pub Vec<File>);

impl Files {
    /// The bytes of all of them together.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|file| file.content.0.len() as u64).sum()
    }
}

/// Patterns for the files that are wanted when the job is over; see [`glob`](crate::init::glob).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Artifacts(pub Vec<String>);

/// Checks a path, and leaves out what says nothing in it (`./`, `//`).
///
/// # Errors
/// What is wrong with it, to follow the path itself.
pub fn tidy(path: &str) -> Result<String, &'static str> {
    if path.contains('\0') {
        return Err("has a NUL character, which a path can't hold");
    }
    let mut tidy = String::with_capacity(path.len());
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        if name == ".." {
            return Err("has a component '..'; write the path that is meant");
        }
        if name.len() > NAME_LEN {
            return Err("has a name of more than 255 bytes");
        }
        if !tidy.is_empty() || path.starts_with('/') {
            tidy.push('/');
        }
        tidy += name;
    }
    match tidy.as_str() {
        "" => Err("names no file"),
        _ if tidy.len() > PATH_LEN => Err("is too long; the most is 4088 bytes"),
        own if own == "/.prewarm" || own.starts_with("/.prewarm/") => Err("is prewarm's own"),
        _ => Ok(tidy),
    }
}

/// Checks a file's path, as [`tidy`] does.
///
/// # Errors
/// As there; or that it is a directory's.
pub fn file_path(path: &str) -> Result<String, &'static str> {
    if path.ends_with('/') || path.ends_with("/.") || path == "." {
        return Err("is a directory's; name the file");
    }
    tidy(path)
}

/// Checks a pattern, as [`tidy`] does. Two `**` in a row are one: each would have to be tried with the other.
///
/// # Errors
/// As there.
pub fn pattern(path: &str) -> Result<String, &'static str> {
    let mut tidy = tidy(path)?;
    while tidy.contains("**/**") {
        tidy = tidy.replace("**/**", "**");
    }
    Ok(tidy)
}

/// Enough of a path to know which one is meant.
fn shown(path: &str) -> String {
    format!("'{}'", super::brief(path, 100))
}

/// Bytes, with a mode where there may be one.
struct Piece {
    content: Content,
    mode: Option<u16>,
}

/// Whether an object may have a `mode`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Allowed,
    Unknown,
}

impl<'de> Visitor<'de> for Mode {
    type Value = Piece;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Allowed => "a string, or an object with `text` or `base64` and perhaps `mode`",
            Mode::Unknown => "a string, or an object with `text` or `base64`",
        })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Piece, E> {
        Ok(Piece { content: Content(Bytes::copy_from_slice(text.as_bytes())), mode: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Piece, A::Error> {
        let (mut bytes, mut mode) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice =
                || de::Error::custom(format!("`{key}` is one too many: name `text` or `base64`, once"));
            match key.as_str() {
                "text" | "base64" if bytes.is_some() => return Err(twice()),
                "text" => bytes = Some(Bytes::from(map.next_value::<Text>()?.0)),
                "base64" => {
                    let coded = map.next_value::<Text>()?.0;
                    let decoded = BASE64.decode(coded).map_err(|_| {
                        de::Error::custom(
                            "`base64` is not base64 with the standard alphabet (A–Z, a–z, 0–9, +, /)",
                        )
                    })?;
                    bytes = Some(Bytes::from(decoded));
                }
                "mode" if self == Mode::Allowed && mode.is_some() => {
                    return Err(de::Error::custom("`mode` is there twice; send it once"));
                }
                "mode" if self == Mode::Allowed => mode = Some(permissions(map.next_value::<Text>()?.0)?),
                other => {
                    let known = if self == Mode::Allowed { ", `mode`" } else { "" };
                    return Err(de::Error::custom(format!(
                        "unknown field {}; known are `text`, `base64`{known}",
                        shown(other)
                    )));
                }
            }
        }
        let bytes = bytes.ok_or_else(|| de::Error::custom("neither `text` nor `base64` is there"))?;
        Ok(Piece { content: Content(bytes), mode })
    }
}

fn permissions<E: de::Error>(text: String) -> Result<u16, E> {
    let digits = text.len() == 3 || text.len() == 4 && text.starts_with('0');
    let all = text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    u16::from_str_radix(&text, 8).ok().filter(|_| digits && all).ok_or_else(|| {
        de::Error::custom(
            "`mode` is not three octal digits: write \"0644\" or \"0755\"; set-user-id and the like can't be set",
        )
    })
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Content, D::Error> {
        d.deserialize_any(Mode::Unknown).map(|piece| piece.content)
    }
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Piece, D::Error> {
        d.deserialize_any(Mode::Allowed)
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Files, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Files;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of files by their paths")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                let mut paths = std::collections::HashSet::new();
                let mut files = Vec::new();
                while let Some(written) = map.next_key::<String>()? {
                    let fault = |fault: &str| de::Error::custom(format!("file {} {fault}", shown(&written)));
                    let path = file_path(&written).map_err(fault)?;
                    if !paths.insert(path.clone()) {
                        return Err(fault("is there twice; send it once"));
                    }
                    if files.len() == FILES_MAX {
                        return Err(de::Error::custom(format!("more than {FILES_MAX} files")));
                    }
                    let piece = map.next_value::<Piece>().map_err(|e| {
                        let message = super::job::discreet(bare(&e.to_string()));
                        de::Error::custom(format!("file {}: {message}", shown(&written)))
                    })?;
                    files.push(File { path, content: piece.content, mode: piece.mode.unwrap_or(MODE) });
                }
                Ok(Files(files))
            }
        }
        d.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Artifacts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Artifacts, D::Error> {
        struct Patterns;
        impl<'de> Visitor<'de> for Patterns {
            type Value = Artifacts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of paths and patterns")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Artifacts, A::Error> {
                let mut patterns: Vec<String> = Vec::new();
                while let Some(Text(written)) = seq.next_element()? {
                    if patterns.len() == PATTERNS_MAX {
                        return Err(de::Error::custom(format!("more than {PATTERNS_MAX} patterns")));
                    }
                    let tidy = pattern(&written)
                        .map_err(|fault| de::Error::custom(format!("path {} {fault}", shown(&written))))?;
                    if !patterns.contains(&tidy) {
                        patterns.push(tidy);
                    }
                }
                Ok(Artifacts(patterns))
            }
        }
        d.deserialize_seq(Patterns)
    }
}

/// The object's properties, beside the plain string.
fn piece_schema(mode: Mode) -> Schema {
    let with = |key: &str, schema: serde_json::Value| {
        let mut properties = serde_json::Map::from_iter([(key.to_owned(), schema)]);
        if mode == Mode::Allowed {
            let bits = serde_json::json!({
                "description": "Permission bits, octal; 0644 without it.",
                "type": "string", "pattern": "^0?[0-7]{3}$"
            });
            properties.insert("mode".into(), bits);
        }
        serde_json::json!({
            "type": "object", "properties": properties, "required": [key], "additionalProperties": false
        })
    };
    let text = with("text", serde_json::json!({"type": "string"}));
    let coded = serde_json::json!({
        "type": "string", "contentEncoding": "base64", "pattern": BASE64_PATTERN
    });
    json_schema!({ "anyOf": [{"type": "string"}, text, with("base64", coded)] })
}

impl JsonSchema for Content {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Content".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        piece_schema(Mode::Unknown)
    }
}

impl JsonSchema for Files {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Files".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": FILES_MAX,
            "propertyNames": { "maxLength": PATH_LEN, "pattern": FILE_PATTERN },
            "additionalProperties": piece_schema(Mode::Allowed)
        })
    }
}

impl JsonSchema for Artifacts {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Artifacts".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array",
            "maxItems": PATTERNS_MAX,
            "items": { "type": "string", "maxLength": PATH_LEN, "pattern": PATH_PATTERN }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_tidied_and_stay_where_they_say() {
        for (written, tidied) in
            [("a", "a"), ("./a//b/./c", "a/b/c"), ("/a", "/a"), ("//a/", "/a"), ("..a/b..", "..a/b..")]
        {
            assert_eq!(tidy(written).as_deref(), Ok(tidied), "{written}");
        }
        let long = format!("/{}", "x".repeat(256));
        for bad in
            ["", "/", ".", "..", "a/../b", "/..", "a\0", "/.prewarm", "//.prewarm/init", "/./.prewarm", &long]
        {
            assert!(tidy(bad).is_err(), "{bad}");
        }
        assert!(tidy(&"a/".repeat(3000)).is_err());
        assert_eq!(tidy(".prewarm").as_deref(), Ok(".prewarm"), "the job's own, in its own directory");
        for bad in ["a/", "a/.", "."] {
            assert!(file_path(bad).is_err(), "{bad}");
        }
        assert_eq!(pattern("a/**/**/**/b").as_deref(), Ok("a/**/b"));
    }
}
