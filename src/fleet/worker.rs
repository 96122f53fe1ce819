//! One worker: the real state machine and the real planner, and who waits or runs here.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Chance, Setup};
use crate::pool::planner::{Limits, Planner};
use crate::pool::slots::{Action, Bounds, PoolIndex, Reason, Serves, SlotId, Slots, State, WaiterId};
use crate::pool::{bounds, limits};

/// There is one.
const POOL: PoolIndex = PoolIndex(0);

/// A job, on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Job {
    /// When it was published, or came back from its delay; nanoseconds.
    pub queued: u64,
    /// Whether it was published when things count.
    pub counts: bool,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not there yet.
    Coming,
    /// Its first container is not ready.
    Warming,
    /// Takes jobs.
    Serving,
    /// Takes no more.
    Draining,
    /// Gone.
    Gone,
}

/// A job that waits for its container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub waiter: WaiterId,
    pub job: Job,
    /// When it came here; nanoseconds.
    pub received: u64,
    pub hit: bool,
}

/// A creation that is under way.
struct Creation {
    held: Instant,
    at_work: usize,
}

pub(super) struct Worker {
    slots: Slots,
    planner: Planner,
    max: usize,
    serves: Serves,
    out: VecDeque<Action>,
    scratch: Vec<Action>,
    creations: BTreeMap<SlotId, Creation>,
    waiting: VecDeque<Waiting>,
    running: BTreeMap<SlotId, Job>,
    leased: BTreeMap<SlotId, Instant>,
    next_waiter: u64,
    /// When to look at who waits.
    look_at: Option<Instant>,
    pub stage: Stage,
    /// Seats with a job in any state, from delivery to settlement.
    pub seated: usize,
}

impl Worker {
    pub fn new(setup: &Setup, now: Instant, jitter: &mut Chance) -> Worker {
        let host = setup.host;
        let (bounds, limits): (Bounds, Limits) = (bounds(&setup.pool), limits(&setup.pool));
        Worker {
            slots: Slots::new(&[bounds], host.into()),
            planner: Planner::new(host, &[limits], now, || jitter.unit()),
            max: limits.max,
            serves: limits.serves,
            out: VecDeque::new(),
            scratch: Vec::new(),
            creations: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            leased: BTreeMap::new(),
            next_waiter: 0,
            look_at: None,
            stage: Stage::Coming,
            seated: 0,
        }
    }

    /// What is to be done next.
    pub fn action(&mut self) -> Option<Action> {
        self.out.pop_front()
    }

    pub fn serves(&self) -> Serves {
        self.serves
    }

    pub fn count(&self, state: State) -> usize {
        self.slots.count(POOL, state)
    }

    /// Whether it may take jobs.
    pub fn able(&self) -> bool {
        self.slots.able(POOL)
    }

    /// As many are idle as wanted.
    pub fn full(&self) -> bool {
        self.count(State::Starting) == 0 && self.count(State::Idle) >= self.slots.target(POOL)
    }

    /// Whether nothing of it is left.
    pub fn empty(&self) -> bool {
        self.slots.is_empty() && self.seated == 0
    }

    /// A job came to one of its seats; whether it is a hit.
    pub fn receive(&mut self, job: Job, received: u64, now: Instant) -> bool {
        self.seated += 1;
        let waiter = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        let hit = self.slots.lease(POOL, waiter, now, &mut self.scratch);
        self.planner.arrived(POOL.0, hit, now);
        self.waiting.push_back(Waiting { waiter, job, received, hit });
        self.keep();
        hit
    }

    /// When somebody is to look at who waits, if nobody has been told to yet.
    pub fn look_at(&mut self, now: Instant) -> Option<Instant> {
        let next = if self.waiting.is_empty() { None } else { self.slots.next_tick(now) };
        let sooner = next.filter(|next| self.look_at.is_none_or(|at| *next < at || at <= now));
        self.look_at = sooner.or(self.look_at);
        sooner
    }

