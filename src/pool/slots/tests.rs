use std::time::Duration;

use super::*;

const P: PoolIndex = PoolIndex(0);
const Q: PoolIndex = PoolIndex(1);

const SECOND: Duration = Duration::from_secs(1);

/// The machine, and a driver that does at once, and successfully, what it is told to; or nothing at all.
struct Rig {
    slots: Slots,
    now: Instant,
    /// What is being created and removed, in the order of the actions.
    starting: Vec<SlotId>,
    removing: Vec<(SlotId, Reason)>,
    waiters: u64,
}

fn bounds(slots: usize) -> Bounds {
    Bounds { slots, reserved: 0, memory: 1, max_age: None, serves: Serves::One }
}

impl Rig {
    fn new(slots: &[usize], creations: usize) -> Rig {
        let bounds: Vec<Bounds> = slots.iter().map(|s| bounds(*s)).collect();
        Rig::with(&bounds, Budget::creations(creations))
    }

    fn with(bounds: &[Bounds], budget: Budget) -> Rig {
        let slots = Slots::new(bounds, budget);
        Rig { slots, now: Instant::now(), starting: Vec::new(), removing: Vec::new(), waiters: 0 }
    }

    fn act(&mut self, f: impl FnOnce(&mut Slots, Instant, &mut Vec<Action>)) -> Vec<Action> {
        let mut out = Vec::new();
        f(&mut self.slots, self.now, &mut out);
        for action in &out {
            match action {
                Action::Start(slot) => self.starting.push(*slot),
                Action::Remove(slot, reason) => self.removing.push((*slot, *reason)),
                Action::Grant(..) => {}
            }
        }
        out
    }

    fn target(&mut self, pool: PoolIndex, target: usize, worth: &[f64]) -> Vec<Action> {
        self.act(|s, t, o| s.set_target(pool, target, 0, worth.to_vec(), t, o))
    }

    fn lease(&mut self, pool: PoolIndex) -> Vec<Action> {
        self.waiters += 1;
        let waiter = WaiterId(self.waiters);
        self.act(|s, t, o| _ = s.lease(pool, waiter, t, o))
    }

    fn ready(&mut self, slot: SlotId) -> Vec<Action> {
        self.starting.retain(|s| *s != slot);
        self.act(|s, t, o| s.ready(slot, t, o))
    }

    /// A creation fails, and the next may be in a second.
    fn fail(&mut self, slot: SlotId) -> Vec<Action> {
        self.starting.retain(|s| *s != slot);
        self.act(|s, t, o| s.failed(slot, || t + SECOND, t, o))
    }

    fn release(&mut self, slot: SlotId) -> Vec<Action> {
        self.act(|s, t, o| s.released(slot, Reason::Used, t, o))
    }

    fn roll(&mut self, pool: PoolIndex) -> Vec<Action> {
        self.act(|s, t, o| s.roll(pool, t, o))
    }

    fn tick(&mut self, passed: Duration) -> Vec<Action> {
        self.now += passed;
        self.act(|s, t, o| s.tick(t, o))
    }

    /// What is being removed is gone. Says what it was, and why.
    fn gone(&mut self) -> Vec<(SlotId, Reason)> {
        let removing = std::mem::take(&mut self.removing);
        for (slot, _) in &removing {
            self.act(|s, t, o| s.gone(*slot, t, o));
        }
        removing
    }

    /// The creation that was begun first is ready. Says which it was.
    fn next(&mut self) -> SlotId {
        let slot = self.starting[0];
        self.ready(slot);
        slot
    }

    /// All goes well until nothing is under way.
    fn settle(&mut self) {
        for _ in 0..100 {
            for slot in std::mem::take(&mut self.starting) {
                self.ready(slot);
            }
            self.gone();
            if self.starting.is_empty() && self.removing.is_empty() {
                return;
            }
        }
        panic!("it never settles");
    }

    /// The same, with what was decided on the way.
    fn settled(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        while !self.starting.is_empty() || !self.removing.is_empty() {
            for slot in std::mem::take(&mut self.starting) {
                all.extend(self.ready(slot));
            }
            for (slot, _) in std::mem::take(&mut self.removing) {
                all.extend(self.act(|s, t, o| s.gone(slot, t, o)));
            }
        }
        all
    }

