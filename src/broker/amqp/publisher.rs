//! Publishes one seat's messages in order, each confirmed.
//!
//! ```text
//!  send ──► window (≤ 64 messages, ≤ 1 MiB) ──first poll──► in flight ──ack──► gone
//!    │         ▲                                              │
//!    │         └── refused (basic.nack), channel or link ─────┤
//!    │             lost, or overdue: all, after a delay        │   in order, on a new channel
//!    └─ no room for `reply_patience` ──► dropped, counted ◄───┘   refused for as long
//! ```
//!
//! A message stays in the window until the broker has confirmed it. Its publishing future is polled once when
//! it is made, which hands the frames to lapin, in order and whole, and is kept: so nothing is lost or torn if the caller
//! drops its own future at any await.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};

use super::health::Part;
use super::link::{Fault, Link, short};
use super::properties;
use super::{Shared, channel_backoff};
use crate::broker::{Message, Publisher, Routed, Target};
use crate::retry::Backoff;

/// Bounds of what may be unconfirmed. One message is always allowed, whatever its size.
const WINDOW_MESSAGES: usize = 64;
const WINDOW_BYTES: usize = 1024 * 1024;

pub(super) struct AmqpPublisher {
    shared: Arc<Shared>,
    session: Option<Session>,
    /// Kept between calls: those that are given up early and often must not keep us from ever opening.
    opening: Option<BoxFuture<'static, Session>>,
    window: VecDeque<Unconfirmed>,
    bytes: usize,
    /// What became of the one mandatory message, if that is not a plain confirm.
    failed: Option<Routed>,
    /// Grows while channels are lost soon, without a confirm.
    backoff: Backoff,
    /// Grows while messages are refused.
    refusals: Backoff,
    /// Nothing is sent again before.
    resume_at: Option<Instant>,
    /// Whether the broker said that an exchange is missing.
    deleted: bool,
    /// Since when there has been no room, without a confirm in between.
    full_since: Option<Instant>,
    part: Part,
    /// Whether it is known not to get through, for another reason than a lost connection.
    barred: bool,
    /// Since when messages have been refused, without a confirm or another channel in between.
    refused_since: Option<Instant>,
    /// Whether the mandatory message is not to be tried again when it is refused.
    offering: bool,
    dropped: u64,
}

/// A channel in confirm mode.
struct Session {
    since: Instant,
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
        static NEXT: AtomicU64 = AtomicU64::new(0);
        AmqpPublisher {
            shared,
            session: None,
            opening: None,
            window: VecDeque::new(),
            bytes: 0,
            failed: None,
            backoff: channel_backoff(),
            refusals: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            resume_at: None,
            deleted: false,
            full_since: None,
            part: Part::Publisher(NEXT.fetch_add(1, Ordering::Relaxed)),
            barred: false,
            refused_since: None,
            offering: false,
            dropped: 0,
        }
    }

    /// Takes a message, and sends it if that can be done at once.
    fn take(&mut self, message: Message, unroutable: Unroutable) {
        let bytes = message.body.len();
        self.bytes += bytes;
        self.window.push_back(Unconfirmed { message, bytes, unroutable, flight: None });
        if self.resume_at.is_none()
            && let Some(session) = self.session.as_ref().filter(|session| !session.is_closed())
        {
            launch(&mut self.window, session, &self.shared);
        }
    }

    /// Sends a mandatory message, and waits until it and all before it are confirmed.
    async fn publish(&mut self, message: Message) -> Routed {
        // One that was abandoned by its caller may still be there.
        while self.window.iter().any(|unconfirmed| unconfirmed.unroutable == Unroutable::Return)
            || self.full(message.body.len())
        {
            self.confirm_first().await;
        }
        self.failed = None;
        let for_us = self.is_for_us(&message.target);
        self.take(message, Unroutable::Return);
        self.drive().await;
        let routed = self.failed.take().unwrap_or(Routed::Yes);
        if for_us && routed != Routed::Yes {
            // Then no job can be finished here. Whoever sent this tries again.
            self.bar(true);
            match (routed, &self.session) {
                (Routed::Refused, Some(session)) => session.link.complain(),
                (Routed::No, Some(session)) => self.shared.repair(&session.link).await,
                _ => {}
            }
        }
        routed
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

    /// Waits until the oldest message is confirmed, or given up, through outages. Cancel safe.
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
                    session.link.complain();
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
                    self.failed = Some(Routed::No);
                } else {
                    self.bar(false);
                }
                if let Some(session) = &self.session {
                    session.link.works();
                }
                self.backoff.reset();
                self.refusals.reset();
                self.full_since = None;
                self.refused_since = None;
                if let Some(first) = self.forget_first() {
                    // Only those are waited for; of others we don't know when the confirm came.
                    if let (Unroutable::Return, Some(flight)) = (first.unroutable, first.flight) {
                        self.shared.health.confirmed(flight.since.elapsed());
                    }
                }
            }
            Ok(Confirmation::Nack(returned)) => {
                // lapin gives it to whichever confirm comes next, a refusal included.
                if returned.is_some() {
                    self.failed = Some(Routed::No);
                }
                self.refused();
            }
            Ok(Confirmation::NotRequested) => self.start_over("the channel is not in confirm mode"),
            Err(error) => {
                let fault = Fault::Refused(error);
                self.deleted |= fault.reply_code() == Some(404);
                if fault.reply_code() == Some(403) && !self.barred {
                    tracing::warn!(%fault, "may not publish, and tries until it may; replies need the permission to write on \
                         'amq.default', retries on what starts with the prefix");
                    self.bar(true);
                }
                self.start_over(&fault.to_string());
            }
        }
    }

    /// The broker doesn't take the oldest message. Tries it again, but not for ever: a full reply queue is the publisher's
    /// affair, and must not hold up its job for good.
    fn refused(&mut self) {
        let for_long = self.refused_since.get_or_insert_with(Instant::now).elapsed() >= self.shared.patience;
        if !for_long && !self.offering {
            // With the others behind it, so that they stay in order; and on another channel, since RabbitMQ's go on refusing for
            // half a minute when they were opened just after a quorum queue lost its leader (seen with 3.10).
            let since = self.refused_since;
            self.start_over("the broker refused a message (basic.nack)");
            self.refused_since = since;
            self.resume_at = Some(Instant::now() + self.refusals.next());
            return;
        }
        match self.forget_first().map(|first| first.unroutable) {
            Some(Unroutable::Return) => self.failed = Some(Routed::Refused),
            Some(Unroutable::Drop) => self.dropped += 1,
            None => {}
        }
    }

    fn bar(&mut self, barred: bool) {
        if std::mem::replace(&mut self.barred, barred) != barred {
            self.shared.health.set(self.part, !barred);
        }
    }

    fn is_for_us(&self, target: &Target) -> bool {
        let names = &self.shared.names;
        match target {
            Target::Retry(..) => true,
            Target::Queue(queue) => *queue == names.results() || *queue == names.dead(),
        }
    }

    fn forget_first(&mut self) -> Option<Unconfirmed> {
        let first = self.window.pop_front()?;
        self.bytes -= first.bytes;
        Some(first)
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
        self.failed = None;
        self.refused_since = None;
        // What made the broker close the channel, a missing exchange say, may well do it again at once.
        let discarded = self.session.take();
        let worked = discarded.as_ref().map(|session| session.since.elapsed());
        self.resume_at = Some(Instant::now() + self.backoff.next_after(worked.unwrap_or_default()));
        let deleted = std::mem::take(&mut self.deleted);
        self.opening.get_or_insert_with(|| Session::replace(self.shared.clone(), discarded, deleted).boxed());
    }

    /// Sees to it that everything in the window is in flight, in order. Cancel safe.
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
        if let Some(at) = self.resume_at {
            tokio::time::sleep_until(at.into()).await;
            self.resume_at = None;
        }
        let session = if let Some(session) = &self.session {
            session
        } else {
            let opening = self
                .opening
                .get_or_insert_with(|| Session::replace(self.shared.clone(), None, false).boxed());
            let session = opening.await;
            self.opening = None;
            self.session.insert(session)
        };
        launch(&mut self.window, session, &self.shared);
    }
}