    /// Time has passed for who waits.
    pub fn tick(&mut self, now: Instant) {
        self.slots.tick(now, &mut self.scratch);
        self.keep();
    }

    /// Computes the target anew.
    pub fn plan(&mut self, now: Instant) {
        let busy = self.count(State::Leased) + self.count(State::Removing);
        self.planner.plan(now, |_| busy);
        let sizing = self.planner.sizing(POOL.0);
        let worth = (0..=self.max).map(|idle| self.planner.worth(POOL.0, idle));
        let worth = worth.take_while(|worth| *worth > 0.0).collect();
        self.slots.set_target(POOL, sizing.target, sizing.away, worth, now, &mut self.scratch);
        self.slots.tick(now, &mut self.scratch);
        self.keep();
    }

    /// A creation begins; whether a job waits for one.
    pub fn begin(&mut self, slot: SlotId, now: Instant) -> bool {
        self.creations.insert(slot, Creation { held: now, at_work: self.count(State::Starting) });
        self.slots.waiting(POOL) > 0
    }

    /// A container is ready.
    pub fn ready(&mut self, slot: SlotId, now: Instant) {
        if let Some(Creation { held, at_work }) = self.creations.remove(&slot) {
            // As many as there were when it began and are now, in the middle.
            let at_work = (at_work + self.count(State::Starting)) as f64 / 2.0;
            self.planner.warmed(POOL.0, now.saturating_duration_since(held), at_work);
        }
        self.slots.ready(slot, now, &mut self.scratch);
        self.keep();
    }

    /// A container was granted to this waiter, whose job begins.
    pub fn grant(&mut self, slot: SlotId, waiter: WaiterId, now: Instant) -> Option<Waiting> {
        let place = self.waiting.iter().position(|waiting| waiting.waiter == waiter)?;
        let waiting = self.waiting.remove(place)?;
        self.running.insert(slot, waiting.job);
        self.leased.insert(slot, now);
        Some(waiting)
    }

    /// The run in this slot is over; the job, unless it had been stopped.
    pub fn ended(&mut self, slot: SlotId, now: Instant) -> Option<Job> {
        let job = self.running.remove(&slot)?;
        if self.serves == Serves::One {
            self.slots.released(slot, Reason::Used, now, &mut self.scratch);
            self.leased.remove(&slot);
        }
        self.keep();
        Some(job)
    }

    /// The container is ready for another job.
    pub fn renewed(&mut self, slot: SlotId, now: Instant) {
        if let Some(since) = self.leased.remove(&slot) {
            self.planner.returned(POOL.0, now.saturating_duration_since(since));
            self.slots.returned(slot, now, &mut self.scratch);
        }
        self.keep();
    }

    pub fn gone(&mut self, slot: SlotId, now: Instant) {
        self.slots.gone(slot, now, &mut self.scratch);
        self.keep();
    }

    /// Takes no more: what has not begun is handed back.
    pub fn drain(&mut self) -> Vec<Job> {
        self.stage = Stage::Draining;
        self.slots.drain(&mut self.scratch);
        self.keep();
        self.seated -= self.waiting.len();
        self.waiting.drain(..).map(|waiting| waiting.job).collect()
    }

    /// Stops what runs.
    pub fn stop(&mut self, now: Instant) -> Vec<Job> {
        let running = std::mem::take(&mut self.running);
        for slot in running.keys() {
            self.leased.remove(slot);
            self.slots.released(*slot, Reason::Used, now, &mut self.scratch);
        }
        self.seated -= running.len();
        self.keep();
        running.into_values().collect()
    }

    fn keep(&mut self) {
        self.out.extend(self.scratch.drain(..));
    }
}

/// A time that lies so many nanoseconds after the beginning.
pub(super) fn instant(begin: Instant, nanos: u64) -> Instant {
    begin + Duration::from_nanos(nanos)
}
