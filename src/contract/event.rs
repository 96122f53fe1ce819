//! The replies (contract v1): `started`, `log`, `result`.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::PoolName;
use super::artifact::{Artifact, MissedArtifact};

/// What every reply has.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Envelope {
    /// The job's `message_id`.
    pub job_id: String,
    /// 1 for the job's first execution.
    pub attempt: u32,
    /// From 0, without gaps in an attempt.
    pub seq: u64,
    /// When it was made, RFC 3339 in UTC.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,
    /// The job's own `metadata`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// RFC 3339 in UTC.
pub fn timestamp(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

/// Whether an idle container was there at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LeaseKind {
    /// It was.
    Hit,
    /// The job waited for one.
    Miss,
}

impl LeaseKind {
    /// Both, for metrics that must exist from the start.
    pub const ALL: [LeaseKind; 2] = [LeaseKind::Hit, LeaseKind::Miss];

    /// As in messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            LeaseKind::Hit => "hit",
            LeaseKind::Miss => "miss",
        }
    }
}

/// `prewarm.started.v1`: the job's entrypoint is executing.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Started {
    /// What every reply has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The pool.
    pub pool: String,
    /// The worker's name.
    pub worker: String,
    /// Hit or miss.
    pub lease: LeaseKind,
    /// From the delivery to the entrypoint executing, in milliseconds.
    pub startup_ms: f64,
    /// The container's id.
    pub container: String,
}

/// One of the job's output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both, for metrics that must exist from the start.
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// As in messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Bytes in JSON: as `text` where they are UTF-8, else as `base64`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Data {
    /// The bytes are UTF-8.
    Text(String),
    /// They aren't.
    Base64(String),
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Data {
        String::from_utf8(bytes).map_or_else(
            |e| Data::Base64(base64::engine::general_purpose::STANDARD.encode(e.as_bytes())),
            Data::Text,
        )
    }
}

/// `prewarm.log.v1`: a piece of output.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Log {
    /// What every reply has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// Which stream.
    pub stream: Stream,
    /// Bytes of this stream before this piece.
    pub offset: u64,
    /// The piece.
    #[serde(flatten)]
    pub data: Data,
    /// Set on the last log event of a job whose output went over the limit: what follows is not sent, and
    /// this many bytes are the limit. The job goes on; the result's tails and totals are of all its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated_at: Option<u64>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The entrypoint exited with 0.
    Succeeded,
    /// The entrypoint exited with another code, or by a signal.
    Failed,
    /// It was stopped at its timeout.
    TimedOut,
    /// It was cancelled.
    Cancelled,
    /// The message is at fault.
    Rejected,
    /// We are, after the last retry.
    Error,
    /// Its publisher's `expiration` was over before it began.
    Expired,
}

impl Status {
    /// All, for metrics that must exist from the start.
    pub const ALL: [Status; 7] = [
        Status::Succeeded,
        Status::Failed,
        Status::TimedOut,
        Status::Cancelled,
        Status::Rejected,
        Status::Error,
        Status::Expired,
    ];

    /// Whether the job itself fell short, and might do better another time.
    pub const fn is_failure(self) -> bool {
        matches!(self, Status::Failed | Status::TimedOut)
    }

    /// As in messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::TimedOut => "timed_out",
            Status::Cancelled => "cancelled",
            Status::Rejected => "rejected",
            Status::Error => "error",
            Status::Expired => "expired",
        }
    }
}

/// What kind of error a result tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The message is not a valid job.
    InvalidJob,
    /// The entrypoint's executable does not exist (exit code 127).
    NotFound,
    /// The entrypoint's executable can't be executed (exit code 126).
    NotExecutable,
    /// The job ran longer than its timeout.
    Timeout,
    /// The container's memory limit was reached and the entrypoint was killed for it.
    OutOfMemory,
    /// No container could be had.
    NoContainer,
    /// The container ended while the job ran, or was stopped from outside.
    ContainerLost,
    /// The worker was stopped before the job ended.
    WorkerStopped,
    /// Somebody cancelled the job.
    Cancelled,
    /// It waited in its queue for longer than its publisher's `expiration`.
    Expired,
    /// The broker gave it out too often without its being settled: it may have killed its workers.
    DeliveryLimit,
}

impl ErrorKind {
    /// Those that a dead letter of a worker can have, for metrics that must exist from the start.
    pub const OF_DEAD_LETTERS: [ErrorKind; 5] = [
        ErrorKind::InvalidJob,
        ErrorKind::NoContainer,
        ErrorKind::ContainerLost,
        ErrorKind::WorkerStopped,
        ErrorKind::DeliveryLimit,
    ];

