//! Pure: how many idle containers each pool is to have now, from what its jobs ask for, how long containers take to
//! make, and what the host allows. [`Planner::plan`] is called a few times a second; targets grow at once and shrink slowly.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::demand::Demand;
use super::sizing::{Load, WarmTimes};

/// A target is lowered only after it was above what is needed for this long.
pub const SHRINK_AFTER: Duration = Duration::from_secs(300);
/// Then by a step each.
const SHRINK_EVERY: Duration = Duration::from_secs(5);
/// How long a correction is given to show before the next.
const CORRECT_EVERY: Duration = Duration::from_secs(60);
/// Fewer jobs a minute say nothing about a share of hits.
const JUDGEABLE: u64 = 20;
/// What one that is held already is worth more than one that would have to be made: sharing out is not to change its mind
/// with every small change of a rate.
const HELD: f64 = 1.5;

/// What an operator allows one pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Fewest idle.
    pub min: usize,
    /// Most idle.
    pub max: usize,
    /// Wanted share of hits.
    pub hit_target: f64,
    /// Without a job for this long, only `min` are kept.
    pub ttl: Option<Duration>,
    /// What one container counts against the host's memory.
    pub memory: u64,
}

/// What the host allows all pools together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Containers being created at once.
    #[serde(rename = "creations")]
    pub creators: usize,
    /// Containers in any state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Memory of all containers, as their pools limit it.
    pub memory: Option<u64>,
}

/// Why a target is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// `idle.min` and `idle.max` are the same.
    Fixed,
    /// `idle.min`: less would do.
    Min,
    /// What the jobs ask for.
    Demand,
    /// What they asked for until a few minutes ago.
    Recent,
    /// `idle.max`: more would be needed for `idle.hit_target`.
    Max,
    /// The host's containers or memory are used up: shared out by need.
    Budget,
    /// No size reaches `idle.hit_target`: jobs come faster than containers can be made.
    Unreachable,
    /// No job for `idle.ttl`.
    Ttl,
}

/// A pool's target and how it came about; a part of `/status`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sizing {
    /// Idle containers wanted.
    pub target: usize,
    /// Why.
    pub reason: Reason,
    /// Jobs per second.
    pub rate: f64,
    /// Variance over mean of their counts; 1: no bursts.
    pub burst: f64,
    /// Seconds that replacing a container takes, on average.
    pub warm_seconds: f64,
    /// 95 of 100 take less.
    pub warm_seconds_p95: f64,
    /// Creations at once that the other pools leave to this one.
    pub creators: f64,
    /// The goal.
    pub hit_target: f64,
    /// The share of hits to be expected with this target.
    pub expected_hit_rate: f64,
    /// The share of hits in the last minute; none if no job came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_rate: Option<f64>,
    /// What is added to the computed size, since that missed the goal.
    pub correction: usize,
}

/// All pools' targets.
#[derive(Debug)]
pub struct Planner {
    host: Host,
    pools: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    limits: Limits,
    demand: Demand,
    warm: WarmTimes,
    /// Stretches this worker's patience, so that a fleet doesn't shrink in step.
    jitter: f64,
    /// Before sharing out.
    size: usize,
    /// After it, as of the plan before.
    target: usize,
    grown: Instant,
    /// Since when less than `size` would do.
    below: Option<Instant>,
    shrunk: Instant,
    correction: usize,
    corrected: Instant,
    /// Leased and removing containers, averaged over some seconds.
    busy: f64,
    /// The expected share of misses by size.
    misses: Vec<f64>,
    sizing: Sizing,
}

impl Planner {
    /// Targets for these pools, from nothing known. `jitter` is drawn for each pool: 0 to 1.
    pub fn new(host: Host, limits: &[Limits], now: Instant, mut jitter: impl FnMut() -> f64) -> Planner {
        let pools = limits.iter().map(|limits| Planned::new(*limits, 0.8 + 0.4 * jitter(), now)).collect();
        let mut planner = Planner { host, pools };
        planner.plan(now, |_| 0);
        planner
    }

    /// Takes other limits for a pool. What is known of its jobs stays.
    pub fn set_limits(&mut self, pool: usize, limits: Limits) {
        self.pools[pool].limits = limits;
    }

    /// A job came.
    pub fn arrived(&mut self, pool: usize, hit: bool, now: Instant) {
        self.pools[pool].demand.arrived(hit, now);
    }

