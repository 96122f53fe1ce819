//! Reads what comes back, through all outages: each message is acknowledged when it is in the books.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::books::Books;
use crate::publisher::connect;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Replies,
    /// Of jobs whose reply queue can't be used.
    Results,
    DeadLetters,
}

/// Reads until dropped.
pub struct Reader {
    end: CancellationToken,
}

impl Reader {
    pub fn start(urls: &[String], queues: &[(String, Holds)], books: &Arc<Mutex<Books>>) -> Reader {
        let end = CancellationToken::new();
        for (queue, holds) in queues.iter().cloned() {
            let (urls, books) = (urls.to_vec(), Arc::clone(books));
            let read = async move {
                loop {
                    for url in &urls {
                        // Whatever ends it: the broker is away, the queue isn't declared yet, …
                        read(url, &queue, holds, &books).await;
                    }
                    sleep(Duration::from_millis(200)).await;
                }
            };
            tokio::spawn(end.clone().run_until_cancelled_owned(read));
        }
        Reader { end }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// Reads on a connection of its own until that ends, or nothing has come for a while.
async fn read(url: &str, queue: &str, holds: Holds, books: &Mutex<Books>) {
    let patience = Duration::from_secs(5);
    let Ok(Ok(connection)) = timeout(patience, connect(url)).await else { return };
    if let Ok(Ok((channel, mut consumer))) = timeout(patience, consume(&connection, queue)).await {
        let mut last = Instant::now();
        // lapin's streams don't always tell of the end, nor do brokers whose queue has lost its leader: so nothing that is
        // silent is trusted for long.
        while last.elapsed() < patience && connection.status().connected() && channel.status().connected() {
            let delivery = match timeout(Duration::from_millis(300), consumer.next()).await {
                Ok(Some(Ok(delivery))) => delivery,
                Ok(_) => break,
                Err(_) => continue,
            };
            let tag = delivery.delivery_tag;
            note(delivery, holds, books);
            if channel.basic_ack(tag, BasicAckOptions::default()).await.is_err() {
                break;
            }
            last = Instant::now();
        }
    }
    // One that is only dropped may live on, and consume without anybody reading: what was asked of it too late is carried out.
    _ = timeout(patience, connection.close(200, "OK".into())).await;
}

async fn consume(connection: &Connection, queue: &str) -> lapin::Result<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(200, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    Ok((channel, consumer))
}

fn note(delivery: Delivery, holds: Holds, books: &Mutex<Books>) {
    let properties = &delivery.properties;
    let mut books = books.lock().unwrap();
    match holds {
        Holds::Replies | Holds::Results => {
            let kind = properties.kind().as_ref().map(ToString::to_string).unwrap_or_default();
            if holds == Holds::Results {
                books.astray(&delivery.data);
            }
            books.reply(&kind, delivery.data);
        }
        Holds::DeadLetters => {
            let id = properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
            books.dead(&id, reason(&delivery));
        }
    }
}

/// Ours, or the broker's own.
fn reason(delivery: &Delivery) -> String {
    let headers = delivery.properties.headers().clone().unwrap_or_default();
    let said = ["x-prewarm-reason", "x-first-death-reason"].iter().find_map(|name| {
        match headers.inner().get(*name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            other => Some(format!("{other:?}")),
        }
    });
    said.unwrap_or_else(|| "without a reason".into())
}
