//! The deliveries that this worker answers for, and those that come back to it.
//!
//! When a channel is lost (the connection broke, or the broker's acknowledgement timeout struck) the broker gives its
//! delivery out again, though the job still runs here or has just ended. If it comes back to this worker it is no second job:
//!
//! ```text
//!            settled, and heard                      the channel is lost, the delivery comes back
//!   Held ──────────────────────► forgotten       Held ──────► adopted: the job settles the new delivery instead
//!    │ acked                        ▲            Unheard, Stale ──► acknowledged at once: the job is over
//!    ▼     next delivery, a minute  │
//!  Unheard ─────────────────────────┘
//!    │ the channel was lost by then
//!    ▼
//!  Stale     for ten minutes from then on, up to 10 000
//! ```
//!
//! AMQP confirms no acknowledgement. But a channel with a prefetch of 1 delivers nothing before it has heard the last one,
//! so the next delivery is the proof.
//!
//! Deliveries are the same if they are the same message: pool, properties and body. That a held one comes back is
//! sure; then two equal messages may be exchanged for each other, since their jobs do the same and answer to the same. Whether one that
//! is unheard or stale comes back is not: the broker may have heard, or another worker may have got it. To forget such a
//! one costs a second run, to remember it could cost a job its only one: so it is not remembered for long, and not at all
//! without a message id.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::{BrokerError, Delivery, Origin, Properties, Receipt, Settle};
use crate::contract::PoolName;

/// How many jobs whose acknowledgement went nowhere are remembered until their message comes back. Some 100 bytes each.
const STALE_MAX: usize = 10_000;

/// How long an acknowledgement that was sent may have been lost on its way: a silent connection is noticed by then, and
/// another made.
const UNHEARD_FOR: Duration = Duration::from_secs(60);

/// How long a delivery whose acknowledgement could not be sent is expected back.
const STALE_FOR: Duration = Duration::from_secs(600);

/// A delivery may come back a moment before it is known here that its first channel is lost.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// How often it is looked whether a channel is lost, where something waits for that.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// All of a worker's claims; cheap to clone. The lock is held for a look-up or a change, never across an await.
#[derive(Clone, Default)]
pub(super) struct Claims {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    hasher: RandomState,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    next: u64,
    by_message: HashMap<Message, Vec<Entry>>,
    /// The order in which entries became stale.
    stale: VecDeque<(Message, u64)>,
}

/// A message, as far as it is told from others: a keyed hash, of which nobody can make two alike.
type Message = u64;

struct Entry {
    id: u64,
    state: State,
}

enum State {
    /// The job isn't over. Without a receipt: it is being settled in this moment.
    Held { origin: Arc<dyn Origin>, receipt: Option<Box<dyn Receipt>>, over: CancellationToken },
    /// Acknowledged, which the broker may not have heard.
    Unheard { origin: Arc<dyn Origin>, since: Instant },
    /// Acknowledged, which the broker has not heard.
    Stale { since: Instant },
}

impl State {
    /// In hand, and its delivery is out again.
    fn is_held_and_lost(&self) -> bool {
        matches!(self, State::Held { origin, receipt: Some(_), .. } if origin.is_lost())
    }

    /// Not known to be lost, but this may be how it turns out.
    fn may_be_lost(&self, named: bool, now: Instant) -> bool {
        match self {
            State::Held { .. } => true,
            State::Unheard { since, .. } => named && now.duration_since(*since) < UNHEARD_FOR,
            State::Stale { .. } => false,
        }
    }

    /// Over, and its delivery is likely to be out again.
    fn is_over_and_lost(&self, now: Instant) -> bool {
        match self {
            State::Held { .. } => false,
            State::Unheard { origin, since } => now.duration_since(*since) < UNHEARD_FOR && origin.is_lost(),
            State::Stale { since } => now.duration_since(*since) < STALE_FOR,
        }
    }
}

/// A delivery without what its claim took of it.
pub(super) struct Incoming {
    pub(super) body: Bytes,
    pub(super) properties: Properties,
    pub(super) redelivered: bool,
    pub(super) received: std::time::Instant,
}

impl Incoming {
    /// How often the message was given out before. A queue that doesn't count (a classic one, declared by somebody else) must
    /// not have it go round for ever.
    pub(super) fn given_out(&self) -> u32 {
        match self.properties.delivery_count {
            0 if self.redelivered => u32::MAX,
            count => count,
        }
    }
}

