//! The pools' state machine: pure, so that every rule about containers is in one place and can be tested without
//! any. Events go in, actions come out; it has no clock, no lock, no task.
//!
//! ```text
//!                  ready                lease               release
//!   ─► starting ──────────► idle ───────────────► leased ───────────┐
//!         │ failed           ││ ◄─────────────────── ┘ return          │
//!         │                  │ died, shrunk, age, rolled, …           ▼
//!         └──────────────────┴───────────────────────────────► removing ─► (gone)
//! ```
//!
//! A slot is one container's place. Where a slot is says its state: each state of each pool is a set, and a slot is in
//! exactly one. Counts are the sets' sizes, so they can't disagree with the states.
//!
//! Where a container serves many jobs it returns from each, and who waits is served by that before one is created for them.
//!
//! A slot counts against its pool's bound and the host's budget until the container is really gone.
//!
//! # Who is created next
//!
//! Creators are shared. Jobs that wait come before refills; but where there are two creators, one is left to the
//! refills, or a burst of one pool would empty all others. Of the jobs' pools, and of the refills', first come those that have less than their
//! even share of the creations under way; then the job that waits longest, and the refill that is worth most. A pool none of
//! whose creations has succeeded yet, or whose last one failed, tries one at a time, after all others unless it has been due for
//! long. One creator is kept from such probes, if there are two: a broken image may keep each busy until its timeout.
//!
//! # Who gets the room
//!
//! Where the host is full, a job that waits gets the place of the idle container that is worth least, of whatever pool
//! that has more than its least.
//! No refill takes a place that jobs wait for, or a big container's would be taken by small ones again and again. But
//! nothing goes, and nothing is held back, for a container that wouldn't fit all the same.

mod one;
mod words;

#[cfg(test)]
mod tests;

use std::time::Instant;

pub use one::Bounds;
use one::{Load, Pool, Standing, Trust, Waiter};
pub use words::{Action, PoolIndex, Reason, Serves, SlotId, State, WaiterId};

/// What all pools of a host share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Containers being created at once.
    pub creations: usize,
    /// Containers in all states together.
    pub containers: usize,
    /// Bytes that all containers count together.
    pub memory: u64,
}

impl Budget {
    /// Bounded by nothing but the creations at once.
    pub fn creations(creations: usize) -> Budget {
        Budget { creations, containers: usize::MAX, memory: u64::MAX }
    }
}

/// All slots of this host.
#[derive(Debug)]
pub struct Slots {
    budget: Budget,
    pools: Vec<Pool>,
    next_serial: u64,
    draining: bool,
}

impl Slots {
    /// No slots yet, in pools with these bounds.
    pub fn new(pools: &[Bounds], budget: Budget) -> Slots {
        let pools = pools.iter().map(|bounds| Pool::new(*bounds)).collect();
        Slots { budget, pools, next_serial: 0, draining: false }
    }

    /// How many slots of a pool are in a state.
    pub fn count(&self, pool: PoolIndex, state: State) -> usize {
        self.pools[pool.0].count(state)
    }

    /// What a slot is doing; none if it is gone.
    pub fn state(&self, slot: SlotId) -> Option<State> {
        self.pools[slot.pool.0].state(slot)
    }

    /// How many wait for a container of this pool.
    pub fn waiting(&self, pool: PoolIndex) -> usize {
        self.pools[pool.0].waiters.len()
    }

    /// How many idle slots are wanted.
    pub fn target(&self, pool: PoolIndex) -> usize {
        self.pools[pool.0].target
    }

    /// How many idle ones are to be replaced.
    pub fn stale(&self, pool: PoolIndex) -> usize {
        self.pools[pool.0].stale.len()
    }

    /// Whether no slot is left in any state.
    pub fn is_empty(&self) -> bool {
        self.pools.iter().all(|p| p.total() == 0)
    }

    /// Whether a pool can serve, as far as is known: its last creation succeeded and it has what the next one needs, or
    /// something is idle. The last must count, or nobody would lease, nothing would be missing, and no new creation
    /// would ever be tried. None can once they drain.
    pub fn able(&self, pool: PoolIndex) -> bool {
        let p = &self.pools[pool.0];
        !self.draining && ((p.trust == Trust::Proven && p.prepared) || p.count(State::Idle) > 0)
    }

    /// Whether a job of this pool would wait for other pools' jobs to end: nothing is idle or on its way, and the host has no
    /// room that could be made for one.
    pub fn shut_out(&self, pool: PoolIndex) -> bool {
        let p = &self.pools[pool.0];
        let lacking = p.count(State::Idle) + p.starting.len() + p.removing.len() == 0;
        lacking && !self.fits(self.kept() + p.load(1))
    }

    /// Whether a pool's last creation failed.
    pub fn failing(&self, pool: PoolIndex) -> bool {
        self.pools[pool.0].fails()
    }

