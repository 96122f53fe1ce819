//! The one task that owns the slots: commands in, actions out. It never waits for an engine; what takes time
//! runs in tasks of its own, which report back by command.

mod command;
mod managed;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

pub(super) use command::{Command, Grant, Known, Leftovers};
pub(super) use managed::Managed;
pub(crate) use managed::{bounds, limits};

use super::planner::Planner;
use super::slots::{Action, PoolIndex, Reason, SlotId, Slots, State, WaiterId};
use super::{Lease, warm};
use crate::contract::event::LeaseKind;
use crate::engine::{ContainerId, EngineError, Stop};
use crate::retry::Backoff;

/// How long a creation that nobody waits for holds back. It was caused by a lease, whose job is about to start in a
/// millisecond on the same cores and through the same engine; creating takes that engine hundreds.
pub(crate) const REFILL_GRACE: Duration = Duration::from_millis(10);

/// Containers that are removed at once. The engine does no more of them at a time, and needs some time for others' requests.
const REMOVALS: usize = 8;

/// Most time between two attempts to remove a container. Less than a worker waits at its end for the last removals.
const REMOVE_EVERY: Duration = Duration::from_secs(5);

/// How long what is being prepared is waited for when the pools are closed. Init is in its volume within a second; a pull may
/// take long, and leaves nothing.
const PREPARE_PATIENCE: Duration = Duration::from_secs(10);

/// How often targets are computed anew.
pub(crate) const PLAN_EVERY: Duration = Duration::from_millis(500);

/// Where a slot's container is, and the way to the task that holds it while it is idle.
struct Held {
    container: ContainerId,
    handoff: Option<oneshot::Sender<Grant>>,
    since: Instant,
}

struct Waiting {
    reply: oneshot::Sender<Lease>,
    kind: LeaseKind,
}

pub(super) struct Driver {
    slots: Slots,
    planner: Planner,
    pools: Vec<Managed>,
    held: HashMap<SlotId, Held>,
    waiting: HashMap<WaiterId, Waiting>,
    /// How many creations were under way when each of them began.
    under_way: HashMap<SlotId, usize>,
    commands: mpsc::UnboundedSender<Command>,
    drained: Option<oneshot::Sender<Leftovers>>,
    /// When the pools are closed: until when what is being prepared is waited for.
    prepared_by: Option<Instant>,
    leftovers: Leftovers,
    /// What that was found by, while nobody answers where the engine was.
    engine_is_away: Option<EngineError>,
    removals: Arc<Semaphore>,
    actions: Vec<Action>,
}