/// What a delivery is.
pub(super) enum Claimed {
    /// A job to be run.
    Job(Claim, Box<Incoming>),
    /// That of a job that is over: to be acknowledged, which may go nowhere again.
    Over(Claim),
    /// That of a job in hand, which settles it now.
    InHand(Adopted),
}

impl Claims {
    /// Enters a delivery, and says what it is.
    pub(super) async fn claim(&self, pool: &PoolName, delivery: Delivery) -> Claimed {
        let Delivery { body, properties, redelivered, received, origin, mut receipt } = delivery;
        let message = self.identify(pool, &properties, &body);
        let named = properties.message_id.is_some();
        let noticed = Instant::now() + NOTICED_WITHIN;
        if redelivered {
            loop {
                let known;
                (receipt, known) = match self.match_up(message, named, &origin, receipt) {
                    Ok(claimed) => return claimed,
                    Err(not) => not,
                };
                // If that job's own delivery isn't lost by then, this is another message that is just like it.
                if !known || Instant::now() >= noticed {
                    break;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        let claim = self.book().hold(self, message, origin, receipt);
        Claimed::Job(claim, Box::new(Incoming { body, properties, redelivered, received }))
    }

    fn identify(&self, pool: &PoolName, p: &Properties, body: &[u8]) -> Message {
        let mut hasher = self.shared.hasher.build_hasher();
        (pool, &p.message_id, &p.correlation_id, &p.reply_to, p.attempts, p.timestamp).hash(&mut hasher);
        (&p.traceparent, &p.headers, body).hash(&mut hasher);
        hasher.finish()
    }

    /// Looks for the job that a delivery belongs to. If there is none whose own delivery is lost, gives the receipt back,
    /// and whether there is one at all.
    fn match_up(
        &self,
        message: Message,
        named: bool,
        origin: &Arc<dyn Origin>,
        receipt: Box<dyn Receipt>,
    ) -> Result<Claimed, (Box<dyn Receipt>, bool)> {
        let mut book = self.book();
        let Some(entries) = book.by_message.get_mut(&message) else { return Err((receipt, false)) };
        let held = entries.iter_mut().map(|entry| &mut entry.state).find(|state| state.is_held_and_lost());
        if let Some(State::Held { origin: from, receipt: held, over }) = held {
            *from = origin.clone();
            *held = Some(receipt);
            return Ok(Claimed::InHand(Adopted { over: over.clone(), origin: origin.clone() }));
        }
        let now = Instant::now();
        match entries.iter().find(|entry| named && entry.state.is_over_and_lost(now)).map(|entry| entry.id) {
            Some(id) => {
                book.remove(message, id);
                Ok(Claimed::Over(book.hold(self, message, origin.clone(), receipt)))
            }
            None => Err((receipt, entries.iter().any(|entry| entry.state.may_be_lost(named, now)))),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn hold(
        &mut self,
        claims: &Claims,
        message: Message,
        origin: Arc<dyn Origin>,
        receipt: Box<dyn Receipt>,
    ) -> Claim {
        let id = self.next;
        self.next += 1;
        let state = State::Held { origin, receipt: Some(receipt), over: CancellationToken::new() };
        self.by_message.entry(message).or_default().push(Entry { id, state });
        Claim { claims: claims.clone(), message, id }
    }

    fn entry(&mut self, message: Message, id: u64) -> Option<&mut State> {
        let entries = self.by_message.get_mut(&message)?;
        entries.iter_mut().find(|entry| entry.id == id).map(|entry| &mut entry.state)
    }

    fn remove(&mut self, message: Message, id: u64) {
        if let Some(entries) = self.by_message.get_mut(&message) {
            entries.retain(|entry| entry.id != id);
            if entries.is_empty() {
                self.by_message.remove(&message);
            }
        }
    }

    fn set_stale(&mut self, message: Message, id: u64) {
        if let Some(state) = self.entry(message, id) {
            *state = State::Stale { since: Instant::now() };
            self.stale.push_back((message, id));
        }
        while let Some(&(message, id)) = self.stale.front() {
            let fresh = match self.entry(message, id) {
                Some(State::Stale { since }) => since.elapsed() < STALE_FOR,
                _ => false,
            };
            if fresh && self.stale.len() <= STALE_MAX {
                break;
            }
            self.stale.pop_front();
            self.remove(message, id);
        }
    }
}

/// The right and the duty to settle a job's delivery, whichever one that is by then. Dropped, the delivery goes back.
pub(super) struct Claim {
    claims: Claims,
    message: Message,
    id: u64,
}

impl Claim {
    /// Settles the delivery. What comes of it is to be asked of the broker's next delivery: see [`Unheard::heard`].
    ///
    /// # Errors
    /// [`BrokerError`] if the broker can't have learned it. It will give the message out again; if that comes to this worker
    /// it is settled then.
    pub(super) async fn settle(self, how: Settle) -> Result<Unheard, BrokerError> {
        let (claims, message, id) = (self.claims.clone(), self.message, self.id);
        let (receipt, origin) = match claims.book().entry(message, id) {
            Some(State::Held { receipt, origin, .. }) => (receipt.take(), origin.clone()),
            _ => (None, Arc::new(Gone) as Arc<dyn Origin>),
        };
        let settled = match receipt {
            Some(receipt) => receipt.settle(how).await,
            None => Ok(()),
        };
        let mut book = claims.book();
        if let Some(State::Held { over, .. }) = book.entry(message, id) {
            over.cancel();
        }
        match (how, &settled) {
            // Whoever gets it runs it.
            (Settle::HandBack | Settle::Again, _) => book.remove(message, id),
            (Settle::Ack, Err(_)) => book.set_stale(message, id),
            (Settle::Ack, Ok(())) => {
                if let Some(state) = book.entry(message, id) {
                    *state = State::Unheard { origin: origin.clone(), since: Instant::now() };
                }
            }
        }
        drop(book);
        settled.map(|()| Unheard { claims, message, id, origin, since: Instant::now() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut book = self.claims.book();
        // Only one that was never settled. Its receipt's own drop hands the delivery back.
        if let Some(State::Held { over, .. }) = book.entry(self.message, self.id) {
            over.cancel();
            book.remove(self.message, self.id);
        }
    }
}

/// An acknowledgement that the broker has perhaps not heard.
pub(super) struct Unheard {
    claims: Claims,
    message: Message,
    id: u64,
    origin: Arc<dyn Origin>,
    since: Instant,
}

impl Unheard {
    /// Waits for the end of doubt, if there is any: the channel is lost, and the delivery may come back after an outage of any length; or
    /// it has held so long that the broker must have heard. Cancel safe.
    pub(super) async fn watch(last: &mut Option<Unheard>) {
        while let Some(unheard) = last.as_ref() {
            if unheard.origin.is_lost() || unheard.since.elapsed() >= UNHEARD_FOR {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        match last.take() {
            Some(unheard) => unheard.heard(),
            None => std::future::pending().await,
        }
    }

    /// Whether its channel is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.origin.is_lost()
    }

    /// The broker has answered on the channel since: it has heard everything that was said before.
    pub(super) fn settled(self) {
        self.claims.book().remove(self.message, self.id);
    }

    /// To be called when the next delivery came: if it came on the same channel, the broker has heard. So it has if the channel
    /// held long enough.
    pub(super) fn heard(self) {
        let mut book = self.claims.book();
        if !matches!(book.entry(self.message, self.id), Some(State::Unheard { .. })) {
            return;
        }
        if self.origin.is_lost() {
            book.set_stale(self.message, self.id);
        } else {
            book.remove(self.message, self.id);
        }
    }
}

/// A delivery that was handed to the job that it belongs to.
pub(super) struct Adopted {
    over: CancellationToken,
    origin: Arc<dyn Origin>,
}

impl Adopted {
    /// Waits until it is settled, or its channel is lost as well.
    pub(super) async fn settled(self) {
        loop {
            tokio::select! {
                () = self.over.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => if self.origin.is_lost() { return },
            }
        }
    }
}

/// What has no channel.
struct Gone;

impl Origin for Gone {
    fn is_lost(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;

    /// A channel of the broker's, and what it was told.
    #[derive(Default)]
    struct Channel {
        lost: AtomicBool,
        acks: AtomicUsize,
        returns: AtomicUsize,
    }

    impl Origin for Channel {
        fn is_lost(&self) -> bool {
            self.lost.load(Ordering::SeqCst)
        }
    }

    struct Ticket(Arc<Channel>, bool);

    #[async_trait]
    impl Receipt for Ticket {
        async fn settle(mut self: Box<Self>, how: Settle) -> Result<(), BrokerError> {
            self.1 = true;
            if self.0.is_lost() {
                return Err(BrokerError::Stale("gone".into()));
            }
            match how {
                Settle::Ack => self.0.acks.fetch_add(1, Ordering::SeqCst),
                Settle::HandBack | Settle::Again => self.0.returns.fetch_add(1, Ordering::SeqCst),
            };
            Ok(())
        }
    }

    impl Drop for Ticket {
        fn drop(&mut self) {
            if !self.1 {
                self.0.returns.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    impl Channel {
        fn lose(&self) {
            self.lost.store(true, Ordering::SeqCst);
        }

        fn told(&self) -> (usize, usize) {
            (self.acks.load(Ordering::SeqCst), self.returns.load(Ordering::SeqCst))
        }

        fn delivery(self: &Arc<Self>, id: &str, redelivered: bool) -> Delivery {
            Delivery {
                body: Bytes::from_static(b"{}"),
                properties: Properties { message_id: Some(id.into()), ..Properties::default() },
                redelivered,
                received: std::time::Instant::now(),
                origin: self.clone(),
                receipt: Box::new(Ticket(self.clone(), false)),
            }
        }
    }

    fn channels<const N: usize>() -> [Arc<Channel>; N] {
        std::array::from_fn(|_| Arc::default())
    }

    async fn claim(claims: &Claims, delivery: Delivery) -> Claimed {
        claims.claim(&PoolName::new("p").unwrap(), delivery).await
    }

    async fn job(claims: &Claims, delivery: Delivery) -> Claim {
        match claim(claims, delivery).await {
            Claimed::Job(claim, _) => claim,
            Claimed::Over(_) => panic!("taken for one that is over"),
            Claimed::InHand(_) => panic!("taken for one in hand"),
        }
    }

    fn nothing_is_kept(claims: &Claims) {
        assert!(claims.book().by_message.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_comes_back_while_its_job_runs_is_settled_by_it() {
        let (claims, [first, second, third]) = (Claims::default(), channels());
        let running = job(&claims, first.delivery("a", false)).await;
        first.lose();
        let Claimed::InHand(adopted) = claim(&claims, second.delivery("a", true)).await else { panic!() };
        // And once more.
        second.lose();
        adopted.settled().await;
        let Claimed::InHand(adopted) = claim(&claims, third.delivery("a", true)).await else { panic!() };
        let unheard = running.settle(Settle::Ack).await.unwrap();
        adopted.settled().await;
        assert_eq!(third.told(), (1, 0));
        unheard.heard();
        nothing_is_kept(&claims);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_back_before_the_loss_is_known_is_waited_for() {
        let (claims, [first, second]) = (Claims::default(), channels());
        let running = job(&claims, first.delivery("a", false)).await;
        let noticing = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            first.lose();
        };
        let (claimed, ()) = tokio::join!(claim(&claims, second.delivery("a", true)), noticing);
        assert!(matches!(claimed, Claimed::InHand(_)));
        drop(running);
        assert_eq!(second.told(), (0, 1), "an abandoned job's delivery goes back");
        nothing_is_kept(&claims);
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgement_that_went_nowhere_is_made_good() {
        let (claims, [first, second, third]) = (Claims::default(), channels());
        let over = job(&claims, first.delivery("a", false)).await;
        first.lose();
        assert!(over.settle(Settle::Ack).await.is_err());
        assert!(matches!(claim(&claims, second.delivery("a", true)).await, Claimed::Over(_)));
        // Only once: another that comes is another.
        drop(job(&claims, third.delivery("a", true)).await);
        nothing_is_kept(&claims);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_been_heard_does_not_stand_for_others_for_long() {
        let (claims, [first, second]) = (Claims::default(), channels());
        let unheard = job(&claims, first.delivery("a", false)).await.settle(Settle::Ack).await.unwrap();
        tokio::time::advance(UNHEARD_FOR).await;
        // The broker has heard, and is restarted later; then an equal message is given out twice.
        first.lose();
        drop(job(&claims, second.delivery("a", true)).await);
        unheard.settled();

        let (claims, [first, second]) = (Claims::default(), channels());
        let over = job(&claims, first.delivery("a", false)).await;
        first.lose();
        assert!(over.settle(Settle::Ack).await.is_err());
        tokio::time::advance(STALE_FOR).await;
        drop(job(&claims, second.delivery("a", true)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgement_is_made_good_after_an_outage_of_any_length() {
        let (claims, [first, second, third]) = (Claims::default(), channels());
        let mut last = job(&claims, first.delivery("a", false)).await.settle(Settle::Ack).await.ok();
        // Sent, and the connection is lost the next moment.
        first.lose();
        Unheard::watch(&mut last).await;
        tokio::time::advance(STALE_FOR / 2).await;
        let Claimed::Over(over) = claim(&claims, second.delivery("a", true)).await else { panic!() };
        // And once more.
        let mut last = over.settle(Settle::Ack).await.ok();
        second.lose();
        Unheard::watch(&mut last).await;
        tokio::time::advance(STALE_FOR / 2).await;
        let Claimed::Over(over) = claim(&claims, third.delivery("a", true)).await else { panic!() };
        let mut last = over.settle(Settle::Ack).await.ok();
        assert_eq!((second.told(), third.told()), ((1, 0), (1, 0)));
        // This one holds.
        Unheard::watch(&mut last).await;
        nothing_is_kept(&claims);
    }

    /// The oldest of two equal ones is over, and another worker has its delivery; the younger one is in hand.
    #[tokio::test(start_paused = true)]
    async fn a_job_in_hand_comes_before_one_that_is_over() {
        let (claims, [first, second, third]) = (Claims::default(), channels());
        let over = job(&claims, first.delivery("a", false)).await;
        first.lose();
        assert!(over.settle(Settle::Ack).await.is_err());
        let running = job(&claims, second.delivery("a", false)).await;
        second.lose();
        assert!(matches!(claim(&claims, third.delivery("a", true)).await, Claimed::InHand(_)));
        assert!(running.settle(Settle::Ack).await.is_ok());
        assert_eq!(third.told(), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_id_only_a_job_in_hand_is_matched() {
        let nameless = |channel: &Arc<Channel>, redelivered| Delivery {
            properties: Properties::default(),
            ..channel.delivery("", redelivered)
        };
        let (claims, [first, second, third]) = (Claims::default(), channels());
        let over = job(&claims, nameless(&first, false)).await;
        first.lose();
        assert!(over.settle(Settle::Ack).await.is_err());
        let again = job(&claims, nameless(&second, true)).await;
        second.lose();
        assert!(matches!(claim(&claims, nameless(&third, true)).await, Claimed::InHand(_)));
        drop(again);
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgement_counts_once_the_same_channel_delivers_again() {
        let (claims, [first, second]) = (Claims::default(), channels());
        let unheard = job(&claims, first.delivery("a", false)).await.settle(Settle::Ack).await.unwrap();
        unheard.heard();
        nothing_is_kept(&claims);

        let unheard = job(&claims, first.delivery("b", false)).await.settle(Settle::Ack).await.unwrap();
        // Sent, but lost on its way.
        first.lose();
        assert!(matches!(claim(&claims, second.delivery("b", true)).await, Claimed::Over(_)));
        unheard.heard();
        nothing_is_kept(&claims);
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_looks_alike_is_a_job_of_its_own() {
        let (claims, [first, second]) = (Claims::default(), channels());
        let one = job(&claims, first.delivery("a", false)).await;
        let two = job(&claims, second.delivery("a", true)).await;
        first.lose();
        let other = job(&claims, second.delivery("b", true)).await;
        let fresh = job(&claims, second.delivery("a", false)).await;
        drop((one, two, other, fresh));
        nothing_is_kept(&claims);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_handed_back_is_run_when_it_comes_again() {
        let (claims, [first, second]) = (Claims::default(), channels());
        let unheard = job(&claims, first.delivery("a", false)).await.settle(Settle::HandBack).await.unwrap();
        assert_eq!(first.told(), (0, 1));
        drop(job(&claims, second.delivery("a", true)).await);
        unheard.heard();
        nothing_is_kept(&claims);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_remembered_than_fits() {
        let (claims, [lost]) = (Claims::default(), channels());
        lost.lose();
        for n in 0..=STALE_MAX {
            let over = job(&claims, lost.delivery(&n.to_string(), false)).await;
            assert!(over.settle(Settle::Ack).await.is_err());
        }
        assert_eq!(claims.book().by_message.len(), STALE_MAX);
        assert_eq!(claims.book().stale.len(), STALE_MAX);
    }
}
