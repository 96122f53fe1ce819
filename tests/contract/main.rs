//! The contract as an artefact: what publishers may send, by the schema, is what the worker takes; and what the one refuses the other
//! does, naming the same field. Needs no server.

#[path = "../support/mod.rs"]
mod support;

use jsonschema::Validator;
use prewarm::contract::job::decode;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::string::string_regex;
use serde_json::{Map, Value, json};
use support::schema::{printed, validator};

const CASES: u32 = 4000;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[ -~]{0,20}",
        "\\PC{0,12}",
        Just("line\nend\ttab\"\\é\u{1F600}".to_owned())
    ]
}

fn content() -> impl Strategy<Value = Value> {
    let coded = prop::collection::vec(any::<u8>(), 0..40).prop_flat_map(|bytes| {
        use base64::Engine as _;
        use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
        select(vec![STANDARD.encode(&bytes), STANDARD_NO_PAD.encode(&bytes)])
    });
    prop_oneof![
        text().prop_map(Value::from),
        text().prop_map(|text| json!({ "text": text })),
        coded.prop_map(|coded| json!({ "base64": coded })),
    ]
}

fn file() -> impl Strategy<Value = Value> {
    (content(), prop::option::of("0?[0-7]{3}")).prop_map(|(content, mode)| match (content, mode) {
        (Value::Object(mut object), Some(mode)) => {
            object.insert("mode".into(), mode.into());
            object.into()
        }
        (content, _) => content,
    })
}

/// Paths of which no two are the same file.
fn path(wild: &'static str) -> impl Strategy<Value = String> {
    let name = format!("[a-z.{wild}]{{0,3}}[a-zé {wild}][a-z.{wild}]{{0,3}}");
    (select(vec!["", "/", "./", "//"]), prop::collection::vec(string_regex(&name).unwrap(), 1..4))
        .prop_map(|(root, names)| root.to_owned() + &names.join("/"))
}

fn job() -> impl Strategy<Value = Value> {
    let name = "[A-Za-z_][A-Za-z0-9_. -]{0,8}";
    let env = prop::collection::btree_map(name, text(), 0..5);
    let files = prop::collection::btree_map("[a-z]{1,4}(/[a-zé]{1,5}){0,2}", file(), 0..4);
    let first = (
        prop::option::of(env),
        prop::option::of(prop::collection::vec(text(), 0..4)),
        prop::option::of(prop_oneof![content(), Just(Value::Null)]),
        prop::option::of(files),
        prop::option::of(prop::collection::vec(path("*?"), 0..4)),
    );
    let second = (
        prop::option::of(select(vec![json!("90s"), json!("1h 30m"), json!("5ms"), Value::Null])),
        prop::option::of(0u32..=100),
        prop::option::of(select(vec!["stream", "result", "off"])),
        any::<bool>(),
        prop::option::of(prop::collection::btree_map("[a-z]{0,4}", text(), 0..3)),
    );
    (first, second).prop_map(
        |((env, args, stdin, files, artifacts), (timeout, retries, logs, secret, metadata))| {
            let mut job = Map::new();
            let mut put = |key: &str, value: Option<Value>| value.map(|value| job.insert(key.into(), value));
            let names: Vec<String> = env.iter().flatten().map(|(name, _)| name.clone()).collect();
            put("env", env.map(|env| json!(env)));
            put("args", args.map(|args| json!(args)));
            put("stdin", stdin);
            put("files", files.map(|files| json!(files)));
            put("artifacts", artifacts.map(|artifacts| json!(artifacts)));
            put("timeout", timeout);
            put("retries", retries.map(Value::from));
            put("logs", logs.map(Value::from));
            put("secrets", secret.then(|| json!(names)));
            put("metadata", metadata.map(|metadata| json!(metadata)));
            job.into()
        },
    )
}

#[test]
fn what_the_schema_allows_the_worker_takes() {
    let schema = validator("job");
    proptest!(ProptestConfig::with_cases(CASES), |(job in job())| {
        let bytes = job.to_string();
        prop_assert!(schema.is_valid(&job), "{bytes}: {:?}", schema.iter_errors(&job).map(|e| e.to_string()).collect::<Vec<_>>());
        if let Err(refused) = decode(bytes.as_bytes()) {
            prop_assert!(false, "{bytes}: {refused}");
        }
    });
}