    /// Sets how many idle slots are wanted, how many of those that come back are usually away, and what each idle one is
    /// worth to the pool (the next, by how many there are). Surplus idle ones are retired.
    pub fn set_target(
        &mut self,
        pool: PoolIndex,
        target: usize,
        away: usize,
        worth: Vec<f64>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if self.draining {
            return;
        }
        let p = &mut self.pools[pool.0];
        p.target = target;
        p.away = away;
        p.worth = worth;
        self.trim(pool, out);
        self.refill(now, out);
    }

    /// Other bounds for a pool. What is too much already goes as it is used up.
    pub fn set_bounds(&mut self, pool: PoolIndex, bounds: Bounds) {
        self.pools[pool.0].set_bounds(bounds);
    }

    /// The engine may lack what a pool's containers are made from: none is begun before [`Slots::prepared`].
    pub fn unprepared(&mut self, pool: PoolIndex) {
        self.pools[pool.0].prepared = false;
    }

    /// The engine has what a pool's containers are made from.
    pub fn prepared(&mut self, pool: PoolIndex, now: Instant, out: &mut Vec<Action>) {
        self.pools[pool.0].prepared = true;
        self.refill(now, out);
    }

    /// All containers begun so far are to be replaced: the pool's image or configuration is another now. Idle ones
    /// serve until each one's successor is there.
    pub fn roll(&mut self, pool: PoolIndex, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[pool.0];
        p.current = self.next_serial;
        while let Some((slot, _)) = p.fresh.pop_first() {
            p.stale.insert(slot, Reason::Rolled);
        }
        // It may be what mends it.
        p.retry(now);
        self.refill(now, out);
    }

    /// Somebody asks for a container. `true`: an idle one is granted at once, a hit.
    pub fn lease(&mut self, pool: PoolIndex, waiter: WaiterId, now: Instant, out: &mut Vec<Action>) -> bool {
        let p = &mut self.pools[pool.0];
        p.waiters.push_back(Waiter { id: waiter, since: now });
        let hit = p.waiters.len() == 1 && p.count(State::Idle) > 0;
        self.serve(pool, out);
        self.refill(now, out);
        hit
    }

    /// A waiter doesn't want one any more. One that was granted already gives it back by `released`. If others can have
    /// its room now, they get it at the next `tick`.
    pub fn give_up(&mut self, pool: PoolIndex, waiter: WaiterId) {
        self.pools[pool.0].waiters.retain(|w| w.id != waiter);
    }

    /// A starting slot's container said READY.
    pub fn ready(&mut self, slot: SlotId, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        if !p.starting.remove(&slot) {
            return;
        }
        p.trust = Trust::Proven;
        if self.draining {
            p.retire(slot, Reason::Drained, out);
            return;
        }
        p.idle(slot, Standing::Fresh(now));
        self.serve(slot.pool, out);
        self.trim(slot.pool, out);
        self.refill(now, out);
    }

    /// A starting slot's container never became ready. No other one of its pool is started before `until` says, so
    /// that a broken image isn't tried in a hot loop; it is asked only if this failure is news, not one of several
    /// that were under way at once.
    pub fn failed(
        &mut self,
        slot: SlotId,
        until: impl FnOnce() -> Instant,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let p = &mut self.pools[slot.pool.0];
        if !p.starting.remove(&slot) {
            return;
        }
        if !p.fails() || slot.serial >= p.judged {
            p.fail(until(), self.next_serial);
        }
        p.retire(slot, Reason::Failed, out);
        self.refill(now, out);
    }

    /// An idle slot's container ended. If it was just granted, `waiter` is who got it: they wait again, first in line.
    pub fn died(&mut self, slot: SlotId, waiter: Option<WaiterId>, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        if !p.take_idle(slot) && p.leased.remove(&slot).is_none() {
            return;
        }
        p.retire(slot, Reason::Died, out);
        if let Some(waiter) = waiter {
            p.waiters.push_front(Waiter { id: waiter, since: now });
            self.serve(slot.pool, out);
        }
        self.refill(now, out);
    }

    /// A pool's containers become ready, and are no good all the same: it is treated as if the last creation had failed.
    pub fn mistrust(&mut self, pool: PoolIndex, until: Instant) {
        self.pools[pool.0].fail(until, self.next_serial);
    }

    /// An idle slot's container is not to be trusted any more.
    pub fn doubted(&mut self, slot: SlotId, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        if p.take_idle(slot) {
            p.retire(slot, Reason::Doubt, out);
            self.refill(now, out);
        }
    }

    /// A lease ended.
    pub fn released(&mut self, slot: SlotId, reason: Reason, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        if p.leased.remove(&slot).is_none() {
            return;
        }
        p.retire(slot, reason, out);
        self.refill(now, out);
    }

