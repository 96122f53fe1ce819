//! `prewarm logs`: follows a running job from another terminal.

mod pieces;

use std::process::ExitCode;
use std::time::Duration;

use pieces::Pieces;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::reply::{data, final_code, json_line, parse, remarks, write_out};
use super::{ConfigArgs, block_on, exit, fail};
use crate::broker::client::{Client, Reply};
use crate::broker::{BrokerError, Routed};
use crate::config::{self, BrokerConfig};
use crate::contract::control::{Sight, WATCH, WATCHING, Watch, Watching};
use crate::contract::topology::{LOG, RESULT};

/// A worker gives a sign of life every 20 s.
const SILENCE: Duration = Duration::from_secs(65);

#[derive(clap::Args)]
pub struct Args {
    /// The job's id: its `message_id`
    id: String,
    /// How long to wait for the workers' answers
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Print a line of JSON for each event
    #[arg(long)]
    json: bool,
}

pub fn main(config: &ConfigArgs, args: &Args) -> ExitCode {
    let broker = match config::load_broker(config.config.as_deref(), config::environment()) {
        Ok(broker) => broker,
        Err(faults) => return fail(exit::CONFIG, faults),
    };
    match block_on(logs(&broker, args)) {
        Ok(Ok(Ok(code))) => ExitCode::from(code),
        Ok(Ok(Err(why))) => fail(exit::FAILURE, format!("{}: {why}", args.id)),
        Ok(Err(error)) => fail(exit::BROKER, error),
        Err(code) => code,
    }
}

/// The job's exit code, or why there is none.
type Seen = Result<u8, String>;

async fn logs(broker: &BrokerConfig, args: &Args) -> Result<Seen, BrokerError> {
    let mut client = Client::connect(broker, "prewarm logs").await?;
    let watch = Watch { job_id: args.id.clone() };
    // Our own types: no way to fail.
    let body = serde_json::to_vec(&watch).unwrap_or_default();
    let seen = match client.request(WATCH, body.into()).await? {
        Routed::Yes => match find(&mut client, args).await? {
            Ok(worker) => follow(&mut client, args, &worker).await?,
            Err(why) => Err(why),
        },
        Routed::No | Routed::Refused => {
            Err("no worker is there; is one running, with the same broker.prefix and vhost?".into())
        }
    };
    client.close().await;
    Ok(seen)
}

fn answer(reply: &Reply) -> Option<Watching> {
    let is_answer = reply.properties.kind.as_deref() == Some(WATCHING);
    is_answer.then(|| serde_json::from_slice(&reply.body).ok()).flatten()
}

/// The worker that has the job.
async fn find(client: &mut Client, args: &Args) -> Result<Result<String, String>, BrokerError> {
    let end = Instant::now() + args.wait;
    let mut others = 0;
    while let Ok(reply) = timeout_at(end, client.next_reply()).await {
        match answer(&reply?) {
            Some(Watching { sight: Sight::InHand, worker, .. }) => return Ok(Ok(worker)),
            Some(Watching { sight: Sight::Full, worker, .. }) => {
                return Ok(Err(format!("worker {worker} has as many onlookers as it can have")));
            }
            Some(_) => others += 1,
            None => {}
        }
    }
    Ok(Err(match others {
        0 => "no worker answered; is one running, with the same broker.prefix and vhost?".into(),
        n => format!(
            "not in hand at any of {n} worker(s) that answered: it is queued, waits for its retry, or is over"
        ),
    }))
}

async fn follow(client: &mut Client, args: &Args, worker: &str) -> Result<Seen, BrokerError> {
    let mut pieces = Pieces::default();
    loop {
        let Ok(reply) = timeout(SILENCE, client.next_reply()).await else {
            return Ok(Err(format!(
                "nothing was heard of worker {worker} for {}s; has it died?",
                SILENCE.as_secs()
            )));
        };
        let reply = reply?;
        let value = parse(&reply);
        match reply.properties.kind.as_deref() {
            Some(LOG) if args.json => json_line(LOG, value, &[]),
            Some(LOG) => {
                show(&mut pieces, &value["stream"], value["offset"].as_u64(), &value);
                if let Some(limit) = value["truncated_at"].as_u64() {
                    eprintln!(
                        "prewarm: the job printed more than {limit} bytes; only its end is shown when it is over"
                    );
                }
            }
            Some(RESULT) => {
                let code = final_code(&value);
                if args.json {
                    json_line(RESULT, value, &[]);
                } else {
                    finish(&mut pieces, &value, &args.id);
                }
                return Ok(Ok(code));
            }
            _ => match answer(&reply) {
                Some(Watching { sight: Sight::Moved, .. }) => {
                    return Ok(Err(format!(
                        "it left worker {worker} without a result, and is run again, here or elsewhere"
                    )));
                }
                _ => continue,
            },
        }
    }
}

fn show(pieces: &mut Pieces, stream: &Value, offset: Option<u64>, of: &Value) {
    let is_stderr = stream == "stderr";
    let bytes = data(of);
    let shown = pieces.take(is_stderr, offset.unwrap_or_default(), &bytes);
    if let Some(gap) = shown.gap {
        let stream = if is_stderr { "stderr" } else { "stdout" };
        eprintln!("prewarm: {gap} bytes of {stream} are missing here");
    }
    write_out(is_stderr, shown.bytes);
}

/// What the job's tails have and nobody has seen, and how it ended.
fn finish(pieces: &mut Pieces, result: &Value, id: &str) {
    for stream in ["stdout", "stderr"] {
        let tail = &result[stream];
        if let Some(total) = tail["total_bytes"].as_u64() {
            let offset = total.saturating_sub(data(tail).len() as u64);
            show(pieces, &stream.into(), Some(offset), tail);
        }
    }
    remarks(result);
    let end = match (result["exit_code"].as_u64(), result["signal"].as_u64()) {
        (Some(code), _) => format!(", exit code {code}"),
        (_, Some(signal)) => format!(", signal {signal}"),
        _ => String::new(),
    };
    eprintln!("prewarm: {id}: {}{end}", result["status"].as_str().unwrap_or("?"));
}
