//! Takes one queue's deliveries, through outages.
//!
//! ```text
//!        next()            both lines up            consuming
//!  Idle ───────► Waiting ────────────────► Opening ──────────► Consuming ──► a delivery
//!   ▲               ▲                        │ failed            │ Err or None from the stream,
//!   │               └──────── back off ──────┘                   │ or the link is lost
//!   └── pause() ─────────────────────────────── close the channel ┘
//! ```
//!
//! Each consumer has a channel of its own with a prefetch of 1: the broker's acknowledgement timeout and any
//! mistake close one channel, and requeue everything that is unacknowledged on it. That is one job.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::message::Delivery as RawDelivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use uuid::Uuid;

use super::health::Part;
use super::link::{Fault, Link, short};
use super::properties;
use super::{Shared, channel_backoff};
use crate::broker::topology::consumer_arguments;
use crate::broker::{BrokerError, Consumer, Delivery, Origin, Receipt, Settle};
use crate::retry::Backoff;

const REQUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };

pub(super) struct AmqpConsumer {
    shared: Arc<Shared>,
    queue: String,
    /// Kept between calls of `next`: one that is given up early and often must not keep us from ever opening.
    opening: Option<BoxFuture<'static, Session>>,
    session: Option<Session>,
    /// Grows while channels are lost soon, without having delivered anything.
    backoff: Backoff,
    delay: Duration,
}

/// A channel that consumes.
struct Session {
    since: Instant,
    link: Arc<Link>,
    channel: Channel,
    deliveries: lapin::Consumer,
}

impl AmqpConsumer {
    pub(super) fn new(shared: Arc<Shared>, queue: String) -> AmqpConsumer {
        AmqpConsumer {
            shared,
            queue,
            opening: None,
            session: None,
            backoff: channel_backoff(),
            delay: Duration::ZERO,
        }
    }

