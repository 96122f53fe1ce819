//! What a job brings and what it leaves: stdin, files and artifacts, over the real broker and engine, in both isolations,
//! with hostile ones among them; and the secrets that its pool gives it.
//!
//! Needs the servers and images of `deploy/test.sh`.

mod brought;
mod left;
mod secret;
#[path = "../support/mod.rs"]
mod support;

use serde_json::{Value, json};
use support::broker::{Attempt, Job};
use support::worker::{Setup, Site};

/// Both kinds of pools, with these keys: `c` and `n`.
const KINDS: [&str; 2] = ["c", "n"];

fn both<'a>(setup: Setup<'a>, name: &str, keys: &str) -> Setup<'a> {
    let idle = if keys.contains("idle =") { "" } else { "idle = { min = 1, max = 2 }\n" };
    setup
        .pool(&format!("c{name}"), &format!("{idle}{keys}"))
        .pool(&format!("n{name}"), &format!("isolation = \"namespace\"\n{idle}{keys}"))
}

/// A job that runs a script, with other fields beside.
fn script(script: &str, beside: Value) -> Job {
    let mut job = json!({"args": ["sh", "-c", script]});
    job.as_object_mut().unwrap().extend(beside.as_object().unwrap().clone());
    Job::new(job)
}

async fn run(site: &Site, pool: &str, text: &str, beside: Value) -> Attempt {
    site.broker.run(pool, script(text, beside)).await
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What the result says of what went wrong.
fn message(attempt: &Attempt) -> &str {
    attempt.result["error"]["message"].as_str().unwrap_or_else(|| panic!("{:#}", attempt.result))
}
