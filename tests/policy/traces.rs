//! A day, and a day with crowds: what the adaptive target costs and gives, beside fixed sizes.

use prewarm::pool::planner::Limits;
use prewarm::pool::sizing::Load;

use crate::sim::{Record, Setup, Sim, adaptive, fixed, host};
use prewarm::fleet::{Random, Times};

const WARM: f64 = 0.25;
const CREATORS: usize = 3;
/// A day, made short: two hours.
const DAY: f64 = 7200.0;
const PEAK: f64 = 8.0;

/// From a tenth of the peak at night to the peak at noon.
fn day(t: f64) -> f64 {
    let noon = 0.5 - 0.5 * (std::f64::consts::TAU * t / DAY).cos();
    PEAK * (0.1 + 0.9 * noon)
}

/// One job a second; for 20 seconds of each ten minutes, ten.
fn crowds(t: f64) -> f64 {
    if t % 600.0 >= 580.0 { 10.0 } else { 1.0 }
}

fn run(limits: Limits, peak: f64, rate: fn(f64) -> f64) -> Record {
    let setup = Setup::new(host(CREATORS), Times::Lognormal { mean: WARM, cv: 0.3 }, 3);
    let mut sim = Sim::new(setup, vec![(limits, Random::new(1.0, peak, rate))]);
    sim.run_until(2.0 * DAY);
    sim.take(0)
}

/// The size that a steady rate needs.
fn sized_for(rate: f64) -> usize {
    let load =
        Load { rate, warm: WARM, alone: WARM, variation: 0.09, dispersion: 1.0, creators: CREATORS as f64 };
    load.size_for(0.99, 1000).unwrap()
}

/// Runs all policies, prints the table's lines, and returns the records: adaptive, for the mean, for the peak.
fn compare(name: &str, mean: f64, peak: f64, rate: fn(f64) -> f64) -> [Record; 3] {
    let (small, large) = (sized_for(mean), sized_for(peak));
    let policies = [
        ("adaptive".to_owned(), adaptive()),
        (format!("{small}, for the mean"), fixed(small)),
        (format!("{large}, for the peak"), fixed(large)),
    ];
    policies.map(|(policy, limits)| {
        let found = run(limits, peak, rate);
        println!(
            "| {name} | {policy} | {:.2} % | {:.0} ms | {:.0} |",
            found.hits() * 100.0,
            found.wait() * 1000.0,
            found.idle_seconds
        );
        found
    })
}

#[test]
fn over_a_day_it_hits_as_the_peak_size_and_idles_less() {
    let [adaptive, mean, peak] = compare("a day", 0.55 * PEAK, PEAK, day);
    assert!(adaptive.hits() >= 0.99 && mean.hits() < adaptive.hits() && peak.hits() >= 0.99);
    assert!(adaptive.idle() < 0.75 * peak.idle());
}

#[test]
fn of_crowds_it_misses_only_the_beginnings() {
    let [adaptive, mean, peak] = compare("crowds", 1.3, 10.0, crowds);
    assert!(adaptive.hits() > mean.hits(), "{} {}", adaptive.hits(), mean.hits());
    assert!(adaptive.wait() < mean.wait() && adaptive.idle() < 0.75 * peak.idle());
    // A size that was needed for 20 seconds is not kept for ten minutes: who wants that sets idle.min.
    assert!(peak.hits() > adaptive.hits());
}