    async fn session(&mut self) -> &mut Session {
        let session = if let Some(session) = self.session.take() {
            session
        } else {
            let opening = self.opening.get_or_insert_with(|| {
                let delay = std::mem::take(&mut self.delay);
                Box::pin(Session::open(self.shared.clone(), self.queue.clone(), delay))
            });
            let session = opening.await;
            self.opening = None;
            session
        };
        self.session.insert(session)
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Delivery {
        loop {
            let session = self.session().await;
            let lost = tokio::select! {
                biased;
                delivery = session.deliveries.next() => match delivery {
                    Some(Ok(delivery)) => {
                        session.link.works();
                        let delivery = session.deliver(delivery);
                        self.backoff.reset();
                        return delivery;
                    }
                    Some(Err(error)) => Fault::Refused(error).to_string(),
                    None => "the broker cancelled the consumer; was the queue deleted?".to_owned(),
                },
                // With a lost connection a stream can pend for ever.
                reason = session.link.lost() => reason,
            };
            tracing::debug!(queue = self.queue, reason = lost, "consumer lost; opening another");
            if let Some(session) = self.session.take() {
                self.delay = self.backoff.next_after(session.since.elapsed());
                session.close().await;
            }
        }
    }

    async fn pause(&mut self) -> bool {
        self.opening = None;
        match self.session.take() {
            Some(session) => session.hand_back().await,
            None => false,
        }
    }
}

impl Session {
    /// A consuming channel, however long that takes.
    async fn open(shared: Arc<Shared>, queue: String, delay: Duration) -> Session {
        let mut trouble = Trouble::none(shared.clone());
        let mut backoff = channel_backoff();
        tokio::time::sleep(delay).await;
        loop {
            // Exchanges and queues are declared when the publishing line comes up; and a job whose result
            // can't be sent had better not be taken.
            shared.publish.link().await;
            let link = shared.consume.link().await;
            if !shared.is_repaired(&link).await {
                trouble.report(&queue, "it was deleted, and can't be declared again");
                tokio::time::sleep(backoff.next()).await;
                continue;
            }
            match Session::consume(&shared, &queue, link.clone()).await {
                Ok(session) => {
                    trouble.over(&queue);
                    return session;
                }
                Err(fault @ (Fault::Refused(_) | Fault::Timeout { .. })) if !link.is_lost() => {
                    trouble.report(&queue, &fault.to_string());
                    if fault.reply_code() == Some(404) {
                        shared.repair(&link).await;
                    }
                    if matches!(fault, Fault::Timeout { .. }) {
                        link.complain();
                    }
                }
                // The line has said so already.
                Err(fault) => tracing::debug!(queue, %fault, "not consuming"),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn consume(shared: &Shared, queue: &str, link: Arc<Link>) -> Result<Session, Fault> {
        let channel = link.channel().await?;
        let unfinished = Unfinished(Some(channel.clone()));
        link.ask("setting the prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?;
        // A new tag each time: lapin routes deliveries by tag, and an old one may still be on its way out.
        let tag = format!("{:.64}-{}", shared.worker, Uuid::now_v7().simple());
        let consume = channel.basic_consume(
            short(queue),
            short(&tag),
            BasicConsumeOptions::default(),
            consumer_arguments(),
        );
        let deliveries = link.ask("starting to consume", consume).await?;
        unfinished.finished();
        link.works();
        Ok(Session { since: Instant::now(), link, channel, deliveries })
    }

    fn deliver(&self, raw: RawDelivery) -> Delivery {
        let origin = Arc::new(AmqpOrigin { link: self.link.clone(), channel: self.channel.clone() });
        Delivery {
            body: Bytes::from(raw.data),
            properties: properties::decode(&raw.properties),
            redelivered: raw.redelivered,
            received: Instant::now(),
            receipt: Box::new(AmqpReceipt { origin: origin.clone(), open: Some(raw.delivery_tag) }),
            origin,
        }
    }

    async fn close(self) {
        self.link.close_channel(&self.channel).await;
    }

    /// Returns what is unsettled by `basic.nack`. Closing the channel would do that too, but would count against
    /// the delivery limit on RabbitMQ 4.3 and newer, where a nack doesn't. Whether the broker answered: it has heard what was said
    /// on the channel before, then.
    async fn hand_back(self) -> bool {
        let tag = self.deliveries.tag();
        let cancel = self.channel.basic_cancel(tag, BasicCancelOptions::default());
        let heard = self.link.ask("stopping to consume", cancel).await.is_ok();
        if heard {
            // Tag 0 with `multiple`: all that is outstanding on the channel.
            let nack = self.channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true });
            if let Err(fault) = self.link.ask("handing back", nack).await {
                tracing::debug!(%fault, "not handed back by nack; closing the channel does it");
            }
        }
        self.close().await;
        heard
    }
}

/// A channel that may have been told to consume, and of which nobody may ever take a delivery: a seat can be paused at any
/// moment of its opening. Dropped, it closes the channel, and the broker takes back what it has given to it.
struct Unfinished(Option<Channel>);

impl Unfinished {
    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // One that is closed already must not be closed again; see `Link::close_channel`.
        if let Some(channel) = self.0.take().filter(|channel| channel.status().connected()) {
            // As with receipts, one poll queues the frame.
            _ = channel.close(200, short("not needed any more")).now_or_never();
        }
    }
}

/// A seat that goes away stops consuming before anything that it drops afterwards is handed back, or else the broker
/// would hand the same delivery straight back to it. A delivery that is still out can be settled as before: its receipt
/// keeps the channel open.
impl Drop for Session {
    fn drop(&mut self) {
        let cancel = self.channel.basic_cancel(self.deliveries.tag(), BasicCancelOptions::default());
        // As with receipts, one poll queues the frame. On a closed channel it does nothing.
        _ = cancel.now_or_never();
    }
}

/// The channel that deliveries came on. One that is gone refuses, and channel numbers that are used again don't matter,
/// since a [`Channel`] knows its own end.
struct AmqpOrigin {
    link: Arc<Link>,
    channel: Channel,
}

impl Origin for AmqpOrigin {
    fn is_lost(&self) -> bool {
        self.link.is_lost() || !self.channel.status().connected()
    }
}

/// Settles on the channel itself rather than through lapin's `Acker`: that takes two more tasks to reach the
/// same frame.
struct AmqpReceipt {
    origin: Arc<AmqpOrigin>,
    /// The delivery tag, until it is settled.
    open: Option<u64>,
}

#[async_trait]
impl Receipt for AmqpReceipt {
    async fn settle(mut self: Box<Self>, how: Settle) -> Result<(), BrokerError> {
        let Some(tag) = self.open.take() else {
            return Ok(());
        };
        let AmqpOrigin { link, channel } = &*self.origin;
        // The first poll of these queues the frame; so from here on Drop has nothing left to do, even if this
        // future is dropped.
        let settled = match how {
            Settle::Ack => {
                link.ask("acknowledging", channel.basic_ack(tag, BasicAckOptions::default())).await
            }
            Settle::HandBack => link.ask("handing back", channel.basic_nack(tag, REQUEUE)).await,
            Settle::Again => {
                let reject = channel.basic_reject(tag, BasicRejectOptions { requeue: true });
                link.ask("handing back", reject).await
            }
        };
        settled.map_err(|fault| BrokerError::Stale(fault.to_string()))
    }
}

impl Drop for AmqpReceipt {
    fn drop(&mut self) {
        if let Some(tag) = self.open.take() {
            // One poll queues the frame with lapin; the rest would only wait for it to be written. If the channel
            // is gone the broker has requeued the delivery already.
            _ = self.origin.channel.basic_nack(tag, REQUEUE).now_or_never();
        }
    }
}

/// That this consumer can't consume while the connections are up: said once, and counted as not ready.
struct Trouble {
    shared: Arc<Shared>,
    part: Part,
    told: Option<String>,
}

impl Trouble {
    fn none(shared: Arc<Shared>) -> Trouble {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Trouble { shared, part: Part::Consumer(NEXT.fetch_add(1, Ordering::Relaxed)), told: None }
    }

    fn report(&mut self, queue: &str, reason: &str) {
        self.shared.health.set(self.part, false);
        if self.told.as_deref() != Some(reason) {
            tracing::warn!(queue, reason, "can't consume; trying again until it works");
            self.told = Some(reason.to_owned());
        }
    }

    fn over(&mut self, queue: &str) {
        if self.told.take().is_some() {
            self.shared.health.set(self.part, true);
            tracing::info!(queue, "consuming again");
        }
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.shared.health.set(self.part, true);
    }
}
