//! The one task that owns the slots: commands in, actions out. It never waits for an engine; what takes time
//! runs in tasks of its own, which report back by command.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::metrics::PoolSeries;
use super::planner::{self, Limits, Planner};
use super::recipe::{Prepared, Recipe};
use super::slots::{Action, Bounds, PoolIndex, Reason, SlotId, Slots, State, WaiterId};
use super::status::{ContainerStatus, PoolStatus};
use super::{Lease, warm};
use crate::config::{PoolConfig, Pull};
use crate::contract::event::LeaseKind;
use crate::engine::{ContainerId, EngineError, Stop};
use crate::retry::Backoff;

/// How long a creation that nobody waits for holds back. It was caused by a lease, whose job is about to start in a
/// millisecond on the same cores and through the same engine; creating takes that engine hundreds.
const REFILL_GRACE: Duration = Duration::from_millis(10);

/// Containers that are removed at once. The engine does no more of them at a time, and needs some time for others' requests.
const REMOVALS: usize = 8;

/// An idle container that ends sooner after it was ready is a sign that something is wrong with it.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// So long after such a death the next container that is ready is no proof that all is well.
const MISTRUST: Duration = Duration::from_secs(120);

/// How often targets are computed anew.
const PLAN_EVERY: Duration = Duration::from_millis(500);

/// What the driver is told.
pub(super) enum Command {
    /// Somebody wants a container.
    Lease { pool: PoolIndex, waiter: WaiterId, reply: oneshot::Sender<Lease> },
    /// Whoever waited has gone, served or not.
    Leave(PoolIndex, WaiterId),
    /// A container is ready; `handoff` is the way to the task that holds it.
    Ready {
        slot: SlotId,
        container: ContainerId,
        handoff: oneshot::Sender<Grant>,
        recipe: Arc<Recipe>,
        image: String,
        /// From creation to ready.
        warmup: Duration,
        /// How long this creation took one of those that may be under way at once.
        kept_busy: Duration,
    },
    /// A container could not be made ready; it may exist.
    Failed { slot: SlotId, container: Option<ContainerId>, error: String },
    /// An idle container ended, perhaps after it was granted and before it was handed over.
    Died { slot: SlotId, grant: Option<Grant> },
    /// A recipe has been prepared, or could not be.
    Prepared { pool: PoolIndex, recipe: Arc<Recipe>, outcome: Result<Prepared, EngineError> },
    /// The engine says of an idle container that it doesn't run.
    Stopped(SlotId, Stop),
    /// Nobody answers where the engine was.
    EngineIsAway,
    /// The engine answers again.
    EngineIsBack,
    /// Somebody wants to know which containers there should be.
    Known(oneshot::Sender<Known>),
    /// A lease ended.
    Released(SlotId, Reason),
    /// A container is gone.
    Gone(SlotId),
    /// This is what the image of this name is now.
    Image { pool: PoolIndex, name: String, id: String },
    /// A pool is configured otherwise.
    Reload(PoolIndex, Arc<PoolConfig>),
    /// Somebody wants to know how the pools are.
    Status(oneshot::Sender<Vec<PoolStatus>>),
    /// Retire everything, and answer when nothing is left.
    Drain(oneshot::Sender<Leftovers>),
}

/// Whether the engine may have containers that the pools don't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leftovers {
    /// All that was asked for was heard of.
    None,
    /// A request failed that may have been carried out all the same.
    Possible,
}

/// Which containers there should be.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Idle ones.
    pub idle: Vec<(SlotId, ContainerId)>,
    /// All whose ids are known.
    pub held: Vec<ContainerId>,
    /// The names of those that are being created.
    pub names: HashSet<String>,
}

/// To whom an idle container is handed over.
pub(super) struct Grant {
    pub waiter: WaiterId,
    pub reply: oneshot::Sender<Lease>,
    pub kind: LeaseKind,
}

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