/// Ways to spoil a job: the field that is at fault then, and its value.
fn faults() -> Vec<(&'static str, Value)> {
    let long = format!("/{}", "x".repeat(256));
    let mut all = Vec::new();
    let mut add =
        |field: &'static str, values: Vec<Value>| all.extend(values.into_iter().map(|value| (field, value)));
    add(
        "env",
        vec![
            json!([]),
            json!("A=b"),
            json!({"A": 7}),
            json!({"A": null}),
            json!({"A=B": "x"}),
            json!({"": "x"}),
            json!({"A": "\0"}),
        ],
    );
    add("args", vec![json!("x"), json!({}), json!([7]), json!(["a", null])]);
    add(
        "stdin",
        vec![
            json!(7),
            json!([]),
            json!({}),
            json!({"text": 7}),
            json!({"base64": "?"}),
            json!({"base64": "A"}),
            json!({"base64": "QUJD===="}),
            json!({"text": "", "base64": ""}),
            json!({"text": "", "mode": "0644"}),
            json!({"txt": ""}),
        ],
    );
    add(
        "files",
        vec![
            json!([]),
            json!("a"),
            Value::Null,
            json!({"a": 7}),
            json!({"a": null}),
            json!({"a": {}}),
            json!({"a": {"mode": "0644"}}),
            json!({"a": {"text": "", "mode": 420}}),
            json!({"a": {"text": "", "mode": "4755"}}),
            json!({"a": {"text": "", "mode": "rw"}}),
            json!({"a": {"text": "", "owner": "root"}}),
            json!({"a/../b": ""}),
            json!({"..": ""}),
            json!({"/..": ""}),
            json!({"a/": ""}),
            json!({"": ""}),
            json!({"/": ""}),
            json!({".": ""}),
            json!({"a/.": ""}),
            json!({"a\0": ""}),
            json!({"/.prewarm/x": ""}),
            json!({"//./.prewarm": ""}),
            json!({&long: ""}),
            json!((0..1001).map(|n| (n.to_string(), json!(""))).collect::<Map<_, _>>()),
        ],
    );
    add(
        "artifacts",
        vec![
            json!("a"),
            json!({}),
            json!([7]),
            json!(["a", ""]),
            json!(["../a"]),
            json!(["a/.."]),
            json!(["/"]),
            json!(["."]),
            json!([".//."]),
            json!(["a\0b"]),
            json!(["/.prewarm/*"]),
            json!([long]),
            json!((0..101).map(|n| n.to_string()).collect::<Vec<_>>()),
        ],
    );
    add("timeout", vec![json!(30), json!([]), json!({"s": 30})]);
    add("retries", vec![json!(101), json!(-1), json!("1"), json!(1.5), Value::Null]);
    add("logs", vec![json!("loud"), json!(7), Value::Null]);
    add("secrets", vec![json!("A"), json!([7]), json!(vec!["A"; 101])]);
    add("metadata", vec![json!([]), json!("x"), json!(7)]);
    add("enviroment", vec![json!({}), Value::Null]);
    all
}

/// Which fields the schema has something against.
fn against(schema: &Validator, job: &Value) -> Vec<String> {
    let field = |path: String, message: String| match path.split('/').nth(1) {
        Some(field) if !field.is_empty() => field.to_owned(),
        // An unknown field is the object's fault, by its name.
        _ => message,
    };
    schema.iter_errors(job).map(|e| field(e.instance_path().to_string(), e.to_string())).collect()
}

#[test]
fn what_the_one_refuses_the_other_does_and_both_name_the_field() {
    let schema = validator("job");
    let faults = faults();
    proptest!(ProptestConfig::with_cases(CASES), |(job in job(), n in 0..faults.len())| {
        let (field, value) = &faults[n];
        let mut job = job;
        job[field] = value.clone();
        let bytes = job.to_string();
        let refused = decode(bytes.as_bytes());
        prop_assert!(refused.is_err(), "{bytes} is taken");
        let refused = refused.unwrap_err();
        let named = refused.field.clone().unwrap_or_default();
        prop_assert!(named.starts_with(field) || refused.message.contains(field), "{bytes}: {refused}");
        let against = against(&schema, &job);
        prop_assert!(!against.is_empty() && against.iter().all(|one| one.contains(field)), "{bytes}: {against:?}");
    });
    // Each of them at least once.
    for (field, value) in faults {
        let job = json!({ field: value });
        assert!(decode(job.to_string().as_bytes()).is_err() && !schema.is_valid(&job), "{job}");
    }
}

#[test]
fn the_asyncapi_document_has_what_the_schemas_have() {
    let document = printed("asyncapi");
    assert_eq!(document["asyncapi"], "3.0.0");
    for (name, message) in [
        ("Job", "job"),
        ("Started", "started"),
        ("Log", "log"),
        ("ArtifactPiece", "artifact"),
        ("JobResult", "result"),
    ] {
        let keys =
            |schema: &Value| schema["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let schema = &document["components"]["schemas"][name];
        assert_eq!(keys(schema), keys(&printed(message)), "{name}");
        assert_eq!(schema["required"], printed(message)["required"], "{name}");
    }
    let version: Vec<u32> =
        document["info"]["version"].as_str().unwrap().split('.').map(|n| n.parse().unwrap()).collect();
    assert_eq!((version.len(), version[0]), (3, 1));
    // The document's own job schema, draft 7, judges as the other does.
    let mut whole = document.clone();
    whole["$ref"] = json!("#/components/schemas/Job");
    let schema = jsonschema::draft7::new(&whole).unwrap();
    for (field, value) in faults() {
        assert!(!schema.is_valid(&json!({ field: value })), "{field}");
    }
    assert!(schema.is_valid(
        &json!({"env": {"A": "b"}, "files": {"a": {"base64": "AA==", "mode": "0755"}}, "artifacts": ["**"]})
    ));
}