    /// As in messages, headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorKind::InvalidJob => "invalid_job",
            ErrorKind::NotFound => "not_found",
            ErrorKind::NotExecutable => "not_executable",
            ErrorKind::Timeout => "timeout",
            ErrorKind::OutOfMemory => "out_of_memory",
            ErrorKind::NoContainer => "no_container",
            ErrorKind::ContainerLost => "container_lost",
            ErrorKind::WorkerStopped => "worker_stopped",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Expired => "expired",
            ErrorKind::DeliveryLimit => "delivery_limit",
        }
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Error {
    /// Its kind.
    pub kind: ErrorKind,
    /// In words, with what to do.
    pub message: String,
}

impl JobResult {
    /// A result that says nothing beside how the attempt ended.
    pub fn bare(envelope: Envelope, status: Status, pool: &PoolName, worker: &str) -> JobResult {
        JobResult {
            envelope,
            status,
            exit_code: None,
            signal: None,
            oom_killed: false,
            error: None,
            lease: None,
            timings_ms: Timings::default(),
            usage: None,
            stdout: None,
            stderr: None,
            artifacts: None,
            artifacts_missed: Vec::new(),
            image: None,
            container: None,
            dropped: 0,
            repeated: false,
            pool: pool.to_string(),
            worker: worker.to_owned(),
        }
    }
}

/// Where the time went, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Timings {
    /// From the publisher's `timestamp` (whole seconds, so only as exact as that) to the delivery; absent
    /// without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<f64>,
    /// From asking for a container to having it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<f64>,
    /// From the delivery to the entrypoint executing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<f64>,
    /// From the entrypoint executing to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<f64>,
    /// From the delivery to this result.
    pub total: f64,
}

/// A duration as milliseconds, to the microsecond.
pub fn millis(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

/// What the job used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Usage {
    /// User and system time of all its processes, in milliseconds.
    pub cpu_ms: u64,
    /// Largest resident set of any one of its processes, in bytes.
    pub max_rss_bytes: u64,
}

/// The end of a stream, and how much there was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Tail {
    /// The last bytes, at most 64 KiB.
    #[serde(flatten)]
    pub data: Data,
    /// All bytes of the stream.
    pub total_bytes: u64,
    /// Whether the stream was longer than what is here.
    pub truncated: bool,
}

/// `prewarm.result.v1`: how the attempt ended; exactly one per attempt, the last reply.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct JobResult {
    /// What every reply has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// How the attempt ended.
    pub status: Status,
    /// The entrypoint's exit code, 0–255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// The signal that ended the entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// Whether the kernel killed one of the job's processes for memory.
    pub oom_killed: bool,
    /// What went wrong, if something did beside the exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Hit or miss; absent if the job never had a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseKind>,
    /// Where the time went.
    pub timings_ms: Timings,
    /// What the job used; absent if it never ran to an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The end of stdout; absent with `logs: off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Tail>,
    /// The end of stderr; absent with `logs: off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Tail>,
    /// What the job left of the files that its `artifacts` name; absent if it names none, or never ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<Vec<Artifact>>,
    /// What of them is missing, and why; absent if nothing is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts_missed: Vec<MissedArtifact>,
    /// The pool's image, with its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The container's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How many `started`, `log` and `artifact` events of this attempt were dropped, since they could not be delivered for too long;
    /// absent if none was. Their numbers are missing in `seq`.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// Whether this is the result of an earlier message with the same id and body, which was not run again; absent if not.
    #[serde(skip_serializing_if = "is_false")]
    pub repeated: bool,
    /// The pool.
    pub pool: String,
    /// The worker's name.
    pub worker: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_enums_read_the_same_in_messages_and_metrics() {
        for s in Status::ALL {
            assert_eq!(serde_json::to_value(s).unwrap(), s.as_str());
        }
        for s in Stream::ALL {
            assert_eq!(serde_json::to_value(s).unwrap(), s.as_str());
        }
        for l in LeaseKind::ALL {
            assert_eq!(serde_json::to_value(l).unwrap(), l.as_str());
        }
    }

    #[test]
    fn bytes_are_text_where_they_can_be() {
        assert_eq!(
            serde_json::to_value(Data::from(b"h\xc3\xa9\0".to_vec())).unwrap(),
            serde_json::json!({"text": "hé\0"})
        );
        assert_eq!(
            serde_json::to_value(Data::from(vec![0xff, 0])).unwrap(),
            serde_json::json!({"base64": "/wA="})
        );
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(timestamp(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
        assert_eq!(millis(Duration::from_nanos(1_234_567)), 1.235);
    }
}
