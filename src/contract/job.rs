//! The job message: what a publisher may ask for, and how bytes become a [`Job`] or an exact refusal.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::content::{Artifacts, Content, Files};

/// A job as published (contract v1): JSON, `content_type: application/json`. Everything is optional;
/// unknown fields are refused.
#[derive(Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Job {
    /// Variables added to the image's environment, as `docker run -e`. Names are not empty and
    /// have no `=`; neither names nor values have NUL.
    pub env: Env,
    /// Replaces the image's CMD, as the arguments after the image in `docker run`.
    pub args: Option<Vec<String>>,
    /// The entrypoint's stdin, as text or base64. Without it stdin is `/dev/null`.
    pub stdin: Option<Content>,
    /// Files to be put in place before the entrypoint is executed, by their paths: absolute, or from the working directory.
    /// They belong to the job's user, who must be allowed to make them; missing directories are made, what is there is
    /// replaced. How many and how large is the pool's affair.
    pub files: Files,
    /// Which files to return when the job is over: paths, or patterns with `*`, `?` and `**`. A directory stands for all files
    /// below it. What is missing is listed in the result and doesn't make the job fail.
    pub artifacts: Artifacts,
    /// How long the job may run, as "90s", "30m" or "1h 30m". At most the pool's largest; without it, the
    /// pool's default.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Option<String>")]
    pub timeout: Option<Duration>,
    /// How often the job is run again, later, if it fails or runs into its timeout: at most 100. It is never run again for
    /// that unless this says so.
    #[serde(deserialize_with = "retries")]
    #[schemars(range(max = 100))]
    pub retries: u32,
    /// Where output goes.
    pub logs: Logs,
    /// Names of variables in `env` whose values are masked in logs and results; at most 100.
    #[schemars(length(max = 100))]
    pub secrets: Vec<String>,
    /// Anything, at most 64 KiB as JSON; it comes back on every reply.
    pub metadata: Option<Map<String, Value>>,
}

/// Most characters of a refusal's text. An AMQP header has to fit into one frame with all others.
const BRIEF: usize = 400;

/// Most retries that a job may ask for.
pub const RETRIES_MAX: u32 = 100;

/// Largest `metadata` in bytes of JSON: it comes back on every reply.
pub const METADATA_MAX: usize = 64 * 1024;

/// Most names in `secrets`: each costs time for every byte of output.
pub const SECRETS_MAX: usize = 100;

/// Where a job's output goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Logs {
    /// Log events as it is printed, and the tails in the result.
    #[default]
    Stream,
    /// Only the tails in the result.
    Result,
    /// Nowhere.
    Off,
}

/// Environment variables in the order of the message, each name once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(pub Vec<(String, String)>);

/// Never the values: a job's environment holds secrets, named as such or not.
impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Names what is there, and shows no value that came from a publisher.
impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("env", &self.env)
            .field("args", &self.args.as_ref().map(Vec::len))
            .field("stdin", &self.stdin)
            .field("files", &self.files.0.len())
            .field("artifacts", &self.artifacts.0.len())
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .field("logs", &self.logs)
            .finish_non_exhaustive()
    }
}

impl JsonSchema for Env {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Env".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "propertyNames": { "pattern": "^[^=\\u0000]+$" },
            "additionalProperties": { "type": "string", "pattern": "^[^\\u0000]*$" }
        })
    }
}

impl<'de> Deserialize<'de> for Env {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Env, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Env;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Env, A::Error> {
                let mut names = std::collections::HashSet::new();
                let mut out = Vec::with_capacity(map.size_hint().unwrap_or(0).min(1024));
                while let Some(name) = map.next_key::<String>()? {
                    if let Some(fault) = bad_name(&name) {
                        return Err(de::Error::custom(fault));
                    }
                    if !names.insert(name.clone()) {
                        return Err(de::Error::custom(format!(
                            "variable '{name}' is there twice; send it once"
                        )));
                    }
                    let value = map.next_value::<Text>().map_err(|e| {
                        de::Error::custom(format!("variable '{name}': {}", bare(&e.to_string())))
                    })?;
                    if value.0.contains('\0') {
                        return Err(de::Error::custom(format!(
                            "variable '{name}' has a NUL character, which an environment can't hold"
                        )));
                    }
                    out.push((name, value.0));
                }
                Ok(Env(out))
            }
        }
        d.deserialize_map(Entries)
    }
}

