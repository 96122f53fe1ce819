//! What is asked of all workers at once, over the control exchange, and their answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// AMQP `type` of a request: cancel a job.
pub const CANCEL: &str = "prewarm.cancel.v1";
/// AMQP `type` of a worker's answer to it.
pub const CANCELLING: &str = "prewarm.cancelling.v1";

/// AMQP `type` of a request: what goes on at each worker.
pub const STATUS: &str = "prewarm.status.v1";
/// AMQP `type` of a worker's answer to it: the JSON of its `/status`.
pub const WORKER: &str = "prewarm.worker.v1";

/// AMQP `type` of a request: copy a running job's output here, and its result.
pub const WATCH: &str = "prewarm.watch.v1";
/// AMQP `type` of a worker's answer to it, before the copies; also a sign of life while the job prints nothing.
pub const WATCHING: &str = "prewarm.watching.v1";

/// `prewarm.cancel.v1`: the job is not wanted any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// The job's `message_id`.
    pub job_id: String,
}

/// Where a worker found a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// It has it: it is stopped now.
    InHand,
    /// It hasn't: it is cancelled if it comes.
    NotHere,
}

/// `prewarm.cancelling.v1`: what a worker does about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancelling {
    /// The job's `message_id`.
    pub job_id: String,
    /// The worker's name.
    pub worker: String,
    /// Where the job is, as far as this worker knows.
    pub found: Found,
}

/// `prewarm.status.v1`: asks nothing in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatusQuery {}

/// `prewarm.watch.v1`: the worker that has the job copies its `prewarm.log.v1` and `prewarm.result.v1` to the request's reply
/// queue from now on, beginning with the last 64 KiB of either stream. What the queue can't take in time is dropped, which
/// `seq` and `offset` show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// The job's `message_id`.
    pub job_id: String,
}

/// What a worker can show of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// It has it: copies follow.
    InHand,
    /// It hasn't.
    NotHere,
    /// It has as many onlookers as it can have.
    Full,
    /// It had it until now, and there is no result: the job is run again, here or elsewhere.
    Moved,
}

/// `prewarm.watching.v1`: what a worker can show of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Watching {
    /// The job's `message_id`.
    pub job_id: String,
    /// The worker's name.
    pub worker: String,
    /// What it can show.
    pub sight: Sight,
}
