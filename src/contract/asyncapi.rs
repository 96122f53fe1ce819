//! The contract as one AsyncAPI 3.0 document, from the types that the worker decodes and sends.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::topology::{self, Names};
use super::{artifact, control, event, job};

/// Version of the contract, apart from the program's: see [`RULE`].
pub const VERSION: &str = "1.1.0";

/// How the contract changes.
pub const RULE: &str = "\
Types end in .v1 as long as what is written for them keeps its meaning. Within it fields are added, and new values \
of `reason` and `error.kind`, which raises the middle number of this version: readers of replies must ignore fields that they don't know, and \
take an unknown value for 'something else'. A worker refuses a job with a field that it doesn't know, so that nothing that a publisher asks for is \
left out unnoticed: upgrade workers before publishers use a new field. Removing a field, making an optional one required, or \
changing what one means takes a new type (.v2) beside the old one, and raises the first number.";

/// The document, for names that start as these do.
pub fn document(names: &Names) -> Value {
    let settings = SchemaSettings::draft07().with(|s| {
        s.definitions_path = "/components/schemas".into();
        s.meta_schema = None;
    });
    // What a worker sends leaves out what there is nothing to say of; what it takes may be left out where there is a default.
    let mut sent = settings.clone().for_serialize().into_generator();
    let mut generator = settings.into_generator();
    let replies = [topology::STARTED, topology::LOG, topology::ARTIFACT, topology::RESULT];
    let messages = json!({
        "job": job_message(&mut generator),
        topology::STARTED: reply::<event::Started>(&mut sent, topology::STARTED, "The job's entrypoint is executing."),
        topology::LOG: reply::<event::Log>(&mut sent, topology::LOG, "A piece of its output."),
        topology::ARTIFACT: reply::<artifact::ArtifactPiece>(&mut sent, topology::ARTIFACT, "A piece of an artifact that is too large for the result."
        ),
        topology::RESULT: reply::<event::JobResult>(&mut sent, topology::RESULT, "How the attempt ended: exactly one for each attempt that is the job's last, after all others."
        ),
        control::CANCEL: message::<control::Cancel>(&mut generator, control::CANCEL, "A job isn't wanted any more."),
        control::CANCELLING: message::<control::Cancelling>(&mut sent, control::CANCELLING, "What a worker does about it."
        ),
        control::WATCH: message::<control::Watch>(&mut generator, control::WATCH, "A running job's output is to be copied to the requester."),
        control::WATCHING: message::<control::Watching>(&mut sent, control::WATCHING, "What a worker can show of it; copies follow from the one that has it."),
        control::STATUS: message::<control::StatusQuery>(&mut generator, control::STATUS, "What goes on at each worker?"),
        control::WORKER: {
            "name": control::WORKER,
            "title": "What goes on at one: the JSON of its `/status`",
            "contentType": "application/json",
            "payload": {"type": "object", "required": ["worker", "version", "ready", "pools", "jobs", "failures"]},
        },
        "dead": {
            "title": "A message that can't be processed, as it was published",
            "headers": dead_headers(),
            "payload": {"description": "The body as it came; most often a job."},
        },
    });
    let mut schemas: Map<String, Value> = generator.take_definitions(true);
    schemas.extend(sent.take_definitions(true));
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "prewarm",
            "version": VERSION,
            "description": format!("Jobs for prewarm's workers, and what is said about them. {RULE}"),
        },
        "defaultContentType": "application/json",
        "channels": channels(names, &replies),
        "operations": operations(&replies),
        "components": { "messages": messages, "schemas": schemas },
    })
}

/// What all workers are asked at once.
const REQUESTS: [&str; 3] = [control::CANCEL, control::WATCH, control::STATUS];

/// What comes back, to the requester's own queue.
const ANSWERS: [&str; 6] = [
    control::CANCELLING,
    control::WATCHING,
    control::WORKER,
    topology::LOG,
    topology::ARTIFACT,
    topology::RESULT,
];

