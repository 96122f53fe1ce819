//! The contract's schemas as publishers get them, from `prewarm schema`: every reply that a test receives must be valid.

use std::collections::HashMap;
use std::sync::OnceLock;

use jsonschema::Validator;
use serde_json::Value;

/// What `prewarm schema` prints.
pub fn printed(what: &str) -> Value {
    let output = super::worker::prewarm().args(["schema", what]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A validator of one message.
pub fn validator(what: &str) -> Validator {
    jsonschema::options().should_validate_formats(true).build(&printed(what)).unwrap()
}

/// What is wrong with a message of this AMQP type; nothing if its schema has nothing against it, or it has none.
pub fn fault(kind: &str, body: &Value) -> Option<String> {
    static ALL: OnceLock<HashMap<String, Validator>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let names = ["started", "log", "artifact", "result", "cancelling"];
        names.map(|name| (format!("prewarm.{name}.v1"), validator(name))).into()
    });
    let faults: Vec<String> =
        all.get(kind)?.iter_errors(body).map(|e| format!("{kind} {}: {e}", e.instance_path())).collect();
    (!faults.is_empty()).then(|| faults.join("; "))
}
