//! The events, one after the other.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::autoscaler::Control;
use super::worker::{Job, Stage, Worker, instant};
use super::{Arrivals, Chance, Outcome, Setup, Workers};
use crate::contract::topology::RETRY_DELAYS;
use crate::pool::slots::{Action, Serves, SlotId, State};
use crate::pool::{PLAN_EVERY, REFILL_GRACE};

/// How long the first workers may take to fill their pools before jobs come all the same; seconds.
const FILLED_BY: u64 = 600;

/// How often the autoscaler is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
enum Event {
    /// So many jobs are published.
    Burst(usize),
    /// A job comes back from its delay.
    Retry(Job),
    Plan(usize),
    Tick(usize),
    Ready(usize, SlotId),
    Ended(usize, SlotId),
    Renewed(usize, SlotId),
    Gone(usize, SlotId),
    /// A result is confirmed and its job acknowledged.
    Settled(usize),
    /// The autoscaler looks.
    Look,
    /// A worker has started.
    Up(usize),
    /// A worker that drains has no more patience.
    Stop(usize),
}

/// An event and when; the earliest is the greatest, those of the same time in the order in which they were made.
struct Due {
    at: u64,
    serial: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (other.at, other.serial).cmp(&(self.at, self.serial))
    }
}

/// Runs it, until the last job has ended; none if that takes the workers more hours together than the setup allows.
pub fn simulate(setup: &Setup, arrivals: &Arrivals) -> Option<Outcome> {
    // A fleet that doesn't change takes at least as long as jobs come: no need to try.
    let least = match setup.workers {
        Workers::Fixed(n) => n as f64 * arrivals.end() / 3600.0,
        Workers::Scaled(_) => 0.0,
    };
    if least > setup.worker_hours { None } else { Sim::new(setup, arrivals).run() }
}

struct Sim<'a> {
    setup: &'a Setup,
    arrivals: &'a Arrivals,
    /// Stands for the beginning: only what lies between matters.
    base: Instant,
    /// Nanoseconds since then.
    now: u64,
    /// When jobs begin to come.
    origin: u64,
    due: BinaryHeap<Due>,
    serial: u64,
    chance: Chance,
    arriving: Chance,
    workers: Vec<Worker>,
    /// Those that are not gone.
    alive: usize,
    control: Option<Control>,
    queue: VecDeque<Job>,
    /// Whose seats are free, the longest first: the broker serves its consumers in turn.
    free: VecDeque<usize>,
    /// Seconds of all workers together that are still allowed.
    budget: f64,
    /// Containers of all workers.
    starting: usize,
    idle: usize,
    leased: usize,
    /// Jobs with a worker.
    seated: usize,
    /// Jobs that wait for their next attempt.
    delayed: usize,
    published: usize,
    /// The minute that is counted, and its jobs.
    minute: (u64, u64),
    all_published: bool,
    out: Outcome,
}

