//! What `prewarm submit`, `prewarm cancel` and `prewarm bench` need of the broker: one connection, one reply queue, no second chances. A person
//! is waiting at the other end, so what goes wrong is told at once rather than tried again.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation};

use super::amqp::address::{Addresses, none_worked};
use super::amqp::link::{Link, short};
use super::amqp::properties;
use super::{BrokerError, Properties, Routed};
use crate::config::BrokerConfig;
use crate::contract::PoolName;
use crate::contract::topology::Names;

/// A publisher of jobs and requests that reads their replies.
pub struct Client {
    sender: Sender,
    replies: Replies,
}

/// The half that publishes.
pub struct Sender {
    link: Arc<Link>,
    names: Names,
    channel: Channel,
    reply_queue: String,
}

/// The half that reads what comes back.
pub struct Replies {
    link: Arc<Link>,
    consumer: lapin::Consumer,
}

/// A connection to the first address that works, with `name` to be seen in RabbitMQ's list of connections.
pub(super) async fn open(config: &BrokerConfig, name: &str) -> Result<Link, BrokerError> {
    let mut errors = Vec::new();
    for address in Addresses::of(config)?.in_turn() {
        match Link::open(&address, name, config.timeout).await {
            Ok(link) => return Ok(link),
            Err(error) => errors.push(error),
        }
    }
    Err(none_worked(errors))
}

/// One reply to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The body.
    pub body: Bytes,
    /// The properties; `kind` tells the replies apart, `correlation_id` whose they are.
    pub properties: Properties,
}

impl Client {
    /// Connects, and makes a reply queue that the broker deletes when this connection ends.
    ///
    /// # Errors
    /// [`BrokerError::Connect`], [`BrokerError::NoAddress`] or [`BrokerError::Timeout`].
    pub async fn connect(config: &BrokerConfig, name: &str) -> Result<Client, BrokerError> {
        let link = Arc::new(open(config, name).await?);
        let made = |fault| link.broker_error("making a reply queue", &fault);
        let channel = link.channel().await.map_err(made)?;
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let declare = channel.queue_declare(short(""), exclusive, FieldTable::default());
        let queue = link.ask("declaring a reply queue", declare).await.map_err(made)?;
        let consume = channel.basic_consume(
            queue.name().clone(),
            short(""),
            BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() },
            FieldTable::default(),
        );
        let consumer = link.ask("consuming replies", consume).await.map_err(made)?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        link.ask("turning on publisher confirms", confirms).await.map_err(made)?;
        let names = Names::new(&config.prefix);
        let reply_queue = queue.name().to_string();
        let sender = Sender { link: Arc::clone(&link), names, channel, reply_queue };
        Ok(Client { sender, replies: Replies { link, consumer } })
    }

    /// Both halves, for who publishes while replies come.
    #[must_use]
    pub fn split(self) -> (Sender, Replies) {
        (self.sender, self.replies)
    }

    /// The queue that replies come to.
    #[must_use]
    pub fn reply_queue(&self) -> &str {
        &self.sender.reply_queue
    }

    /// As [`Sender::submit`].
    ///
    /// # Errors
    /// As there.
    pub async fn submit(
        &mut self,
        pool: &PoolName,
        message_id: &str,
        body: Bytes,
        traceparent: Option<&str>,
    ) -> Result<(), BrokerError> {
        self.sender.submit(pool, message_id, body, traceparent).await
    }

    /// As [`Sender::request`].
    ///
    /// # Errors
    /// As there.
    pub async fn request(&mut self, kind: &str, body: Bytes) -> Result<Routed, BrokerError> {
        self.sender.request(kind, body).await
    }

    /// As [`Replies::next`].
    ///
    /// # Errors
    /// As there.
    pub async fn next_reply(&mut self) -> Result<Reply, BrokerError> {
        self.replies.next().await
    }

    /// Says goodbye to the broker, which deletes the reply queue.
    pub async fn close(self) {
        self.sender.close().await;
    }
}

impl Sender {
    /// Publishes a job, and returns when the broker has it safe.
    ///
    /// # Errors
    /// [`BrokerError::Unroutable`] if the pool has no queue; others if the broker didn't take the job.
    pub async fn submit(
        &self,
        pool: &PoolName,
        message_id: &str,
        body: Bytes,
        traceparent: Option<&str>,
    ) -> Result<(), BrokerError> {
        let ours = Properties { traceparent: traceparent.map(str::to_owned), ..self.properties(message_id) };
        self.submit_as(pool, &ours, &body).await
    }