fn channels(names: &Names, replies: &[&str]) -> Value {
    let queue = |name: String| json!({"is": "queue", "queue": {"name": name, "durable": true, "exclusive": false, "autoDelete": false}, "bindingVersion": "0.3.0"});
    let exchange = |name: String, kind: &str| json!({"is": "routingKey", "exchange": {"name": name, "type": kind, "durable": true, "autoDelete": false}, "bindingVersion": "0.3.0"});
    let of = |list: &[&str]| -> Value {
        list.iter().map(|name| ((*name).to_owned(), component(name))).collect::<Map<_, _>>().into()
    };
    json!({
        "jobs": {
            "address": "{pool}",
            "title": "Jobs, by pool",
            "description": format!(
                "Published to the exchange with the pool as routing key; a durable queue '{}.POOL' is bound to it for each pool.", names.jobs()
            ),
            "parameters": {"pool": {"description": "The pool's name: 1 to 64 ASCII letters, digits, '-', '_' or '.', starting with a letter or a digit."}},
            "messages": of(&["job"]),
            "bindings": {"amqp": exchange(names.jobs(), "direct")},
        },
        "replies": {
            "address": null,
            "title": "A publisher's own queue, which its job's reply_to names",
            "description": "Through the default exchange. In order, on one channel; `seq` counts from 0 in each attempt.",
            "messages": of(replies),
        },
        "results": {
            "address": names.results(),
            "title": "Results without a reply queue, or whose reply queue is gone or full",
            "messages": of(&[topology::RESULT]),
            "bindings": {"amqp": queue(names.results())},
        },
        "dead": {
            "address": names.dead(),
            "title": "What can't be processed",
            "messages": of(&["dead"]),
            "bindings": {"amqp": queue(names.dead())},
        },
        "control": {
            "address": "",
            "title": "Requests to all workers",
            "messages": of(&REQUESTS),
            "bindings": {"amqp": exchange(names.control(), "fanout")},
        },
        "answers": {
            "address": null,
            "title": "A requester's own queue, which its request's reply_to names",
            "messages": of(&ANSWERS),
        },
    })
}

fn operations(replies: &[&str]) -> Value {
    let to = |channel: &str| json!({"$ref": format!("#/channels/{channel}")});
    let messages = |channel: &str, list: &[&str]| -> Vec<Value> {
        list.iter().map(|name| json!({"$ref": format!("#/channels/{channel}/messages/{name}")})).collect()
    };
    let address =
        json!({"location": "$message.header#/reply_to", "description": "The AMQP property reply_to."});
    json!({
        "runJob": {
            "action": "receive",
            "channel": to("jobs"),
            "summary": "Runs a job in a container of its pool. At least once: a job that ran twice shows it by `attempt`.",
            "messages": messages("jobs", &["job"]),
            "reply": {"address": address, "channel": to("replies"), "messages": messages("replies", replies)},
        },
        "keepResult": {
            "action": "send", "channel": to("results"), "messages": messages("results", &[topology::RESULT]),
            "summary": "Where a result goes that has no other way.",
        },
        "giveUp": {
            "action": "send", "channel": to("dead"), "messages": messages("dead", &["dead"]),
            "summary": "A message that is no valid job, or that met trouble of the workers' in every attempt.",
        },
        "cancel": {
            "action": "receive",
            "channel": to("control"),
            "summary": "Stops a job, or keeps it from beginning.",
            "messages": messages("control", &[control::CANCEL]),
            "reply": {"address": address, "channel": to("answers"), "messages": messages("answers", &[control::CANCELLING])},
        },
        "watch": {
            "action": "receive",
            "channel": to("control"),
            "summary": "Copies a running job's output and result to an onlooker, beginning with the last 64 KiB of either stream.",
            "messages": messages("control", &[control::WATCH]),
            "reply": {
                "address": address, "channel": to("answers"),
                "messages": messages("answers", &[control::WATCHING, topology::LOG, topology::ARTIFACT, topology::RESULT]),
            },
        },
        "status": {
            "action": "receive",
            "channel": to("control"),
            "summary": "Tells what goes on at each worker.",
            "messages": messages("control", &[control::STATUS]),
            "reply": {"address": address, "channel": to("answers"), "messages": messages("answers", &[control::WORKER])},
        },
    })
}

