//! Publishes one seat's messages in order, each confirmed.
//!
//! ```text
//!  send ──► window (≤ 64 messages, ≤ 1 MiB) ──first poll──► in flight ──ack──► gone
//!              ▲                                              │
//!              ├──── refused (basic.nack), after a delay ─────┤
//!              └──── channel or link lost, or overdue: all ───┘   in order, on a new channel
//! ```
//!
//! A message stays in the window until the broker has confirmed it. Its publishing future is polled once when
//! it is made, which hands the frames to lapin, in order and whole, and is kept: so nothing is lost or torn if the caller
//! drops its own future at any await.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};

use super::Shared;
use super::link::{Fault, Link, short};
use super::properties;
use crate::broker::{Message, Publisher, Routed, Target};
use crate::retry::Backoff;

/// Bounds of what may be unconfirmed. One message is always allowed, whatever its size.
const WINDOW_MESSAGES: usize = 64;
const WINDOW_BYTES: usize = 1024 * 1024;

pub(super) struct AmqpPublisher {
    shared: Arc<Shared>,
    session: Option<Session>,
    /// One that was given up and isn't closed yet.
    discarded: Option<Session>,
    window: VecDeque<Unconfirmed>,
    bytes: usize,
    /// Whether the one mandatory message in flight was returned.
    returned: Option<Returned>,
    backoff: Backoff,
    /// How long to wait before anything is sent again.
    delay: Option<Duration>,
    /// Set when the broker said that an exchange is missing.
    deleted: Option<Deleted>,
}

/// A channel in confirm mode.
struct Session {
    link: Arc<Link>,
    channel: Channel,
}

struct Unconfirmed {
    message: Message,
    bytes: usize,
    unroutable: Unroutable,
    flight: Option<Flight>,
}

struct Flight {
    since: Instant,
    confirm: Confirm,
}

type Confirm = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

struct Returned;

struct Deleted;

/// What the broker does with a message that no queue takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unroutable {
    Drop,
    /// `mandatory`. lapin gives a returned message to whichever confirm completes next, so only one such may
    /// be in flight on a channel: then there is no doubt whose it is.
    Return,
}

impl AmqpPublisher {
    pub(super) fn new(shared: Arc<Shared>) -> AmqpPublisher {
        AmqpPublisher {
            shared,
            session: None,
            discarded: None,
            window: VecDeque::new(),
            bytes: 0,
            returned: None,
            backoff: Backoff::default(),
            delay: None,
            deleted: None,
        }
    }

    /// Queues a message and gets it on its way.
    async fn push(&mut self, message: Message, unroutable: Unroutable) {
        let bytes = message.body.len();
        self.reap();
        while self.full(bytes) {
            self.confirm_first().await;
        }
        self.bytes += bytes;
        self.window.push_back(Unconfirmed { message, bytes, unroutable, flight: None });
        self.transmit().await;
    }

    fn full(&self, more: usize) -> bool {
        !self.window.is_empty() && (self.window.len() >= WINDOW_MESSAGES || self.bytes + more > WINDOW_BYTES)
    }

    /// Takes the confirms that have come, without waiting.
    fn reap(&mut self) {
        while let Some(flight) = self.window.front_mut().and_then(|first| first.flight.as_mut()) {
            let Some(result) = flight.confirm.as_mut().now_or_never() else { return };
            self.absorb(result);
        }
    }

    /// Waits until the oldest message is confirmed, through outages.
    async fn confirm_first(&mut self) {
        let before = self.window.len();
        while self.window.len() == before {
            self.transmit().await;
            let (Some(session), Some(flight)) =
                (&self.session, self.window.front_mut().and_then(|first| first.flight.as_mut()))
            else {
                return; // Nothing to wait for.
            };
            let result = tokio::select! {
                biased;
                result = &mut flight.confirm => result,
                reason = session.link.lost() => {
                    self.start_over(&reason);
                    continue;
                }
                () = session.link.overdue() => {
                    self.start_over("no confirm from the broker in time");
                    continue;
                }
            };
            self.absorb(result);
        }
    }

    /// Takes the oldest message's confirm.
    fn absorb(&mut self, result: lapin::Result<Confirmation>) {
        match result {
            Ok(Confirmation::Ack(returned)) => {
                if returned.is_some() {
                    self.returned = Some(Returned);
                }
                self.backoff.reset();
                if let Some(first) = self.window.pop_front() {
                    self.bytes -= first.bytes;
                    // Only those are waited for; of others we don't know when the confirm came.
                    if let (Unroutable::Return, Some(flight)) = (first.unroutable, first.flight) {
                        self.shared.health.confirmed(flight.since.elapsed());
                    }
                }
            }
            Ok(Confirmation::Nack(_)) => {
                tracing::debug!("the broker refused a message (basic.nack); trying again");
                if let Some(first) = self.window.front_mut() {
                    first.flight = None;
                }
                self.delay = Some(self.backoff.next());
            }
            Ok(Confirmation::NotRequested) => self.start_over("the channel is not in confirm mode"),
            Err(error) => {
                let fault = Fault::Refused(error);
                if fault.reply_code() == Some(404) {
                    self.deleted = Some(Deleted);
                }
                self.start_over(&fault.to_string());
            }
        }
    }

