//! The pools' state machine: pure, so that every rule about containers is in one place and can be tested without
//! any. Events go in, actions come out; it has no clock, no lock, no task.
//!
//! ```text
//!                  ready                lease               release
//!   ─► starting ──────────► idle ───────────────► leased ───────────┐
//!         │ failed            │ died, shrunk, drained                ▼
//!         └───────────────────┴──────────────────────────────► removing ─► (gone)
//! ```
//!
//! A slot is one container's place. Where a slot is says its state: each state of each pool is a set, and a slot is in
//! exactly one. Counts are the sets' sizes, so they can't disagree with the states.
//!
//! A slot counts against its pool's bound, and its creation against the host's, until the container is really gone.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

/// A pool, by its place in the list that the machine was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolIndex(pub usize);

/// One container's place. Serial numbers only grow, so the smallest idle one is the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId {
    /// The pool that it belongs to.
    pub pool: PoolIndex,
    serial: u64,
}

/// Somebody who waits for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being created, started, waited for.
    Starting,
    /// Ready, nobody's.
    Idle,
    /// Running a job, or about to.
    Leased,
    /// Being removed.
    Removing,
}

impl State {
    /// All, for metrics that must exist from the start.
    pub const ALL: [State; 4] = [State::Starting, State::Idle, State::Leased, State::Removing];

    /// As in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Idle => "idle",
            State::Leased => "leased",
            State::Removing => "removing",
        }
    }
}

/// Why a container is retired: the `reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It served its job.
    Used,
    /// It ended by itself while idle.
    Died,
    /// It never became ready.
    Failed,
    /// It was leased and given back without having served: nobody knows what state it is in.
    Doubt,
    /// More were idle than wanted.
    Shrunk,
    /// It was idle for longer than allowed.
    Age,
    /// Its image or configuration is no longer the pool's.
    Rolled,
    /// The worker is shutting down.
    Drained,
}

impl Reason {
    /// All, for metrics that must exist from the start.
    pub const ALL: [Reason; 8] = [
        Reason::Used,
        Reason::Died,
        Reason::Failed,
        Reason::Doubt,
        Reason::Shrunk,
        Reason::Age,
        Reason::Rolled,
        Reason::Drained,
    ];

    /// As in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Used => "used",
            Reason::Died => "died",
            Reason::Failed => "failed",
            Reason::Doubt => "doubt",
            Reason::Shrunk => "shrunk",
            Reason::Age => "age",
            Reason::Rolled => "rolled",
            Reason::Drained => "drained",
        }
    }
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create a container for this slot; answer with `ready` or `failed`.
    Start(SlotId),
    /// Hand this idle slot to this waiter; answer with `died` if it turns out to be dead.
    Grant(SlotId, WaiterId),
    /// Remove this slot's container; answer with `gone`.
    Remove(SlotId, Reason),
}

/// A pool's fixed bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most slots in all states together.
    pub slots: usize,
}

#[derive(Debug)]
struct Pool {
    bounds: Bounds,
    target: usize,
    starting: BTreeSet<SlotId>,
    idle: BTreeSet<SlotId>,
    leased: BTreeSet<SlotId>,
    removing: BTreeSet<SlotId>,
    waiters: VecDeque<WaiterId>,
    /// After a failed creation, none before this; then one at a time until one succeeds.
    held_until: Option<Instant>,
    failing: bool,
}

impl Pool {
    fn total(&self) -> usize {
        self.starting.len() + self.idle.len() + self.leased.len() + self.removing.len()
    }

    /// Containers that waiters wait for and that nobody is creating yet.
    fn owed(&self) -> usize {
        self.waiters.len().saturating_sub(self.starting.len())
    }

    /// Containers to create: one for each waiter, and what the target lacks.
    fn deficit(&self) -> usize {
        (self.target + self.waiters.len()).saturating_sub(self.idle.len() + self.starting.len())
    }

    fn may_start(&self, now: Instant) -> bool {
        self.deficit() > 0
            && self.total() < self.bounds.slots
            && self.held_until.is_none_or(|t| t <= now)
            && (!self.failing || self.starting.is_empty())
    }
}

/// All slots of this host.
#[derive(Debug)]
pub struct Slots {
    pools: Vec<Pool>,
    creations: usize,
    next_serial: u64,
    draining: bool,
}

impl Slots {
    /// No slots yet: pools with these bounds, at most `creations` containers being created at once.
    pub fn new(pools: &[Bounds], creations: usize) -> Slots {
        let pool = |bounds: &Bounds| Pool {
            bounds: *bounds,
            target: 0,
            starting: BTreeSet::new(),
            idle: BTreeSet::new(),
            leased: BTreeSet::new(),
            removing: BTreeSet::new(),
            waiters: VecDeque::new(),
            held_until: None,
            failing: false,
        };
        Slots { pools: pools.iter().map(pool).collect(), creations, next_serial: 0, draining: false }
    }

