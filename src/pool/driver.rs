//! The one task that owns the slots: commands in, actions out. It never waits for an engine; what takes time
//! runs in tasks of its own, which report back by command.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::metrics::{PoolMetrics, PoolSeries};
use super::slots::{Action, Bounds, PoolIndex, Reason, SlotId, Slots, State, WaiterId};
use super::warm::{self, Recipe};
use super::{Entry, Lease, PoolStatus, Pools};
use crate::config::PoolConfig;
use crate::contract::PoolName;
use crate::contract::event::LeaseKind;
use crate::engine::{ContainerId, Engine};
use crate::metrics::Metrics;
use crate::retry::Backoff;

/// How long a creation that nobody waits for holds back. It was caused by a lease, whose job is about to start in a
/// millisecond on the same cores and through the same engine; creating takes that engine hundreds.
const REFILL_GRACE: Duration = Duration::from_millis(10);

/// What the driver is told.
pub(crate) enum Command {
    /// Somebody wants a container.
    Lease { pool: PoolIndex, waiter: WaiterId, reply: oneshot::Sender<Lease> },
    /// Whoever waited has gone, served or not.
    Leave(PoolIndex, WaiterId),
    /// A container is ready; `handoff` is the way to the task that holds it.
    Ready { slot: SlotId, container: ContainerId, handoff: oneshot::Sender<Grant>, after: Duration },
    /// A container could not be made ready; it may exist.
    Failed { slot: SlotId, container: Option<ContainerId>, error: String },
    /// An idle container ended, perhaps after it was granted and before it was handed over.
    Died { slot: SlotId, grant: Option<Grant> },
    /// A lease ended.
    Released(SlotId, Reason),
    /// A container is gone.
    Gone(SlotId),
    /// Somebody wants to know how the pools are.
    Status(oneshot::Sender<Vec<PoolStatus>>),
    /// Retire everything, and answer when nothing is left.
    Drain(oneshot::Sender<()>),
}

/// To whom an idle container is handed over.
pub(crate) struct Grant {
    pub waiter: WaiterId,
    pub reply: oneshot::Sender<Lease>,
    pub kind: LeaseKind,
}

/// Where a slot's container is, and the way to the task that holds it while it is idle.
struct Held {
    container: ContainerId,
    handoff: Option<oneshot::Sender<Grant>>,
}

struct Waiting {
    reply: oneshot::Sender<Lease>,
    kind: LeaseKind,
}

/// One pool, as the driver sees it.
struct Managed {
    recipe: Arc<Recipe>,
    backoff: Backoff,
    /// Whether the last creation succeeded.
    proven: bool,
    able: watch::Sender<bool>,
    last_failure: Option<String>,
    series: PoolSeries,
}

pub(crate) struct Driver {
    slots: Slots,
    pools: Vec<Managed>,
    held: HashMap<SlotId, Held>,
    waiting: HashMap<WaiterId, Waiting>,
    commands: mpsc::UnboundedSender<Command>,
    drained: Option<oneshot::Sender<()>>,
    actions: Vec<Action>,
}

