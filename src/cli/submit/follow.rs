//! `prewarm submit --follow`: one job, its output as it comes, its exit code as ours.

use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Args, Failed, cancel, new_id, properties};
use crate::broker::BrokerError;
use crate::broker::client::{Client, Replies, Sender};
use crate::cli::artifacts::Saver;
use crate::cli::reply::{data, final_code, json_line, parse, pass_through, remarks, write_out};
use crate::config::BrokerConfig;
use crate::contract::topology::{ARTIFACT, LOG, RESULT, STARTED};

pub(super) async fn follow(
    broker: &BrokerConfig,
    args: &Args,
    body: Bytes,
    saver: Option<Saver>,
    asked: &CancellationToken,
) -> Result<u8, Failed> {
    let (sender, mut replies) = Client::connect(broker, "prewarm submit").await?.split();
    let id = args.id.clone().unwrap_or_else(new_id);
    sender.submit_as(&args.job.pool, &properties(&sender, args, &id), &body).await?;
    let code = until_result(&sender, &mut replies, &id, args.json, saver, asked).await;
    let code = code.map_err(|error| Failed { id: Some(id), error })?;
    sender.close().await;
    Ok(code)
}

async fn until_result(
    sender: &Sender,
    replies: &mut Replies,
    id: &str,
    json: bool,
    mut saver: Option<Saver>,
    asked: &CancellationToken,
) -> Result<u8, BrokerError> {
    let mut cancelled = false;
    let mut attempt = 1;
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply?,
            () = asked.cancelled(), if !cancelled => {
                cancelled = true;
                let told = match cancel(sender, id).await? {
                    true => "cancelling the job",
                    false => "no worker is there to cancel the job, which stays in its queue",
                };
                eprintln!("prewarm: {told}; Ctrl-C again leaves it");
                continue;
            }
        };
        let kind = reply.properties.kind.clone().unwrap_or_default();
        let value = parse(&reply);
        // Workers answer to a cancellation here too; and an id given by hand may be another job's as well.
        if !matches!(kind.as_str(), STARTED | LOG | ARTIFACT | RESULT) || value["job_id"] != id {
            continue;
        }
        if let Some(now) = value["attempt"].as_u64().filter(|now| *now > attempt) {
            attempt = now;
            saver.iter_mut().for_each(|saver| saver.attempt(attempt));
            if !json {
                eprintln!("prewarm: attempt {attempt}: the job is run again");
            }
        }
        if let (ARTIFACT, Some(saver)) = (kind.as_str(), &mut saver) {
            tokio::task::block_in_place(|| saver.event(&value));
            continue;
        }
        let code = (kind == RESULT).then(|| {
            let code = final_code(&value);
            let saver = saver.take();
            saver.map_or(code, |saver| tokio::task::block_in_place(|| saver.conclude(&value, code)))
        });
        show(&kind, value, json);
        if let Some(code) = code {
            return Ok(code);
        }
    }
}

/// A job that was run before is answered without log events: its tails are all there is.
fn repeated(result: &Value) {
    eprintln!("prewarm: this job was run already; this is the result that it had");
    for stream in ["stdout", "stderr"] {
        let tail = &result[stream];
        let bytes = data(tail);
        if let Some(missing @ 1..) =
            tail["total_bytes"].as_u64().map(|n| n.saturating_sub(bytes.len() as u64))
        {
            eprintln!("prewarm: the first {missing} bytes of {stream} are missing");
        }
        write_out(stream == "stderr", &bytes);
    }
}

fn show(kind: &str, reply: Value, json: bool) {
    match kind {
        _ if json => json_line(kind, reply, &[]),
        LOG => pass_through(&reply),
        RESULT => {
            if reply["repeated"] == true {
                repeated(&reply);
            }
            remarks(&reply);
        }
        _ => {}
    }
}