    /// A container was made; it kept a creator busy for this long.
    pub fn warmed(&mut self, pool: usize, took: Duration) {
        self.pools[pool].warm.add(took);
    }

    /// A pool's target as of the last plan.
    pub fn sizing(&self, pool: usize) -> Sizing {
        self.pools[pool].sizing
    }

    /// What one more idle container would be worth to a pool that has this many: jobs that wouldn't wait, by how long, for
    /// the memory that it takes.
    pub fn worth(&self, pool: usize, idle: usize) -> f64 {
        let p = &self.pools[pool];
        let miss = p.misses.get(idle).copied().unwrap_or(0.0);
        p.sizing.rate * p.sizing.warm_seconds * miss / p.limits.memory.max(1) as f64
    }

    /// Computes all targets anew. `busy` gives how many of a pool's containers are leased or being removed.
    pub fn plan(&mut self, now: Instant, busy: impl Fn(usize) -> usize) {
        let loads: Vec<Load> = self.pools.iter_mut().map(|p| p.load(now)).collect();
        let offered: f64 = loads.iter().map(Load::offered).sum();
        let active = loads.iter().filter(|l| l.rate > 0.0).count().max(1);
        let all = self.host.creators as f64;
        for (index, load) in loads.into_iter().enumerate() {
            // What the others leave, and at least a fair share.
            let creators = (all - (offered - load.offered())).max(all / active as f64);
            let pool = &mut self.pools[index];
            pool.busy += (busy(index) as f64 - pool.busy) * 0.1;
            pool.decide(Load { creators, ..load }, now);
        }
        self.share_out();
    }

