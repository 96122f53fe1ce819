//! Reads what comes back, through all outages: each message is acknowledged when it is in the books.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::books::Books;
use crate::publisher::connect;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Replies,
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
                        _ = read(url, &queue, holds, &books).await;
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

async fn read(url: &str, queue: &str, holds: Holds, books: &Mutex<Books>) -> lapin::Result<()> {
    let opening = async {
        let connection = connect(url).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(200, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        Ok::<_, lapin::Error>((connection, channel, consumer))
    };
    let Ok(opened) = timeout(Duration::from_secs(5), opening).await else { return Ok(()) };
    let (connection, channel, mut consumer) = opened?;
    let mut last = Instant::now();
    // lapin's streams don't always tell of the end, nor do brokers whose queue has lost its leader: so nothing that is
    // silent is trusted for long.
    while last.elapsed() < Duration::from_secs(5) {
        match timeout(Duration::from_millis(300), consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                let tag = delivery.delivery_tag;
                note(delivery, holds, books);
                channel.basic_ack(tag, BasicAckOptions::default()).await?;
                last = Instant::now();
            }
            Err(_) if connection.status().connected() && channel.status().connected() => {}
            Ok(_) | Err(_) => return Ok(()),
        }
    }
    let closing = connection.close(200, "OK".into());
    timeout(Duration::from_secs(2), closing).await.unwrap_or(Ok(()))
}

fn note(delivery: Delivery, holds: Holds, books: &Mutex<Books>) {
    let properties = &delivery.properties;
    let mut books = books.lock().unwrap();
    match holds {
        Holds::Replies => {
            let kind = properties.kind().as_ref().map(ToString::to_string).unwrap_or_default();
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
