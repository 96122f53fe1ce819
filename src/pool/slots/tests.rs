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
