//! A connection that is made again whenever it is lost.
//!
//! ```text
//!            connected            prepared
//!  Down ─────────────► Preparing ──────────► Up ──┐
//!   ▲ ▲ │ failed           │ failed               │ lost: error, close, two heartbeats of silence
//!   │ └─┘ (back off)       │                      │
//!   └──────────────────────┴──────────────────────┘  close() ends it from everywhere
//! ```
//!
//! "Preparing" declares or checks the topology, on the publishing line. lapin's own recovery stays off: with it
//! on, a connection whose retries run out stays `Connecting` for ever without an event, and a consumer that the
//! broker cancelled isn't restored.
//!
//! Of several addresses any will do, and the two lines may be at different ones. A node that lets us in and then doesn't do what it
//! is asked for, since it has lost the others of its cluster say, is left for the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::address::{Address, Addresses, none_worked};
use super::health::{Health, Part};
use super::link::{Flow, Link};
use crate::broker::BrokerError;
use crate::broker::topology::Topology;
use crate::config::TopologyMode;
use crate::retry::Backoff;

/// Between rounds of attempts to connect: about this long at most. A broker that is back is noticed by then, and a fleet of
/// workers that waits for one doesn't storm it.
const ROUND_MOST: Duration = Duration::from_secs(10);

/// After so many complaints in a row a node is left for another.
const PATIENCE: u32 = 3;

/// It doubles up to this while others are no better: then it may be a single queue that nobody can serve, and all that goes
/// well on a connection suffers from its end.
const PATIENCE_MOST: u32 = 200;

/// What has to be done on a fresh connection before it is used.
pub(super) enum Prepare {
    Nothing,
    Topology(Arc<Topology>, TopologyMode),
}

/// What a line is told once.
pub(super) struct LineConfig {
    pub(super) addresses: Addresses,
    /// As seen in RabbitMQ's list of connections.
    pub(super) name: String,
    pub(super) timeout: Duration,
    pub(super) part: Part,
    pub(super) prepare: Prepare,
}

/// The users' end of a line.
#[derive(Clone)]
pub(super) struct Line(watch::Receiver<Option<Arc<Link>>>);

impl Line {
    /// The current connection; waits until there is one.
    pub(super) async fn link(&self) -> Arc<Link> {
        let mut current = self.0.clone();
        let link = match current.wait_for(|link| link.as_ref().is_some_and(|link| !link.is_lost())).await {
            Ok(link) => link.clone(),
            Err(_) => None,
        };
        match link {
            Some(link) => link,
            // The line was closed: there will be none. The one who waits is dropped with the worker.
            None => std::future::pending().await,
        }
    }
}

/// Starts a line, and returns its end along with the task, which ends after `closing`.
pub(super) fn start(
    config: LineConfig,
    health: Arc<Health>,
    closing: CancellationToken,
) -> (Line, tokio::task::JoinHandle<()>) {
    let (sender, receiver) = watch::channel(None);
    let task = tokio::spawn(Keeper { config, health, sender, outage: None, patience: PATIENCE }.run(closing));
    (Line(receiver), task)
}

struct Keeper {
    config: LineConfig,
    health: Arc<Health>,
    sender: watch::Sender<Option<Arc<Link>>>,
    outage: Option<Outage>,
    /// How many complaints are borne.
    patience: u32,
}

struct Outage {
    since: Instant,
    attempts: u32,
    /// The last reason that was told.
    told: String,
}

impl Keeper {
    async fn run(mut self, closing: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), ROUND_MOST);
        loop {
            let connected = tokio::select! {
                biased;
                () = closing.cancelled() => return,
                connected = self.connect() => connected,
            };
            let delay = match connected {
                Ok(link) => {
                    let since = Instant::now();
                    if !self.serve(Arc::new(link), &closing).await {
                        return;
                    }
                    backoff.next_after(since.elapsed())
                }
                Err(error) => {
                    self.failed(&error.to_string());
                    backoff.next()
                }
            };
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Tries all addresses, the one that worked last first; the pause comes after all of them.
    async fn connect(&mut self) -> Result<Link, BrokerError> {
        let mut errors = Vec::new();
        for (turn, address) in self.config.addresses.in_turn().iter().enumerate() {
            match self.connect_to(address).await {
                Ok(link) => {
                    self.config.addresses.worked(turn);
                    return Ok(link);
                }
                Err(error) => errors.push(error),
            }
        }
        Err(none_worked(errors))
    }

    async fn connect_to(&self, address: &Address) -> Result<Link, BrokerError> {
        let LineConfig { name, timeout, prepare, .. } = &self.config;
        let link = Link::open(address, name, *timeout).await?;
        if let Prepare::Topology(topology, mode) = prepare
            && let Err(error) = topology.ensure(&link, *mode).await
        {
            link.close().await;
            return Err(error);
        }
        Ok(link)
    }

    /// Lends the link out until it is lost. False if the line is to close instead.
    async fn serve(&mut self, link: Arc<Link>, closing: &CancellationToken) -> bool {
        self.recovered(link.address());
        self.sender.send_replace(Some(link.clone()));
        let mut flow = link.flow();
        let mut complaints = link.complaints();
        let patience = if self.config.addresses.is_single() { u32::MAX } else { self.patience };
        let lost = loop {
            let now = flow.borrow_and_update().clone();
            self.health.set(self.config.part, now == Flow::Flowing);
            match now {
                Flow::Flowing => {}
                Flow::Blocked(reason) => tracing::warn!(
                    connection = self.config.name,
                    reason,
                    "the broker takes no messages for now: free memory or disk space there; jobs' results wait meanwhile"
                ),
                Flow::Lost(reason) => break Some(reason),
            }
            tokio::select! {
                biased;
                () = closing.cancelled() => break None,
                changed = flow.changed() => if changed.is_err() { break Some("shut down".to_owned()) },
                // The link has the sender.
                _ = complaints.wait_for(|complaints| *complaints >= patience) => {
                    break Some("it answers, but doesn't do what it is asked for; trying the next address".to_owned());
                }
            }
        };
        self.health.set(self.config.part, false);
        self.sender.send_replace(None);
        let Some(reason) = lost else {
            link.close().await;
            return false;
        };
        let complaints = *complaints.borrow();
        if complaints == 0 {
            self.patience = PATIENCE;
        } else {
            self.config.addresses.pass_over();
        }
        if complaints >= patience {
            link.close().await;
            self.patience = (patience * 2).min(PATIENCE_MOST);
        }
        self.health.reconnecting();
        self.failed(&format!("broker {}: connection lost: {reason}", link.address()));
        true
    }

    /// Warns once per outage, and again when the reason is another one; a line per attempt helps nobody.
    fn failed(&mut self, reason: &str) {
        let connection = self.config.name.as_str();
        let outage = self.outage.get_or_insert_with(|| Outage {
            since: Instant::now(),
            attempts: 0,
            told: String::new(),
        });
        outage.attempts += 1;
        if outage.told == reason {
            tracing::debug!(connection, attempts = outage.attempts, reason, "still no connection");
        } else {
            tracing::warn!(
                connection,
                reason,
                "no connection to the broker; trying again, with growing delay, until it is back"
            );
            reason.clone_into(&mut outage.told);
        }
    }

    fn recovered(&mut self, broker: &Address) {
        let connection = self.config.name.as_str();
        if let Some(Outage { since, attempts, .. }) = self.outage.take() {
            let after = since.elapsed();
            tracing::info!(connection, %broker, ?after, attempts, "connected to the broker again");
        } else {
            tracing::info!(connection, %broker, "connected to the broker");
        }
    }
}
