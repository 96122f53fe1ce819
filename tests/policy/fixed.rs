//! Pools of one size: the measured share of misses is the computed one.

use std::time::Duration;

use prewarm::pool::sizing::Load;

use crate::sim::{Record, Setup, Sim, fixed, host};
use prewarm::fleet::{Random, Times};

/// Seconds to create a container, on average.
const WARM: f64 = 0.25;
/// How far measured and computed may be apart.
const TOLERANCE: f64 = 0.2;
/// Stretches that a run is cut into, to see how much chance there is in it.
const STRETCHES: usize = 30;

struct Case {
    load: Load,
    creation: Times,
    size: usize,
    jobs: f64,
}

impl Case {
    /// The measured share of misses, and its relative standard error.
    fn measure(&self, seed: u64) -> (f64, f64) {
        let creators = if self.load.creators.is_finite() { self.load.creators as usize } else { usize::MAX };
        let mut setup = Setup::new(host(creators), self.creation, seed);
        // There is nothing to plan.
        setup.plan_every = Duration::from_secs(600);
        let arrivals = Random::steady(self.load.rate, self.load.dispersion);
        let mut sim = Sim::new(setup, vec![(fixed(self.size), arrivals)]);
        let stretch = self.jobs / self.load.rate / STRETCHES as f64;
        sim.run_until(stretch);
        sim.take(0);
        let mut all = Record::default();
        let parts: Vec<f64> = (0..STRETCHES)
            .map(|n| {
                sim.run_until(stretch * (n + 2) as f64);
                let part = sim.take(0);
                all.add(&part);
                part.misses()
            })
            .collect();
        let mean = parts.iter().sum::<f64>() / parts.len() as f64;
        let variance = parts.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / (parts.len() - 1) as f64;
        (all.misses(), (variance / parts.len() as f64).sqrt() / mean)
    }

    fn check(&self, seed: u64) -> bool {
        let expected = self.load.misses(self.size)[self.size];
        let (found, error) = self.measure(seed);
        let good = (found / expected - 1.0).abs() < TOLERANCE && error < TOLERANCE / 2.0;
        println!(
            "{:5.2} jobs/s, D = {:2}, creation {:?}, size {:3}: {:6.3} % computed, {:6.3} % measured ± {:4.1} %{}",
            self.load.rate,
            self.load.dispersion,
            self.creation,
            self.size,
            expected * 100.0,
            found * 100.0,
            error * 100.0,
            if good { "" } else { "  !" },
        );
        good
    }
}

#[test]
fn with_three_creators() {
    let mut good = true;
    for busy in [0.5, 0.8, 0.95] {
        for dispersion in [1.0, 2.0, 5.0, 10.0] {
            let load = Load {
                rate: busy * 3.0 / WARM,
                warm: WARM,
                alone: WARM,
                variation: 1.0,
                dispersion,
                creators: 3.0,
            };
            let misses = load.misses(2000);
            // Where jobs almost use up the creators, queues last for minutes, and rare misses take days to count.
            let (goals, jobs): (&[f64], f64) = match busy {
                0.5 => (&[0.25, 0.05, 0.01], 4e3),
                0.8 => (&[0.25, 0.05], 14e3),
                _ => (&[0.3], 90e3),
            };
            for goal in goals {
                let size = misses.iter().position(|miss| miss <= goal).unwrap();
                let jobs = (jobs * dispersion.sqrt() / goal).max(100e3);
                good &= Case { load, creation: Times::Exponential(WARM), size, jobs }.check(7);
            }
        }
    }
    assert!(good, "see the lines with '!'");
}

#[test]
fn with_unlimited_creators_whatever_the_times_are() {
    let mut good = true;
    for creation in [Times::Constant(WARM), Times::Lognormal { mean: WARM, cv: 0.8 }] {
        for (rate, size) in [(1.0, 1), (5.0, 3), (5.0, 5), (40.0, 12), (40.0, 17)] {
            let load = Load {
                rate,
                warm: WARM,
                alone: WARM,
                variation: 1.0,
                dispersion: 1.0,
                creators: f64::INFINITY,
            };
            good &= Case { load, creation, size, jobs: 200e3 }.check(11);
        }
    }
    assert!(good, "see the lines with '!'");
}

/// What the formula takes real engines to spare is an approximation: near enough, and on the safe side in heavy bursts.
#[test]
fn with_three_creators_that_are_steady() {
    let mut good = true;
    for (busy, dispersion, sizes) in [
        (0.3, 1.0, [3, 4]),
        (0.5, 1.0, [5, 6]),
        (0.8, 1.0, [6, 10]),
        (0.5, 2.0, [8, 11]),
        (0.8, 2.0, [12, 18]),
        (0.5, 5.0, [9, 17]),
    ] {
        let load = Load {
            rate: busy * 3.0 / WARM,
            warm: WARM,
            alone: WARM,
            variation: 0.09,
            dispersion,
            creators: 3.0,
        };
        for size in sizes {
            let creation = Times::Lognormal { mean: WARM, cv: 0.3 };
            good &= Case { load, creation, size, jobs: 200e3 }.check(7);
        }
    }
    assert!(good, "see the lines with '!'");
}