    /// If the host can't hold all that is wanted: the least of each pool, then one after the other to where it is worth most.
    fn share_out(&mut self) {
        let room = self.room();
        let wanted: Vec<usize> = self.pools.iter().map(|p| p.sizing.target).collect();
        let mut left = room;
        if wanted.iter().zip(&self.pools).all(|(n, p)| left.take(*n, p.limits.memory)) {
            return;
        }
        let mut left = room;
        let mut given = vec![0; wanted.len()];
        for (index, pool) in self.pools.iter().enumerate() {
            while given[index] < pool.limits.min.min(wanted[index]) && left.take(1, pool.limits.memory) {
                given[index] += 1;
            }
        }
        let mut open: Vec<usize> = (0..wanted.len()).collect();
        loop {
            open.retain(|i| given[*i] < wanted[*i]);
            let best = open.iter().copied().max_by(|a, b| {
                let need = |i: usize| {
                    let held = if given[i] < self.pools[i].target { HELD } else { 1.0 };
                    (self.worth(i, given[i]) * held, 1.0 - given[i] as f64 / wanted[i] as f64)
                };
                let (a, b) = (need(*a), need(*b));
                a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
            let Some(best) = best else { break };
            if left.take(1, self.pools[best].limits.memory) {
                given[best] += 1;
            } else {
                open.retain(|i| *i != best);
            }
        }
        for ((pool, given), wanted) in self.pools.iter_mut().zip(given).zip(wanted) {
            if given < wanted {
                pool.sizing.target = given;
                pool.sizing.reason = Reason::Budget;
            }
        }
    }

    /// What the containers that are not idle leave of the host.
    fn room(&self) -> Room {
        let mut room = Room {
            places: self.host.containers.unwrap_or(usize::MAX),
            bytes: self.host.memory.unwrap_or(u64::MAX),
        };
        for pool in &self.pools {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, averaged")]
            let busy = pool.busy.round() as usize;
            room.places = room.places.saturating_sub(busy);
            room.bytes = room.bytes.saturating_sub(pool.limits.memory.saturating_mul(busy as u64));
        }
        room
    }
}

#[derive(Clone, Copy)]
struct Room {
    places: usize,
    bytes: u64,
}

impl Room {
    /// Takes places for `n` containers of this size, if there are as many.
    fn take(&mut self, n: usize, memory: u64) -> bool {
        let bytes = memory.checked_mul(n as u64).and_then(|taken| self.bytes.checked_sub(taken));
        let (Some(places), Some(bytes)) = (self.places.checked_sub(n), bytes) else { return false };
        *self = Room { places, bytes };
        true
    }
}

impl Planned {
    fn new(limits: Limits, jitter: f64, now: Instant) -> Planned {
        let sizing = Sizing {
            target: 0,
            reason: Reason::Min,
            rate: 0.0,
            burst: 1.0,
            warm_seconds: 0.0,
            warm_seconds_p95: 0.0,
            creators: 0.0,
            hit_target: limits.hit_target,
            expected_hit_rate: 0.0,
            hit_rate: None,
            correction: 0,
        };
        Planned {
            limits,
            demand: Demand::new(now),
            warm: WarmTimes::default(),
            jitter,
            size: 0,
            target: 0,
            grown: now,
            below: None,
            shrunk: now,
            correction: 0,
            corrected: now,
            busy: 0.0,
            misses: Vec::new(),
            sizing,
        }
    }

    /// What its jobs ask for, but for the creators.
    fn load(&mut self, now: Instant) -> Load {
        let warm = self.warm.mean();
        let found = self.demand.estimate(warm, now);
        Load {
            rate: found.rate,
            warm: warm.as_secs_f64(),
            dispersion: found.dispersion,
            creators: f64::INFINITY,
        }
    }

    fn decide(&mut self, load: Load, now: Instant) {
        // What was given last time, after sharing out.
        self.target = self.sizing.target;
        self.misses = load.misses(self.limits.max);
        let (jobs, missed) = self.demand.last_minute(now);
        self.correct(jobs, missed, load.dispersion, now);
        let (needed, reason) = self.needed(load, now);
        if needed > self.size {
            self.grown = now;
        }
        if needed >= self.size || matches!(reason, Reason::Fixed | Reason::Ttl) || self.size > self.limits.max
        {
            self.size = needed;
            self.below = None;
        } else {
            self.shrink(needed, now);
        }
        let target = self.size;
        self.sizing = Sizing {
            target,
            reason: if target > needed { Reason::Recent } else { reason },
            rate: load.rate,
            burst: load.dispersion,
            warm_seconds: load.warm,
            warm_seconds_p95: self.warm.p95().as_secs_f64(),
            creators: load.creators,
            hit_target: self.limits.hit_target,
            expected_hit_rate: 1.0 - self.misses.get(target).copied().unwrap_or(1.0),
            hit_rate: (jobs > 0).then(|| 1.0 - missed as f64 / jobs as f64),
            correction: self.correction,
        };
    }

    /// How many would do now.
    fn needed(&self, load: Load, now: Instant) -> (usize, Reason) {
        let Limits { min, max, hit_target, ttl, .. } = self.limits;
        if min == max {
            return (max, Reason::Fixed);
        }
        match (self.demand.last(), ttl) {
            (None, _) => return (min, Reason::Min),
            (Some(last), Some(ttl)) if now.saturating_duration_since(last) >= ttl => {
                return (min, Reason::Ttl);
            }
            _ => {}
        }
        if !load.sustainable() {
            return (max, Reason::Unreachable);
        }
        match self.misses.iter().position(|miss| *miss <= 1.0 - hit_target).map(|size| size + self.correction)
        {
            Some(size) if size < min => (min, Reason::Min),
            Some(size) if size <= max => (size, Reason::Demand),
            _ => (max, Reason::Max),
        }
    }

    /// Models are wrong somewhere: where the goal is missed by more than chance, more is added, and taken
    /// back when it has been reached for a while.
    fn correct(&mut self, jobs: u64, missed: u64, dispersion: f64, now: Instant) {
        let since = now.saturating_duration_since(self.corrected.max(self.grown));
        if since < CORRECT_EVERY || jobs < JUDGEABLE {
            return;
        }
        let allowed = (1.0 - self.limits.hit_target) * jobs as f64;
        let chance = 3.0 * (allowed * dispersion).sqrt().max(1.0);
        if missed as f64 > allowed + chance {
            self.correction = (self.correction + (self.size / 10).max(1)).min(self.limits.max);
            self.corrected = now;
        } else if self.correction > 0 && missed as f64 <= allowed && since >= SHRINK_AFTER {
            self.correction -= 1;
            self.corrected = now;
        }
    }

    fn shrink(&mut self, needed: usize, now: Instant) {
        let below = now.saturating_duration_since(*self.below.get_or_insert(now));
        let shrunk = now.saturating_duration_since(self.shrunk);
        if below >= SHRINK_AFTER.mul_f64(self.jitter) && shrunk >= SHRINK_EVERY.mul_f64(self.jitter) {
            // A twentieth at a time where much is too much.
            self.size -= ((self.size - needed) / 20).max(1);
            self.shrunk = now;
        }
    }
}
