//! JSON Schema (2020-12) of the contract's messages.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

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
        Message::Job => taken::<job::Job>(),
        Message::Started => sent::<event::Started>(),
        Message::Log => sent::<event::Log>(),
        Message::Artifact => sent::<artifact::ArtifactPiece>(),
        Message::Result => sent::<event::JobResult>(),
        Message::Cancel => taken::<control::Cancel>(),
        Message::Cancelling => sent::<control::Cancelling>(),
        Message::Watch => taken::<control::Watch>(),
        Message::Watching => sent::<control::Watching>(),
    }
}

/// Of what others write, and prewarm reads: what may be left out is not required.
fn taken<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>()
}

/// Of what prewarm writes: what it may leave out is not required.
fn sent<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
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
        let result = of(Message::Result).to_value();
        let required = result["required"].as_array().unwrap();
        assert!(required.contains(&"status".into()));
        for left_out in ["dropped", "artifacts_missed", "exit_code", "repeated"] {
            assert!(!required.contains(&left_out.into()), "{left_out}");
        }
    }
}
