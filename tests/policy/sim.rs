//! A worker in simulated time: the real state machine and the real planner, without engine and clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use prewarm::pool::planner::{Host, Limits, Planner};
use prewarm::pool::slots::{Action, Serves, SlotId};

use crate::machine::Machine;
use prewarm::fleet::{Chance, Random, Times};

/// Limits of a pool of one size.
pub fn fixed(size: usize) -> Limits {
    Limits { min: size, max: size, hit_target: 0.99, ttl: None, memory: 1, serves: Serves::One }
}

/// Limits of a pool that finds its own size, with a maximum that doesn't matter.
pub fn adaptive() -> Limits {
    Limits { max: 300, ..fixed(1) }
}

/// A host without a budget.
pub fn host(creators: usize) -> Host {
    Host { creators, containers: None, memory: None }
}

/// What a simulation is made of.
pub struct Setup {
    pub host: Host,
    /// How long creations take.
    pub creation: Times,
    /// How long jobs run.
    pub job: Times,
    /// How often targets are computed.
    pub plan_every: Duration,
    pub seed: u64,
}

impl Setup {
    pub fn new(host: Host, creation: Times, seed: u64) -> Setup {
        let job = Times::Exponential(0.1);
        Setup { host, creation, job, plan_every: Duration::from_millis(500), seed }
    }
}

/// What happened to a pool during a stretch of time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    pub jobs: u64,
    pub missed: u64,
    /// What the missed jobs waited, together.
    pub waited: f64,
    pub seconds: f64,
    /// Idle containers × seconds.
    pub idle_seconds: f64,
    /// How often the target changed.
    pub changes: u64,
}

impl Record {
    pub fn misses(&self) -> f64 {
        self.missed as f64 / self.jobs as f64
    }

    pub fn hits(&self) -> f64 {
        1.0 - self.misses()
    }

    pub fn idle(&self) -> f64 {
        self.idle_seconds / self.seconds
    }

    /// Seconds that a missed job waited on average.
    pub fn wait(&self) -> f64 {
        self.waited / self.missed.max(1) as f64
    }