    fn fill(&mut self, pool: PoolIndex, n: usize) {
        self.target(pool, n, &[]);
        self.settle();
        assert_eq!(self.idle(pool), n);
    }

    /// Pool 0 with `n` idle slots, and room for four more.
    fn filled(n: usize) -> Rig {
        let mut rig = Rig::new(&[n + 4], 4);
        rig.fill(P, n);
        rig
    }

    fn idle(&self, pool: PoolIndex) -> usize {
        self.slots.count(pool, State::Idle)
    }

    fn under_way(&self) -> [usize; 2] {
        [P, Q].map(|pool| self.slots.count(pool, State::Starting))
    }
}

fn starts(actions: &[Action]) -> Vec<SlotId> {
    actions.iter().filter_map(|a| if let Action::Start(s) = a { Some(*s) } else { None }).collect()
}

fn removals(actions: &[Action]) -> Vec<(SlotId, Reason)> {
    actions.iter().filter_map(|a| if let Action::Remove(s, r) = a { Some((*s, *r)) } else { None }).collect()
}

fn granted(actions: &[Action]) -> (SlotId, WaiterId) {
    let grant = actions.iter().find_map(|a| if let Action::Grant(s, w) = a { Some((*s, *w)) } else { None });
    grant.unwrap_or_else(|| panic!("nothing granted: {actions:?}"))
}

// Leases.

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
    let mut rig = Rig::filled(1);
    rig.target(P, 0, &[]);
    rig.settle();
    let mut all = Vec::new();
    for _ in 0..3 {
        all.extend(rig.lease(P));
    }
    let begun = starts(&all);
    assert_eq!(begun.len(), 3);
    assert_eq!(rig.ready(begun[1]), [Action::Grant(begun[1], WaiterId(1))], "the first that is ready");
    assert_eq!(rig.ready(begun[0]), [Action::Grant(begun[0], WaiterId(2))], "to who waits longest");
    assert_eq!(rig.ready(begun[2]), [Action::Grant(begun[2], WaiterId(3))]);
    assert_eq!(rig.starting, []);
}

#[test]
fn who_gives_up_is_not_served_and_what_was_made_for_them_goes() {
    let mut rig = Rig::filled(0);
    let first = starts(&rig.lease(P))[0];
    rig.ready(first);
    let begun = [rig.lease(P), rig.lease(P)].map(|out| starts(&out)[0]);
    rig.slots.give_up(P, WaiterId(2));
    assert_eq!(rig.ready(begun[0]), [Action::Grant(begun[0], WaiterId(3))]);
    assert_eq!(rig.ready(begun[1]), [Action::Remove(begun[1], Reason::Shrunk)]);
}

#[test]
fn a_container_that_died_in_the_moment_of_its_lease_costs_the_job_only_time() {
    let mut rig = Rig::filled(2);
    let (dead, waiter) = granted(&rig.lease(P));
    let out = rig.act(|s, t, o| s.died(dead, Some(waiter), t, o));
    assert_eq!(out[0], Action::Remove(dead, Reason::Died));
    assert!(matches!(out[1], Action::Grant(other, w) if other != dead && w == waiter), "{out:?}");
    assert_eq!(rig.act(|s, t, o| s.died(dead, None, t, o)), [], "twice is once");
}

#[test]
fn who_got_a_dead_one_is_first_in_line_again() {
    let mut rig = Rig::filled(1);
    let (dead, first) = granted(&rig.lease(P));
    rig.lease(P);
    rig.act(|s, t, o| s.died(dead, Some(first), t, o));
    let next = rig.starting[0];
    assert_eq!(granted(&rig.ready(next)), (next, first));
}

#[test]
fn a_doubted_one_is_replaced_a_leased_one_is_left_alone() {
    let mut rig = Rig::filled(2);
    let (leased, _) = granted(&rig.lease(P));
    assert_eq!(rig.act(|s, t, o| s.doubted(leased, t, o)), [], "its job will tell");
    rig.settle();
    let idle = SlotId { pool: P, serial: 1 };
    let out = rig.act(|s, t, o| s.doubted(idle, t, o));
    assert_eq!(out[0], Action::Remove(idle, Reason::Doubt));
    assert_eq!(starts(&out).len(), 1);
    assert_eq!(rig.act(|s, t, o| s.doubted(idle, t, o)), [], "twice is once");
}

