//! JSON Schema (2020-12) of the contract's messages.

use schemars::{Schema, schema_for};

use super::{artifact, control, event, job};

/// A message of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Message {
    /// The job that publishers send.
    Job,
    /// `prewarm.started.v1`
    Started,
    /// `prewarm.log.v1`
    Log,
    /// `prewarm.artifact.v1`
    Artifact,
    /// `prewarm.result.v1`
    Result,
    /// `prewarm.cancel.v1`, to the control exchange
    Cancel,
    /// `prewarm.cancelling.v1`, a worker's answer to it
    Cancelling,
    /// `prewarm.watch.v1`, to the control exchange
    Watch,
    /// `prewarm.watching.v1`, a worker's answer to it
    Watching,
}

/// The schema of one message.
pub fn of(message: Message) -> Schema {
    match message {
        Message::Job => schema_for!(job::Job),
        Message::Started => schema_for!(event::Started),
        Message::Log => schema_for!(event::Log),
        Message::Artifact => schema_for!(artifact::ArtifactPiece),
        Message::Result => schema_for!(event::JobResult),
        Message::Cancel => schema_for!(control::Cancel),
        Message::Cancelling => schema_for!(control::Cancelling),
        Message::Watch => schema_for!(control::Watch),
        Message::Watching => schema_for!(control::Watching),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_names_its_fields() {
        for (message, field) in [
            (Message::Job, "secrets"),
            (Message::Started, "startup_ms"),
            (Message::Log, "offset"),
            (Message::Artifact, "size"),
            (Message::Result, "timings_ms"),
            (Message::Cancel, "job_id"),
            (Message::Cancelling, "found"),
            (Message::Watch, "job_id"),
            (Message::Watching, "sight"),
        ] {
            let schema = of(message).to_value();
            assert!(schema["properties"].get(field).is_some(), "{message:?}: {schema}");
        }
    }
}
