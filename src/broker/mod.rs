//! The seam to the message broker: what a worker needs of it, and nothing of how it is done.
//!
//! [`amqp`] is the real one, over RabbitMQ. A seat of the worker (one job at a time) has one [`Consumer`],
//! with a channel of its own that holds at most one delivery, and one [`Publisher`], with a channel of its
//! own on the other connection; so an acknowledgement timeout, a returned message or a closed channel concerns
//! one job. Both live through outages: they reconnect by themselves, and wait meanwhile.

pub mod ack_timeout;
pub mod amqp;
pub mod client;
pub mod dead;
pub mod death;
pub mod topology;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::contract::PoolName;
use crate::contract::topology::DIRECT_REPLY_TO;

/// Gives out the two ends that a seat works with.
#[async_trait]
pub trait Broker: Send + Sync {
    /// A new consumer of one pool's queue. Returns at once; [`Consumer::next`] does the waiting.
    fn consumer(&self, pool: &PoolName) -> Box<dyn Consumer>;

    /// A new consumer of what the broker gave up, which is none unless `broker.expired` is `answer`.
    fn died(&self) -> Box<dyn Consumer>;

    /// A new publisher. Returns at once; its first use does the waiting.
    fn publisher(&self) -> Box<dyn Publisher>;

    /// A new reader of what is sent to all workers. Returns at once; [`Control::next`] does the waiting.
    fn control(&self) -> Box<dyn Control>;

    /// Closes the connections, waiting for the broker's answer a bounded time. Deliveries that
    /// are not settled go back to their queues.
    async fn close(&self);
}

/// Takes deliveries from one pool's queue, one at a time.
#[async_trait]
pub trait Consumer: Send {
    /// The next delivery. Waits through outages, as long as it takes. The previous delivery must have
    /// been settled or dropped; a dropped one goes back to the queue first. Cancel safe: a delivery that arrives
    /// while nobody waits is given to the next call, or goes back to the queue when the consumer is dropped.
    async fn next(&mut self) -> Delivery;

    /// Stops taking deliveries and hands back what this consumer holds unsettled, so that other workers get it.
    /// `next` begins anew. Whether the broker has heard all that was said before: not if the connection was lost by then.
    async fn pause(&mut self) -> bool;
}

/// One message, given to this worker until it is settled.
pub struct Delivery {
    /// The message's body.
    pub body: Bytes,
    /// The message's properties.
    pub properties: Properties,
    /// Whether the broker says that it may have been delivered before.
    pub redelivered: bool,
    /// When it arrived here.
    pub received: Instant,
    /// The channel that it came on.
    pub origin: Arc<dyn Origin>,
    /// How to settle it. Dropped unsettled, the delivery goes back to its queue.
    pub receipt: Box<dyn Receipt>,
}

/// The channel that a delivery came on.
pub trait Origin: Send + Sync {
    /// Whether it is gone. Then the broker gives the delivery out again, unless it had heard that it was settled.
    fn is_lost(&self) -> bool;
}

/// Reads what is sent to all workers at once, from the moment that it is connected.
#[async_trait]
pub trait Control: Send {
    /// The next request. Waits through outages; what was sent during one is not seen.
    async fn next(&mut self) -> Request;
}

/// Something that all workers are asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The message's body.
    pub body: Bytes,
    /// The message's properties; `kind` says what it is.
    pub properties: Properties,
}

/// The right and the duty to settle one delivery.
#[async_trait]
pub trait Receipt: Send {
    /// Tells the broker what became of the delivery.
    ///
    /// # Errors
    /// [`BrokerError`] if the broker can't have learned it: the channel that the delivery came on is
    /// gone, and the message will be delivered again, here or elsewhere.
    async fn settle(self: Box<Self>, how: Settle) -> Result<(), BrokerError>;
}

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Done: the broker forgets it.
    Ack,
    /// Back to its queue, not begun (`basic.nack`, requeue).
    HandBack,
    /// Back to its queue, perhaps begun: counted by every broker (`basic.reject`, requeue; from 4.3 on a nack isn't).
    Again,
}

/// The AMQP properties that prewarm reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// The job's id.
    pub message_id: Option<String>,
    /// Comes back on every reply.
    pub correlation_id: Option<String>,
    /// The queue that replies go to.
    pub reply_to: Option<String>,
    /// `application/json`, or absent.
    pub content_type: Option<String>,
    /// Must be absent or `identity`.
    pub content_encoding: Option<String>,
    /// Tells the kinds of replies apart.
    pub kind: Option<String>,
    /// When the publisher says that it sent the message; whole seconds, as AMQP has it.
    pub timestamp: Option<SystemTime>,
    /// 0–255, where the queue has priorities.
    pub priority: Option<u8>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Attempts that came before this message was published again.
    pub attempts: u32,
    /// Those of them that met trouble of ours.
    pub troubles: u32,
    /// Those of them that the job failed by itself.
    pub failures: u32,
    /// How often a quorum queue gave this message out before.
    pub delivery_count: u32,
    /// Of a message that the broker gave up: how.
    pub death: Option<death::Death>,
    /// Further headers with text values, written as they are; of a delivery, those that are text.
    pub headers: Vec<(String, String)>,
}