// Bounds.

#[test]
fn capacity_is_free_when_the_container_is_gone_not_before() {
    let mut rig = Rig::new(&[1], 4);
    rig.fill(P, 1);
    let out = rig.lease(P);
    let (slot, _) = granted(&out);
    assert_eq!(starts(&out), []);
    assert_eq!(rig.release(slot), [Action::Remove(slot, Reason::Used)]);
    assert_eq!(rig.release(slot), [], "twice is once");
    assert_eq!(starts(&rig.act(|s, t, o| s.gone(slot, t, o))).len(), 1);
}

#[test]
fn surplus_is_retired_when_the_target_falls() {
    let mut rig = Rig::filled(3);
    let out = rig.target(P, 1, &[]);
    assert_eq!(removals(&out).len(), 2);
    assert!(removals(&out).iter().all(|(_, reason)| *reason == Reason::Shrunk), "{out:?}");
    assert_eq!(rig.idle(P), 1);
}

#[test]
fn surplus_is_retired_when_it_becomes_ready_after_the_target_fell() {
    let mut rig = Rig::filled(1);
    rig.target(P, 3, &[]);
    rig.target(P, 1, &[]);
    for slot in rig.starting.clone() {
        let out = rig.ready(slot);
        assert_eq!(removals(&out).len(), 1, "{out:?}");
        assert_eq!(rig.idle(P), 1);
    }
}

#[test]
fn the_budget_of_containers_is_never_exceeded() {
    let budget = Budget { containers: 3, ..Budget::creations(4) };
    let mut rig = Rig::with(&[bounds(9), bounds(9)], budget);
    rig.fill(P, 1);
    rig.target(P, 4, &[]);
    rig.settle();
    assert_eq!(rig.idle(P), 3);
    let (slot, _) = granted(&rig.lease(P));
    assert_eq!(rig.starting, []);
    rig.release(slot);
    assert_eq!(rig.starting, [], "it is still being removed");
    rig.gone();
    assert_eq!(rig.starting.len(), 1);
}

#[test]
fn the_budget_of_memory_counts_what_each_pool_says() {
    let big = Bounds { memory: 4, ..bounds(9) };
    let mut rig = Rig::with(&[big, bounds(9)], Budget { memory: 10, ..Budget::creations(4) });
    rig.target(P, 9, &[]);
    rig.settle();
    assert_eq!(rig.idle(P), 2);
    rig.target(Q, 9, &[]);
    rig.settle();
    assert_eq!(rig.idle(Q), 2, "2 × 4 + 2 × 1");
}

#[test]
fn a_job_that_waits_gets_the_place_of_the_idle_one_that_is_worth_least() {
    const R: PoolIndex = PoolIndex(2);
    let budget = Budget { containers: 4, ..Budget::creations(4) };
    let mut rig = Rig::with(&[bounds(9), bounds(9), bounds(9)], budget);
    rig.target(P, 2, &[9.0, 3.0]);
    rig.target(Q, 2, &[9.0, 2.0]);
    rig.settle();
    let out = rig.lease(R);
    let [(slot, Reason::Budget)] = removals(&out)[..] else { panic!("{out:?}") };
    assert_eq!(slot.pool, Q);
    assert_eq!(starts(&out), [], "there is room when it is gone");
    rig.gone();
    assert_eq!(rig.starting.len(), 1);
    let place = rig.starting[0];
    assert_eq!(place.pool, R, "the place is for who waits");
    assert_eq!(granted(&rig.ready(place)), (place, WaiterId(1)));
}

#[test]
fn one_idle_container_goes_for_each_job_that_can_be_served_no_more() {
    let budget = Budget { containers: 4, ..Budget::creations(2) };
    let mut rig = Rig::with(&[bounds(4), bounds(3)], budget);
    rig.target(Q, 1, &[]);
    rig.settle();
    rig.target(P, 3, &[]);
    rig.settle();
    // One is idle; one gets a place; of the other three, as many as there are creators, and places in the pool's bound.
    for _ in 0..5 {
        rig.lease(Q);
    }
    assert_eq!(rig.removing.len(), 2);
    assert!(rig.removing.iter().all(|(slot, reason)| slot.pool == P && *reason == Reason::Budget));
    assert_eq!(rig.idle(P), 1);
}