    pub fn add(&mut self, other: &Record) {
        self.jobs += other.jobs;
        self.missed += other.missed;
        self.waited += other.waited;
        self.seconds += other.seconds;
        self.idle_seconds += other.idle_seconds;
        self.changes += other.changes;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Plan,
    /// A burst of this many jobs of a pool.
    Burst(usize, usize),
    Ready(SlotId),
    Ended(SlotId),
    Gone(SlotId),
}

struct Pool {
    arrivals: Random,
    chance: Chance,
    record: Record,
    target: usize,
}

pub struct Sim {
    start: Instant,
    /// Nanoseconds since the start.
    now: u64,
    setup: Setup,
    chance: Chance,
    pub machine: Machine,
    pub planner: Planner,
    pools: Vec<Pool>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Makes events of the same time happen in the order in which they were made.
    serial: u64,
    /// When the jobs that wait came.
    waiting: HashMap<u64, u64>,
    began: HashMap<SlotId, u64>,
    /// How many creations were under way when one began.
    at_work: HashMap<SlotId, f64>,
}

impl Sim {
    pub fn new(setup: Setup, pools: Vec<(Limits, Random)>) -> Sim {
        let start = Instant::now();
        let limits: Vec<Limits> = pools.iter().map(|(limits, _)| *limits).collect();
        let mut seeds = Chance::new(setup.seed);
        let mut seed = || (seeds.unit() * 2f64.powi(53)) as u64;
        let chance = Chance::new(seed());
        let mut jitter = Chance::new(seed());
        let pools = pools.into_iter().map(|(_, arrivals)| Pool {
            arrivals,
            chance: Chance::new(seed()),
            record: Record::default(),
            target: 0,
        });
        let pools: Vec<Pool> = pools.collect();
        let mut sim = Sim {
            start,
            now: 0,
            chance,
            machine: Machine::new(pools.len(), setup.host.creators),
            planner: Planner::new(setup.host, &limits, start, || jitter.unit()),
            setup,
            pools,
            events: BinaryHeap::new(),
            serial: 0,
            waiting: HashMap::new(),
            began: HashMap::new(),
            at_work: HashMap::new(),
        };
        sim.at(Duration::ZERO, Event::Plan);
        (0..sim.pools.len()).for_each(|pool| sim.next_burst(pool));
        sim
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_nanos(self.now)
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.now + after.as_nanos() as u64, self.serial, event)));
    }

    fn next_burst(&mut self, pool: usize) {
        let now = self.now as f64 / 1e9;
        let p = &mut self.pools[pool];
        let (at, jobs) = p.arrivals.next(now, &mut p.chance);
        self.at(Duration::from_secs_f64(at - now), Event::Burst(pool, jobs));
    }

    /// Goes on until so many seconds after the start.
    pub fn run_until(&mut self, seconds: f64) {
        let end = (seconds * 1e9) as u64;
        while let Some(Reverse((at, _, event))) = self.events.peek().copied() {
            if at > end {
                break;
            }
            self.events.pop();
            self.pass(at);
            self.handle(event);
            self.act();
        }
        self.pass(end);
    }

    /// What happened to a pool since the last call.
    pub fn take(&mut self, pool: usize) -> Record {
        std::mem::take(&mut self.pools[pool].record)
    }

    fn pass(&mut self, to: u64) {
        let seconds = (to - self.now) as f64 / 1e9;
        for (index, pool) in self.pools.iter_mut().enumerate() {
            pool.record.seconds += seconds;
            pool.record.idle_seconds += seconds * self.machine.idle(index) as f64;
        }
        self.now = to;
    }

    fn handle(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Plan => {
                self.plan(now);
                self.at(self.setup.plan_every, Event::Plan);
            }
            Event::Burst(pool, jobs) => {
                for _ in 0..jobs {
                    self.serial += 1;
                    self.waiting.insert(self.serial, self.now);
                    let hit = self.machine.lease(pool, self.serial, now);
                    self.planner.arrived(pool, hit, now);
                    self.pools[pool].record.jobs += 1;
                    self.pools[pool].record.missed += u64::from(!hit);
                    // Each job of a burst sees what the one before it left.
                    self.act();
                }
                self.next_burst(pool);
            }
            Event::Ready(slot) => {
                if let Some(began) = self.began.remove(&slot) {
                    // As many as there were when it began and are now, in the middle.
                    let at_work =
                        (self.at_work.remove(&slot).unwrap_or(1.0) + self.began.len() as f64 + 1.0) / 2.0;
                    self.planner.warmed(slot.pool.0, Duration::from_nanos(self.now - began), at_work);
                }
                self.machine.ready(slot, now);
            }
            Event::Ended(slot) => self.machine.served(slot, now),
            Event::Gone(slot) => self.machine.gone(slot, now),
        }
    }

    fn plan(&mut self, now: Instant) {
        let machine = &self.machine;
        self.planner.plan(now, |pool| machine.busy(pool));
        for (index, pool) in self.pools.iter_mut().enumerate() {
            let target = self.planner.sizing(index).target;
            pool.record.changes += u64::from(target != pool.target);
            pool.target = target;
            self.machine.follow(index, &self.planner, now);
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.action() {
            match action {
                Action::Start(slot) => {
                    self.began.insert(slot, self.now);
                    self.at_work.insert(slot, self.began.len() as f64);
                    let took = self.setup.creation.sample(&mut self.chance);
                    self.at(took, Event::Ready(slot));
                }
                Action::Grant(slot, waiter) => {
                    let waited = self.waiting.remove(&waiter.0).map_or(0, |since| self.now - since);
                    self.pools[slot.pool.0].record.waited += waited as f64 / 1e9;
                    let took = self.setup.job.sample(&mut self.chance);
                    self.at(took, Event::Ended(slot));
                }
                Action::Remove(slot, _) => self.at(Duration::from_millis(20), Event::Gone(slot)),
            }
        }
    }
}
