//! The dead letters, taken one by one.
//!
//! ```text
//!  P.dead ──get──► taken ─┬─ forget ─────────────────────────► gone
//!     ▲                   ├─ replay ── confirmed by P.jobs ──► gone
//!     └── close, or the end of the connection, however it ends ┘ all others
//! ```
//!
//! Nothing that is taken leaves the queue before it is settled, so a command that is killed loses nothing: the broker puts
//! back what its connection held. Until then nobody else sees it. `basic.get` holds one body at a time here, whatever
//! the queue holds; a consumer would need a prefetch as large as the queue, since what isn't chosen is settled only at the end.

mod letter;

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation};
use serde_json::{Map, Value};

pub use letter::{Letter, UNKNOWN};

use super::BrokerError;
use super::amqp::link::{Fault, Flow, Link, short};
use super::client;
use crate::config::BrokerConfig;
use crate::contract::PoolName;
use crate::contract::topology::Names;

/// The queue of dead letters, opened.
pub struct DeadLetters {
    link: Link,
    channel: Channel,
    /// For what is sent again: the broker closes a channel whose message it refuses, and with it would go what is held.
    publishing: Option<Channel>,
    names: Names,
    delivery_limit: u32,
    address: String,
    at_start: u32,
    taken: u32,
}

/// One message of the queue, held until it is settled.
pub struct DeadLetter {
    /// What is known of it.
    pub letter: Letter,
    /// Its body.
    pub body: Vec<u8>,
    raw: BasicProperties,
    tag: u64,
}

impl DeadLetter {
    /// All properties and headers, for people.
    #[must_use]
    pub fn properties(&self) -> Map<String, Value> {
        letter::all(&self.raw)
    }
}

impl DeadLetters {
    /// Connects, and looks how many there are.
    ///
    /// # Errors
    /// [`BrokerError::Topology`] if there is no such queue or it may not be read; others if the broker can't be asked.
    pub async fn open(config: &BrokerConfig) -> Result<DeadLetters, BrokerError> {
        let link = client::open(config, "prewarm dead").await?;
        let names = Names::new(&config.prefix);
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = link.channel().await.map_err(|fault| link.broker_error("opening a channel", &fault))?;
        let look = channel.queue_declare(short(&names.dead()), passive, FieldTable::default());
        let found = link.ask("looking for the queue of dead letters", look).await;
        let at_start = found.map_err(|fault| unreadable(&link, &names, &fault))?.message_count();
        Ok(DeadLetters {
            address: link.address().to_string(),
            link,
            channel,
            publishing: None,
            names,
            delivery_limit: config.delivery_limit,
            at_start,
            taken: 0,
        })
    }

    /// The queue's name.
    #[must_use]
    pub fn queue(&self) -> String {
        self.names.dead()
    }

    /// How many were there when the first was taken, or else when it was opened; those that somebody else holds don't count.
    #[must_use]
    pub fn at_start(&self) -> u32 {
        self.at_start
    }

