//! A worker's replies, as commands show them.

use std::io::Write;

use base64::Engine as _;
use serde_json::Value;

use super::{exit, inert};
use crate::broker::client::Reply;

/// The JSON of a reply; null if it is none.
pub(super) fn parse(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or(Value::Null)
}

/// The bytes of a log event or of a tail.
pub(super) fn data(of: &Value) -> Vec<u8> {
    match (of["text"].as_str(), of["base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(coded)) => base64::engine::general_purpose::STANDARD.decode(coded).unwrap_or_default(),
        (None, None) => Vec::new(),
    }
}

/// Writes a log event where this command's output goes, as the job wrote it.
pub(super) fn pass_through(log: &Value) {
    write_out(log["stream"] == "stderr", &data(log));
    if let Some(limit) = log["truncated_at"].as_u64() {
        eprintln!("prewarm: the job printed more than {limit} bytes; the rest is not shown");
    }
}

/// Blocking, since whoever reads sets the pace. That it has gone doesn't matter: the job's exit code still counts.
pub(super) fn write_out(to_stderr: bool, bytes: &[u8]) {
    tokio::task::block_in_place(|| {
        let _ = if to_stderr {
            std::io::stderr().write_all(bytes)
        } else {
            std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush())
        };
    });
}

/// A line for machines: the reply's own fields, and its AMQP `type`.
pub(super) fn json_line(kind: &str, mut reply: Value, more: &[(&str, Value)]) {
    if let Some(fields) = reply.as_object_mut() {
        fields.insert("type".to_owned(), kind.into());
        fields.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    }
    write_out(false, format!("{}\n", inert(&reply.to_string())).as_bytes());
}

/// Says on stderr what a result says beside its exit code.
pub(super) fn remarks(result: &Value) {
    if let Some(dropped) = result["dropped"].as_u64() {
        eprintln!(
            "prewarm: {dropped} event(s) of this job could not be delivered in time; output is missing above"
        );
    }
    if let Some(message) = result["error"]["message"].as_str() {
        eprintln!("prewarm: {}", inert(message));
    }
}

/// The job's exit code; 128 + n for a signal; 125 if it never ran.
pub(super) fn final_code(result: &Value) -> u8 {
    let number = |v: &Value| v.as_u64().and_then(|n| u8::try_from(n).ok());
    number(&result["exit_code"])
        .or_else(|| number(&result["signal"]).map(|s| s.saturating_add(128)))
        .unwrap_or(if result["status"] == "timed_out" { 137 } else { exit::RUN })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exit_codes_are_the_jobs_own() {
        assert_eq!(final_code(&json!({"exit_code": 7})), 7);
        assert_eq!(final_code(&json!({"signal": 11})), 139);
        assert_eq!(final_code(&json!({"status": "timed_out"})), 137);
        assert_eq!(final_code(&json!({"status": "rejected"})), 125);
    }

    #[test]
    fn data_is_what_the_job_wrote() {
        assert_eq!(data(&json!({"text": "é"})), "é".as_bytes());
        assert_eq!(data(&json!({"base64": "/wA="})), [0xff, 0]);
        assert_eq!(data(&json!({})), b"");
    }
}