/// A string, with an error that never repeats what was sent instead (it may be a secret).
pub(super) struct Text(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Text, D::Error> {
        match Value::deserialize(d)? {
            Value::String(s) => Ok(Text(s)),
            other => {
                Err(de::Error::custom(format!("expected a string, found {}; quote it", kind_of(&other))))
            }
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn bad_name(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("a variable has an empty name".into())
    } else if name.contains('=') {
        Some(format!("variable '{name}' has '=' in its name"))
    } else if name.contains('\0') {
        Some("a variable has a NUL character in its name".into())
    } else {
        None
    }
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
    match humantime::parse_duration(&text) {
        Ok(t) if !t.is_zero() => Ok(Some(t)),
        _ => Err(de::Error::custom(format!(
            "'{text}' is not a duration; write for example \"90s\" or \"30m\""
        ))),
    }
}

fn retries<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    let fault = || de::Error::custom(format!("expected a whole number from 0 to {RETRIES_MAX}"));
    u32::deserialize(d).ok().filter(|n| *n <= RETRIES_MAX).ok_or_else(fault)
}

/// serde_json ends its messages with the place; ours names the field and the place once, at the end.
pub(super) fn bare(message: &str) -> &str {
    message.rfind(" at line ").map_or(message, |at| &message[..at])
}

/// serde repeats what it found in place of what it expected; that may be a secret in the wrong place.
pub(super) fn discreet(message: &str) -> String {
    let found = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match found.zip(message.rfind(", expected ")) {
        Some((found, at)) => {
            let kind = found.split([' ', ',']).next().unwrap_or_default();
            format!("found a {kind}{}", &message[at..])
        }
        None => message.to_owned(),
    }
}

/// Why a message is refused. The message is at fault: running it again can't help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", .field.as_ref().map(|f| format!("{f}: ")).unwrap_or_default())]
pub struct Rejection {
    /// What is at fault: a path into the JSON (`env`, `timeout`), or the name of an AMQP property.
    pub field: Option<String>,
    /// What is wrong with it, and what would be right. Holds no value of a variable.
    pub message: String,
}

impl Rejection {
    /// Short enough for a header and a log line, whatever was sent: names and values of the message are quoted in it.
    fn brief(self) -> Rejection {
        let cut = |text: String| super::brief(&text, BRIEF).into_owned();
        Rejection { field: self.field.map(cut), message: cut(self.message) }
    }

    /// A refusal of one field.
    pub fn of(field: &str, message: impl Into<String>) -> Rejection {
        Rejection { field: Some(field.into()), message: message.into() }
    }
}

/// Reads a message's body.
///
/// # Errors
/// [`Rejection`] names the first field at fault. Nesting is limited to 128 levels by serde_json, size by the
/// caller.
pub fn decode(body: &[u8]) -> Result<Job, Rejection> {
    read(body).map_err(Rejection::brief)
}

fn read(body: &[u8]) -> Result<Job, Rejection> {
    if body.is_empty() {
        return Err(Rejection {
            field: None,
            message: "the body is empty; send {} for a job without anything".into(),
        });
    }
    if let Err(e) = std::str::from_utf8(body) {
        return Err(Rejection {
            field: None,
            message: format!("the body is not UTF-8 (byte {})", e.valid_up_to()),
        });
    }
    // serde would take an array for a struct, field by field.
    if body.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| *b != b'{') {
        return Err(Rejection { field: None, message: "the body is not a JSON object".into() });
    }
    let mut d = serde_json::Deserializer::from_slice(body);
    let job: Job = serde_path_to_error::deserialize(&mut d).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        let place = format!(" (line {}, column {})", inner.line(), inner.column());
        let message = format!("{}{place}", discreet(bare(&inner.to_string())));
        Rejection { field: (path != "." && path != "?").then_some(path), message }
    })?;
    d.end().map_err(|e| Rejection { field: None, message: format!("not one JSON object: {e}") })?;
    check(&job)?;
    Ok(job)
}

