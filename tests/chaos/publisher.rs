//! A publisher as upstream systems should have one: it publishes until the broker has confirmed, through all outages, and
//! remembers what it can't know.

use std::sync::Mutex;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::books::{Books, Expect};

/// A broker in trouble may take that long to confirm; blocked by an alarm it takes longer than any.
const CONFIRM: Duration = Duration::from_secs(45);
const CONNECT: Duration = Duration::from_secs(5);

/// A job to be published.
pub struct Job {
    pub id: String,
    pub body: Value,
    pub expect: Expect,
    pub reply_to: String,
}

pub struct Publisher<'a> {
    urls: &'a [String],
    exchange: String,
    books: &'a Mutex<Books>,
    open: Option<(Connection, Channel)>,
}

/// What became of one try.
enum Tried {
    Confirmed,
    /// The broker has said that no queue has it.
    Refused,
    /// It may have it.
    Unknown,
}

impl<'a> Publisher<'a> {
    pub fn new(urls: &'a [String], prefix: &str, books: &'a Mutex<Books>) -> Publisher<'a> {
        Publisher { urls, exchange: format!("{prefix}.jobs"), books, open: None }
    }

    /// Publishes a job, however long it takes.
    pub async fn publish(&mut self, pool: &str, job: &Job) {
        self.books.lock().unwrap().attempted(&job.id, job.expect);
        let body = job.body.to_string().into_bytes();
        loop {
            match self.attempt(pool, job, &body).await {
                Tried::Confirmed => break,
                Tried::Refused => sleep(Duration::from_millis(100)).await,
                Tried::Unknown => self.books.lock().unwrap().published_again(&job.id),
            }
        }
        self.books.lock().unwrap().confirmed(&job.id);
    }

    /// Publishes many at once: as fast as the broker confirms. They are all confirmed, or the test ends.
    pub async fn publish_all(&mut self, pool: &str, jobs: &[Job]) {
        let channel = self.channel().await;
        for some in jobs.chunks(500) {
            let mut confirms = Vec::new();
            for job in some {
                self.books.lock().unwrap().attempted(&job.id, job.expect);
                let body = job.body.to_string().into_bytes();
                confirms.push((job, send(&channel, &self.exchange, pool, job, &body).await.unwrap()));
            }
            for (job, confirm) in confirms {
                assert!(matches!(confirm.await.unwrap(), Confirmation::Ack(None)));
                self.books.lock().unwrap().confirmed(&job.id);
            }
        }
    }

    async fn attempt(&mut self, pool: &str, job: &Job, body: &[u8]) -> Tried {
        let channel = self.channel().await;
        let sent = async { send(&channel, &self.exchange, pool, job, body).await?.await };
        let lost = async {
            // lapin may not tell a confirm that is waited for of the connection's end.
            while channel.status().connected() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        let tried = tokio::select! {
            biased;
            sent = timeout(CONFIRM, sent) => match sent {
                Ok(Ok(Confirmation::Ack(None))) => Tried::Confirmed,
                Ok(Ok(Confirmation::Ack(Some(_)))) => Tried::Refused,
                _ => Tried::Unknown,
            },
            () = lost => Tried::Unknown,
        };
        if matches!(tried, Tried::Unknown) {
            self.give_up();
        }
        tried
    }

    /// Ends the connection: one that is only dropped may live on.
    fn give_up(&mut self) {
        if let Some((connection, _)) = self.open.take() {
            tokio::spawn(async move { timeout(CONNECT, connection.close(200, "OK".into())).await });
        }
    }

    async fn channel(&mut self) -> Channel {
        loop {
            if let Some((connection, channel)) = &self.open
                && connection.status().connected()
                && channel.status().connected()
            {
                return channel.clone();
            }
            self.give_up();
            for url in self.urls {
                let opening = async {
                    let connection = connect(url).await?;
                    let channel = connection.create_channel().await?;
                    channel.confirm_select(ConfirmSelectOptions::default()).await?;
                    Ok::<_, lapin::Error>((connection, channel))
                };
                if let Ok(Ok(open)) = timeout(CONNECT, opening).await {
                    self.open = Some(open);
                    break;
                }
            }
            if self.open.is_none() {
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn send(
    channel: &Channel,
    exchange: &str,
    pool: &str,
    job: &Job,
    body: &[u8],
) -> lapin::Result<impl Future<Output = lapin::Result<Confirmation>> + use<>> {
    let properties = BasicProperties::default()
        .with_message_id(job.id.as_str().into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_reply_to(job.reply_to.as_str().into());
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    channel.basic_publish(exchange.into(), pool.into(), options, body, properties).await
}

pub async fn connect(url: &str) -> lapin::Result<Connection> {
    Connection::connect(url, ConnectionProperties::default()).await
}
