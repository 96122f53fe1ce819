//! Many jobs: a line for each as it ends, and a summary.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::tally::Tally;
use super::{Args, Failed, cancel, new_id, properties};
use crate::broker::BrokerError;
use crate::broker::client::{Client, Sender};
use crate::cli::bench::progress::Progress;
use crate::cli::exit;
use crate::cli::reply::{json_line, parse, write_out};
use crate::config::BrokerConfig;
use crate::contract::topology::{RESULT, STARTED};

/// Jobs that may be on their way at once.
const IN_FLIGHT: usize = 1000;

/// A job that was submitted and has no result yet.
struct Open {
    number: u32,
    since: Instant,
    startup: Option<f64>,
}

pub(super) async fn many(
    broker: &BrokerConfig,
    args: &Args,
    body: Bytes,
    asked: &CancellationToken,
) -> Result<u8, Failed> {
    let (sender, mut replies) = Client::connect(broker, "prewarm submit").await?.split();
    let progress = Progress::new();
    let begun = Instant::now();
    let mut tally = Tally::default();
    let room = Semaphore::new(IN_FLIGHT);
    // Each is entered before it is published: its replies may be here before the broker's confirmation is.
    let (enter, mut entered) = mpsc::channel(1);
    let publishing = publish(&sender, args, &body, &room, asked, enter);
    tokio::pin!(publishing);
    let (mut open, mut published, mut cancelled) = (HashMap::new(), false, false);
    while !(published && open.is_empty()) {
        tokio::select! {
            biased;
            Some((id, job)) = entered.recv() => { open.insert(id, job); }
            () = asked.cancelled(), if !cancelled => {
                cancelled = true;
                progress.end();
                eprintln!("prewarm: cancelling {} job(s); Ctrl-C again leaves them", open.len());
                for id in open.keys() {
                    cancel(&sender, id).await?;
                }
            }
            done = &mut publishing, if !published => {
                done?;
                published = true;
            }
            reply = replies.next() => {
                let reply = reply?;
                let value = parse(&reply);
                let id = value["job_id"].as_str().unwrap_or_default();
                match reply.properties.kind.as_deref() {
                    Some(STARTED) => {
                        if let Some(job) = open.get_mut(id) {
                            job.startup = value["startup_ms"].as_f64();
                        }
                    }
                    Some(RESULT) => {
                        if let Some(job) = open.remove(id) {
                            room.add_permits(1);
                            let total = job.since.elapsed().as_secs_f64() * 1e3;
                            let line = tally.take(job.number, job.startup, total, &value);
                            if args.json && !args.quiet {
                                let more = [("number", job.number.into()), ("publish_to_result_ms", total.into())];
                                json_line(RESULT, value, &more);
                            } else if !args.quiet {
                                write_out(false, line.as_bytes());
                            }
                            progress.say_if_alone(args.quiet, || tally.progress(args.count));
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    progress.end();
    sender.close().await;
    let took = begun.elapsed();
    if args.json {
        json_line("summary", tally.json(took), &[]);
    } else {
        write_out(false, tally.text(took).as_bytes());
    }
    Ok(if tally.all_succeeded() { 0 } else { exit::FAILURE })
}

/// Publishes one job after the other, at the wanted rate, while there is room; ends early if it is asked to.
async fn publish(
    sender: &Sender,
    args: &Args,
    body: &Bytes,
    room: &Semaphore,
    asked: &CancellationToken,
    enter: mpsc::Sender<(String, Open)>,
) -> Result<(), BrokerError> {
    let pause = args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)).unwrap_or_default();
    let mut next_at = tokio::time::Instant::now();
    for number in 1..=args.count {
        let ready = async {
            tokio::time::sleep_until(next_at).await;
            room.acquire().await
        };
        tokio::select! {
            biased;
            () = asked.cancelled() => break,
            // Given back when the job's result is here.
            permit = ready => if let Ok(permit) = permit { permit.forget() },
        }
        let id = args.id.clone().unwrap_or_else(new_id);
        let ours = properties(sender, args, &id);
        // Its receiver lives longer than this.
        let _ = enter.send((id, Open { number, since: Instant::now(), startup: None })).await;
        sender.submit_as(&args.job.pool, &ours, body).await?;
        next_at += pause;
    }
    Ok(())
}
