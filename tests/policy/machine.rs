//! The only place that knows how `Slots` is called.

use std::time::Instant;

use prewarm::pool::planner::Planner;
use prewarm::pool::slots::{
    Action, Bounds, Budget, PoolIndex, Reason, Serves, SlotId, Slots, State, WaiterId,
};

/// The pools' state machine, and what it asks for.
pub struct Machine {
    slots: Slots,
    out: Vec<Action>,
}

impl Machine {
    /// Bounds don't matter here: they are the planner's to keep.
    pub fn new(pools: usize, creations: usize) -> Machine {
        let budget = Budget { creations, containers: usize::MAX, memory: u64::MAX };
        let bounds =
            vec![
                Bounds { slots: usize::MAX, reserved: 0, memory: 1, max_age: None, serves: Serves::One };
                pools
            ];
        Machine { slots: Slots::new(&bounds, budget), out: Vec::new() }
    }

    /// What is to be done next.
    pub fn action(&mut self) -> Option<Action> {
        self.out.pop()
    }

    /// Whether it is a hit.
    pub fn lease(&mut self, pool: usize, waiter: u64, now: Instant) -> bool {
        self.slots.lease(PoolIndex(pool), WaiterId(waiter), now, &mut self.out)
    }

    /// Sets a pool's target to what was planned.
    pub fn follow(&mut self, pool: usize, planner: &Planner, now: Instant) {
        let target = planner.sizing(pool).target;
        let worth = (0..=target).map(|idle| planner.worth(pool, idle)).collect();
        self.slots.set_target(PoolIndex(pool), target, 0, worth, now, &mut self.out);
    }

    pub fn ready(&mut self, slot: SlotId, now: Instant) {
        self.slots.ready(slot, now, &mut self.out);
    }

    pub fn served(&mut self, slot: SlotId, now: Instant) {
        self.slots.released(slot, Reason::Used, now, &mut self.out);
    }

    pub fn gone(&mut self, slot: SlotId, now: Instant) {
        self.slots.gone(slot, now, &mut self.out);
    }

    pub fn idle(&self, pool: usize) -> usize {
        self.slots.count(PoolIndex(pool), State::Idle)
    }

    /// Leased or being removed.
    pub fn busy(&self, pool: usize) -> usize {
        let count = |state| self.slots.count(PoolIndex(pool), state);
        count(State::Leased) + count(State::Removing)
    }
}