#[test]
fn no_place_is_taken_from_a_pool_whose_own_jobs_wait() {
    let budget = Budget { containers: 1, ..Budget::creations(4) };
    let mut rig = Rig::with(&[bounds(9), bounds(9)], budget);
    rig.lease(P);
    rig.lease(Q);
    assert_eq!(rig.under_way(), [1, 0]);
    let slot = rig.starting[0];
    assert_eq!(rig.ready(slot), [Action::Grant(slot, WaiterId(1))], "it is P's job's");
    rig.release(slot);
    rig.gone();
    assert_eq!(rig.under_way(), [0, 1]);
}

#[test]
fn room_that_a_big_container_waits_for_is_not_refilled_with_small_ones() {
    let big = Bounds { memory: 4, ..bounds(1) };
    let mut rig = Rig::with(&[big, bounds(9)], Budget { memory: 5, ..Budget::creations(2) });
    rig.fill(Q, 5);
    rig.lease(P);
    assert_eq!(rig.removing.len(), 4);
    while !rig.removing.is_empty() {
        assert_eq!(rig.under_way(), [0, 0]);
        let (slot, _) = rig.removing.remove(0);
        rig.act(|s, t, o| s.gone(slot, t, o));
    }
    assert_eq!(rig.under_way(), [1, 0]);
}

#[test]
fn nothing_makes_room_for_a_container_that_can_not_have_enough() {
    let big = Bounds { memory: 4, ..bounds(1) };
    let mut rig = Rig::with(&[big, bounds(9)], Budget { memory: 5, ..Budget::creations(2) });
    rig.fill(Q, 4);
    let (first, _) = granted(&rig.lease(Q));
    let (second, _) = granted(&rig.lease(Q));
    rig.settle();
    assert_eq!(rig.lease(P), [], "two are at work, which leaves 3");
    assert_eq!(rig.idle(Q), 3, "the pool keeps what it has");
    let idle = SlotId { pool: Q, serial: 2 };
    rig.act(|s, t, o| s.doubted(idle, t, o));
    rig.settle();
    assert_eq!(rig.idle(Q), 3, "and replaces what it loses");
    rig.release(first);
    rig.gone();
    assert_eq!(rig.slots.count(Q, State::Leased), 1);
    rig.settle();
    assert_eq!(rig.slots.count(P, State::Leased), 1, "one at work leaves 4");
    rig.release(second);
}

// Who is next.

#[test]
fn a_new_pool_starts_one_and_when_that_is_ready_the_rest() {
    let mut rig = Rig::new(&[8], 4);
    assert_eq!(starts(&rig.target(P, 4, &[])).len(), 1);
    assert_eq!(starts(&rig.lease(P)).len(), 0, "not even for a job");
    let slot = rig.starting[0];
    assert_eq!(starts(&rig.ready(slot)).len(), 4);
}

#[test]
fn probes_leave_a_creator_to_others() {
    let mut rig = Rig::new(&[9, 9, 9, 9], 3);
    for pool in 0..4 {
        rig.target(PoolIndex(pool), 1, &[]);
    }
    assert_eq!(rig.starting.len(), 2, "three creators, two probes");
    let mut rig = Rig::new(&[9, 9, 9, 9], 3);
    for pool in 0..4 {
        rig.lease(PoolIndex(pool));
    }
    assert_eq!(rig.starting.len(), 2);
    let proven = rig.starting[0];
    rig.ready(proven);
    assert_eq!(rig.starting.len(), 2, "one of the others instead");
    rig.lease(proven.pool);
    assert_eq!(rig.starting.len(), 3, "the third is for who is proven");
    assert_eq!(rig.starting[2].pool, proven.pool);
}

#[test]
fn a_single_creator_may_probe() {
    let mut rig = Rig::new(&[9], 1);
    assert_eq!(starts(&rig.target(P, 1, &[])).len(), 1);
}