/// Most bytes of a publisher's own headers that a copy of its message keeps, as they are sent. With ours and all properties they fit
/// into 8 KiB, the shortest frame that RabbitMQ 4.1 and newer agree to.
const HEADERS_MAX: usize = 3 * 1024;

/// What a text header takes beside name and value: the lengths of both, and its type.
const HEADER_OVERHEAD: usize = 6;

impl Properties {
    /// The number of the attempt that this delivery is, from 1.
    pub fn attempt(&self) -> u32 {
        1u32.saturating_add(self.attempts).saturating_add(self.delivery_count)
    }

    /// How long ago the publisher says that it sent the message; whole seconds, by two clocks.
    pub fn age(&self) -> Option<Duration> {
        self.timestamp.and_then(|sent| SystemTime::now().duration_since(sent).ok())
    }

    /// Sets a header in place of whatever had its name.
    pub fn set_header(&mut self, name: &str, value: String) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value));
    }

    /// Drops the publisher's own headers if they are too long to be sent again: all headers have to fit into one frame of the
    /// broker's and ours, or the broker closes the connection, each time that it is tried.
    pub fn bound_headers(&mut self) {
        let sent = |(name, value): &(String, String)| name.len() + value.len() + HEADER_OVERHEAD;
        if self.headers.iter().map(sent).sum::<usize>() > HEADERS_MAX {
            tracing::warn!(
                "the headers of this job are too long to be kept: {HEADERS_MAX} bytes is the most"
            );
            self.headers.clear();
        }
    }
}

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where to.
    pub target: Target,
    /// The body.
    pub body: Bytes,
    /// The properties. Messages are always persistent.
    pub properties: Properties,
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the queue of this name, through the default exchange.
    Queue(String),
    /// To the delay exchange; back in the pool's queue after that time.
    Retry(Duration, PoolName),
}

/// Whether a confirmed message reached a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// It is in at least one queue.
    Yes,
    /// No queue took it; the broker gave it back.
    No,
    /// The broker has refused it (`basic.nack`: a full queue, say) for longer than `broker.reply_patience`.
    Refused,
}

impl Routed {
    /// Whether the message has reached this queue, as far as can be told: up to 4.1 the broker returns every mandatory message
    /// to its direct reply-to, delivered or not.
    pub fn has_reached(self, queue: &str) -> bool {
        self == Routed::Yes || self == Routed::No && queue.starts_with(DIRECT_REPLY_TO)
    }
}

/// Publishes one seat's messages in order, each confirmed by the broker.
#[async_trait]
pub trait Publisher: Send {
    /// Takes a message that can be missed, and doesn't wait for its confirm. Unconfirmed messages are kept, up to a bound in
    /// number and bytes beyond which this waits, and sent again in order after an outage: at least once, never
    /// reordered. If there has been no room for `broker.reply_patience`, or the broker refuses for that long, messages are dropped
    /// and counted until one is confirmed again. One that no queue takes is dropped by the broker and not reported (the
    /// result that follows will be). Cancel safe: the message is taken or it isn't.
    async fn send(&mut self, message: Message);

    /// Gets on its way what has been taken, and returns when all of it is confirmed. Cancel safe.
    async fn drive(&mut self);

    /// Whether there is nothing for `drive` to do.
    fn is_idle(&self) -> bool;

    /// Sends, and waits until this message and all before it are confirmed, through outages.
    /// A message that the broker refuses is tried again with growing delay, for `broker.reply_patience`.
    async fn send_confirmed(&mut self, message: Message) -> Routed;

    /// As [`Publisher::send_confirmed`], for a message to one of our own queues that isn't to be tried again when it is refused.
    /// If it is, the broker itself is in trouble (it has no majority, say), and a message to another queue that was refused meanwhile
    /// has its whole patience again.
    async fn offer(&mut self, message: Message) -> Routed;

    /// How many messages `send` took or was given that were dropped since this was last asked.
    fn dropped(&mut self) -> u64;
}

/// Why something could not be done at the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The broker can't be reached, or doesn't let us in.
    #[error("broker {url}: {reason}")]
    Connect {
        /// Its address, without the password.
        url: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// None of several addresses of the broker could be used.
    #[error("no address of the broker works: {0}")]
    NoAddress(String),
    /// The exchanges and queues are not as needed.
    #[error("broker topology: {0}")]
    Topology(String),
    /// The channel that a delivery came on is gone: it will be delivered again.
    #[error("the delivery's channel is gone, so the broker will deliver it again: {0}")]
    Stale(String),
    /// A job was published to a pool that no queue belongs to.
    #[error(
        "no queue for pool '{pool}': exchange '{exchange}' had nowhere to route the job. A worker with [pool.{pool}] \
         declares the queue when it starts; check the pool's name, broker.prefix and the vhost"
    )]
    Unroutable {
        /// The pool.
        pool: PoolName,
        /// The exchange that the job was published to.
        exchange: String,
    },
    /// The broker didn't take a message (`basic.nack`).
    #[error("the broker refused the message: its queue is full, or has no majority of its nodes")]
    Refused,
    /// The connection was lost.
    #[error("connection to the broker lost: {0}")]
    Lost(String),
    /// An answer did not come in time.
    #[error("no answer from the broker within {within:?} while {doing}")]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// How long it was waited for.
        within: Duration,
    },
}
