//! The replies' part that is about artifacts: files that a job left and its publisher asked for.

use schemars::JsonSchema;
use serde::Serialize;

use super::event::{Data, Envelope};

/// `prewarm.artifact.v1`: a piece of a file that is too large for the result. Pieces of one file follow each other, and come
/// before the result, which has the file's digest.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ArtifactPiece {
    /// What every reply has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// Which file, as the job's `artifacts` name it.
    pub path: String,
    /// Bytes that the file had when it was opened.
    pub size: u64,
    /// Bytes of the file before this piece.
    pub offset: u64,
    /// The piece.
    #[serde(flatten)]
    pub data: Data,
}

/// A file that the job left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Artifact {
    /// Which file, as the job's `artifacts` name it: absolute, or from the working directory.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// Its permission bits, octal.
    #[schemars(extend("pattern" = "^0[0-7]{3}$"))]
    pub mode: String,
    /// SHA-256 of its bytes, in hexadecimal.
    #[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// How many `prewarm.artifact.v1` events it came in; absent if it is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// What is in it, if that is here.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
}

/// A file that could not be sent, or a pattern that stands for none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MissedArtifact {
    /// The file's path, or the pattern.
    pub path: String,
    /// Why.
    pub reason: Missed,
    /// In words.
    pub message: String,
}

/// Why an artifact is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Nothing is there, or nothing matches.
    NotFound,
    /// The job's user may not read it, or the kernel refuses for another reason.
    NotReadable,
    /// It is a symbolic link.
    Link,
    /// It is no ordinary file.
    NotAFile,
    /// All artifacts together would have more bytes than the pool allows.
    TooLarge,
    /// There would be more artifacts than the pool allows; what would have followed is not listed.
    TooMany,
    /// It is too large for the result, and the job has no `reply_to` that events could go to.
    NoReplyQueue,
    /// Collecting ended before it was whole: the time for it was over, or the container was lost.
    Interrupted,
    /// Reading it failed midway.
    Unreadable,
}