/// One pool, as the driver sees it.
pub(super) struct Managed {
    pub recipe: Arc<Recipe>,
    /// None while the engine may lack what the recipe needs.
    pub prepared: Option<Prepared>,
    /// The task that sees to that.
    pub preparing: Option<AbortOnDropHandle<()>>,
    /// Whether this recipe's image has been pulled as its configuration says.
    pub pulled: bool,
    pub backoff: Backoff,
    /// When a container last ended soon after it was ready.
    pub mistrusted: Option<Instant>,
    pub able: watch::Sender<bool>,
    pub config: watch::Sender<Arc<PoolConfig>>,
    pub last_failure: Option<String>,
    /// The image of the containers that are made now.
    pub image: Option<String>,
    /// Whether it has been said that the goal is out of reach.
    pub complained: bool,
    pub series: PoolSeries,
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
    leftovers: Leftovers,
    engine_is_away: bool,
    removals: Arc<Semaphore>,
    actions: Vec<Action>,
}

/// What a pool may have, from its configuration.
pub(super) fn bounds(config: &PoolConfig) -> Bounds {
    Bounds {
        slots: config.idle.max + config.concurrency,
        reserved: config.idle.min,
        memory: config.memory.unwrap_or(0),
        max_age: config.idle.max_age,
    }
}

