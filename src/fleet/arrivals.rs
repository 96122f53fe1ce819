//! When jobs come: generated from a rate, or as they came.

use super::chance::Chance;

/// When jobs come, in seconds since the beginning.
pub enum Arrivals {
    /// At a rate that may change.
    Random(Random),
    /// As they came: ascending.
    Listed(Vec<f64>),
}

impl Arrivals {
    /// The next after this time, of which there were `so_far`: when, and how many jobs at once.
    pub(super) fn next(&self, after: f64, so_far: usize, chance: &mut Chance) -> Option<(f64, usize)> {
        match self {
            Arrivals::Random(random) => {
                let (at, jobs) = random.next(after, chance);
                (at <= random.until).then_some((at, jobs))
            }
            Arrivals::Listed(times) => times.get(so_far).map(|at| (*at, 1)),
        }
    }

    /// When the last may come.
    pub fn end(&self) -> f64 {
        match self {
            Arrivals::Random(random) => random.until,
            Arrivals::Listed(times) => times.last().copied().unwrap_or(0.0),
        }
    }
}

/// Bursts as a Poisson process, the number of jobs in one geometric.
pub struct Random {
    /// Jobs per second at a time, in seconds since the start.
    rate: Box<dyn Fn(f64) -> f64>,
    /// Never less than `rate`.
    peak: f64,
    /// That a burst goes on after a job.
    again: f64,
    until: f64,
}

impl Random {
    /// With this variance-to-mean ratio of counts; for ever.
    pub fn new(dispersion: f64, peak: f64, rate: impl Fn(f64) -> f64 + 'static) -> Random {
        Random {
            rate: Box::new(rate),
            peak,
            again: (dispersion - 1.0) / (dispersion + 1.0),
            until: f64::INFINITY,
        }
    }

    /// The same rate for ever.
    pub fn steady(rate: f64, dispersion: f64) -> Random {
        Random::new(dispersion, rate, move |_| rate)
    }

    /// None come after this time.
    pub fn until(self, until: f64) -> Random {
        Random { until, ..self }
    }

    /// The next burst after this time, in seconds since the start: when, and how many jobs. Infinity: none.
    pub fn next(&self, after: f64, chance: &mut Chance) -> (f64, usize) {
        let mut at = after;
        loop {
            at += chance.exponential(1.0 / (self.peak * (1.0 - self.again)));
            // By thinning.
            if at > self.until || chance.unit() * self.peak <= (self.rate)(at) {
                let mut jobs = 1;
                while chance.unit() < self.again {
                    jobs += 1;
                }
                return (at, jobs);
            }
        }
    }
}