impl Driver {
    pub fn new(
        slots: Slots,
        planner: Planner,
        pools: Vec<Managed>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Driver {
        Driver {
            slots,
            planner,
            pools,
            held: HashMap::new(),
            waiting: HashMap::new(),
            under_way: HashMap::new(),
            commands,
            drained: None,
            prepared_by: None,
            leftovers: Leftovers::None,
            engine_is_away: None,
            removals: Arc::new(Semaphore::new(REMOVALS)),
            actions: Vec::new(),
        }
    }

    pub async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        for pool in 0..self.pools.len() {
            self.prepare(PoolIndex(pool), Duration::ZERO);
        }
        let mut plan = tokio::time::interval(PLAN_EVERY);
        plan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let prepared_by = self.prepared_by.filter(|by| *by > now());
            let tick = self.slots.next_tick(now()).into_iter().chain(prepared_by).min();
            tokio::select! {
                // Jobs first.
                biased;
                command = inbox.recv() => match command {
                    Some(command) => self.take(command),
                    // Not reached: the driver holds a sender for the tasks that it starts.
                    None => return,
                },
                _ = plan.tick() => self.plan(),
                () = sleep_until(tick) => {}
            }
            // Not only when the clock says so: a command may have come in the very moment.
            self.slots.tick(now(), &mut self.actions);
            self.act();
            self.publish();
            if self.slots.is_empty()
                && self.is_prepared_or_late()
                && let Some(drained) = self.drained.take()
            {
                let _ = drained.send(self.leftovers);
                return;
            }
        }
    }

    fn take(&mut self, command: Command) {
        let now = now();
        let out = &mut self.actions;
        match command {
            // Whoever asks sees from its reply's end that the pools are closed.
            Command::Lease { .. } if self.drained.is_some() => {}
            Command::Lease { pool, waiter, reply } => {
                let hit = self.slots.lease(pool, waiter, now, out);
                self.planner.arrived(pool.0, hit, now);
                let kind = if hit { LeaseKind::Hit } else { LeaseKind::Miss };
                self.waiting.insert(waiter, Waiting { reply, kind });
            }
            Command::Leave(pool, waiter) => {
                if self.waiting.remove(&waiter).is_some() {
                    self.slots.give_up(pool, waiter);
                }
            }
            Command::Ready { slot, container, handoff, recipe, image, warmup, kept_busy } => {
                self.held.insert(slot, Held { container, handoff: Some(handoff), since: now });
                // As many as there were when it began and are now, in the middle.
                let began = self.under_way.remove(&slot).unwrap_or(1);
                let at_work = (began + self.creating()) as f64 / 2.0;
                self.planner.warmed(slot.pool.0, kept_busy, at_work);
                self.recovered(slot.pool, &recipe, image, warmup);
                self.slots.ready(slot, now, &mut self.actions);
            }
            Command::Returned { slot, handoff, away } => {
                if let Some(held) = self.held.get_mut(&slot) {
                    held.handoff = Some(handoff);
                }
                self.planner.returned(slot.pool.0, away);
                self.slots.returned(slot, now, out);
            }
            Command::Failed { slot, container, error } => {
                match container {
                    Some(container) => {
                        _ = self.held.insert(slot, Held { container, handoff: None, since: now });
                    }
                    None => self.leftovers = Leftovers::Possible,
                }
                self.under_way.remove(&slot);
                self.failed(slot, error, now);
            }
            Command::Died { slot, grant } => {
                self.note_death(slot, now);
                match grant {
                    None => self.slots.died(slot, None, now, &mut self.actions),
                    Some(grant) => self.take_back(slot, grant),
                }
            }
            Command::Prepared { pool, recipe, outcome } => self.prepared(pool, &recipe, outcome, now),
            Command::Stopped(container, stop) => {
                let slot = self.held.iter().find(|(_, held)| held.container == container);
                // Of a leased one its job will tell.
                let idle = |slot: &SlotId| self.slots.state(*slot) == Some(State::Idle);
                let Some(slot) = slot.map(|(slot, _)| *slot).filter(idle) else { return };
                tracing::info!(%container, ?stop, "an idle container was stopped from outside: it is replaced");
                match stop {
                    Stop::Ended => {
                        self.note_death(slot, now);
                        self.slots.died(slot, None, now, &mut self.actions);
                    }
                    Stop::Paused => self.slots.doubted(slot, now, out),
                }
            }
            Command::EngineIsAway(error) => self.engine_is_away = Some(error),
            Command::EngineIsBack => {
                self.engine_is_away = None;
                self.slots.retry(now, out);
                for index in 0..self.pools.len() {
                    self.pools[index].backoff.reset();
                    self.pools[index].mistrusted = None;
                    if self.pools[index].prepared.is_none() {
                        self.prepare(PoolIndex(index), Duration::ZERO);
                    }
                }
            }
            Command::Known(reply) => {
                let _ = reply.send(self.known());
            }
            Command::Released(slot, reason) => self.slots.released(slot, reason, now, out),
            Command::Gone(slot) => {
                self.held.remove(&slot);
                self.slots.gone(slot, now, out);
            }
            Command::Image { pool, name, id } => self.image_is(pool, &name, id, now),
            Command::Reload(pool, config) => self.reload(pool, config, now),
            Command::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Command::Drain(reply) => {
                self.drained = Some(reply);
                self.slots.drain(out);
                self.waiting.clear();
                self.prepared_by = Some(now + PREPARE_PATIENCE);
                for pool in &mut self.pools {
                    // Those that have begun may have made a container, which they remove themselves.
                    pool.preparing.take_if(|preparing| preparing.at > now);
                }
            }
        }
    }

    /// When the pools are closed: whether nothing is being prepared any more, or that has been waited for long enough.
    fn is_prepared_or_late(&mut self) -> bool {
        let busy = |pool: &Managed| pool.preparing.as_ref().is_some_and(|p| !p.task.is_finished());
        if !self.pools.iter().any(busy) {
            return true;
        }
        let late = self.prepared_by.is_some_and(|by| by <= now());
        if late {
            self.leftovers = Leftovers::Possible;
        }
        late
    }

    /// Carries out what the state machine decided, until it decides nothing more.
    fn act(&mut self) {
        let mut next = 0;
        while let Some(action) = self.actions.get(next).copied() {
            next += 1;
            match action {
                Action::Start(slot) => {
                    self.under_way.insert(slot, self.creating());
                    let waited_for = self.slots.waiting(slot.pool) > 0;
                    let after = if waited_for { Duration::ZERO } else { REFILL_GRACE };
                    let pool = &self.pools[slot.pool.0];
                    let recipe = Arc::clone(&pool.recipe);
                    if let Some(prepared) = pool.prepared.clone() {
                        tokio::spawn(warm::keep(recipe, prepared, slot, self.commands.clone(), after));
                    } else {
                        // Not reached: nothing is started of a pool that isn't prepared.
                        let (container, error) = (None, "the pool is not prepared".into());
                        let _ = self.commands.send(Command::Failed { slot, container, error });
                    }
                }
                Action::Grant(slot, waiter) => self.grant(slot, waiter),
                Action::Remove(slot, reason) => self.remove(slot, reason),
            }
        }
        self.actions.clear();
    }

    fn plan(&mut self) {
        if self.drained.is_some() {
            return;
        }
        let now = now();
        let count = |pool, state| self.slots.count(PoolIndex(pool), state);
        self.planner.plan(now, |pool| count(pool, State::Leased) + count(pool, State::Removing));
        for index in 0..self.pools.len() {
            let pool = PoolIndex(index);
            let sizing = self.planner.sizing(index);
            let managed = &mut self.pools[index];
            if sizing.target != self.slots.target(pool) {
                tracing::debug!(pool = %managed.recipe.pool, ?sizing, "target");
            }
            managed.complain(sizing);
            let worth = (0..=managed.recipe.config.idle.max).map(|idle| self.planner.worth(index, idle));
            let worth = worth.take_while(|worth| *worth > 0.0).collect();
            self.slots.set_target(pool, sizing.target, sizing.away, worth, now, &mut self.actions);
        }
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
        let (commands, removals) = (self.commands.clone(), Arc::clone(&self.removals));
        tokio::spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), REMOVE_EVERY);
            let mut said = false;
            loop {
                let permit = removals.acquire().await;
                let Err(error) = engine.remove(&container).await else { break };
                drop(permit);
                let delay = backoff.next();
                if std::mem::replace(&mut said, true) {
                    tracing::debug!(%container, "not removed, trying again in {delay:?}: {error}");
                } else {
                    tracing::warn!(%container, "not removed, trying again in {delay:?} and so on: {error}");
                }
                tokio::time::sleep(delay).await;
            }
            let _ = commands.send(Command::Gone(slot));
        });
    }
}

/// The runtime's clock, which tests can move.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