#[test]
fn a_burst_in_one_pool_and_a_refill_in_another_share_the_creators() {
    // All creators but one are for jobs; a single one can't be shared.
    for (creators, shares) in [(1, [1, 0]), (2, [1, 1]), (3, [2, 1]), (4, [3, 1])] {
        let mut rig = Rig::new(&[40, 60], creators);
        rig.fill(P, 1);
        rig.fill(Q, 1);
        rig.target(Q, 50, &[]);
        for _ in 0..30 {
            rig.lease(P);
        }
        // Those of the fill that were begun before the burst make way.
        for _ in 0..creators {
            rig.next();
        }
        assert_eq!(rig.under_way(), shares, "{creators} creators");
        while rig.slots.waiting(P) > creators {
            rig.next();
            assert_eq!(rig.under_way(), shares, "{creators} creators");
        }
        rig.settle();
        assert_eq!(rig.idle(Q), 50, "{creators} creators");
    }
}

#[test]
fn who_needs_nothing_takes_no_share() {
    let mut rig = Rig::new(&[9, 9], 4);
    rig.fill(P, 1);
    rig.fill(Q, 1);
    rig.target(P, 8, &[]);
    assert_eq!(rig.under_way(), [4, 0]);
}

#[test]
fn who_waits_comes_before_any_refill() {
    let mut rig = Rig::new(&[10, 10], 1);
    let big = starts(&rig.target(P, 8, &[]))[0];
    assert_eq!(rig.lease(Q), []);
    let out = rig.ready(big);
    assert_eq!(starts(&out)[0].pool, Q);
}

#[test]
fn who_waits_longest_comes_first_whatever_the_pool() {
    let mut rig = Rig::new(&[9, 9, 9], 1);
    for pool in 0..3 {
        rig.fill(PoolIndex(pool), 1);
    }
    rig.target(P, 3, &[]);
    let order = [1, 2, 1, 0];
    for pool in [0, 1, 2].into_iter().chain(order) {
        rig.lease(PoolIndex(pool));
    }
    let mut served = Vec::new();
    while served.len() < order.len() {
        let slot = rig.starting[0];
        if let Some(Action::Grant(slot, _)) = rig.ready(slot).first() {
            served.push(slot.pool.0);
        }
    }
    assert_eq!(served, [0, 1, 2, 1], "what was under way serves its own pool");
}

#[test]
fn a_refill_goes_where_one_more_is_worth_most() {
    let mut rig = Rig::new(&[9, 9], 1);
    rig.fill(P, 1);
    rig.fill(Q, 1);
    rig.target(P, 4, &[9.0, 6.0, 4.0, 1.0]);
    rig.target(Q, 4, &[9.0, 5.0, 3.0, 2.0]);
    let order: Vec<usize> = (0..6).map(|_| rig.next().pool.0).collect();
    assert_eq!(order, [0, 1, 0, 1, 1, 0]);
}

// Failures.

#[test]
fn a_broken_image_is_tried_one_at_a_time_after_growing_delays() {
    let mut rig = Rig::new(&[8], 4);
    let probe = starts(&rig.target(P, 4, &[]))[0];
    assert_eq!(starts(&rig.fail(probe)), []);
    assert!(rig.slots.failing(P) && !rig.slots.able(P));
    assert_eq!(rig.slots.next_tick(rig.now), Some(rig.now + SECOND));
    assert_eq!(rig.tick(SECOND / 2), []);
    let probe = starts(&rig.tick(SECOND / 2));
    assert_eq!(probe.len(), 1);
    assert_eq!(rig.slots.next_tick(rig.now), None, "while it is tried, the clock has no say");
    let out = rig.ready(probe[0]);
    assert!(!rig.slots.failing(P) && rig.slots.able(P));
    assert_eq!(starts(&out).len(), 3, "then all at once");
}

#[test]
fn failures_that_were_under_way_together_count_once() {
    let mut rig = Rig::filled(1);
    rig.target(P, 5, &[]);
    let begun = std::mem::take(&mut rig.starting);
    let mut counted = 0;
    for slot in begun {
        rig.act(|s, t, o| {
            let until = || {
                counted += 1;
                t + SECOND
            };
            s.failed(slot, until, t, o);
        });
        // Longer than the delay: its end makes none of them news.
        rig.now += 2 * SECOND;
    }
    assert_eq!(counted, 1);
    assert!(rig.slots.able(P), "one is idle");
    rig.gone();
    assert_eq!(rig.starting.len(), 1, "a probe");
    let probe = rig.starting.remove(0);
    rig.act(|s, t, o| {
        let until = || {
            counted += 1;
            t + SECOND
        };
        s.failed(probe, until, t, o);
    });
    assert_eq!(counted, 2, "the next one's does");
}

