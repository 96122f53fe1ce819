//! What one pool or two get, in figures that can be followed by hand.

use std::time::{Duration, Instant};

use super::*;
use crate::pool::slots::Serves;

const WARM: Duration = Duration::from_millis(250);

fn limits(min: usize, max: usize) -> Limits {
    Limits { min, max, hit_target: 0.99, ttl: None, memory: 1, serves: Serves::One }
}

struct Rig {
    planner: Planner,
    now: Instant,
}

impl Rig {
    fn new(host: Host, limits: &[Limits]) -> Rig {
        let now = Instant::now();
        Rig { planner: Planner::new(host, limits, now, || 0.5), now }
    }

    /// Evenly spaced jobs of each pool, by their rates, for a time. `hit` and `made` say what becomes of them.
    fn go(&mut self, seconds: u32, rates: &[f64], hit: bool, made: bool) {
        for half in 0..seconds * 2 {
            for (pool, rate) in rates.iter().enumerate() {
                let jobs = (f64::from(half + 1) * rate / 2.0) as u32 - (f64::from(half) * rate / 2.0) as u32;
                for n in 0..jobs {
                    let at = self.now + Duration::from_millis(u64::from(500 * n / jobs));
                    self.planner.arrived(pool, hit, at);
                    if made {
                        // It makes no difference to this engine how many are under way.
                        self.planner.warmed(pool, WARM, f64::from((half + n) % 8 + 1));
                    }
                }
            }
            self.now += Duration::from_millis(500);
            self.planner.plan(self.now, |_| 0);
        }
    }

    fn targets(&self) -> Vec<usize> {
        (0..self.planner.pools.len()).map(|pool| self.planner.sizing(pool).target).collect()
    }
}

fn host(creators: usize) -> Host {
    Host { creators, containers: None, memory: None }
}

#[test]
fn a_fixed_size_is_fixed() {
    let mut rig = Rig::new(host(3), &[limits(4, 4)]);
    assert_eq!(rig.planner.sizing(0).target, 4, "at once");
    rig.go(60, &[11.0], false, true);
    assert_eq!((rig.planner.sizing(0).target, rig.planner.sizing(0).reason), (4, Reason::Fixed));
}

#[test]
fn a_target_grows_at_once_and_is_kept_as_long_as_it_was_needed() {
    let mut rig = Rig::new(host(8), &[limits(1, 50)]);
    rig.go(300, &[1.0], true, true);
    let before = rig.planner.sizing(0).target;
    rig.go(5, &[16.0], true, true);
    let grown = rig.planner.sizing(0).target;
    assert!(grown > 2 * before, "{before} {grown}");
    rig.go(60, &[1.0], true, true);
    assert!(rig.planner.sizing(0).target <= before + 2, "five seconds are soon forgotten");
    rig.go(600, &[16.0], true, true);
    let long = rig.planner.sizing(0).target;
    rig.go(240, &[1.0], true, true);
    assert_eq!((rig.planner.sizing(0).target, rig.planner.sizing(0).reason), (long, Reason::Recent));
    rig.go(400, &[1.0], true, true);
    assert!(rig.planner.sizing(0).target <= before + 1, "{before} {:?}", rig.planner.sizing(0));
}

#[test]
fn more_than_can_be_made_is_said_and_does_not_ask_for_everything() {
    let mut rig = Rig::new(host(3), &[limits(1, 1000)]);
    rig.go(120, &[14.0], false, true);
    let sizing = rig.planner.sizing(0);
    assert_eq!((sizing.reason, sizing.expected_hit_rate), (Reason::Unreachable, 0.0));
    assert!(sizing.target < 100, "{sizing:?}");
}

#[test]
fn misses_that_no_formula_explains_are_corrected() {
    let mut rig = Rig::new(host(3), &[limits(1, 50)]);
    rig.go(120, &[5.0], true, true);
    let before = rig.planner.sizing(0).target;
    rig.go(180, &[5.0], false, true);
    let after = rig.planner.sizing(0);
    assert!(after.target > before && after.correction > 0, "{after:?}");
    rig.go(7200, &[5.0], true, true);
    assert_eq!(rig.planner.sizing(0).correction, 0);
}

#[test]
fn a_size_that_no_hits_confirm_yet_gets_a_margin() {
    let mut rig = Rig::new(host(3), &[limits(1, 50)]);
    rig.go(120, &[5.0], true, true);
    let early = rig.planner.sizing(0);
    rig.go(1200, &[5.0], true, true);
    let late = rig.planner.sizing(0);
    assert!(early.correction > 0 && late.correction == 0 && late.target < early.target, "{early:?} {late:?}");
}

#[test]
fn misses_while_nothing_can_be_made_are_no_reason_for_more() {
    let mut rig = Rig::new(host(3), &[limits(1, 50)]);
    rig.go(120, &[5.0], true, true);
    let before = rig.planner.sizing(0).correction;
    rig.go(600, &[5.0], false, false);
    assert!(rig.planner.sizing(0).correction <= before);
}

#[test]
fn a_budget_leaves_each_its_least_and_goes_where_the_need_is() {
    let tight = Host { containers: Some(7), ..host(8) };
    let mut rig = Rig::new(tight, &[limits(2, 20), limits(1, 20)]);
    rig.go(300, &[8.0, 1.0], true, true);
    let targets = rig.targets();
    assert!(targets.iter().sum::<usize>() == 7 && targets[0] > targets[1] && targets[1] >= 1, "{targets:?}");
    rig.go(300, &[0.2, 8.0], true, true);
    let turned = rig.targets();
    assert!(turned[0] >= 2 && turned[1] > targets[1] && turned.iter().sum::<usize>() <= 7, "{turned:?}");
}

#[test]
fn memory_is_a_budget_too_and_busy_containers_count() {
    let tight = Host { memory: Some(10), ..host(8) };
    let large = Limits { memory: 3, ..limits(1, 20) };
    let mut rig = Rig::new(tight, &[large, limits(1, 20)]);
    rig.go(300, &[4.0, 4.0], true, true);
    let targets = rig.targets();
    assert!(targets[0] * 3 + targets[1] <= 10 && targets[0] >= 1 && targets[1] > targets[0], "{targets:?}");
    for _ in 0..400 {
        rig.planner.plan(rig.now, |pool| if pool == 0 { 2 } else { 0 });
    }
    let targets = rig.targets();
    assert!(targets[0] * 3 + targets[1] <= 4, "{targets:?}");
}

#[test]
fn a_pool_without_jobs_goes_to_its_least_after_its_ttl() {
    let rare = Limits { ttl: Some(Duration::from_secs(30)), ..limits(0, 20) };
    let mut rig = Rig::new(host(3), &[rare]);
    assert_eq!(rig.targets(), [0]);
    rig.go(10, &[4.0], false, true);
    assert!(rig.targets()[0] > 1);
    rig.go(29, &[0.0], true, true);
    assert!(rig.targets()[0] > 0);
    rig.go(2, &[0.0], true, true);
    assert_eq!((rig.targets()[0], rig.planner.sizing(0).reason), (0, Reason::Ttl));
}