    /// How many slots of a pool are in a state.
    pub fn count(&self, pool: PoolIndex, state: State) -> usize {
        let p = &self.pools[pool.0];
        match state {
            State::Starting => p.starting.len(),
            State::Idle => p.idle.len(),
            State::Leased => p.leased.len(),
            State::Removing => p.removing.len(),
        }
    }

    /// How many wait for a container of this pool.
    pub fn waiting(&self, pool: PoolIndex) -> usize {
        self.pools[pool.0].waiters.len()
    }

    /// How many idle slots are wanted.
    pub fn target(&self, pool: PoolIndex) -> usize {
        self.pools[pool.0].target
    }

    /// Whether no slot is left in any state.
    pub fn is_empty(&self) -> bool {
        self.pools.iter().all(|p| p.total() == 0)
    }

    /// Sets how many idle slots are wanted. Surplus idle ones are retired, the oldest first.
    pub fn set_target(&mut self, pool: PoolIndex, target: usize, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[pool.0];
        p.target = target;
        while p.idle.len() > target {
            let Some(slot) = p.idle.pop_first() else { break };
            p.removing.insert(slot);
            out.push(Action::Remove(slot, Reason::Shrunk));
        }
        self.refill(now, out);
    }

    /// Somebody asks for a container. `true`: an idle one is granted at once, a hit.
    pub fn lease(&mut self, pool: PoolIndex, waiter: WaiterId, now: Instant, out: &mut Vec<Action>) -> bool {
        let p = &mut self.pools[pool.0];
        p.waiters.push_back(waiter);
        let hit = p.waiters.len() == 1 && !p.idle.is_empty();
        self.serve(pool, out);
        self.refill(now, out);
        hit
    }

    /// A waiter doesn't want one any more. One that was granted already gives it back by `released`.
    pub fn give_up(&mut self, pool: PoolIndex, waiter: WaiterId) {
        self.pools[pool.0].waiters.retain(|w| *w != waiter);
    }

    /// A starting slot's container said READY.
    pub fn ready(&mut self, slot: SlotId, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        if !p.starting.remove(&slot) {
            return;
        }
        p.failing = false;
        p.held_until = None;
        if self.draining {
            p.removing.insert(slot);
            out.push(Action::Remove(slot, Reason::Drained));
            return;
        }
        p.idle.insert(slot);
        self.serve(slot.pool, out);
        self.refill(now, out);
    }

    /// A starting slot's container never became ready. No other one of its pool is started before
    /// `hold_until`, so that a broken image isn't tried in a hot loop.
    pub fn failed(&mut self, slot: SlotId, hold_until: Instant, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        if !p.starting.remove(&slot) {
            return;
        }
        p.failing = true;
        p.held_until = Some(hold_until);
        p.removing.insert(slot);
        out.push(Action::Remove(slot, Reason::Failed));
        self.refill(now, out);
    }

    /// An idle slot's container ended. If it was just granted, `waiter` is who got it: they wait again, first in line.
    pub fn died(&mut self, slot: SlotId, waiter: Option<WaiterId>, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        if !p.idle.remove(&slot) && !p.leased.remove(&slot) {
            return;
        }
        p.removing.insert(slot);
        out.push(Action::Remove(slot, Reason::Died));
        if let Some(waiter) = waiter {
            p.waiters.push_front(waiter);
            self.serve(slot.pool, out);
        }
        self.refill(now, out);
    }

    /// A lease ended.
    pub fn released(&mut self, slot: SlotId, reason: Reason, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        if !p.leased.remove(&slot) {
            return;
        }
        p.removing.insert(slot);
        out.push(Action::Remove(slot, reason));
        self.refill(now, out);
    }

    /// A removing slot's container is gone.
    pub fn gone(&mut self, slot: SlotId, now: Instant, out: &mut Vec<Action>) {
        self.pools[slot.pool.0].removing.remove(&slot);
        self.refill(now, out);
    }

