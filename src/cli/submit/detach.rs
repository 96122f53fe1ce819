//! `prewarm submit --detach`: the id, and no more.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{Args, Failed, new_id};
use crate::broker::Properties;
use crate::broker::client::Client;
use crate::cli::reply::{json_line, write_out};
use crate::config::BrokerConfig;

pub(super) async fn detach(broker: &BrokerConfig, args: &Args, body: Bytes) -> Result<u8, Failed> {
    let client = Client::connect(broker, "prewarm submit").await?;
    let (sender, _) = client.split();
    let pause = args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let mut next_at = Instant::now();
    for _ in 0..args.count {
        sleep_until(next_at).await;
        let id = args.id.clone().unwrap_or_else(new_id);
        let ours = Properties { reply_to: args.reply_to.clone(), ..super::properties(&sender, args, &id) };
        sender.submit_as(&args.job.pool, &ours, &body).await?;
        if args.json {
            json_line("submitted", json!({"job_id": id, "pool": args.job.pool}), &[]);
        } else {
            write_out(false, format!("{id}\n").as_bytes());
        }
        next_at += pause.unwrap_or_default();
    }
    sender.close().await;
    Ok(0)
}
