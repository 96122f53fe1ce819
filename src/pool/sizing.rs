//! Pure: how many idle containers a load needs, and how many jobs miss with that many.
//!
//! # The formula
//!
//! A leased container is replaced at once, so a pool of size `S` always has `S` containers that are idle or being
//! created, less the jobs that wait. A job misses if `S` or more creations are outstanding when it comes. What is
//! outstanding is a queue: jobs bring work at a rate `λ`, each takes `L` seconds of one of `k` creators. Jobs come in
//! bursts: the number of jobs in one is geometric, such that counts have the variance-to-mean ratio `D`. Seen by
//! cuts between `n` and `n + 1` outstanding creations:
//!
//! ```text
//!   q = (D − 1) / (D + 1)                            a burst goes on with probability q
//!   Aₙ = πₙ + q·Aₙ₋₁                                  bursts that reach beyond n
//!   πₙ₊₁ · min(n + 1, k) / L = λ·(1 − q) · Aₙ
//!   miss(S) = P(outstanding ≥ S) + q·A(S−1)           the second: jobs that their own burst pushes beyond S
//! ```
//!
//! For `D = 1` and unlimited creators this is the Poisson distribution's tail, and holds for any distribution of `L`.
//! Textbooks have Erlang's loss formula there, for pools whose missed jobs go elsewhere. Here a job that
//! misses waits, and takes the first container that becomes ready; the two agree where misses are rare, and the loss formula
//! promises too much where they aren't. With `k` creators `L` is taken to be exponential, which is on the safe side: real
//! creation times vary less.

use std::time::Duration;

/// What a pool has to cope with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// λ: jobs per second.
    pub rate: f64,
    /// L: seconds that replacing a container keeps a creator busy, on average, under load.
    pub warm: f64,
    /// D: variance over mean of the jobs counted in equal spans of time. 1 is Poisson; below 1 is taken for 1.
    pub dispersion: f64,
    /// k: creations at once; infinite if nothing limits them.
    pub creators: f64,
}

impl Load {
    /// How many creators it keeps busy.
    pub fn offered(&self) -> f64 {
        self.rate * self.warm
    }

    /// Whether the creators keep up, given enough time. If they don't, no size helps.
    pub fn sustainable(&self) -> bool {
        self.offered() < self.creators
    }

    /// The share of jobs that miss, for each size from 0 to `most`: between 0 and 1, falling.
    pub fn misses(&self, most: usize) -> Vec<f64> {
        let offered = self.offered();
        // NaN included: nothing is known to be possible.
        if !self.sustainable() {
            return vec![1.0; most + 1];
        }
        if offered <= 0.0 {
            return std::iter::once(1.0).chain(std::iter::repeat_n(0.0, most)).collect();
        }
        let d = self.dispersion.max(1.0);
        let q = (d - 1.0) / (d + 1.0);
        let work = offered * (1.0 - q);
        // Beyond this many busy creators nothing happens any more: as good as unlimited.
        let enough = offered + 40.0 * (offered * d).sqrt() + 64.0;
        let creators = self.creators.min(enough);

        // Unnormalized. `reach[n]` is Aₙ; `below[n]` the probability of fewer than n.
        let (mut a, mut sum) = (1.0, 1.0);
        let mut reach = vec![a];
        let mut below = vec![0.0, sum];
        let mut n = 0.0;
        while n < creators || reach.len() < most {
            n += 1.0;
            let p = work * a / creators.min(n);
            a = p + q * a;
            sum += p;
            if sum > 1e200 {
                // Only ratios matter.
                for x in reach.iter_mut().chain(&mut below).chain([&mut a, &mut sum]) {
                    *x *= 1e-200;
                }
            }
            reach.push(a);
            below.push(sum);
        }
        // From here on all creators are busy: a geometric series.
        let step = work / creators;
        let total = sum + step * a / (1.0 - step - q);
        let miss = |size: usize| {
            let own = if size == 0 { 0.0 } else { q * reach[size - 1] };
            (((total - below[size]) + own) / total).clamp(0.0, 1.0)
        };
        (0..=most).map(miss).collect()
    }

    /// The smallest size, at most `most`, with which at least this share of jobs hits.
    pub fn size_for(&self, hit_target: f64, most: usize) -> Option<usize> {
        self.misses(most).iter().position(|miss| *miss <= 1.0 - hit_target)
    }

    /// How many of a pool's containers are idle on average.
    pub fn idle(&self, size: usize) -> f64 {
        // Σ P(outstanding < s) for s = 1 … size; misses(D = 1) are P(outstanding ≥ s). Bursts make no difference worth the
        // trouble.
        self.misses(size).iter().skip(1).map(|miss| 1.0 - miss).sum()
    }
}

/// How long creations take: of the last few, so that it follows an engine that becomes slower.
#[derive(Clone, Debug, Default)]
pub struct WarmTimes {
    recent: std::collections::VecDeque<Duration>,
}

impl WarmTimes {
    /// How many are remembered.
    const KEPT: usize = 64;
    /// Taken before the first is known: what a container takes with a network on a small machine.
    const UNKNOWN: Duration = Duration::from_millis(500);

