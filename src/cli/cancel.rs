//! `prewarm cancel`: tells all workers that a job is not wanted any more.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{ConfigArgs, block_on, exit, fail};
use crate::broker::client::Client;
use crate::broker::{BrokerError, Routed};
use crate::config::{self, BrokerConfig};
use crate::contract::control::{CANCEL, CANCELLING, Cancel, Cancelling, Found};

#[derive(clap::Args)]
pub struct Args {
    /// The job's id: its `message_id`
    id: String,
    /// How long to wait for the workers' answers
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

pub fn main(config: &ConfigArgs, args: &Args) -> ExitCode {
    let broker = match config::load_broker(config.config.as_deref(), config::environment()) {
        Ok(broker) => broker,
        Err(faults) => return fail(exit::CONFIG, faults),
    };
    match block_on(cancel(&broker, args)) {
        Ok(Ok(answers)) => report(&args.id, &answers),
        Ok(Err(error)) => fail(exit::BROKER, error),
        Err(code) => code,
    }
}

/// The answers, up to that of the worker that has the job.
async fn cancel(broker: &BrokerConfig, args: &Args) -> Result<Vec<Cancelling>, BrokerError> {
    let mut client = Client::connect(broker, "prewarm cancel").await?;
    let mut answers = Vec::new();
    let cancel = Cancel { job_id: args.id.clone() };
    // Our own types: no way to fail.
    let body = serde_json::to_vec(&cancel).unwrap_or_default();
    if client.request(CANCEL, body.into()).await? == Routed::Yes {
        let end = Instant::now() + args.wait;
        while let Ok(reply) = timeout_at(end, client.next_reply()).await {
            let reply = reply?;
            if reply.properties.kind.as_deref() == Some(CANCELLING)
                && let Ok(answer) = serde_json::from_slice::<Cancelling>(&reply.body)
            {
                let found = answer.found;
                answers.push(answer);
                if found == Found::InHand {
                    break;
                }
            }
        }
    }
    client.close().await;
    Ok(answers)
}

fn report(id: &str, answers: &[Cancelling]) -> ExitCode {
    if let Some(answer) = answers.iter().find(|answer| answer.found == Found::InHand) {
        println!("{id}: worker {} has it, and stops it", answer.worker);
    } else if answers.is_empty() {
        return fail(
            exit::FAILURE,
            format!("{id}: no worker answered; is one running, with the same broker.prefix and vhost?"),
        );
    } else {
        println!(
            "{id}: not in hand at any of {} worker(s) that answered; it is cancelled if it comes to one",
            answers.len()
        );
    }
    ExitCode::SUCCESS
}