#[test]
fn a_broken_pool_comes_after_the_others() {
    let mut rig = Rig::new(&[9, 9], 1);
    rig.fill(Q, 1);
    rig.lease(P);
    let probe = rig.starting[0];
    rig.target(Q, 3, &[]);
    rig.fail(probe);
    rig.now += SECOND;
    for _ in 0..2 {
        assert_eq!(rig.next().pool, Q, "its job has waited, but probably in vain");
    }
    assert_eq!(rig.under_way(), [1, 0]);
}

// Replacement.

#[test]
fn rolled_ones_serve_until_each_ones_successor_is_there() {
    let mut rig = Rig::new(&[9], 1);
    rig.fill(P, 3);
    let out = rig.roll(P);
    assert_eq!((starts(&out).len(), removals(&out).len()), (1, 0));
    for left in [2, 1, 0] {
        assert_eq!(rig.idle(P), 3);
        let slot = rig.starting[0];
        let out = rig.ready(slot);
        assert!(matches!(removals(&out)[..], [(_, Reason::Rolled)]), "{out:?}");
        assert_eq!((rig.idle(P), rig.slots.stale(P)), (3, left));
    }
    assert_eq!(rig.starting, []);
}

#[test]
fn a_fresh_one_is_leased_before_a_stale_one() {
    let mut rig = Rig::new(&[9], 1);
    rig.fill(P, 2);
    rig.roll(P);
    let fresh = rig.next();
    assert_eq!(granted(&rig.lease(P)).0, fresh);
    assert_eq!(granted(&rig.lease(P)).0.serial, 1, "better a stale one than none");
}

#[test]
fn what_was_starting_at_the_time_of_the_roll_is_stale_when_ready() {
    let mut rig = Rig::new(&[9], 4);
    rig.target(P, 1, &[]);
    rig.roll(P);
    let old = rig.next();
    assert_eq!((rig.idle(P), rig.slots.stale(P)), (1, 1), "it serves");
    assert_eq!(rig.starting.len(), 1);
    rig.next();
    assert_eq!(rig.removing, [(old, Reason::Rolled)]);
}

#[test]
fn a_roll_leaves_leased_ones_alone() {
    let mut rig = Rig::filled(1);
    let (leased, _) = granted(&rig.lease(P));
    rig.settle();
    rig.roll(P);
    rig.settle();
    assert_eq!(rig.slots.state(leased), Some(State::Leased));
    assert_eq!(rig.release(leased), [Action::Remove(leased, Reason::Used)]);
}

#[test]
fn a_roll_goes_on_where_a_bound_leaves_no_room_for_successors() {
    let full = Rig::new(&[3], 2);
    let one_pool = Rig::with(&[bounds(9)], Budget { containers: 3, ..Budget::creations(2) });
    let memory = Rig::with(&[bounds(9)], Budget { memory: 3, ..Budget::creations(2) });
    for mut rig in [full, one_pool, memory] {
        rig.fill(P, 3);
        rig.roll(P);
        for left in [2, 1, 0] {
            assert_eq!((rig.removing.len(), rig.idle(P)), (1, 2), "one at a time");
            assert_eq!(rig.slots.stale(P), left);
            rig.gone();
            assert_eq!(rig.starting.len(), 1);
            rig.next();
        }
        assert_eq!((rig.idle(P), rig.removing.len()), (3, 0));
    }
}

#[test]
fn a_roll_to_a_broken_image_keeps_the_old_ones_serving() {
    for (most, served) in [(9, 3), (3, 2)] {
        let mut rig = Rig::new(&[most], 1);
        rig.fill(P, 3);
        rig.roll(P);
        for _ in 0..5 {
            rig.gone();
            let probe = rig.starting[0];
            rig.fail(probe);
            rig.gone();
            rig.tick(SECOND);
            assert_eq!((rig.idle(P), rig.slots.stale(P)), (served, served), "of {most}");
            assert!(rig.slots.able(P) && rig.slots.failing(P));
        }
    }
}

