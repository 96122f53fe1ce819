//! `prewarm dead show`: all of one dead letter, with the secrets that its job names masked, wherever they stand.

use std::io::{self, Write};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::table::{age, value};
use super::{Wanted, exit, inert, line};
use crate::broker::BrokerError;
use crate::broker::dead::{DeadLetter, DeadLetters};
use crate::contract::event::timestamp;
use crate::contract::job;
use crate::redact::{MASK, Secrets};

/// Most bytes of a body that are shown to people.
const SHOWN: usize = 16 * 1024;

#[derive(clap::Args)]
pub struct Args {
    /// Id of the job
    id: String,
    /// Print a line of JSON, with the whole body
    #[arg(long, conflicts_with = "body")]
    json: bool,
    /// Write the body to stdout as it is: whole, and with its secrets
    #[arg(long)]
    body: bool,
    /// Stop as soon as the id was met [default: look through the whole queue, since it may be there twice]
    #[arg(long)]
    first: bool,
}

pub async fn show(mut dead: DeadLetters, args: Args) -> Result<u8, BrokerError> {
    let mut wanted = Wanted::one(args.id.clone(), args.first);
    let mut shown = Vec::new();
    let read = read(&mut dead, &mut wanted, &args, &mut shown).await;
    let queue = dead.queue();
    let closed = dead.close().await;
    read.and(closed)?;
    let written = io::stdout().lock().write_all(&shown);
    let found = wanted.tell(&queue);
    let written = !written.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe);
    Ok(if found && written { 0 } else { exit::FAILURE })
}

async fn read(
    dead: &mut DeadLetters,
    wanted: &mut Wanted,
    args: &Args,
    shown: &mut Vec<u8>,
) -> Result<(), BrokerError> {
    while !wanted.is_complete()
        && let Some(one) = dead.next().await?
    {
        if !wanted.takes(&one.letter) {
            continue;
        }
        if args.body {
            // Two in a row would be neither; the second one is told of.
            if shown.is_empty() {
                *shown = one.body;
            }
        } else if args.json {
            shown.extend(format!("{}\n", inert(&json(&one).to_string())).into_bytes());
        } else {
            shown.extend(text(&one, SystemTime::now()).into_bytes());
        }
    }
    Ok(())
}

/// A job's fields.
const FIELDS: [&str; 8] = ["env", "args", "stdin", "timeout", "retries", "logs", "secrets", "metadata"];

/// What of a letter may be shown.
struct Fit {
    reason: String,
    properties: Map<String, Value>,
    /// The body; none if it is no JSON: then nobody can say what in it is secret.
    body: Option<Value>,
}

impl Fit {
    fn of(one: &DeadLetter) -> Fit {
        Fit::new(one.letter.reason.clone(), one.properties(), &one.body)
    }

    fn new(reason: String, properties: Map<String, Value>, source: &[u8]) -> Fit {
        let Ok(mut body) = serde_json::from_slice::<Value>(source) else {
            return Fit { reason, properties, body: None };
        };
        let secrets = take_secrets(&mut body, job::decode(source).is_ok());
        let mut all = json!([reason, properties, body]);
        if let Some(known) = Secrets::new(secrets.iter().map(String::as_bytes)) {
            mask(&mut all, &known, &secrets);
        }
        let Value::Array(all) = all else { return Fit { reason, properties, body: None } };
        match <[Value; 3]>::try_from(all) {
            Ok([Value::String(reason), Value::Object(properties), body]) => {
                Fit { reason, properties, body: Some(body) }
            }
            _ => Fit { reason, properties, body: None },
        }
    }
}