/// What the planner may plan with, from a pool's configuration.
pub(super) fn limits(config: &PoolConfig) -> Limits {
    Limits {
        min: config.idle.min,
        max: config.idle.max,
        hit_target: config.idle.hit_target,
        ttl: config.idle.ttl,
        memory: config.memory.unwrap_or(0),
    }
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
            leftovers: Leftovers::None,
            engine_is_away: false,
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
            let tick = self.slots.next_tick(now());
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
            if self.slots.is_empty() && self.drained.is_some() {
                self.drained.take().map(|d| d.send(self.leftovers));
                return;
            }
        }
    }

    fn take(&mut self, command: Command) {
        let now = now();
        let out = &mut self.actions;
        match command {
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
            // Of a leased one its job will tell.
            Command::Stopped(slot, _) if self.slots.state(slot) != Some(State::Idle) => {}
            Command::Stopped(slot, stop) => {
                let container = self.held.get(&slot).map(|held| held.container.to_string());
                tracing::info!(
                    container,
                    ?stop,
                    "an idle container was stopped from outside: it is replaced"
                );
                match stop {
                    Stop::Ended => {
                        self.note_death(slot, now);
                        self.slots.died(slot, None, now, &mut self.actions);
                    }
                    Stop::Paused => self.slots.doubted(slot, now, out),
                }
            }
            Command::EngineIsAway => self.engine_is_away = true,
            Command::EngineIsBack => {
                self.engine_is_away = false;
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
            self.slots.set_target(pool, sizing.target, worth, now, &mut self.actions);
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
            let mut backoff = Backoff::default();
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

    fn recovered(&mut self, pool: PoolIndex, recipe: &Arc<Recipe>, image: String, warmup: Duration) {
        let pool = &mut self.pools[pool.0];
        pool.series.warmup.observe(warmup.as_secs_f64());
        // If they end soon after, being ready says nothing.
        let trusted = pool.mistrusted.is_none_or(|at| now().saturating_duration_since(at) > MISTRUST);
        if trusted {
            pool.backoff.reset();
        }
        if trusted && pool.last_failure.take().is_some() {
            tracing::info!(pool = %pool.recipe.pool, "containers can be started again");
        } else if pool.image.is_none() {
            tracing::info!(pool = %pool.recipe.pool, image = %pool.recipe.config.image, "first container ready after {warmup:?}");
        }
        if Arc::ptr_eq(recipe, &pool.recipe) {
            pool.image = Some(image);
        }
    }

    fn failed(&mut self, slot: SlotId, error: String, now: Instant) {
        let pool = &mut self.pools[slot.pool.0];
        let name = pool.recipe.pool.clone();
        let backoff = &mut pool.backoff;
        let mut until = || {
            let delay = backoff.next();
            tracing::warn!(pool = %name, "a container could not be made ready, next try in {delay:?}: {error}");
            now + delay
        };
        let mut held = None;
        self.slots.failed(slot, || *held.insert(until()), now, &mut self.actions);
        pool.last_failure = Some(error);
        if let Some(until) = held {
            // The image or the init volume may be what is missing.
            self.prepare(slot.pool, until.saturating_duration_since(now));
        }
    }

    /// Sees to it, after a moment, that the engine has what a pool's containers need. No creation is begun meanwhile: a
    /// pull may take long, and is not to keep creators from others.
    fn prepare(&mut self, pool: PoolIndex, after: Duration) {
        let managed = &mut self.pools[pool.0];
        managed.prepared = None;
        self.slots.unprepared(pool);
        let (recipe, commands) = (Arc::clone(&managed.recipe), self.commands.clone());
        let pull = match recipe.config.pull {
            // Once is enough: the registry may be away, and the image is here.
            Pull::Always if managed.pulled => Pull::Missing,
            pull => pull,
        };
        let task = async move {
            tokio::time::sleep(after).await;
            let outcome = recipe.prepare(pull).await;
            let _ = commands.send(Command::Prepared { pool, recipe, outcome });
        };
        managed.preparing = Some(AbortOnDropHandle::new(tokio::spawn(task)));
    }

    fn prepared(
        &mut self,
        pool: PoolIndex,
        recipe: &Arc<Recipe>,
        outcome: Result<Prepared, EngineError>,
        now: Instant,
    ) {
        let managed = &mut self.pools[pool.0];
        if !Arc::ptr_eq(recipe, &managed.recipe) || self.drained.is_some() {
            return;
        }
        match outcome {
            Ok(prepared) => {
                managed.pulled = true;
                managed.prepared = Some(prepared);
                managed.preparing = None;
                self.slots.prepared(pool, now, &mut self.actions);
            }
            Err(error) => {
                let delay = managed.backoff.next();
                tracing::warn!(pool = %recipe.pool, "no container can be made yet, next try in {delay:?}: {error}");
                managed.last_failure = Some(error.to_string());
                self.prepare(pool, delay);
            }
        }
    }

    /// A container that ends right after it was ready is no better than one that never was.
    fn note_death(&mut self, slot: SlotId, now: Instant) {
        let Some(held) = self.held.get(&slot) else { return };
        let lived = now.saturating_duration_since(held.since);
        // One that a job has is the job's affair.
        if lived >= SHORT_LIFE || self.slots.state(slot) != Some(State::Idle) {
            return;
        }
        let pool = &mut self.pools[slot.pool.0];
        let delay = pool.backoff.next();
        let error = format!("container {} ended {lived:?} after it was ready", held.container);
        tracing::warn!(pool = %pool.recipe.pool, "next try in {delay:?}: {error}");
        pool.mistrusted = Some(now);
        pool.last_failure = Some(error);
        self.slots.mistrust(slot.pool, now + delay);
    }

    fn image_is(&mut self, pool: PoolIndex, name: &str, image: String, now: Instant) {
        let managed = &mut self.pools[pool.0];
        if managed.recipe.config.image != name {
            return;
        }
        let Some(old) = managed.image.clone().filter(|old| *old != image) else { return };
        tracing::info!(
            pool = %managed.recipe.pool, name = managed.recipe.config.image, %old, new = %image,
            "the image is another now: idle containers are replaced one by one"
        );
        managed.image = Some(image);
        managed.recipe = Arc::new(managed.recipe.with(Arc::clone(&managed.recipe.config)));
        self.prepare(pool, Duration::ZERO);
        self.slots.roll(pool, now, &mut self.actions);
    }

    fn reload(&mut self, pool: PoolIndex, config: Arc<PoolConfig>, now: Instant) {
        let managed = &mut self.pools[pool.0];
        let same = managed.recipe.config.container() == config.container();
        if managed.recipe.config.image != config.image {
            (managed.image, managed.pulled) = (None, false);
        }
        managed.recipe = Arc::new(managed.recipe.with(Arc::clone(&config)));
        managed.config.send_replace(Arc::clone(&config));
        managed.complained = false;
        self.planner.set_limits(pool.0, limits(&config));
        self.slots.set_bounds(pool, bounds(&config));
        // What was being prepared, was for the recipe of before.
        if !same || managed.prepared.is_none() {
            self.prepare(pool, Duration::ZERO);
        }
        let managed = &self.pools[pool.0];
        if !same {
            tracing::info!(pool = %managed.recipe.pool, "configured otherwise: idle containers are replaced one by one");
            self.slots.roll(pool, now, &mut self.actions);
        }
        self.plan();
    }

    /// Creations under way, over all pools.
    fn creating(&self) -> usize {
        (0..self.pools.len()).map(|pool| self.slots.count(PoolIndex(pool), State::Starting)).sum()
    }

    fn known(&self) -> Known {
        let idle = |(slot, held): (&SlotId, &Held)| {
            (self.slots.state(*slot) == Some(State::Idle)).then(|| (*slot, held.container.clone()))
        };
        let name = |slot: &SlotId| self.pools[slot.pool.0].recipe.container_name(*slot);
        Known {
            idle: self.held.iter().filter_map(idle).collect(),
            held: self.held.values().map(|held| held.container.clone()).collect(),
            names: self.under_way.keys().map(name).collect(),
        }
    }

    /// Lets everybody see how it is now.
    fn publish(&self) {
        for (index, pool) in self.pools.iter().enumerate() {
            let index = PoolIndex(index);
            for state in State::ALL {
                pool.series.containers(state).set(self.slots.count(index, state) as i64);
            }
            pool.series.target.set(self.slots.target(index) as i64);
            let idle = self.slots.count(index, State::Idle) > 0;
            let reachable = idle || !self.engine_is_away;
            let now = self.slots.able(index) && !self.slots.shut_out(index) && reachable;
            pool.able.send_if_modified(|able| std::mem::replace(able, now) != now);
        }
    }

    fn status(&self) -> Vec<PoolStatus> {
        let containers = |pool: PoolIndex| {
            let mine = self.held.iter().filter(|(slot, _)| slot.pool == pool);
            let mut all: Vec<_> = mine
                .filter_map(|(slot, held)| {
                    Some((*slot, ContainerStatus::new(&held.container, self.slots.state(*slot)?)))
                })
                .collect();
            all.sort_by_key(|(slot, _)| *slot);
            all.into_iter().map(|(_, container)| container).collect()
        };
        let status = |(index, pool): (usize, &Managed)| {
            let index = PoolIndex(index);
            let count = |state| self.slots.count(index, state);
            let config = &pool.recipe.config;
            PoolStatus {
                pool: pool.recipe.pool.clone(),
                image: config.image.clone(),
                image_id: pool.image.clone(),
                able: self.slots.able(index)
                    && (self.slots.count(index, State::Idle) > 0 || !self.engine_is_away),
                idle_min: config.idle.min,
                idle_max: config.idle.max,
                memory: config.memory,
                target: self.slots.target(index),
                sizing: self.planner.sizing(index.0),
                starting: count(State::Starting),
                idle: count(State::Idle),
                stale: self.slots.stale(index),
                leased: count(State::Leased),
                removing: count(State::Removing),
                waiting: self.slots.waiting(index),
                last_failure: pool.last_failure.clone(),
                containers: containers(index),
            }
        };
        self.pools.iter().enumerate().map(status).collect()
    }
}

impl Managed {
    /// Says once that the goal can't be reached, and what would help.
    fn complain(&mut self, sizing: planner::Sizing) {
        let needed = sizing.rate * sizing.warm_seconds;
        let (pool, goal) = (&self.recipe.pool, sizing.hit_target);
        match sizing.reason {
            planner::Reason::Unreachable if !self.complained => tracing::warn!(
                %pool, rate = sizing.rate, warm_seconds = sizing.warm_seconds, creators = sizing.creators,
                "jobs come faster than containers can be made: no number of idle ones reaches hit_target = {goal}. It takes \
                 more than {needed:.1} creations at once; what helps: another worker on another host, engine.creations if \
                 its host has idle cores, containers that start faster (network = \"none\" or \"host\")"
            ),
            planner::Reason::Max if !self.complained => tracing::warn!(
                %pool, rate = sizing.rate, expected_hit_rate = sizing.expected_hit_rate,
                "idle.max = {} is not enough for hit_target = {goal}: raise it, or take the misses", sizing.target
            ),
            planner::Reason::Unreachable | planner::Reason::Max => {}
            // Not at the edge, or it would be said again and again.
            _ => {
                self.complained &=
                    needed > 0.8 * sizing.creators || sizing.target * 5 > self.recipe.config.idle.max * 4
            }
        }
        self.complained |= matches!(sizing.reason, planner::Reason::Unreachable | planner::Reason::Max);
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