impl<'a> Sim<'a> {
    fn new(setup: &'a Setup, arrivals: &'a Arrivals) -> Sim<'a> {
        let mut seeds = Chance::new(setup.seed);
        let control = match setup.workers {
            Workers::Scaled(autoscaler) => Some(Control::new(autoscaler)),
            Workers::Fixed(_) => None,
        };
        Sim {
            setup,
            arrivals,
            base: Instant::now(),
            now: 0,
            origin: 0,
            due: BinaryHeap::new(),
            serial: 0,
            chance: Chance::new(seeds.seed()),
            arriving: Chance::new(seeds.seed()),
            workers: Vec::new(),
            alive: 0,
            control,
            queue: VecDeque::new(),
            free: VecDeque::new(),
            budget: setup.worker_hours * 3600.0,
            starting: 0,
            idle: 0,
            leased: 0,
            seated: 0,
            delayed: 0,
            published: 0,
            minute: (0, 0),
            all_published: false,
            out: Outcome::default(),
        }
    }

    fn run(mut self) -> Option<Outcome> {
        for _ in 0..self.setup.workers.first() {
            let worker = self.add();
            self.up(worker);
        }
        // Pools are full when the first job comes.
        while self.now < FILLED_BY * 1_000_000_000 && !self.workers.iter().all(Worker::full) {
            if !self.next() {
                break;
            }
        }
        self.origin = self.now;
        self.out.most_workers = self.alive;
        self.next_burst(0.0);
        if self.control.is_some() {
            self.after(Duration::ZERO, Event::Look);
        }
        while !self.over() && self.budget > 0.0 && self.next() {}
        (self.budget > 0.0).then_some(self.out)
    }

    fn over(&self) -> bool {
        self.all_published && self.queue.is_empty() && self.seated == 0 && self.delayed == 0
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        self.due.push(Due { at: self.now + nanos(delay), serial: self.serial, event });
    }

    /// False if nothing is due any more.
    fn next(&mut self) -> bool {
        let Some(Due { at, event, .. }) = self.due.pop() else { return false };
        self.pass(at);
        self.handle(event);
        true
    }

    fn counts(&self) -> bool {
        self.now >= self.origin + nanos(Duration::from_secs_f64(self.setup.skip))
    }

    fn pass(&mut self, to: u64) {
        let seconds = (to - self.now) as f64 / 1e9;
        self.budget -= seconds * self.alive as f64;
        if self.published > 0 && self.counts() {
            self.out.seconds += seconds;
            self.out.starting_seconds += seconds * self.starting as f64;
            self.out.idle_seconds += seconds * self.idle as f64;
            self.out.leased_seconds += seconds * self.leased as f64;
            self.out.worker_seconds += seconds * self.alive as f64;
        }
        self.now = to;
    }

    fn instant(&self) -> Instant {
        instant(self.base, self.now)
    }

    fn next_burst(&mut self, after: f64) {
        match self.arrivals.next(after, self.published, &mut self.arriving) {
            Some((at, jobs)) => {
                self.serial += 1;
                let at = self.origin + nanos(Duration::from_secs_f64(at));
                self.due.push(Due { at, serial: self.serial, event: Event::Burst(jobs) });
            }
            None => {
                self.all_published = true;
                self.out.queued_at_end = self.queue.len();
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Burst(jobs) => {
                self.published += jobs;
                self.count_minute(jobs as u64);
                for _ in 0..jobs {
                    let job = Job { queued: self.now, counts: self.counts() };
                    self.out.jobs += u64::from(job.counts);
                    self.queue.push_back(job);
                    self.give_out();
                }
                self.out.longest_queue = self.out.longest_queue.max(self.queue.len());
                self.next_burst((self.now - self.origin) as f64 / 1e9);
            }
            Event::Retry(job) => {
                self.delayed -= 1;
                self.queue.push_back(Job { queued: self.now, ..job });
                self.give_out();
            }
            Event::Plan(w) => {
                if matches!(self.workers[w].stage, Stage::Warming | Stage::Serving) {
                    self.with(w, |worker| worker.plan(now));
                    self.after(PLAN_EVERY, Event::Plan(w));
                }
            }
            Event::Tick(w) => {
                self.with(w, |worker| worker.tick(now));
                self.look_again(w, now);
            }
            Event::Ready(w, slot) => {
                self.with(w, |worker| worker.ready(slot, now));
                if self.workers[w].stage == Stage::Warming && self.workers[w].able() {
                    self.workers[w].stage = Stage::Serving;
                    self.free.extend(std::iter::repeat_n(w, self.setup.pool.concurrency));
                    self.give_out();
                }
                self.leave(w);
            }
            Event::Ended(w, slot) => self.ended(w, slot, now),
            Event::Renewed(w, slot) => self.with(w, |worker| worker.renewed(slot, now)),
            Event::Gone(w, slot) => {
                self.with(w, |worker| worker.gone(slot, now));
                self.leave(w);
            }
            Event::Settled(w) => {
                self.seated -= 1;
                self.workers[w].seated -= 1;
                if self.workers[w].stage == Stage::Serving {
                    self.free.push_back(w);
                    self.give_out();
                }
                self.leave(w);
            }
            Event::Look => self.look(),
            Event::Up(w) => {
                if self.workers[w].stage == Stage::Coming {
                    self.up(w);
                }
            }
            Event::Stop(w) => {
                let stopped = self.with(w, |worker| worker.stop(now));
                self.seated -= stopped.len();
                for job in stopped {
                    self.delayed += 1;
                    self.after(RETRY_DELAYS[0], Event::Retry(job));
                }
                self.leave(w);
            }
        }
    }

    fn count_minute(&mut self, jobs: u64) {
        let minute = (self.now - self.origin) / nanos(Duration::from_secs(60));
        if minute != self.minute.0 {
            self.minute = (minute, 0);
        }
        self.minute.1 += jobs;
        if self.counts() {
            self.out.busiest_minute = self.out.busiest_minute.max(self.minute.1);
        }
    }

    /// Does something with a worker, then what that asks for.
    fn with<T>(&mut self, w: usize, what: impl FnOnce(&mut Worker) -> T) -> T {
        let before = counts(&self.workers[w]);
        let found = what(&mut self.workers[w]);
        while let Some(action) = self.workers[w].action() {
            self.act(w, action);
        }
        let after = counts(&self.workers[w]);
        self.starting = self.starting + after.0 - before.0;
        self.idle = self.idle + after.1 - before.1;
        self.leased = self.leased + after.2 - before.2;
        found
    }

    fn act(&mut self, w: usize, action: Action) {
        let (now, pace) = (self.instant(), self.setup.pace);
        match action {
            Action::Start(slot) => {
                let held = if self.workers[w].begin(slot, now) { Duration::ZERO } else { REFILL_GRACE };
                let took = pace.warm.sample(&mut self.chance);
                self.after(held + took, Event::Ready(w, slot));
            }
            Action::Grant(slot, waiter) => {
                let Some(waiting) = self.workers[w].grant(slot, waiter, now) else { return };
                let waited = (self.now - waiting.received) as f64 / 1e9;
                if waiting.job.counts {
                    self.out.attempts += 1;
                    self.out.start_up.add(waited + pace.start.as_secs_f64());
                    if !waiting.hit {
                        self.out.miss_wait.add(waited);
                    }
                }
                let run = pace.run.sample(&mut self.chance);
                self.after(pace.start + run, Event::Ended(w, slot));
            }
            Action::Remove(slot, _) => self.after(pace.removal, Event::Gone(w, slot)),
        }
    }

    /// Jobs to seats, both in their order.
    fn give_out(&mut self) {
        let now = self.instant();
        while !self.queue.is_empty() {
            let Some(w) = self.free.pop_front() else { return };
            let Some(job) = self.queue.pop_front() else { return };
            self.seated += 1;
            let received = self.now;
            let hit = self.with(w, |worker| worker.receive(job, received, now));
            if job.counts {
                self.out.queue_wait.add((self.now - job.queued) as f64 / 1e9);
                self.out.leases += 1;
                self.out.hits += u64::from(hit);
            }
            if !hit {
                self.look_again(w, now);
            }
        }
    }

    fn look_again(&mut self, w: usize, now: Instant) {
        if let Some(at) = self.workers[w].look_at(now) {
            self.after(at.saturating_duration_since(now), Event::Tick(w));
        }
    }

    fn ended(&mut self, w: usize, slot: SlotId, now: Instant) {
        // It may have been stopped.
        let Some(job) = self.with(w, |worker| worker.ended(slot, now)) else { return };
        self.out.finished += u64::from(job.counts);
        self.after(self.setup.pace.settle, Event::Settled(w));
        if self.workers[w].serves() == Serves::Many {
            self.after(self.setup.pace.renewal, Event::Renewed(w, slot));
        }
    }

    fn add(&mut self) -> usize {
        let now = self.instant();
        self.workers.push(Worker::new(self.setup, now, &mut self.chance));
        self.alive += 1;
        self.out.most_workers = self.out.most_workers.max(self.alive);
        self.workers.len() - 1
    }

    /// Its process runs: it makes its first container.
    fn up(&mut self, w: usize) {
        self.workers[w].stage = Stage::Warming;
        let now = self.instant();
        self.with(w, |worker| worker.plan(now));
        // Not all in step.
        let first = PLAN_EVERY.mul_f64(self.chance.unit());
        self.after(first, Event::Plan(w));
    }

    fn look(&mut self) {
        let since = Duration::from_nanos(self.now - self.origin);
        let Some(control) = &mut self.control else { return };
        let Workers::Scaled(autoscaler) = self.setup.workers else { return };
        let staying: Vec<usize> = (0..self.workers.len())
            .filter(|w| matches!(self.workers[*w].stage, Stage::Coming | Stage::Warming | Stage::Serving))
            .collect();
        let wanted = control.look(since, self.queue.len() + self.seated, staying.len());
        for _ in staying.len()..wanted {
            let worker = self.add();
            self.out.workers_started += 1;
            self.after(autoscaler.start_up, Event::Up(worker));
        }
        // Those that serve least come last, and the newest go first.
        let mut going = staying;
        going.sort_by_key(|w| (self.workers[*w].stage == Stage::Serving, std::cmp::Reverse(*w)));
        for w in going.iter().take(going.len().saturating_sub(wanted)) {
            self.drain(*w);
        }
        if !self.over() {
            self.after(LOOK_EVERY, Event::Look);
        }
    }

    fn drain(&mut self, w: usize) {
        self.out.workers_stopped += 1;
        let back = self.with(w, Worker::drain);
        self.seated -= back.len();
        self.free.retain(|free| *free != w);
        self.out.handed_back += back.len() as u64;
        for job in back.into_iter().rev() {
            self.queue.push_front(job);
        }
        self.give_out();
        self.after(self.setup.drain_timeout, Event::Stop(w));
        self.leave(w);
    }

    /// A worker that has drained is gone.
    fn leave(&mut self, w: usize) {
        if self.workers[w].stage == Stage::Draining && self.workers[w].empty() {
            self.workers[w].stage = Stage::Gone;
            self.alive -= 1;
        }
    }
}

fn counts(worker: &Worker) -> (usize, usize, usize) {
    (worker.count(State::Starting), worker.count(State::Idle), worker.count(State::Leased))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