/// Masks what stands where a secret belongs, and gives the secrets, to be masked wherever else they stand. The message may
/// be here because just this is wrong with it: if it isn't `understood`, what was meant to be a secret can't be told; a name that is no variable's may be a secret itself, or a slip, and then any
/// variable's value may be the one that was meant.
fn take_secrets(body: &mut Value, understood: bool) -> Vec<String> {
    let names: Vec<String> = match &body["secrets"] {
        Value::String(name) => vec![name.clone()],
        Value::Array(names) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    let masked = || Value::from(String::from_utf8_lossy(MASK));
    let mut secrets = Vec::new();
    if let (false, Some(fields)) = (understood, body.as_object_mut()) {
        // What stands in a field that there isn't may be meant for `env`.
        for (_, value) in fields.iter_mut().filter(|(name, _)| !FIELDS.contains(&name.as_str())) {
            *value = masked();
        }
    }
    match body.get_mut("env") {
        Some(Value::Object(env)) => {
            let slips: Vec<&String> = names.iter().filter(|name| !env.contains_key(*name)).collect();
            let all = !slips.is_empty() || !understood;
            for (_, value) in env.iter_mut().filter(|(name, _)| all || names.contains(name)) {
                let secret = std::mem::replace(value, masked());
                secrets.push(secret.as_str().map_or_else(|| secret.to_string(), str::to_owned));
            }
            secrets.extend(slips.into_iter().cloned());
        }
        env => {
            if let Some(env) = env.filter(|_| !names.is_empty() || !understood) {
                *env = masked();
            }
            secrets = names;
        }
    }
    secrets
}

/// Masks the secrets in all texts and keys.
fn mask(value: &mut Value, known: &Secrets, secrets: &[String]) {
    match value {
        Value::String(text) => *text = known.mask(text),
        Value::Array(items) => items.iter_mut().for_each(|item| mask(item, known, secrets)),
        Value::Object(entries) => {
            for (name, mut value) in std::mem::take(entries) {
                mask(&mut value, known, secrets);
                entries.insert(known.mask(&name), value);
            }
        }
        // One that is the secret whole; part of a number is none.
        Value::Number(_) | Value::Bool(_) if secrets.contains(&value.to_string()) => {
            *value = Value::from(String::from_utf8_lossy(MASK));
        }
        Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
}

fn json(one: &DeadLetter) -> Value {
    let fit = Fit::of(one);
    let mut all = value(&one.letter);
    all["reason"] = fit.reason.into();
    all["properties"] = fit.properties.into();
    all["is_json"] = fit.body.is_some().into();
    all["body"] = fit.body.unwrap_or_default();
    all
}

fn text(one: &DeadLetter, now: SystemTime) -> String {
    let Fit { reason, mut properties, body } = Fit::of(one);
    let letter = &one.letter;
    let mut text = String::new();
    let mut put = |name: &str, value: &str| text += &format!("{:<17} {}\n", line(name), line(value));
    put("id", letter.id.as_deref().unwrap_or("-"));
    put("pool", letter.pool.as_ref().map_or("-", |pool| pool.as_str()));
    put("kind", &letter.kind);
    put("reason", &reason);
    put("attempts", &letter.attempts.map_or_else(|| "-".to_owned(), |n| n.to_string()));
    let died = letter
        .died
        .map(|at| format!("{} ({} ago)", timestamp(at), age(now.duration_since(at).unwrap_or_default())));
    put("died at", died.as_deref().unwrap_or("-"));
    properties.remove("message_id");
    let headers = properties.remove("headers");
    let bare = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for (name, value) in &properties {
        put(name, &bare(value));
    }
    for (name, value) in headers.iter().filter_map(Value::as_object).flatten() {
        put("header", &format!("{name}: {}", bare(value)));
    }
    put("body", &format!("{} bytes", letter.bytes));
    match body {
        Some(body) => text += &cut(&inert(&serde_json::to_string_pretty(&body).unwrap_or_default())),
        None => {
            text += "not JSON that can be read, so nobody can say what in it is secret; --body writes it as it is\n"
        }
    }
    text + "\n"
}

fn cut(text: &str) -> String {
    if text.len() <= SHOWN {
        return format!("{text}\n");
    }
    let end = (0..=SHOWN).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…\n… {} bytes more; --json gives all\n", &text[..end], text.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(body: &Value) -> Fit {
        let headers = json!({"x-theirs": "with s3\"cret", "x-mine": 1});
        let properties = Map::from_iter([("headers".to_owned(), headers)]);
        Fit::new("because of s3\"cret".into(), properties, body.to_string().as_bytes())
    }

    #[test]
    fn a_secret_is_masked_wherever_it_stands() {
        let body = json!({
            "env": {"TOKEN": "s3\"cret", "OPEN": "see s3\"cret", "PIN": "1234"},
            "args": ["--token=s3\"cret", "1234", "12345"],
            "metadata": {"s3\"cret": [1234, 12345, null, true]},
            "secrets": ["TOKEN", "PIN"],
        });
        let shown = fit(&body);
        assert_eq!(
            shown.body,
            Some(json!({
                "env": {"TOKEN": "***", "OPEN": "see ***", "PIN": "***"},
                "args": ["--token=***", "***", "***5"],
                "metadata": {"***": ["***", 12345, null, true]},
                "secrets": ["TOKEN", "PIN"],
            }))
        );
        assert_eq!(shown.reason, "because of ***");
        assert_eq!(shown.properties["headers"], json!({"x-theirs": "with ***", "x-mine": 1}));
    }

    #[test]
    fn a_wrong_message_shows_no_secret_either() {
        let hidden = |body: &Value| {
            let shown = fit(body).body.unwrap().to_string();
            assert!(!shown.contains("s3"), "{shown}");
        };
        hidden(&json!({"env": {"TOKEN": "s3"}, "secrets": "TOKEN"}));
        hidden(&json!({"env": {"TOKEN": {"a": ["s3"]}}, "secrets": ["TOKEN"]}));
        hidden(&json!({"env": {"A": "b"}, "secrets": ["s3"]}));
        hidden(&json!({"env": {"TOKEN": "s3"}, "args": ["s3"], "secrets": ["TOKN"]}));
        hidden(&json!({"secrets": ["s3"]}));
        hidden(&json!({"env": "{\"TOKEN\":\"s3\"}", "secrets": ["TOKEN"]}));
        hidden(&json!({"env": ["TOKEN=s3"], "secrets": ["TOKEN"]}));
        hidden(&json!({"env": {"TOKEN": "s3"}, "secrets": {"TOKEN": true}}));
        hidden(&json!({"env": {"TOKEN": "s3"}, "secrets": [["TOKEN"]]}));
        hidden(&json!({"env": {"TOKEN": "s3"}, "args": ["s3"], "secret": ["TOKEN"]}));
        hidden(&json!({"enf": {"TOKEN": "s3"}, "secrets": ["TOKEN"]}));
        let twice = br#"{"env":{"TOKEN":"s3"},"secrets":["TOKEN"],"secrets":[]}"#;
        assert!(!Fit::new(String::new(), Map::new(), twice).body.unwrap().to_string().contains("s3"));
        assert!(Fit::new(String::new(), Map::new(), b"{\"env\":{\"TOKEN\":\"s3\"},").body.is_none());
    }

    #[test]
    fn what_names_no_secrets_is_shown_as_it_is() {
        for body in [json!({"env": {"A": ""}, "secrets": []}), json!([1]), json!("x"), json!(null)] {
            assert_eq!(fit(&body).body, Some(body));
        }
        let empty = json!({"env": {"A": "", "B": "b"}, "secrets": ["A"]});
        assert_eq!(fit(&empty).body.unwrap()["env"], json!({"A": "***", "B": "b"}));
    }

    #[test]
    fn a_large_body_is_cut_between_characters() {
        let long = "é".repeat(SHOWN);
        let shown = cut(&long);
        assert!(shown.len() < SHOWN + 100 && shown.contains("16384 bytes more"), "{}", shown.len());
        assert_eq!(cut("{}"), "{}\n");
    }
}