fn check(job: &Job) -> Result<(), Rejection> {
    if job.args.iter().flatten().any(|a| a.contains('\0')) {
        return Err(Rejection::of(
            "args",
            "an argument has a NUL character, which a command line can't hold",
        ));
    }
    if job.secrets.len() > SECRETS_MAX {
        return Err(Rejection::of(
            "secrets",
            format!("{} names; the most is {SECRETS_MAX}", job.secrets.len()),
        ));
    }
    // Not by name: what stands there may be the secret itself.
    if let Some(at) = job.secrets.iter().position(|name| !job.env.0.iter().any(|(n, _)| n == name)) {
        return Err(Rejection::of(&format!("secrets[{at}]"), "not the name of a variable in env"));
    }
    let metadata =
        job.metadata.as_ref().and_then(|m| serde_json::to_vec(m).ok()).map_or(0, |json| json.len());
    if metadata > METADATA_MAX {
        let message =
            format!("{metadata} bytes; the most is {METADATA_MAX}, since it comes back on every reply");
        return Err(Rejection::of("metadata", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        decode(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn everything_is_optional() {
        assert_eq!(decode(b"{}").unwrap(), Job::default());
        let job = decode(
            br#"{"env":{"B":"2","A":"a=b\nc"},"args":["--fast"],"stdin":"x","timeout":"30m",
                 "logs":"result","secrets":["A"],"metadata":{"any":[1,null]}}"#,
        )
        .unwrap();
        assert_eq!(job.env.0, [("B".into(), "2".into()), ("A".into(), "a=b\nc".into())], "order is kept");
        assert_eq!(job.timeout, Some(Duration::from_secs(1800)));
        assert_eq!(job.logs, Logs::Result);
        let job = decode(
            br#"{"stdin":{"base64":"/wA"},"files":{"/a/./b":"x","c":{"base64":"AAE=","mode":"755"}},
                 "artifacts":["out/","**/**/*.o","out"]}"#,
        )
        .unwrap();
        assert_eq!(job.stdin.unwrap().0[..], [0xff, 0]);
        let files: Vec<_> = job.files.0.iter().map(|f| (f.path.as_str(), &f.content.0[..], f.mode)).collect();
        assert_eq!(files, [("/a/b", &b"x"[..], 0o644), ("c", &[0, 1][..], 0o755)]);
        assert_eq!(job.artifacts.0, ["out", "**/*.o"]);
    }

    #[test]
    fn a_refusal_names_the_field_and_what_would_be_right() {
        for (body, words) in [
            ("", vec!["body is empty"]),
            ("[]", vec!["not a JSON object"]),
            ("{} {}", vec!["not one JSON object"]),
            (r#"{"enf":{}}"#, vec!["enf", "unknown field", "`env`"]),
            (r#"{"env":{"PORT":80}}"#, vec!["env", "PORT", "expected a string, found a number", "line 1"]),
            (r#"{"retries":101}"#, vec!["retries", "a whole number from 0 to 100"]),
            (r#"{"retries":-1}"#, vec!["retries", "a whole number from 0 to 100"]),
            (r#"{"retries":"many"}"#, vec!["retries", "a whole number from 0 to 100"]),
            (r#"{"env":{"A=B":"x"}}"#, vec!["env", "'A=B' has '='"]),
            (r#"{"env":{"":"x"}}"#, vec!["env", "empty name"]),
            (r#"{"env":{"A":"1","A":"2"}}"#, vec!["env", "'A' is there twice"]),
            (r#"{"env":{"A":"\u0000"}}"#, vec!["env", "'A' has a NUL"]),
            (r#"{"args":"x"}"#, vec!["args", "expected a sequence"]),
            (r#"{"args":["a\u0000"]}"#, vec!["args", "NUL"]),
            (r#"{"args":["a",7]}"#, vec!["args[1]", "expected a string"]),
            (r#"{"stdin":7}"#, vec!["stdin", "expected a string, or an object"]),
            (r#"{"stdin":{"base64":"?"}}"#, vec!["stdin", "not base64"]),
            (r#"{"stdin":{"text":"a","base64":"YQ=="}}"#, vec!["stdin", "one too many"]),
            (r#"{"stdin":{"mode":"0644","text":""}}"#, vec!["stdin", "unknown field 'mode'"]),
            (r#"{"stdin":{}}"#, vec!["stdin", "neither `text` nor `base64`"]),
            (r#"{"files":["a"]}"#, vec!["files", "an object of files by their paths"]),
            (r#"{"files":{"/a/../b":""}}"#, vec!["files", "file '/a/../b' has a component '..'"]),
            (r#"{"files":{"a/":""}}"#, vec!["files", "file 'a/' is a directory's"]),
            (r#"{"files":{"/.prewarm/init":""}}"#, vec!["files", "prewarm's own"]),
            (r#"{"files":{"a":"1","./a":"2"}}"#, vec!["files", "file './a' is there twice"]),
            (r#"{"files":{"a":null}}"#, vec!["files", "file 'a'", "expected a string, or an object"]),
            (
                r#"{"files":{"a":{"text":"","mode":"4755"}}}"#,
                vec!["files", "file 'a'", "`mode`", "three octal"],
            ),
            (r#"{"files":{"a":{"text":"","mode":493}}}"#, vec!["files", "file 'a'", "expected a string"]),
            (r#"{"artifacts":"x"}"#, vec!["artifacts", "an array of paths"]),
            (r#"{"artifacts":["a","../b"]}"#, vec!["artifacts", "path '../b' has a component '..'"]),
            (r#"{"artifacts":[7]}"#, vec!["artifacts[0]", "expected a string"]),
            (r#"{"timeout":"soon"}"#, vec!["timeout", "'soon' is not a duration"]),
            (r#"{"timeout":"0s"}"#, vec!["timeout"]),
            (r#"{"logs":"loud"}"#, vec!["logs", "`stream`"]),
            (r#"{"secrets":["T"]}"#, vec!["secrets[0]", "not the name of a variable in env"]),
            (r#"{"metadata":7}"#, vec!["metadata", "expected a map"]),
        ] {
            let text = refused(body);
            for word in words {
                assert!(text.contains(word), "{body}: {text:?} lacks {word:?}");
            }
        }
        assert!(decode(b"{\"stdin\":\"\xff\"}").unwrap_err().to_string().contains("not UTF-8"));
    }

    #[test]
    fn a_deeply_nested_message_is_refused_not_fatal() {
        let deep = format!("{{\"metadata\":{{\"a\":{}{}}}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(refused(&deep).contains("recursion limit"));
    }

    #[test]
    fn a_refusal_is_short_whatever_was_sent() {
        let long = "x".repeat(200_000);
        for body in [
            format!(r#"{{"{long}":1}}"#),
            format!(r#"{{"timeout":"{long}"}}"#),
            format!(r#"{{"logs":"{long}"}}"#),
        ] {
            assert!(refused(&body).len() < 1000);
        }
        let big = format!(r#"{{"metadata":{{"x":"{long}"}}}}"#);
        assert!(refused(&big).contains("metadata: 200008 bytes; the most is 65536"), "{}", refused(&big));
    }

    #[test]
    fn no_value_of_a_variable_is_repeated() {
        for body in [
            r#"{"env":{"TOKEN":{"s3cret":1}}}"#,
            r#"{"env":{"TOKEN":8675309}}"#,
            r#"{"env":{"TOKEN":"s3cret\u0000"}}"#,
        ] {
            let text = refused(body);
            assert!(!text.contains("s3cret") && !text.contains("8675309"), "{text}");
        }
        for misplaced in [
            r#"{"env":"{\"TOKEN\":\"s3cret\"}"}"#,
            r#"{"args":"--token=s3cret"}"#,
            r#"{"secrets":"s3cret"}"#,
            r#"{"secrets":["s3cret"]}"#,
            r#"{"metadata":"s3cret, expected s3cret"}"#,
            r#"{"files":"s3cret"}"#,
            r#"{"artifacts":"s3cret"}"#,
        ] {
            let text = refused(misplaced);
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains("expected") || text.contains("not the name"), "{text}");
        }
        let job = decode(br#"{"env":{"TOKEN":"s3cret"},"args":["s3cret"],"stdin":"s3cret"}"#).unwrap();
        assert!(!format!("{job:?}").contains("s3cret"));
    }
}