    /// The next one; none after as many as were there at the start. What comes meanwhile isn't looked at: a job that is
    /// replayed and dies again would be replayed for ever.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker can't be asked any more.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError> {
        if self.taken > 0 && self.taken >= self.at_start {
            return Ok(None);
        }
        let get = self.channel.basic_get(short(&self.names.dead()), BasicGetOptions { no_ack: false });
        let got = self.link.ask("taking a dead letter", get).await;
        let Some(message) = got.map_err(|fault| unreadable(&self.link, &self.names, &fault))? else {
            return Ok(None);
        };
        if self.taken == 0 {
            // A count that is asked for may be a moment old, or 0 if the broker is in trouble; this one is that of the
            // moment in which the first was taken, with all that others put back before.
            self.at_start = message.message_count.saturating_add(1);
        }
        self.taken += 1;
        let lapin::message::Delivery { delivery_tag: tag, properties: raw, data: body, .. } =
            message.delivery;
        let letter = Letter::read(&raw, body.len(), &self.names, self.delivery_limit);
        Ok(Some(DeadLetter { letter, body, raw, tag }))
    }

    /// Deletes one for good. Certain only when [`DeadLetters::close`] succeeded.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker can't have learned it.
    pub async fn forget(&self, dead: &DeadLetter) -> Result<(), BrokerError> {
        let ack = self.channel.basic_ack(dead.tag, BasicAckOptions::default());
        self.link
            .ask("settling a dead letter", ack)
            .await
            .map_err(|fault| self.link.broker_error("settling a dead letter", &fault))
    }

    /// Publishes one as the job that it was, and forgets it once the broker has the job safe. If that is cut short
    /// between the two, there are both: twice, never lost.
    ///
    /// # Errors
    /// [`BrokerError::Unroutable`] and [`BrokerError::Refused`] concern this one, which stays where it is. After any other
    /// error nothing more can be done.
    pub async fn replay(&mut self, dead: &DeadLetter, pool: &PoolName) -> Result<(), BrokerError> {
        let exchange = self.names.jobs();
        let channel = self.publishing().await?;
        let publish = async {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let properties = letter::as_new(&dead.raw);
            let (exchange, key) = (short(&exchange), short(pool.as_str()));
            channel.basic_publish(exchange, key, options, &dead.body, properties).await?.await
        };
        let confirmed = tokio::select! {
            biased;
            confirmed = self.link.ask("publishing a job", publish) => confirmed,
            reason = blocked(&self.link) => {
                let reason = format!("takes no messages for now ({reason}); free memory or disk there, and replay again");
                return Err(BrokerError::Connect { url: self.address.clone(), reason });
            }
        };
        match confirmed {
            Ok(Confirmation::Ack(None)) => self.forget(dead).await,
            Ok(Confirmation::Ack(Some(_))) => Err(BrokerError::Unroutable { pool: pool.clone(), exchange }),
            Ok(Confirmation::Nack(_) | Confirmation::NotRequested) => Err(BrokerError::Refused),
            Err(fault) => Err(match fault.reply_code() {
                Some(404) => BrokerError::Topology(format!(
                    "exchange '{exchange}' doesn't exist: a worker declares it when it starts; check broker.prefix and \
                     the vhost"
                )),
                Some(403) => BrokerError::Topology(format!(
                    "exchange '{exchange}': {fault}; give the user of broker.url the permission to write to it"
                )),
                _ => self.link.broker_error("publishing a job", &fault),
            }),
        }
    }

    async fn publishing(&mut self) -> Result<Channel, BrokerError> {
        if let Some(channel) = &self.publishing {
            return Ok(channel.clone());
        }
        let fault = |fault| self.link.broker_error("opening a channel", &fault);
        let channel = self.link.channel().await.map_err(fault)?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        self.link.ask("turning on publisher confirms", confirms).await.map_err(fault)?;
        Ok(self.publishing.insert(channel).clone())
    }

    /// Puts back what was taken and not forgotten, and says goodbye. When this returns without an error, the broker has
    /// heard of everything.
    ///
    /// # Errors
    /// [`BrokerError`] if the connection was lost before: the broker puts back all that it hadn't heard of.
    pub async fn close(self) -> Result<(), BrokerError> {
        let fault = |fault: Fault| self.link.broker_error("putting back dead letters", &fault);
        // Not left to the closing, which from RabbitMQ 4.3 on counts against a delivery limit: nack doesn't. Tag 0 is all.
        let all = BasicNackOptions { multiple: true, requeue: true };
        let put_back = async {
            if self.channel.status().connected() {
                let nack = self.channel.basic_nack(0, all);
                self.link.ask("putting back dead letters", nack).await.map_err(fault)?;
                let close = self.channel.close(200, short("OK"));
                self.link.ask("closing a channel", close).await.map_err(fault)?;
            }
            Ok(())
        };
        let done = put_back.await;
        self.link.close().await;
        done
    }
}

/// Waits until the broker says that it takes no messages.
async fn blocked(link: &Link) -> String {
    let mut flow = link.flow();
    loop {
        if let Flow::Blocked(reason) = &*flow.borrow_and_update() {
            return reason.clone();
        }
        if flow.changed().await.is_err() {
            // Lost, which whoever waits for an answer learns from the link.
            std::future::pending::<()>().await;
        }
    }
}

fn unreadable(link: &Link, names: &Names, fault: &Fault) -> BrokerError {
    let queue = names.dead();
    match fault.reply_code() {
        Some(404) => BrokerError::Topology(format!(
            "queue '{queue}' doesn't exist: a worker declares it when it starts; check broker.prefix and the vhost"
        )),
        Some(403) => BrokerError::Topology(format!(
            "queue '{queue}': {fault}; give the user of broker.url the permission to read it"
        )),
        Some(405) => BrokerError::Topology(format!(
            "queue '{queue}' is in exclusive use by another connection: {fault}"
        )),
        _ => link.broker_error("reading dead letters", fault),
    }
}