#[test]
fn a_roll_may_mend_a_broken_pool_at_once() {
    let mut rig = Rig::new(&[9], 1);
    let probe = starts(&rig.target(P, 1, &[]))[0];
    rig.fail(probe);
    assert_eq!(starts(&rig.roll(P)).len(), 1);
}

fn aging(secs: u32) -> Rig {
    let bounds = Bounds { max_age: Some(secs * SECOND), ..bounds(9) };
    Rig::with(&[bounds], Budget::creations(1))
}

#[test]
fn old_ones_are_replaced_one_by_one() {
    let mut rig = aging(10);
    rig.fill(P, 2);
    let oldest = rig.now;
    rig.now += 4 * SECOND;
    rig.fill(P, 3);
    assert_eq!(rig.slots.next_tick(rig.now), Some(oldest + 10 * SECOND));
    assert_eq!(rig.tick(5 * SECOND), []);
    rig.tick(SECOND);
    assert_eq!((rig.idle(P), rig.slots.stale(P)), (3, 2), "they serve until then");
    assert_eq!(rig.slots.next_tick(rig.now), Some(oldest + 14 * SECOND), "the third");
    for left in [1, 0] {
        rig.next();
        assert_eq!((rig.idle(P), rig.slots.stale(P)), (3, left));
    }
    assert!(rig.removing.iter().all(|(_, reason)| *reason == Reason::Age));
    assert_eq!(rig.removing.len(), 2);
}

#[test]
fn a_leased_one_has_no_age() {
    let mut rig = aging(10);
    rig.fill(P, 1);
    rig.target(P, 0, &[]);
    rig.fill(P, 1);
    rig.lease(P);
    rig.target(P, 0, &[]);
    rig.settle();
    assert_eq!(rig.slots.next_tick(rig.now), None);
    assert_eq!(rig.tick(60 * SECOND), []);
    assert_eq!(rig.slots.count(P, State::Leased), 1);
}

#[test]
fn a_new_greatest_age_counts_for_what_is_idle_already() {
    let mut rig = Rig::filled(1);
    rig.now += 5 * SECOND;
    assert_eq!(rig.slots.next_tick(rig.now), None);
    rig.slots.set_bounds(P, Bounds { max_age: Some(8 * SECOND), ..bounds(9) });
    assert_eq!(rig.slots.next_tick(rig.now), Some(rig.now + 3 * SECOND));
    rig.tick(3 * SECOND);
    assert_eq!(rig.slots.stale(P), 1);
    rig.slots.set_bounds(P, bounds(9));
    rig.settle();
    assert_eq!((rig.slots.stale(P), rig.slots.next_tick(rig.now)), (0, None));
}

#[test]
fn the_greatest_age_of_all_is_for_ever() {
    let bounds = Bounds { max_age: Some(Duration::MAX), ..bounds(9) };
    let mut rig = Rig::with(&[bounds], Budget::creations(1));
    rig.fill(P, 1);
    assert_eq!(rig.slots.next_tick(rig.now), None);
    assert_eq!(rig.tick(SECOND), []);
}

// The end.

#[test]
fn drain_retires_everything_and_starts_nothing() {
    let mut rig = Rig::filled(2);
    let out = rig.lease(P);
    let (leased, _) = granted(&out);
    let starting = starts(&out)[0];
    let out = rig.act(|s, _, o| s.drain(o));
    let [Action::Remove(idle, Reason::Drained)] = out[..] else { panic!("{out:?}") };
    assert_eq!(rig.ready(starting), [Action::Remove(starting, Reason::Drained)]);
    rig.release(leased);
    for slot in [idle, starting, leased] {
        assert_eq!(rig.act(|s, t, o| s.gone(slot, t, o)), []);
    }
    assert!(rig.slots.is_empty());
}

// Rare pools, full hosts, pools that fail for long.

