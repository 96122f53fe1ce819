use std::io::Write;

use base64::Engine;
use futures_util::StreamExt;
use lapin::options::*;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let pool = args.next().ok_or("which pool?")?;
    let job = json!({"args": args.collect::<Vec<_>>(), "env": {"WHO": "world"}});
    let result = run(&pool, job, async { _ = tokio::signal::ctrl_c().await }).await?;
    let number = |field: &str| result[field].as_i64();
    let code = number("exit_code").or_else(|| number("signal").map(|signal| 128 + signal));
    std::process::exit(code.unwrap_or(125) as i32)
}

/// Runs a job in a pool, passing its output through, until it has a result. Cancels it when `cancelled` is ready.
async fn run(pool: &str, job: Value, cancelled: impl Future<Output = ()>) -> Result<Value, Failure> {
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let url = var("PREWARM_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/%2f");
    let prefix = var("PREWARM_BROKER_PREFIX", "prewarm");
    let id = uuid::Uuid::now_v7().to_string();

    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let replies = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?;

    let publish = async |exchange: String, key: &str, body: String, properties: BasicProperties| {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let body = body.as_bytes();
        channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await
    };
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_message_id(id.as_str().into())
        .with_correlation_id(id.as_str().into())
        .with_reply_to(replies.name().clone());
    match publish(format!("{prefix}.jobs"), pool, job.to_string(), properties).await? {
        Confirmation::Ack(None) => {}
        _ => return Err(format!("no queue for pool '{pool}', or it is full").into()),
    }

    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consume = channel.basic_consume(replies.name().clone(), "".into(), no_ack, FieldTable::default());
    let mut messages = consume.await?;
    tokio::pin!(cancelled);
    let mut asked = false;
    loop {
        let message = tokio::select! {
            message = messages.next() => message.ok_or("the reply queue is gone")??,
            () = &mut cancelled, if !asked => {
                asked = true;
                let cancel = BasicProperties::default().with_type("prewarm.cancel.v1".into());
                publish(format!("{prefix}.control"), "", json!({"job_id": id}).to_string(), cancel).await?;
                continue;
            }
        };
        let reply: Value = serde_json::from_slice(&message.data)?;
        match message.properties.kind().as_ref().map(|kind| kind.as_str()) {
            Some("prewarm.log.v1") => {
                let bytes = match (reply["text"].as_str(), reply["base64"].as_str()) {
                    (Some(text), _) => text.as_bytes().to_vec(),
                    (None, coded) => base64::prelude::BASE64_STANDARD.decode(coded.unwrap_or_default())?,
                };
                match reply["stream"].as_str() {
                    Some("stderr") => std::io::stderr().write_all(&bytes)?,
                    _ => std::io::stdout().write_all(&bytes)?,
                }
            }
            Some("prewarm.result.v1") => return Ok(reply),
            _ => {}
        }
    }
}
