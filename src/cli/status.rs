//! `prewarm status`: what goes on at one worker, or at all that answer.

mod table;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::reply::parse;
use super::{ConfigArgs, block_on, exit, fail, inert, plan};
use crate::broker::client::Client;
use crate::broker::{BrokerError, Routed};
use crate::config::{self, BrokerConfig};
use crate::contract::control::{STATUS, StatusQuery, WORKER};

#[derive(clap::Args)]
pub struct Args {
    /// Ask this worker alone, over HTTP: http://127.0.0.1:9464 [default: all workers, over the broker]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// How long to wait for the workers' answers
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, conflicts_with = "from")]
    wait: Duration,
    /// Again and again, every 2s or as --watch=500ms says, until Ctrl-C
    #[arg(long, value_name = "EVERY", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = every)]
    watch: Option<Duration>,
    /// Print JSON: an array with what each worker says; with --watch a line each time
    #[arg(long)]
    json: bool,
}

fn every(text: &str) -> Result<Duration, String> {
    let wanted = Duration::from_millis(100)..=Duration::from_secs(86_400);
    let time = humantime::parse_duration(text).ok().filter(|time| wanted.contains(time));
    time.ok_or_else(|| "write a time from 100ms to 1d, as 5s".into())
}

pub fn main(config: &ConfigArgs, args: &Args) -> ExitCode {
    let done = match &args.from {
        Some(from) => block_on(repeat(args, async || one(from).map(|worker| vec![worker]))),
        None => match config::load_broker(config.config.as_deref(), config::environment()) {
            Ok(broker) => block_on(ask_again(&broker, args)),
            Err(faults) => return fail(exit::CONFIG, faults),
        },
    };
    match done {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err((code, why))) => fail(code, why),
        Err(code) => code,
    }
}

/// An exit code, and what to say.
type Fault = (u8, String);

/// What a worker says over HTTP.
fn one(from: &str) -> Result<Value, Fault> {
    let fault = |why: String| (exit::FAILURE, format!("{from}: {why}"));
    let text = plan::source::read(from).map_err(fault)?;
    let value: Value = serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
    if !value["pools"].is_array() {
        return Err(fault("the answer is no worker's status".into()));
    }
    Ok(value)
}

async fn ask_again(broker: &BrokerConfig, args: &Args) -> Result<u8, Fault> {
    let broken = |error: BrokerError| (exit::BROKER, error.to_string());
    let mut client = Client::connect(broker, "prewarm status").await.map_err(broken)?;
    let done = repeat(args, async || all(&mut client, args.wait).await.map_err(broken)).await;
    client.close().await;
    done
}

/// What all workers say that answer in time, by name.
async fn all(client: &mut Client, wait: Duration) -> Result<Vec<Value>, BrokerError> {
    // Our own types: no way to fail.
    let body = serde_json::to_vec(&StatusQuery {}).unwrap_or_default();
    let mut answers: Vec<Value> = Vec::new();
    if client.request(STATUS, body.into()).await? == Routed::Yes {
        let end = Instant::now() + wait;
        while let Ok(reply) = timeout_at(end, client.next_reply()).await {
            let reply = reply?;
            if reply.properties.kind.as_deref() == Some(WORKER) {
                let answer = parse(&reply);
                // One that was late last time.
                answers.retain(|earlier| earlier["worker"] != answer["worker"]);
                answers.push(answer);
            }
        }
    }
    answers.sort_by(|a, b| a["worker"].as_str().cmp(&b["worker"].as_str()));
    Ok(answers)
}

/// Shows it once, or again and again.
async fn repeat(args: &Args, mut look: impl AsyncFnMut() -> Result<Vec<Value>, Fault>) -> Result<u8, Fault> {
    loop {
        let workers = look().await?;
        show(args, &workers);
        let Some(every) = args.watch else {
            return Ok(if workers.is_empty() { exit::FAILURE } else { 0 });
        };
        sleep(every).await;
    }
}

fn show(args: &Args, workers: &[Value]) {
    let text = match (args.json, args.watch) {
        (true, None) => serde_json::to_string_pretty(workers).unwrap_or_default() + "\n",
        (true, Some(_)) => serde_json::to_string(workers).unwrap_or_default() + "\n",
        (false, _) => table::text(workers, SystemTime::now()),
    };
    if workers.is_empty() {
        eprintln!("prewarm: no worker answered; is one running, with the same broker.prefix and vhost?");
    }
    let mut out = std::io::stdout().lock();
    let clear = if args.watch.is_some() && !args.json && out.is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    // Whoever reads it may have seen enough.
    if write!(out, "{clear}{}", inert(&text)).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