fn component(name: &str) -> Value {
    json!({"$ref": format!("#/components/messages/{name}")})
}

fn job_message(generator: &mut SchemaGenerator) -> Value {
    json!({
        "name": "job",
        "title": "A job",
        "contentType": "application/json",
        "payload": generator.subschema_for::<job::Job>(),
        "headers": {"type": "object", "properties": {topology::TRACEPARENT_HEADER: {
            "type": "string", "description": "W3C trace context; reaches the job as TRACEPARENT, and comes back on its replies."
        }}},
        "correlationId": {"location": "$message.header#/correlation_id", "description": "The AMQP property; comes back on every reply."},
        "x-amqp-properties": {
            "message_id": "The job's id. One is made up for a job without.",
            "correlation_id": "Comes back on every reply.",
            "reply_to": "The queue that replies go to, through the default exchange. Without one the result goes to the queue of results.",
            "content_type": "application/json, or absent.",
            "timestamp": "When it was published; gives timings_ms.queued.",
            "delivery_mode": "2, so that it survives the broker's restart.",
        },
        "examples": [{"name": "usual", "payload": {"env": {"REPO": "https://example.org/r.git", "TOKEN": "…"}, "secrets": ["TOKEN"]}}],
    })
}

fn reply<T: JsonSchema>(generator: &mut SchemaGenerator, kind: &str, title: &str) -> Value {
    let mut message = message::<T>(generator, kind, title);
    message["correlationId"] = json!({"location": "$message.header#/correlation_id", "description": "The job's own, an AMQP property."});
    message["x-amqp-properties"] = json!({
        "type": kind,
        "message_id": "JOB/ATTEMPT/SEQ",
        "correlation_id": "The job's.",
        "content_type": "application/json",
        "timestamp": "When it was made.",
    });
    message
}

fn message<T: JsonSchema>(generator: &mut SchemaGenerator, kind: &str, title: &str) -> Value {
    json!({
        "name": kind,
        "title": title,
        "contentType": "application/json",
        "payload": generator.subschema_for::<T>(),
        "bindings": {"amqp": {"messageType": kind, "bindingVersion": "0.3.0"}},
    })
}

fn dead_headers() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({"type": "object", "properties": {
        topology::REASON_HEADER: text("Why, in words."),
        topology::KIND_HEADER: text("Why, as a result's error.kind; or what the broker says."),
        topology::POOL_HEADER: text("The pool."),
        topology::DIED_AT_HEADER: text("When, RFC 3339 in UTC."),
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of the document leads somewhere in it.
    fn dangling(document: &Value, part: &Value, found: &mut Vec<String>) {
        match part {
            Value::Object(object) => {
                if let Some(Value::String(to)) = object.get("$ref")
                    && to.strip_prefix('#').and_then(|pointer| document.pointer(pointer)).is_none()
                {
                    found.push(to.clone());
                }
                object.values().for_each(|part| dangling(document, part, found));
            }
            Value::Array(parts) => parts.iter().for_each(|part| dangling(document, part, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_is_whole() {
        let document = document(&Names::new("acme"));
        let mut found = Vec::new();
        dangling(&document, &document, &mut found);
        assert_eq!(found, [""; 0]);
        assert_eq!(document["channels"]["jobs"]["bindings"]["amqp"]["exchange"]["name"], "acme.jobs");
        assert_eq!(document["channels"]["dead"]["address"], "acme.dead");
        for name in [
            "job",
            topology::STARTED,
            topology::LOG,
            topology::ARTIFACT,
            topology::RESULT,
            control::CANCEL,
            control::WATCH,
        ] {
            let message = &document["components"]["messages"][name];
            let payload = message["payload"]["$ref"].as_str().unwrap();
            let schema = document.pointer(&payload[1..]).unwrap();
            assert!(schema["properties"].is_object(), "{name}");
        }
        assert!(document["components"]["schemas"]["Job"]["properties"]["files"].is_object());
    }
}