    /// A lease ended, and its container can serve again.
    pub fn returned(&mut self, slot: SlotId, now: Instant, out: &mut Vec<Action>) {
        let p = &mut self.pools[slot.pool.0];
        let Some(standing) = p.leased.remove(&slot) else { return };
        if self.draining {
            return p.retire(slot, Reason::Drained, out);
        }
        p.idle(slot, standing);
        self.serve(slot.pool, out);
        self.trim(slot.pool, out);
        self.refill(now, out);
    }

    /// A removing slot's container is gone.
    pub fn gone(&mut self, slot: SlotId, now: Instant, out: &mut Vec<Action>) {
        self.pools[slot.pool.0].removing.remove(&slot);
        self.refill(now, out);
    }

    /// What creations failed for may be over: pools that wait to try again needn't.
    pub fn retry(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.pools.iter_mut().for_each(|p| p.retry(now));
        self.refill(now, out);
    }

    /// Time has passed: starts what was held until now, and replaces what is too old.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.pools.iter_mut().for_each(|p| p.expire(now));
        self.refill(now, out);
    }

    /// When `tick` has something to do, if nothing else happens. What was held until a time that has passed, and is
    /// not started, waits for an event, not for the clock.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        let due = self.pools.iter().flat_map(|p| {
            let held = match p.trust {
                Trust::Failing(until) if until > now && p.deficit(now) > 0 => Some(until),
                _ => None,
            };
            [held, p.next_expiry(), p.next_call(now)]
        });
        due.flatten().min()
    }

    /// Starts no more; retires what is idle. Leased ones go when they are released, starting ones when they are ready.
    pub fn drain(&mut self, out: &mut Vec<Action>) {
        self.draining = true;
        for p in &mut self.pools {
            p.target = 0;
            p.waiters.clear();
            while let Some((slot, _)) = p.pop_idle() {
                p.retire(slot, Reason::Drained, out);
            }
        }
    }

    /// Hands idle slots to waiters, both in their order.
    fn serve(&mut self, pool: PoolIndex, out: &mut Vec<Action>) {
        let p = &mut self.pools[pool.0];
        while !p.waiters.is_empty() {
            let Some((slot, standing)) = p.pop_idle() else { break };
            let Some(waiter) = p.waiters.pop_front() else { break };
            p.leased.insert(slot, standing);
            out.push(Action::Grant(slot, waiter.id));
        }
    }

    /// Retires what is idle beyond the target.
    fn trim(&mut self, pool: PoolIndex, out: &mut Vec<Action>) {
        let p = &mut self.pools[pool.0];
        while p.has_surplus() {
            let Some((slot, reason)) = p.pop_dispensable(Reason::Shrunk) else { break };
            p.retire(slot, reason, out);
        }
    }

    /// Starts what is wanted, as far as the bounds allow, in the order of need.
    fn refill(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.draining {
            return;
        }
        while let Some(pool) = self.neediest(now) {
            let slot = SlotId { pool, serial: self.next_serial };
            self.next_serial += 1;
            self.pools[pool.0].starting.insert(slot);
            out.push(Action::Start(slot));
        }
        self.make_room(now, out);
    }

    /// Which pool is to get the next creation.
    fn neediest(&self, now: Instant) -> Option<PoolIndex> {
        let creating: usize = self.pools.iter().map(|p| p.starting.len()).sum();
        if creating >= self.budget.creations {
            return None;
        }
        let proven = |p: &Pool| p.trust == Trust::Proven;
        let probing: usize = self.pools.iter().filter(|p| !proven(p)).map(|p| p.starting.len()).sum();
        let may_probe = probing < self.budget.creations.saturating_sub(1).max(1);
        let claimed = self.claimed(now);
        let may = |p: &Pool| {
            // A refill leaves the room that jobs wait for.
            let others = if p.owed(now) > 0 { Load::default() } else { claimed };
            let free = !p.is_full() && self.fits(self.load() + others + p.load(1));
            (proven(p) || may_probe) && p.wants(now) && free
        };
        let candidates = || (0..self.pools.len()).filter(|i| may(&self.pools[*i]));
        let overdue = candidates().find(|i| self.pools[*i].overdue(now));
        // A failing pool's jobs have waited, but probably in vain.
        let job = |i: &usize| self.pools[*i].owed(now) > 0 && !self.pools[*i].fails();
        let (jobs, refills): (Vec<usize>, Vec<usize>) = candidates().partition(job);
        let for_jobs: usize = self.pools.iter().map(|p| p.starting.len().min(p.waiters.len())).sum();
        let jobs_first = refills.is_empty() || for_jobs < self.budget.creations.saturating_sub(1).max(1);
        let neediest = if overdue.is_some() {
            overdue
        } else if jobs_first && !jobs.is_empty() {
            self.first(&jobs, now, |a, b| b.first_waiter().cmp(&a.first_waiter()))
        } else {
            let worth = |a: &Pool, b: &Pool| {
                a.next_worth().total_cmp(&b.next_worth()).then(a.missing(now).total_cmp(&b.missing(now)))
            };
            self.first(&refills, now, worth)
        };
        neediest.map(PoolIndex)
    }

    /// The first of some pools: those with less than their share of the creations under way, those that don't fail, then
    /// as `order` says; of equals the one that was configured first.
    fn first(
        &self,
        pools: &[usize],
        now: Instant,
        order: impl Fn(&Pool, &Pool) -> std::cmp::Ordering,
    ) -> Option<usize> {
        let contends = |p: &&Pool| !p.starting.is_empty() || p.wants(now);
        let share = self.budget.creations.div_ceil(self.pools.iter().filter(contends).count().max(1));
        let rank = |p: &Pool| (p.starting.len() < share, !p.fails());
        pools.iter().copied().max_by(|i, j| {
            let (a, b) = (&self.pools[*i], &self.pools[*j]);
            rank(a).cmp(&rank(b)).then(order(a, b)).then(j.cmp(i))
        })
    }

    /// Whether the host's budget allows that much.
    fn fits(&self, load: Load) -> bool {
        load.containers <= self.budget.containers && load.memory <= self.budget.memory
    }

    /// What containers take that no job of another pool can have the place of, now or in a moment.
    fn kept(&self) -> Load {
        self.pools.iter().map(|p| p.load(p.total() - p.removing.len() - p.dispensable())).sum()
    }

    /// What all containers take.
    fn load(&self) -> Load {
        self.pools.iter().map(|p| p.load(p.total())).sum()
    }

    /// The room that jobs wait for. Without those that no room can come free for before others end: it would stay
    /// empty meanwhile.
    fn claimed(&self, now: Instant) -> Load {
        let kept = |p: &Pool| p.count(State::Idle).min(p.bounds.reserved);
        let taken = |p: &Pool| p.load(p.leased.len() + kept(p) + p.starting.len().min(p.waiters.len()));
        let taken = self.pools.iter().map(taken).sum::<Load>();
        let claims = self.pools.iter().map(|p| p.load(p.claim(self.budget.creations, now)));
        claims.zip(&self.pools).filter(|(_, p)| self.fits(taken + p.load(1))).map(|(claim, _)| claim).sum()
    }

    /// Retires idle containers where a bound, not the creators, keeps others from being made: for a job that waits, the
    /// idle one of another pool that is worth least; for a stale one's successor, the stale one.
    fn make_room(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.make_room_for_jobs(now, out);
        let load = self.load();
        let claimed = self.claimed(now).containers > 0;
        for needy in 0..self.pools.len() {
            let p = &self.pools[needy];
            // While jobs wait for room, it would go to them.
            let short = p.is_full() || (!claimed && !self.fits(load + p.load(1)));
            if short && !p.stale.is_empty() && p.wants(now) && p.removing.is_empty() && p.starting.is_empty()
            {
                self.dispense(needy, Reason::Rolled, out);
            }
        }
    }

    /// What is to be retired for jobs that wait: as many as could be started for them at once, no more.
    fn make_room_for_jobs(&mut self, now: Instant, out: &mut Vec<Action>) {
        let load = self.load();
        // What is being removed makes room by itself; what is idle can.
        let mut soon: Load = self.pools.iter().map(|p| p.load(p.total() - p.removing.len())).sum();
        let mut least = self.kept();
        let mut needy: Vec<usize> = (0..self.pools.len()).collect();
        needy.sort_by_key(|i| self.pools[*i].first_waiter());
        for needy in needy {
            let p = &self.pools[needy];
            let one = p.load(1);
            if self.fits(load + one) {
                continue;
            }
            for _ in 0..p.claim(self.budget.creations, now) {
                if !self.fits(least + one) {
                    break;
                }
                while !self.fits(soon + one) {
                    // Pools whose own jobs wait have none.
                    let idle = (0..self.pools.len()).filter(|i| self.pools[*i].dispensable() > 0);
                    let worth = |i: &usize| self.pools[*i].last_worth();
                    let Some(other) = idle.min_by(|i, j| worth(i).total_cmp(&worth(j))) else { break };
                    self.dispense(other, Reason::Budget, out);
                    soon = soon - self.pools[other].load(1);
                }
                soon = soon + one;
                least = least + one;
            }
        }
    }

    fn dispense(&mut self, pool: usize, reason: Reason, out: &mut Vec<Action>) {
        let p = &mut self.pools[pool];
        if let Some((slot, reason)) = p.pop_dispensable(reason) {
            p.retire(slot, reason, out);
        }
    }
}