#[test]
fn a_pool_that_wants_none_tries_one_to_know_that_it_could() {
    let mut rig = Rig::new(&[4], 3);
    let probe = starts(&rig.target(P, 0, &[]));
    assert_eq!(probe.len(), 1);
    rig.fail(probe[0]);
    rig.gone();
    assert!(!rig.slots.able(P));
    assert_eq!(rig.slots.next_tick(rig.now), Some(rig.now + SECOND));
    assert_eq!(starts(&rig.tick(SECOND)).len(), 1, "again, though nobody asks: nobody would");
    rig.settle();
    assert_eq!((rig.idle(P), rig.slots.able(P)), (0, true));
    assert_eq!(starts(&rig.tick(100 * SECOND)), []);
}

#[test]
fn nothing_is_begun_before_what_it_needs_is_there() {
    let mut rig = Rig::new(&[4, 4], 3);
    rig.fill(P, 1);
    rig.fill(Q, 2);
    rig.slots.unprepared(P);
    assert_eq!(starts(&rig.target(P, 3, &[])), []);
    assert!(rig.slots.able(P), "it has an idle one");
    let (slot, _) = granted(&rig.lease(P));
    assert!(!rig.slots.able(P), "now it hasn't");
    assert_eq!(starts(&rig.lease(Q)).len(), 1, "others go on");
    assert_eq!(starts(&rig.act(|s, t, o| s.prepared(P, t, o))).len(), 2);
    rig.release(slot);
}

#[test]
fn the_least_of_a_pool_is_not_for_others_and_who_is_shut_out_is_known() {
    let keep = Bounds { reserved: 2, ..bounds(9) };
    let budget = Budget { containers: 4, ..Budget::creations(3) };
    let mut rig = Rig::with(&[keep, bounds(9)], budget);
    rig.fill(Q, 1);
    rig.fill(P, 3);
    rig.target(Q, 0, &[]);
    rig.settle();
    let first = granted(&[rig.lease(Q), rig.settled()].concat()).0;
    assert_eq!((rig.idle(P), rig.slots.shut_out(Q)), (3, false));
    let second = granted(&[rig.lease(Q), rig.settled()].concat()).0;
    assert_eq!((rig.idle(P), rig.slots.shut_out(Q)), (2, true), "what is left is the other's least");
    assert!(!rig.slots.shut_out(P));
    assert_eq!(rig.lease(Q), []);
    rig.settle();
    assert_eq!(rig.idle(P), 2);
    rig.release(first);
    assert!(!rig.slots.shut_out(Q), "a place comes free");
    rig.settle();
    assert_eq!(rig.slots.waiting(Q), 0);
    rig.release(second);
}

#[test]
fn a_pool_that_has_failed_for_long_is_tried_beside_saturated_ones() {
    for creators in 1..=3 {
        let mut rig = Rig::new(&[40, 40], creators);
        rig.fill(Q, 1);
        let probe = starts(&rig.target(P, 1, &[]))[0];
        rig.fail(probe);
        (0..30).for_each(|_| _ = rig.lease(Q));
        rig.now += 100 * SECOND;
        let tried = (0..10).map(|_| rig.next().pool).filter(|pool| *pool == P).count();
        assert!(tried >= 1, "{creators} creators");
    }
}

#[test]
fn a_pool_whose_containers_end_at_once_is_tried_one_at_a_time() {
    let mut rig = Rig::filled(4);
    let until = rig.now + SECOND;
    rig.slots.mistrust(P, until);
    let dead: Vec<SlotId> = (0..4).map(|serial| SlotId { pool: P, serial }).collect();
    let begun: Vec<Action> =
        dead.iter().flat_map(|slot| rig.act(|s, t, o| s.died(*slot, None, t, o))).collect();
    assert_eq!(starts(&begun), []);
    rig.gone();
    assert_eq!(starts(&rig.tick(SECOND)).len(), 1);
}

#[test]
fn what_is_left_from_before_a_change_counts_as_the_larger_kind() {
    let big = Bounds { memory: 4, ..bounds(9) };
    let mut rig = Rig::with(&[big], Budget { memory: 8, ..Budget::creations(9) });
    rig.fill(P, 2);
    let leased = granted(&rig.lease(P)).0;
    rig.slots.set_bounds(P, Bounds { memory: 1, ..big });
    rig.roll(P);
    rig.target(P, 6, &[]);
    rig.settle();
    assert!(rig.idle(P) <= 1, "one of 4 is at work: {}", rig.idle(P));
    rig.release(leased);
    rig.settle();
    assert_eq!(rig.idle(P), 6);
}
