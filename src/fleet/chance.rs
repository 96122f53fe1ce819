//! What happens by chance: when bursts begin, how long things take. Seeded, so that it is the same each time.

use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Chance(Xoshiro256PlusPlus);

impl Chance {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Chance {
        Chance(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// Between 0 and 1, neither of them.
    pub fn unit(&mut self) -> f64 {
        self.0.random::<f64>().max(f64::MIN_POSITIVE)
    }

    /// A seed for another stream.
    pub fn seed(&mut self) -> u64 {
        self.0.random()
    }

    /// Exponentially distributed seconds.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// By Box and Muller.
    fn normal(&mut self) -> f64 {
        let turn = std::f64::consts::TAU * self.unit();
        (-2.0 * self.unit().ln()).sqrt() * turn.cos()
    }
}

/// How long something takes: seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Times {
    /// Always the same.
    Constant(f64),
    /// By its mean.
    Exponential(f64),
    /// Skewed to the long side, as real ones are.
    Lognormal {
        /// The mean.
        mean: f64,
        /// Standard deviation over mean.
        cv: f64,
    },
}

impl Times {
    /// The mean, in seconds.
    pub fn mean(self) -> f64 {
        match self {
            Times::Constant(mean) | Times::Exponential(mean) | Times::Lognormal { mean, .. } => mean,
        }
    }

    /// One of them.
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