    /// The properties of a job with this id whose replies come here.
    #[must_use]
    pub fn properties(&self, message_id: &str) -> Properties {
        Properties {
            message_id: Some(message_id.to_owned()),
            correlation_id: Some(message_id.to_owned()),
            reply_to: Some(self.reply_queue.clone()),
            content_type: Some("application/json".to_owned()),
            timestamp: Some(std::time::SystemTime::now()),
            ..Properties::default()
        }
    }

    /// Publishes a job with properties of the caller's, and returns when the broker has it safe. One at a time: lapin may
    /// pair a returned message with another one's confirm.
    ///
    /// # Errors
    /// As [`Sender::submit`].
    pub async fn submit_as(
        &self,
        pool: &PoolName,
        ours: &Properties,
        body: &[u8],
    ) -> Result<(), BrokerError> {
        let exchange = self.names.jobs();
        match self.publish(&exchange, pool.as_str(), ours, body).await? {
            Routed::Yes => Ok(()),
            Routed::No => Err(BrokerError::Unroutable { pool: pool.clone(), exchange }),
            Routed::Refused => Err(BrokerError::Refused),
        }
    }

    /// Sends a request to all workers. [`Routed::No`] if none is connected.
    ///
    /// # Errors
    /// If the broker didn't take it.
    pub async fn request(&self, kind: &str, body: Bytes) -> Result<Routed, BrokerError> {
        let ours = Properties {
            reply_to: Some(self.reply_queue.clone()),
            content_type: Some("application/json".to_owned()),
            kind: Some(kind.to_owned()),
            timestamp: Some(std::time::SystemTime::now()),
            ..Properties::default()
        };
        self.publish(&self.names.control(), "", &ours, &body).await
    }

    async fn publish(
        &self,
        exchange: &str,
        key: &str,
        ours: &Properties,
        body: &[u8],
    ) -> Result<Routed, BrokerError> {
        let publish = async {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let raw = properties::encode(ours);
            self.channel.basic_publish(short(exchange), short(key), options, body, raw).await?.await
        };
        match self.link.ask("publishing", publish).await {
            Ok(Confirmation::Ack(None)) => Ok(Routed::Yes),
            Ok(Confirmation::Ack(Some(_))) => Ok(Routed::No),
            Ok(Confirmation::Nack(_) | Confirmation::NotRequested) => Ok(Routed::Refused),
            // The exchange itself is missing.
            Err(fault) if fault.reply_code() == Some(404) => Ok(Routed::No),
            Err(fault) => Err(self.link.broker_error("publishing", &fault)),
        }
    }

    /// How many workers take jobs of this pool: each seat of each of them counts.
    ///
    /// # Errors
    /// [`BrokerError::Unroutable`] if the pool has no queue.
    pub async fn seats(&self, pool: &PoolName) -> Result<u32, BrokerError> {
        let error = |fault| self.link.broker_error("looking at the pool's queue", &fault);
        // The broker closes a channel on which something is asked of a queue that isn't there.
        let channel = self.link.channel().await.map_err(error)?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self.names.pool_queue(pool);
        let looked = self
            .link
            .ask(
                "looking at the pool's queue",
                channel.queue_declare(short(&queue), passive, FieldTable::default()),
            )
            .await;
        match looked {
            Ok(queue) => {
                self.link.close_channel(&channel).await;
                Ok(queue.consumer_count())
            }
            Err(fault) if fault.reply_code() == Some(404) => {
                Err(BrokerError::Unroutable { pool: pool.clone(), exchange: self.names.jobs() })
            }
            Err(fault) => Err(error(fault)),
        }
    }

    /// Says goodbye to the broker, which deletes the reply queue.
    pub async fn close(&self) {
        self.link.close().await;
    }
}

impl Replies {
    /// The next reply to anything that was submitted; waits as long as it takes.
    ///
    /// # Errors
    /// If the connection is lost, and the reply queue with it.
    pub async fn next(&mut self) -> Result<Reply, BrokerError> {
        let reason = tokio::select! {
            biased;
            delivery = self.consumer.next() => match delivery {
                Some(Ok(delivery)) => return Ok(Reply {
                    body: delivery.data.into(),
                    properties: properties::decode(&delivery.properties),
                }),
                Some(Err(error)) => error.to_string(),
                None => "the reply queue is gone".to_owned(),
            },
            reason = self.link.lost() => reason,
        };
        Err(BrokerError::Lost(reason))
    }
}