    /// Gives up the channel: all that is unconfirmed is to be sent again.
    fn start_over(&mut self, reason: &str) {
        tracing::debug!(
            reason,
            unconfirmed = self.window.len(),
            "publishing channel lost; sending again what is unconfirmed"
        );
        for unconfirmed in &mut self.window {
            unconfirmed.flight = None;
        }
        self.returned = None;
        // What made the broker close the channel, a missing exchange say, may well do it again at once.
        self.delay = Some(self.backoff.next());
        if let Some(session) = self.session.take() {
            self.discarded = Some(session);
        }
    }

    /// Sees to it that everything in the window is in flight, in order.
    async fn transmit(&mut self) {
        if self.session.as_ref().is_some_and(Session::is_closed) {
            // The oldest message's confirm knows why.
            self.reap();
        }
        if self.session.as_ref().is_some_and(Session::is_closed) {
            self.start_over("closed by the broker");
        }
        if self.window.iter().all(|unconfirmed| unconfirmed.flight.is_some()) {
            return;
        }
        if let Some(delay) = self.delay {
            tokio::time::sleep(delay).await;
            self.delay = None;
        }
        let session = match &mut self.session {
            Some(session) => session,
            none => {
                let session =
                    Self::open(&self.shared, &mut self.discarded, &mut self.deleted, &mut self.backoff);
                none.insert(session.await)
            }
        };
        for unconfirmed in self.window.iter_mut().filter(|unconfirmed| unconfirmed.flight.is_none()) {
            unconfirmed.flight = Some(session.launch(&self.shared, unconfirmed));
        }
    }

    async fn open(
        shared: &Shared,
        discarded: &mut Option<Session>,
        deleted: &mut Option<Deleted>,
        backoff: &mut Backoff,
    ) -> Session {
        if let Some(Session { link, channel }) = discarded {
            link.close_channel(channel).await;
            *discarded = None;
        }
        loop {
            let link = shared.publish.link().await;
            if deleted.is_some() {
                shared.repair(&link).await;
                *deleted = None;
            }
            match Session::open(link).await {
                Ok(session) => return session,
                Err(fault) => tracing::debug!(%fault, "no publishing channel; trying again"),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

#[async_trait]
impl Publisher for AmqpPublisher {
    async fn send(&mut self, message: Message) {
        self.push(message, Unroutable::Drop).await;
    }

    async fn send_confirmed(&mut self, message: Message) -> Routed {
        // One that was abandoned by its caller may still be there.
        while self.window.iter().any(|unconfirmed| unconfirmed.unroutable == Unroutable::Return) {
            self.confirm_first().await;
        }
        self.returned = None;
        self.push(message, Unroutable::Return).await;
        while !self.window.is_empty() {
            self.confirm_first().await;
        }
        match self.returned.take() {
            Some(Returned) => Routed::No,
            None => Routed::Yes,
        }
    }
}

impl Session {
    async fn open(link: Arc<Link>) -> Result<Session, Fault> {
        let channel = link.channel().await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        link.ask("turning on publisher confirms", select).await?;
        Ok(Session { link, channel })
    }

    fn is_closed(&self) -> bool {
        self.link.is_lost() || !self.channel.status().connected()
    }

    fn launch(&self, shared: &Shared, unconfirmed: &Unconfirmed) -> Flight {
        let (exchange, key) = match &unconfirmed.message.target {
            Target::Queue(queue) => (short(""), short(queue)),
            Target::Retry(delay, pool) => (short(&shared.names.retry(*delay)), short(pool.as_str())),
        };
        let channel = self.channel.clone();
        let body = unconfirmed.message.body.clone();
        let properties = properties::encode(&unconfirmed.message.properties);
        let options =
            BasicPublishOptions { mandatory: unconfirmed.unroutable == Unroutable::Return, immediate: false };
        let mut confirm: Confirm =
            Box::pin(
                async move { channel.basic_publish(exchange, key, options, &body, properties).await?.await },
            );
        if let Some(result) = confirm.as_mut().now_or_never() {
            confirm = Box::pin(std::future::ready(result));
        }
        Flight { since: Instant::now(), confirm }
    }
}