    /// One more creation succeeded after this time.
    pub fn add(&mut self, took: Duration) {
        if self.recent.len() == Self::KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
    }

    /// The average.
    pub fn mean(&self) -> Duration {
        match u32::try_from(self.recent.len()) {
            Ok(n) if n > 0 => self.recent.iter().sum::<Duration>() / n,
            _ => Self::UNKNOWN,
        }
    }

    /// What 95 of 100 stay below.
    pub fn p95(&self) -> Duration {
        let mut sorted: Vec<_> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 95 / 100).copied().unwrap_or(Self::UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: f64, dispersion: f64, creators: f64) -> Load {
        Load { rate, warm: 0.25, dispersion, creators }
    }

    fn poisson_tail(mean: f64, from: usize) -> f64 {
        let mut p = (-mean).exp();
        let mut below = 0.0;
        for n in 0..from {
            below += p;
            p *= mean / (n + 1) as f64;
        }
        1.0 - below
    }

    #[test]
    fn without_bursts_and_limits_it_is_the_poisson_tail() {
        for rate in [0.1, 1.0, 5.0, 40.0, 400.0, 4000.0] {
            let misses = load(rate, 1.0, f64::INFINITY).misses(40);
            for (size, miss) in misses.iter().enumerate() {
                let expected = poisson_tail(rate * 0.25, size);
                assert!((miss - expected).abs() < 1e-9, "rate {rate}, size {size}: {miss}, not {expected}");
            }
        }
    }

    #[test]
    fn with_one_creator_it_is_the_queue_of_the_textbook() {
        // M/M/1: P(n ≥ S) = ρ^S.
        for rho in [0.1, 0.5, 0.9, 0.99] {
            let misses = load(4.0 * rho, 1.0, 1.0).misses(60);
            for (size, miss) in misses.iter().enumerate() {
                assert!((miss - rho.powi(size as i32)).abs() < 1e-9, "ρ {rho}, size {size}: {miss}");
            }
        }
    }

    /// The figures that notes on base-stock pools give for 95, 99 and 99.9 % with a replacement time of 0.25 s: those are
    /// of the loss formula, so never above ours, and never far below.
    #[test]
    fn sizes_are_the_known_ones_or_a_little_above() {
        let inf = f64::INFINITY;
        for (rate, creators, expected) in [
            (1.0, inf, [2, 3, 4]),
            (5.0, inf, [4, 5, 7]),
            (10.0, inf, [6, 7, 9]),
            (20.0, inf, [9, 11, 14]),
            (40.0, inf, [15, 18, 21]),
            (1.0, 4.0, [2, 3, 4]),
            (5.0, 4.0, [4, 5, 7]),
            (10.0, 4.0, [7, 10, 15]),
        ] {
            for (target, expected) in [0.95, 0.99, 0.999].into_iter().zip(expected) {
                let size = load(rate, 1.0, creators).size_for(target, 100).unwrap();
                assert!(
                    (expected..=expected + 2).contains(&size),
                    "{rate} {creators} {target}: {size}, {expected}"
                );
            }
        }
    }

    #[test]
    fn bursts_need_more() {
        let sizes = [1.0, 2.0, 5.0, 10.0].map(|d| load(5.0, d, f64::INFINITY).size_for(0.99, 1000).unwrap());
        assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
        assert_eq!(sizes[0], 5);
    }

    #[test]
    fn what_the_creators_cannot_sustain_has_no_size() {
        assert_eq!(load(20.0, 1.0, 4.0).size_for(0.99, 10_000), None);
        assert_eq!(load(f64::NAN, 1.0, 4.0).size_for(0.5, 10), None);
        assert!(load(15.9, 1.0, 4.0).size_for(0.99, 10_000).is_some());
        assert_eq!(load(0.0, 1.0, 4.0).size_for(0.99, 10), Some(1));
        assert_eq!(load(0.0, 1.0, 4.0).size_for(0.99, 0), None);
    }

    #[test]
    fn misses_fall_and_are_probabilities() {
        for rate in [0.01, 1.0, 7.9, 11.99] {
            for d in [0.0, 1.0, 3.0, 50.0] {
                let misses = load(rate, d, 3.0).misses(500);
                assert!(misses.iter().all(|m| (0.0..=1.0).contains(m)), "{rate} {d}");
                assert!(misses.windows(2).all(|w| w[1] <= w[0] + 1e-12), "{rate} {d}");
            }
        }
    }

    #[test]
    fn warm_times_are_of_the_last_few() {
        let mut warm = WarmTimes::default();
        assert_eq!((warm.mean(), warm.p95()), (WarmTimes::UNKNOWN, WarmTimes::UNKNOWN));
        (0..100).for_each(|_| warm.add(Duration::from_secs(9)));
        (0..64).for_each(|n| warm.add(Duration::from_millis(if n < 60 { 100 } else { 420 })));
        assert_eq!((warm.mean(), warm.p95()), (Duration::from_millis(120), Duration::from_millis(420)));
    }
}
