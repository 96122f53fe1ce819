//! `prewarm submit`: publishes jobs and shows what becomes of them.

mod detach;
mod follow;
mod many;
mod tally;

use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::artifacts::Saver;
use super::interrupt::interruptible;
use super::job::JobArgs;
use super::{ConfigArgs, block_on, exit, fail};
use crate::broker::client::Sender;
use crate::broker::{BrokerError, Properties};
use crate::config;
use crate::contract::content;
use crate::contract::control::{CANCEL, Cancel};
use crate::contract::event::Data;

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("receiver").args(["follow", "detach"]))]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Return these files of the job when it is over: a path, or a pattern with `*`, `?`, `**`
    #[arg(long, value_name = "PATTERN", value_parser = content::pattern, requires = "receiver")]
    artifact: Vec<String>,
    /// Save them below this directory, each under its path there [default: the current directory; with --json nowhere, they are in
    /// its lines]
    #[arg(long, value_name = "DIR", requires_all = ["artifact", "follow"], conflicts_with_all = ["json", "detach"])]
    artifacts_to: Option<PathBuf>,
    /// AMQP priority, where the queue has priorities
    #[arg(long, value_name = "0-255")]
    priority: Option<u8>,
    /// The job's id [default: a new one]
    #[arg(long, value_parser = job_id, conflicts_with = "count")]
    id: Option<String>,
    /// Pass the job's stdout and stderr through as they come, and exit with its code; Ctrl-C cancels it, a second one leaves it
    #[arg(long, short = 'f', conflicts_with_all = ["count", "rate", "quiet"])]
    follow: bool,
    /// Print the job's id and leave; its result goes to --reply-to, or to the queue of results
    #[arg(long, short = 'd', conflicts_with_all = ["follow", "quiet"])]
    detach: bool,
    /// An existing queue that the replies of detached jobs go to
    #[arg(long, value_name = "QUEUE", requires = "detach", value_parser = short_string)]
    reply_to: Option<String>,
    /// How many jobs to submit
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Jobs a second [default: as fast as the broker takes them]
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Print lines of JSON: each reply with --follow, else each result; at the end a summary
    #[arg(long)]
    json: bool,
    /// Only the summary, no line for each job
    #[arg(long, short = 'q')]
    quiet: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| (1e-6..=1e6).contains(n));
    number.ok_or_else(|| "write a number of jobs a second above 0, as 5 or 0.2".into())
}

/// AMQP's short strings have at most 255 bytes.
fn short_string(text: &str) -> Result<String, String> {
    if (1..=255).contains(&text.len()) { Ok(text.to_owned()) } else { Err("write 1 to 255 bytes".into()) }
}

fn job_id(text: &str) -> Result<String, String> {
    short_string(text)
}

pub fn main(config: &ConfigArgs, args: Args) -> ExitCode {
    // A publisher has no pools: only the broker's section counts here.
    let broker = match config::load_broker(config.config.as_deref(), config::environment()) {
        Ok(broker) => broker,
        Err(faults) => return fail(exit::CONFIG, faults),
    };
    let body = match body(&args) {
        Ok(body) => body,
        Err(why) => return fail(exit::FAILURE, why),
    };
    let saver = match args.saver() {
        Ok(saver) => saver,
        Err(why) => return fail(exit::FAILURE, why),
    };
    let done = block_on(async {
        if args.follow {
            let follow = async |asked: &_| follow::follow(&broker, &args, body, saver, asked).await;
            interruptible("the job", follow).await
        } else if args.detach {
            detach::detach(&broker, &args, body).await
        } else {
            interruptible("the jobs", async |asked: &_| many::many(&broker, &args, body, asked).await).await
        }
    });
    match done {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(Failed { id: None, error })) => fail(exit::BROKER, error),
        Ok(Err(Failed { id: Some(id), error })) => fail(
            exit::BROKER,
            format!(
                "{error}; job {id} is with the broker all the same, and its result goes to the queue of results"
            ),
        ),
        Err(code) => code,
    }
}

impl Args {
    /// What saves the job's artifacts, if any are to be saved here.
    fn saver(&self) -> Result<Option<Saver>, String> {
        let wanted = self.follow && !self.json && !self.artifact.is_empty();
        wanted.then(|| Saver::new(self.artifacts_to.as_deref())).transpose()
    }
}

/// What went wrong at the broker.
struct Failed {
    /// The job that the broker had taken by then.
    id: Option<String>,
    error: BrokerError,
}

impl From<BrokerError> for Failed {
    fn from(error: BrokerError) -> Failed {
        Failed { id: None, error }
    }
}

fn body(Args { job, artifact, .. }: &Args) -> Result<Bytes, String> {
    let env: Map<String, Value> = job.env()?.into_iter().map(|(k, v)| (k, v.into())).collect();
    let mut body = Map::from_iter([("env".to_owned(), Value::from(env))]);
    if let Some(args) = job.args() {
        body.insert("args".into(), args.into());
    }
    if let Some(timeout) = job.timeout {
        body.insert("timeout".into(), humantime::format_duration(timeout).to_string().into());
    }
    if let Some(stdin) = job.read_stdin()? {
        let stdin = match String::from_utf8(stdin) {
            Ok(text) => Value::from(text),
            Err(bytes) => {
                let coded = base64::engine::general_purpose::STANDARD.encode(bytes.as_bytes());
                Value::from(Map::from_iter([("base64".to_owned(), Value::from(coded))]))
            }
        };
        body.insert("stdin".into(), stdin);
    }
    let mut files = Map::new();
    for file in job.read_files()?.0 {
        // Our own types: no way to fail.
        let mut value = serde_json::to_value(Data::from(file.content.0.to_vec())).unwrap_or_default();
        value["mode"] = format!("{:04o}", file.mode).into();
        files.insert(file.path, value);
    }
    if !files.is_empty() {
        body.insert("files".into(), files.into());
    }
    if !artifact.is_empty() {
        body.insert("artifacts".into(), artifact.clone().into());
    }
    Ok(Bytes::from(Value::from(body).to_string()))
}

fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// What a job is published with, its replies coming here.
fn properties(sender: &Sender, args: &Args, id: &str) -> Properties {
    Properties { priority: args.priority, ..sender.properties(id) }
}

/// Tells all workers that a job isn't wanted any more. False if there is none to tell.
async fn cancel(sender: &Sender, id: &str) -> Result<bool, BrokerError> {
    let cancel = Cancel { job_id: id.to_owned() };
    // Our own types: no way to fail.
    let body = serde_json::to_vec(&cancel).unwrap_or_default();
    Ok(sender.request(CANCEL, body.into()).await? == crate::broker::Routed::Yes)
}
