//! What the driver does beside leases: what creations came to, other images and configurations, what others may see.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;

use super::command::{Command, Known};
use super::managed::{Managed, Preparing, bounds, limits};
use super::{Driver, Held, now};
use crate::config::{PoolConfig, Pull};
use crate::engine::EngineError;
use crate::pool::PoolStatus;
use crate::pool::recipe::{Prepared, Recipe};
use crate::pool::slots::{PoolIndex, SlotId, State};
use crate::pool::status::ContainerStatus;

/// An idle container that ends sooner after it was ready is a sign that something is wrong with it.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// So long after such a death the next container that is ready is no proof that all is well.
const MISTRUST: Duration = Duration::from_secs(120);

impl Driver {
    pub(super) fn recovered(
        &mut self,
        pool: PoolIndex,
        recipe: &Arc<Recipe>,
        image: String,
        warmup: Duration,
    ) {
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

    pub(super) fn failed(&mut self, slot: SlotId, error: String, now: Instant) {
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
    pub(super) fn prepare(&mut self, pool: PoolIndex, after: Duration) {
        if self.drained.is_some() {
            return;
        }
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
            tracing::debug!(pool = %recipe.pool, "preparing");
            let outcome = recipe.prepare(pull).await;
            tracing::debug!(pool = %recipe.pool, failed = outcome.is_err(), "prepared");
            let _ = commands.send(Command::Prepared { pool, recipe, outcome });
        };
        managed.preparing =
            Some(Preparing { task: AbortOnDropHandle::new(tokio::spawn(task)), at: now() + after });
    }

    pub(super) fn prepared(
        &mut self,
        pool: PoolIndex,
        recipe: &Arc<Recipe>,
        outcome: Result<Prepared, EngineError>,
        now: Instant,
    ) {
        let managed = &mut self.pools[pool.0];
        if self.drained.is_some() {
            managed.preparing = None;
            return;
        }
        if !Arc::ptr_eq(recipe, &managed.recipe) {
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
    pub(super) fn note_death(&mut self, slot: SlotId, now: Instant) {
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

    pub(super) fn image_is(&mut self, pool: PoolIndex, name: &str, image: String, now: Instant) {
        let managed = &mut self.pools[pool.0];
        if managed.recipe.config.image != name || self.drained.is_some() {
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

    pub(super) fn reload(&mut self, pool: PoolIndex, config: Arc<PoolConfig>, now: Instant) {
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
    pub(super) fn creating(&self) -> usize {
        (0..self.pools.len()).map(|pool| self.slots.count(PoolIndex(pool), State::Starting)).sum()
    }

    pub(super) fn known(&self) -> Known {
        let idle = |(slot, held): (&SlotId, &Held)| {
            (self.slots.state(*slot) == Some(State::Idle)).then(|| held.container.clone())
        };
        let name = |slot: &SlotId| self.pools[slot.pool.0].recipe.container_name(*slot);
        Known {
            idle: self.held.iter().filter_map(idle).collect(),
            held: self.held.values().map(|held| held.container.clone()).collect(),
            names: self.under_way.keys().map(name).collect(),
        }
    }

    /// Whether a pool can serve, as far as is known.
    fn able(&self, pool: PoolIndex) -> bool {
        let idle = self.slots.count(pool, State::Idle) > 0;
        self.slots.able(pool) && (idle || self.engine_is_away.is_none())
    }

    /// Lets everybody see how it is now.
    pub(super) fn publish(&self) {
        for (index, pool) in self.pools.iter().enumerate() {
            let index = PoolIndex(index);
            for state in State::ALL {
                pool.series.containers(state).set(self.slots.count(index, state) as i64);
            }
            pool.series.target.set(self.slots.target(index) as i64);
            pool.series.waiting.set(self.slots.waiting(index) as i64);
            let able = self.able(index);
            pool.series.able.set(i64::from(able));
            let now = able && !self.slots.shut_out(index);
            pool.able.send_if_modified(|able| std::mem::replace(able, now) != now);
        }
    }

    pub(super) fn status(&self) -> Vec<PoolStatus> {
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
        // What failed before is not why nothing is made now; and while all slots are taken nothing is tried, so that
        // nothing fails anew.
        let away = self.engine_is_away.as_ref().map(ToString::to_string);
        let status = |(index, pool): (usize, &Managed)| {
            let index = PoolIndex(index);
            let count = |state| self.slots.count(index, state);
            let config = &pool.recipe.config;
            PoolStatus {
                pool: pool.recipe.pool.clone(),
                image: config.image.clone(),
                image_id: pool.image.clone(),
                able: self.able(index),
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
                last_failure: away.clone().or_else(|| pool.last_failure.clone()),
                containers: containers(index),
            }
        };
        self.pools.iter().enumerate().map(status).collect()
    }
}
