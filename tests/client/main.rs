//! What publishers and operators have: `prewarm submit`, `status` and `logs`, and what a worker does for them.

#[path = "../support/mod.rs"]
mod support;

mod again;
mod artifacts;
mod expired;
mod logs;
mod priority;
mod status;
mod submit;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::docker::Done;
use support::worker::{Worker, prewarm};

const LIMIT: Duration = Duration::from_secs(60);

/// `prewarm` with a worker's configuration.
fn command(worker: &Worker, args: &[&str]) -> Command {
    let mut command = prewarm();
    command.arg("--config").arg(&worker.config).args(args);
    command
}

fn call(worker: &Worker, args: &[&str]) -> Done {
    support::docker::run(&mut command(worker, args), None, LIMIT)
}

/// Starts a command whose output is read at its end; that must fit into a pipe.
fn start(worker: &Worker, args: &[&str]) -> Child {
    let mut command = command(worker, args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a started command said, and how it ended.
fn ended(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}