impl Drop for AmqpPublisher {
    fn drop(&mut self) {
        self.bar(false);
    }
}

/// Sends what isn't in flight.
fn launch(window: &mut VecDeque<Unconfirmed>, session: &Session, shared: &Shared) {
    for unconfirmed in window.iter_mut().filter(|unconfirmed| unconfirmed.flight.is_none()) {
        unconfirmed.flight = Some(session.launch(shared, unconfirmed));
    }
}

#[async_trait]
impl Publisher for AmqpPublisher {
    async fn send(&mut self, message: Message) {
        self.reap();
        while self.full(message.body.len()) {
            let full_for = self.full_since.get_or_insert_with(Instant::now).elapsed();
            let left = self.shared.patience.saturating_sub(full_for);
            if tokio::time::timeout(left, self.confirm_first()).await.is_err() {
                self.dropped += 1;
                return;
            }
        }
        self.take(message, Unroutable::Drop);
    }

    async fn drive(&mut self) {
        while !self.window.is_empty() {
            self.confirm_first().await;
        }
    }

    fn is_idle(&self) -> bool {
        self.window.is_empty()
    }

    async fn offer(&mut self, message: Message) -> Routed {
        self.offering = false;
        self.drive().await;
        self.offering = true;
        let routed = self.publish(message).await;
        self.offering = false;
        if routed == Routed::Refused {
            self.refused_since = None;
        }
        routed
    }

    async fn send_confirmed(&mut self, message: Message) -> Routed {
        // An offer may have been given up by its caller.
        self.offering = false;
        self.publish(message).await
    }

    fn dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

impl Session {
    /// A new session in place of one that was given up, however long that takes.
    async fn replace(shared: Arc<Shared>, discarded: Option<Session>, mut deleted: bool) -> Session {
        if let Some(Session { link, channel, .. }) = discarded {
            link.close_channel(&channel).await;
        }
        let mut backoff = channel_backoff();
        loop {
            let link = shared.publish.link().await;
            if std::mem::take(&mut deleted) {
                shared.repair(&link).await;
            } else {
                shared.is_repaired(&link).await;
            }
            match Session::open(link.clone()).await {
                Ok(session) => return session,
                Err(fault) => {
                    tracing::debug!(%fault, "no publishing channel; trying again");
                    if matches!(fault, Fault::Timeout { .. }) {
                        link.complain();
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn open(link: Arc<Link>) -> Result<Session, Fault> {
        let channel = link.channel().await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        link.ask("turning on publisher confirms", select).await?;
        Ok(Session { since: Instant::now(), link, channel })
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
