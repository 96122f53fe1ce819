//! Pools that share a host's budget, and rare ones.

use std::time::Duration;

use prewarm::pool::planner::{Host, Limits, Reason};

use crate::sim::{Setup, Sim, adaptive, host};
use prewarm::fleet::{Random, Times};

const REAL: Times = Times::Lognormal { mean: 0.25, cv: 0.3 };

#[test]
fn a_budget_goes_where_the_need_is_and_stays_there() {
    let budget = 12;
    let host = Host { containers: Some(budget), ..host(3) };
    let limits = Limits { min: 2, ..adaptive() };
    let pools = vec![(limits, Random::steady(6.0, 1.0)), (limits, Random::steady(1.5, 1.0))];
    let mut setup = Setup::new(host, REAL, 5);
    setup.job = Times::Exponential(0.4);
    let mut sim = Sim::new(setup, pools);
    sim.run_until(300.0);
    (0..2).for_each(|pool| _ = sim.take(pool));
    let (mut sum, mut budgeted) = (0, 0);
    for second in 301..900 {
        sim.run_until(f64::from(second));
        let [a, b] = [0, 1].map(|pool| sim.planner.sizing(pool));
        assert!(a.target >= 2 && b.target >= 2, "{a:?} {b:?}");
        assert!(a.target >= b.target, "{a:?} {b:?}");
        budgeted += u32::from(a.reason == Reason::Budget || b.reason == Reason::Budget);
        assert!(a.target + b.target <= budget, "{a:?} {b:?}");
        sum += a.target + b.target + sim.machine.busy(0) + sim.machine.busy(1);
    }
    // What is busy changes from second to second; it is its average that is left room for.
    assert!(sum as f64 / 599.0 <= budget as f64 + 0.5, "{}", sum as f64 / 599.0);
    assert!(budgeted > 300, "it matters: {budgeted}");
    let changes = sim.take(0).changes + sim.take(1).changes;
    println!("{changes} changes of the targets of two pools under a budget in ten minutes");
    assert!(changes <= 100, "{changes}");
}

#[test]
fn a_steady_rate_has_a_steady_target() {
    let mut sim = Sim::new(Setup::new(host(3), REAL, 6), vec![(adaptive(), Random::steady(5.0, 1.0))]);
    sim.run_until(600.0);
    sim.take(0);
    sim.run_until(1800.0);
    let found = sim.take(0);
    println!("{} changes of the target at a steady rate in twenty minutes", found.changes);
    assert!(found.changes <= 40, "{}", found.changes);
    assert!(found.hits() >= 0.99, "{}", found.hits());
}

#[test]
fn a_rare_pool_goes_to_zero_and_comes_back() {
    let limits = Limits { min: 0, ttl: Some(Duration::from_secs(120)), ..adaptive() };
    let rate = |t: f64| if (100.0..200.0).contains(&t) || t > 1000.0 { 2.0 } else { 0.0 };
    let mut sim = Sim::new(Setup::new(host(3), REAL, 7), vec![(limits, Random::new(1.0, 2.0, rate))]);
    sim.run_until(99.0);
    assert_eq!(sim.planner.sizing(0).target, 0, "nothing was asked for");
    sim.run_until(210.0);
    assert!(sim.planner.sizing(0).target >= 2, "{:?}", sim.planner.sizing(0));
    sim.run_until(330.0);
    let sizing = sim.planner.sizing(0);
    assert_eq!((sizing.target, sizing.reason, sim.machine.idle(0)), (0, Reason::Ttl, 0));
    sim.run_until(1010.0);
    sim.take(0);
    sim.run_until(1100.0);
    assert!(sim.planner.sizing(0).target >= 2 && sim.take(0).hits() > 0.97);
}