/// Starts the pools: their first containers are being created when this returns.
pub fn start(
    engine: Arc<dyn Engine>,
    worker: &str,
    configs: &BTreeMap<PoolName, PoolConfig>,
    creations: usize,
    metrics: &Metrics,
) -> Pools {
    let (commands, inbox) = mpsc::unbounded_channel();
    let metrics = PoolMetrics::new(metrics);
    let mut pools = Vec::new();
    let mut bounds = Vec::new();
    let mut entries = BTreeMap::new();
    for (index, (name, config)) in configs.iter().enumerate() {
        let config = Arc::new(config.clone());
        let (able, follow) = watch::channel(false);
        let series = metrics.of(name);
        let entry = Entry {
            index: PoolIndex(index),
            config: Arc::clone(&config),
            able: follow,
            series: series.clone(),
        };
        entries.insert(name.clone(), entry);
        bounds.push(Bounds { slots: config.idle.max + config.concurrency });
        let recipe = Recipe::new(Arc::clone(&engine), worker.into(), name.clone(), config);
        pools.push(Managed {
            recipe: Arc::new(recipe),
            backoff: Backoff::default(),
            proven: false,
            able,
            last_failure: None,
            series,
        });
    }
    let mut driver = Driver {
        slots: Slots::new(&bounds, creations),
        pools,
        held: HashMap::new(),
        waiting: HashMap::new(),
        commands: commands.clone(),
        drained: None,
        actions: Vec::new(),
    };
    for index in 0..driver.pools.len() {
        let target = driver.pools[index].recipe.config.idle.max;
        driver.slots.set_target(PoolIndex(index), target, now(), &mut driver.actions);
    }
    tokio::spawn(driver.run(inbox));
    Pools { entries: Arc::new(entries), commands, waiters: Arc::new(AtomicU64::new(0)) }
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        self.act();
        loop {
            let tick = self.slots.next_tick(now());
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.take(command),
                    // Not reached: the driver holds a sender for the tasks that it starts.
                    None => return,
                },
                () = sleep_until(tick) => {}
            }
            // Not only when the clock says so: a command may have come in the very moment.
            self.slots.tick(now(), &mut self.actions);
            self.act();
            self.publish_ability();
            if self.slots.is_empty() && self.drained.is_some() {
                self.drained.take().map(|d| d.send(()));
                return;
            }
        }
    }

    fn take(&mut self, command: Command) {
        let now = now();
        let out = &mut self.actions;
        match command {
            Command::Lease { pool, waiter, reply } => {
                let kind =
                    if self.slots.lease(pool, waiter, now, out) { LeaseKind::Hit } else { LeaseKind::Miss };
                self.waiting.insert(waiter, Waiting { reply, kind });
            }
            Command::Leave(pool, waiter) => {
                if self.waiting.remove(&waiter).is_some() {
                    self.slots.give_up(pool, waiter);
                }
            }
            Command::Ready { slot, container, handoff, after } => {
                self.held.insert(slot, Held { container, handoff: Some(handoff) });
                self.slots.ready(slot, now, out);
                self.recovered(slot.pool, after);
            }
            Command::Failed { slot, container, error } => {
                if let Some(container) = container {
                    self.held.insert(slot, Held { container, handoff: None });
                }
                let delay = self.failed(slot.pool, error);
                self.slots.failed(slot, now + delay, now, &mut self.actions);
            }
            Command::Died { slot, grant: None } => self.slots.died(slot, None, now, out),
            Command::Died { slot, grant: Some(grant) } => self.take_back(slot, grant),
            Command::Released(slot, reason) => self.slots.released(slot, reason, now, out),
            Command::Gone(slot) => {
                self.held.remove(&slot);
                self.slots.gone(slot, now, out);
            }
            Command::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Command::Drain(reply) => {
                self.drained = Some(reply);
                self.slots.drain(out);
                self.waiting.clear();
            }
        }
    }

    /// Carries out what the state machine decided, until it decides nothing more.
    fn act(&mut self) {
        let mut next = 0;
        while let Some(action) = self.actions.get(next).copied() {
            next += 1;
            match action {
                Action::Start(slot) => {
                    let recipe = Arc::clone(&self.pools[slot.pool.0].recipe);
                    let waited_for = self.slots.waiting(slot.pool) > 0;
                    let after = if waited_for { Duration::ZERO } else { REFILL_GRACE };
                    tokio::spawn(warm::keep(recipe, slot, self.commands.clone(), after));
                }
                Action::Grant(slot, waiter) => self.grant(slot, waiter),
                Action::Remove(slot, reason) => self.remove(slot, reason),
            }
        }
        self.actions.clear();
        // Even if there was nothing to do: a container that became ready, or is gone, counts elsewhere now.
        self.publish_counts();
    }

    fn grant(&mut self, slot: SlotId, waiter: WaiterId) {
        let Some(Waiting { reply, kind }) = self.waiting.remove(&waiter) else {
            // Gone in the meantime; the container was handed to nobody, but is no longer counted as idle.
            self.slots.released(slot, Reason::Doubt, now(), &mut self.actions);
            return;
        };
        let handoff = self.held.get_mut(&slot).and_then(|h| h.handoff.take());
        let refused = match handoff {
            Some(handoff) => handoff.send(Grant { waiter, reply, kind }).err(),
            None => Some(Grant { waiter, reply, kind }),
        };
        if let Some(grant) = refused {
            // Its task has ended: it died, and said so in a command that is still on its way.
            self.take_back(slot, grant);
        }
    }

    /// A container was granted and turned out to be dead: whoever was to get it waits again, first in line.
    fn take_back(&mut self, slot: SlotId, Grant { waiter, reply, .. }: Grant) {
        if reply.is_closed() {
            self.slots.died(slot, None, now(), &mut self.actions);
            return;
        }
        self.waiting.insert(waiter, Waiting { reply, kind: LeaseKind::Miss });
        self.slots.died(slot, Some(waiter), now(), &mut self.actions);
    }

    fn remove(&mut self, slot: SlotId, reason: Reason) {
        let pool = &self.pools[slot.pool.0];
        pool.series.retired(reason).inc();
        let Some(held) = self.held.get_mut(&slot) else {
            // It never existed as far as anybody knows; the sweep finds it if it does.
            let _ = self.commands.send(Command::Gone(slot));
            return;
        };
        // Ends the task that holds it, and with it the stream: init takes that as its end.
        held.handoff = None;
        tracing::debug!(pool = %pool.recipe.pool, container = %held.container, reason = reason.as_str(), "retired");
        let (engine, container) = (Arc::clone(&pool.recipe.engine), held.container.clone());
        let commands = self.commands.clone();
        tokio::spawn(async move {
            let mut backoff = Backoff::default();
            while let Err(error) = engine.remove(&container).await {
                let delay = backoff.next();
                tracing::warn!(%container, "not removed, trying again in {delay:?}: {error}");
                tokio::time::sleep(delay).await;
            }
            let _ = commands.send(Command::Gone(slot));
        });
    }

    fn recovered(&mut self, pool: PoolIndex, after: Duration) {
        let pool = &mut self.pools[pool.0];
        pool.series.warmup.observe(after.as_secs_f64());
        pool.backoff.reset();
        if pool.last_failure.take().is_some() {
            tracing::info!(pool = %pool.recipe.pool, "containers can be started again");
        } else if !*pool.able.borrow() {
            tracing::info!(pool = %pool.recipe.pool, image = %pool.recipe.config.image, "first container ready after {after:?}");
        }
        pool.proven = true;
    }

    fn failed(&mut self, pool: PoolIndex, error: String) -> Duration {
        let pool = &mut self.pools[pool.0];
        let delay = pool.backoff.next();
        tracing::warn!(pool = %pool.recipe.pool, "a container could not be made ready, next try in {delay:?}: {error}");
        pool.last_failure = Some(error);
        pool.proven = false;
        delay
    }

    /// A pool whose last creation failed can still give what is idle; and must, or nobody would lease, nothing would
    /// be missing, and no new creation would ever be tried.
    fn publish_ability(&self) {
        for (index, pool) in self.pools.iter().enumerate() {
            let now = pool.proven || self.slots.count(PoolIndex(index), State::Idle) > 0;
            pool.able.send_if_modified(|able| std::mem::replace(able, now) != now);
        }
    }

    fn publish_counts(&self) {
        for (index, pool) in self.pools.iter().enumerate() {
            for state in State::ALL {
                pool.series.containers(state).set(self.slots.count(PoolIndex(index), state) as i64);
            }
            pool.series.target.set(self.slots.target(PoolIndex(index)) as i64);
        }
    }

    fn status(&self) -> Vec<PoolStatus> {
        let status = |(index, pool): (usize, &Managed)| {
            let count = |state| self.slots.count(PoolIndex(index), state);
            PoolStatus {
                pool: pool.recipe.pool.clone(),
                image: pool.recipe.config.image.clone(),
                able: *pool.able.borrow(),
                target: self.slots.target(PoolIndex(index)),
                starting: count(State::Starting),
                idle: count(State::Idle),
                leased: count(State::Leased),
                removing: count(State::Removing),
                waiting: self.slots.waiting(PoolIndex(index)),
                last_failure: pool.last_failure.clone(),
            }
        };
        self.pools.iter().enumerate().map(status).collect()
    }
}

/// The runtime's clock, which tests can move.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
