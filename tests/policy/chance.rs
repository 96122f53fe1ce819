//! What happens by chance: when jobs come, how long things take. Seeded, so that a test does the same each time.

use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// A stream of random numbers.
pub struct Chance(Xoshiro256PlusPlus);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// Between 0 and 1, neither of them.
    pub fn unit(&mut self) -> f64 {
        self.0.random::<f64>().max(f64::MIN_POSITIVE)
    }

    /// Exponentially distributed seconds.
    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// By Box and Muller.
    fn normal(&mut self) -> f64 {
        let turn = std::f64::consts::TAU * self.unit();
        (-2.0 * self.unit().ln()).sqrt() * turn.cos()
    }
}

/// How long something takes: seconds.
#[derive(Clone, Copy, Debug)]
pub enum Times {
    Constant(f64),
    /// By its mean.
    Exponential(f64),
    /// `cv`: standard deviation over mean.
    Lognormal {
        mean: f64,
        cv: f64,
    },
}

impl Times {
    pub fn sample(self, chance: &mut Chance) -> Duration {
        Duration::from_secs_f64(match self {
            Times::Constant(mean) => mean,
            Times::Exponential(mean) => chance.exponential(mean),
            Times::Lognormal { mean, cv } => {
                let variance = (1.0 + cv * cv).ln();
                mean * (variance.sqrt() * chance.normal() - variance / 2.0).exp()
            }
        })
    }
}

/// When a pool's jobs come: bursts as a Poisson process, the number of jobs in one geometric.
pub struct Arrivals {
    /// Jobs per second at a time, in seconds since the start.
    rate: Box<dyn Fn(f64) -> f64>,
    /// Never less than `rate`.
    peak: f64,
    /// That a burst goes on after a job.
    again: f64,
}

impl Arrivals {
    /// With this variance-to-mean ratio of counts.
    pub fn new(dispersion: f64, peak: f64, rate: impl Fn(f64) -> f64 + 'static) -> Arrivals {
        Arrivals { rate: Box::new(rate), peak, again: (dispersion - 1.0) / (dispersion + 1.0) }
    }

    /// The same rate for ever.
    pub fn steady(rate: f64, dispersion: f64) -> Arrivals {
        Arrivals::new(dispersion, rate, move |_| rate)
    }

    /// The next burst after this time, in seconds since the start: when, and how many jobs.
    pub fn next(&self, after: f64, chance: &mut Chance) -> (f64, usize) {
        let mut at = after;
        loop {
            at += chance.exponential(1.0 / (self.peak * (1.0 - self.again)));
            // By thinning.
            if chance.unit() * self.peak <= (self.rate)(at) {
                let mut jobs = 1;
                while chance.unit() < self.again {
                    jobs += 1;
                }
                return (at, jobs);
            }
        }
    }
}
