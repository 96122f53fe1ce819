//! Pure: how many idle containers each pool is to have now, from what its jobs ask for, how long containers take to
//! make, and what the host allows. [`Planner::plan`] is called a few times a second; targets grow at once and shrink slowly.

mod one;
mod share;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use serde::Serialize;

use super::sizing::Load;
use super::slots::{Budget, Serves};
use crate::config::EngineConfig;
use one::{Asked, Planned};

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
    /// Whether leased ones come back.
    pub serves: Serves,
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

impl From<&EngineConfig> for Host {
    fn from(config: &EngineConfig) -> Host {
        Host { creators: config.creations, containers: config.containers, memory: config.memory }
    }
}

impl From<Host> for Budget {
    fn from(host: Host) -> Budget {
        Budget {
            creations: host.creators,
            containers: host.containers.unwrap_or(usize::MAX),
            memory: host.memory.unwrap_or(u64::MAX),
        }
    }
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
    /// Jobs come about as fast as containers can be made, or faster: no size reaches `idle.hit_target`.
    Unreachable,
    /// No job for `idle.ttl`.
    Ttl,
}

/// A pool's target and how it came about; a part of `/status`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sizing {
    /// Idle containers wanted.
    pub target: usize,
    /// Where containers serve many jobs: how many are usually away with one.
    pub away: usize,
    /// Why.
    pub reason: Reason,
    /// Jobs per second.
    pub rate: f64,
    /// Variance over mean of their counts; 1: no bursts.
    pub burst: f64,
    /// Seconds that replacing a container takes, on average, while all creators are at work; where containers serve many
    /// jobs, that one is away with a job.
    pub warm_seconds: f64,
    /// The same for one that works alone.
    pub warm_seconds_alone: f64,
    /// 95 of 100 take less.
    pub warm_seconds_p95: f64,
    /// Variance over squared mean of those seconds, at most 1; 0: always the same.
    pub warm_variation: f64,
    /// Creations at once that the other pools leave to this one.
    pub creators: f64,
    /// The goal.
    pub hit_target: f64,
    /// The share of hits to be expected with this target.
    pub expected_hit_rate: f64,
    /// The share of hits in the last minute; none if no job came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_rate: Option<f64>,
    /// What is added to the computed size: while nothing has confirmed it, and for misses beyond the goal.
    pub correction: usize,
}

/// More than can be away with a job at once: the most that can be configured.
const SIDE_BY_SIDE: f64 = 20_000.0;

/// All pools' targets.
#[derive(Debug)]
pub struct Planner {
    host: Host,
    pools: Vec<Planned>,
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
        let pool = &mut self.pools[pool];
        pool.demand.arrived(hit, now);
        pool.jobs += 1;
        pool.missed += u64::from(!hit);
    }

    /// A container was made; it kept a creator busy for this long, with so many of the host's creations under way on
    /// average, itself included.
    pub fn warmed(&mut self, pool: usize, took: Duration, at_work: f64) {
        let pool = &mut self.pools[pool];
        // Where they come back, it is not creation that makes them scarce.
        if pool.limits.serves == Serves::One {
            pool.warm.add(took, at_work);
            pool.made += 1;
        }
    }

    /// A container came back that was away with a job for so long.
    pub fn returned(&mut self, pool: usize, away: Duration) {
        let pool = &mut self.pools[pool];
        pool.warm.add(away, 1.0);
        pool.made += 1;
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
        let all = self.host.creators as f64;
        let loads: Vec<Asked> = self.pools.iter_mut().map(|p| p.asked(all, now)).collect();
        let once = |index: usize| self.pools[index].limits.serves == Serves::One;
        let creating = || loads.iter().enumerate().filter(|(index, _)| once(*index)).map(|(_, asked)| asked);
        let offered: f64 = creating().map(|asked| asked.load.offered()).sum();
        let active = creating().filter(|asked| asked.load.rate > 0.0).count().max(1);
        for (index, asked) in loads.into_iter().enumerate() {
            // What the others leave, and at least a fair share.
            let creators = (all - (offered - asked.load.offered())).max(all / active as f64);
            let pool = &mut self.pools[index];
            // All that are away come back side by side.
            let creators = if pool.limits.serves == Serves::Many { SIDE_BY_SIDE } else { creators };
            pool.count_busy(busy(index));
            pool.decide(Asked { load: Load { creators, ..asked.load }, ..asked }, now);
        }
        self.share_out();
    }
}