    /// Time has passed: starts what was held until now.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.refill(now, out);
    }

    /// When `tick` has something to do, if nothing else happens. Never a time that has passed: what is due and not
    /// started then waits for an event, not for the clock.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        let held = self.pools.iter().filter(|p| p.deficit() > 0).filter_map(|p| p.held_until);
        held.filter(|t| *t > now).min()
    }

    /// Whether this pool's containers can be started, as far as is known.
    pub fn healthy(&self, pool: PoolIndex) -> bool {
        !self.pools[pool.0].failing
    }

    /// Starts no more; retires what is idle. Leased ones go when they are released, starting ones when they are ready.
    pub fn drain(&mut self, out: &mut Vec<Action>) {
        self.draining = true;
        for p in &mut self.pools {
            p.target = 0;
            while let Some(slot) = p.idle.pop_first() {
                p.removing.insert(slot);
                out.push(Action::Remove(slot, Reason::Drained));
            }
        }
    }

    /// Hands idle slots to waiters, both in their order.
    fn serve(&mut self, pool: PoolIndex, out: &mut Vec<Action>) {
        let p = &mut self.pools[pool.0];
        while !p.waiters.is_empty() {
            let Some(slot) = p.idle.pop_first() else { break };
            let Some(waiter) = p.waiters.pop_front() else { break };
            p.leased.insert(slot);
            out.push(Action::Grant(slot, waiter));
        }
    }

    /// Starts what is wanted, as far as the bounds allow: first for those who wait, then where the
    /// largest share of the target is missing, so that one pool's fill doesn't starve another.
    fn refill(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.draining {
            return;
        }
        let mut creating: usize = self.pools.iter().map(|p| p.starting.len()).sum();
        while creating < self.creations {
            let neediest = (0..self.pools.len()).filter(|i| self.pools[*i].may_start(now)).max_by_key(|i| {
                let p = &self.pools[*i];
                // Parts in a thousand of the target that are missing; the first pool wins a tie.
                let missing = p.deficit() * 1000 / (p.target + p.waiters.len()).max(1);
                (p.owed() > 0, missing, std::cmp::Reverse(*i))
            });
            let Some(i) = neediest else { break };
            let slot = SlotId { pool: PoolIndex(i), serial: self.next_serial };
            self.next_serial += 1;
            self.pools[i].starting.insert(slot);
            creating += 1;
            out.push(Action::Start(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const P: PoolIndex = PoolIndex(0);

    struct Rig {
        slots: Slots,
        now: Instant,
    }

    impl Rig {
        fn new(bounds: &[usize], creations: usize) -> Rig {
            let bounds: Vec<Bounds> = bounds.iter().map(|s| Bounds { slots: *s }).collect();
            Rig { slots: Slots::new(&bounds, creations), now: Instant::now() }
        }

        fn act(&mut self, f: impl FnOnce(&mut Slots, Instant, &mut Vec<Action>)) -> Vec<Action> {
            let mut out = Vec::new();
            f(&mut self.slots, self.now, &mut out);
            out
        }

        /// Fills pool 0 to `n` idle slots.
        fn filled(n: usize) -> Rig {
            let mut rig = Rig::new(&[n + 4], 4);
            let mut todo = rig.act(|s, t, o| s.set_target(P, n, t, o));
            while let Some(action) = todo.pop() {
                let Action::Start(slot) = action else { panic!("{action:?}") };
                todo.extend(rig.act(|s, t, o| s.ready(slot, t, o)));
            }
            assert_eq!(rig.slots.count(P, State::Idle), n);
            rig
        }
    }

    fn starts(actions: &[Action]) -> Vec<SlotId> {
        actions.iter().filter_map(|a| if let Action::Start(s) = a { Some(*s) } else { None }).collect()
    }

    #[test]
    fn a_hit_takes_the_oldest_and_refills_at_once() {
        let mut rig = Rig::filled(2);
        let mut hit = false;
        let out = rig.act(|s, t, o| hit = s.lease(P, WaiterId(1), t, o));
        assert!(hit);
        let Action::Grant(slot, WaiterId(1)) = out[0] else { panic!("{out:?}") };
        assert_eq!(slot.serial, 0);
        assert_eq!(starts(&out).len(), 1);
        assert_eq!(rig.slots.count(P, State::Leased), 1);
    }

    #[test]
    fn waiters_are_served_in_order_and_cause_one_creation_each() {
        let mut rig = Rig::new(&[10], 2);
        let mut all = Vec::new();
        for w in 0..3 {
            all.extend(rig.act(|s, t, o| assert!(!s.lease(P, WaiterId(w), t, o))));
        }
        assert_eq!(starts(&all).len(), 2, "no more than may be created at once");
        let first = starts(&all)[1];
        let out = rig.act(|s, t, o| s.ready(first, t, o));
        assert_eq!(
            out[0],
            Action::Grant(first, WaiterId(0)),
            "the first that is ready goes to who waits longest"
        );
        assert_eq!(starts(&out).len(), 1);
        let second = starts(&all)[0];
        let out = rig.act(|s, t, o| s.ready(second, t, o));
        assert_eq!(out, [Action::Grant(second, WaiterId(1))], "three waiters, three creations");
    }

    #[test]
    fn who_gives_up_is_not_served() {
        let mut rig = Rig::new(&[10], 4);
        let out = rig.act(|s, t, o| {
            s.lease(P, WaiterId(0), t, o);
            s.lease(P, WaiterId(1), t, o);
        });
        rig.slots.give_up(P, WaiterId(0));
        let slots = starts(&out);
        assert_eq!(rig.act(|s, t, o| s.ready(slots[0], t, o)), [Action::Grant(slots[0], WaiterId(1))]);
        assert_eq!(rig.act(|s, t, o| s.ready(slots[1], t, o)), []);
    }

    #[test]
    fn a_container_that_died_in_the_moment_of_its_lease_costs_the_job_only_time() {
        let mut rig = Rig::filled(2);
        let out = rig.act(|s, t, o| {
            s.lease(P, WaiterId(7), t, o);
        });
        let Action::Grant(dead, _) = out[0] else { panic!("{out:?}") };
        let out = rig.act(|s, t, o| s.died(dead, Some(WaiterId(7)), t, o));
        assert_eq!(out[0], Action::Remove(dead, Reason::Died));
        assert!(matches!(out[1], Action::Grant(other, WaiterId(7)) if other != dead), "{out:?}");
        assert_eq!(rig.act(|s, t, o| s.died(dead, None, t, o)), [], "twice is once");
    }

    #[test]
    fn capacity_is_free_when_the_container_is_gone_not_before() {
        let mut rig = Rig::new(&[1], 4);
        let out = rig.act(|s, t, o| s.set_target(P, 1, t, o));
        let slot = starts(&out)[0];
        rig.act(|s, t, o| s.ready(slot, t, o));
        assert_eq!(starts(&rig.act(|s, t, o| _ = s.lease(P, WaiterId(0), t, o))), []);
        assert_eq!(
            rig.act(|s, t, o| s.released(slot, Reason::Used, t, o)),
            [Action::Remove(slot, Reason::Used)]
        );
        assert_eq!(starts(&rig.act(|s, t, o| s.gone(slot, t, o))).len(), 1);
    }

    #[test]
    fn a_broken_image_is_tried_one_at_a_time_after_growing_delays() {
        let mut rig = Rig::new(&[8], 4);
        let out = rig.act(|s, t, o| s.set_target(P, 4, t, o));
        let until = rig.now + Duration::from_secs(5);
        for slot in starts(&out) {
            assert_eq!(starts(&rig.act(|s, t, o| s.failed(slot, until, t, o))), []);
        }
        assert!(!rig.slots.healthy(P));
        assert_eq!(rig.slots.next_tick(rig.now), Some(until));
        rig.now = until;
        let probe = starts(&rig.act(|s, t, o| s.tick(t, o)));
        assert_eq!(probe.len(), 1);
        assert_eq!(rig.slots.next_tick(rig.now), None, "while it is tried, the clock has no say");
        let out = rig.act(|s, t, o| s.ready(probe[0], t, o));
        assert!(rig.slots.healthy(P));
        assert_eq!(starts(&out).len(), 3, "then all at once");
    }

    #[test]
    fn who_waits_comes_before_any_refill() {
        let mut rig = Rig::new(&[10, 10], 1);
        let big = starts(&rig.act(|s, t, o| s.set_target(P, 8, t, o)))[0];
        let out = rig.act(|s, t, o| _ = s.lease(PoolIndex(1), WaiterId(0), t, o));
        assert_eq!(out, []);
        let out = rig.act(|s, t, o| s.ready(big, t, o));
        assert_eq!(starts(&out)[0].pool, PoolIndex(1));
    }

    #[test]
    fn drain_retires_everything_and_starts_nothing() {
        let mut rig = Rig::filled(2);
        let out = rig.act(|s, t, o| _ = s.lease(P, WaiterId(0), t, o));
        let Action::Grant(leased, _) = out[0] else { panic!() };
        let starting = starts(&out)[0];
        let out = rig.act(|s, _, o| s.drain(o));
        assert!(matches!(out[..], [Action::Remove(_, Reason::Drained)]), "{out:?}");
        let Action::Remove(idle, _) = out[0] else { panic!() };
        assert_eq!(rig.act(|s, t, o| s.ready(starting, t, o)), [Action::Remove(starting, Reason::Drained)]);
        rig.act(|s, t, o| s.released(leased, Reason::Used, t, o));
        for slot in [idle, starting, leased] {
            assert_eq!(rig.act(|s, t, o| s.gone(slot, t, o)), []);
        }
        assert!(rig.slots.is_empty());
    }
}
