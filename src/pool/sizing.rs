//! Pure: how many idle containers a load needs, and how many jobs miss with that many.
//!
//! # The formula
//!
//! A leased container is replaced at once, so a pool of size `S` always has `S` containers that are idle or being
//! created, less the jobs that wait. A job misses if `S` or more creations are outstanding when it comes. What is
//! outstanding is a queue: jobs come at a rate `λ`, each takes `L` seconds of one of `k` creators. `L` is longer the more
//! creators are at work, since they share one engine: a straight line from `alone` to `warm`, when all are. Jobs come in
//! bursts: the number of jobs in one is geometric, such that counts have the variance-to-mean ratio `D`. Seen by
//! cuts between `n` and `n + 1` outstanding creations:
//!
//! ```text
//!   q = (D − 1) / (D + 1)                            a burst goes on with probability q
//!   Aₙ = πₙ + q·Aₙ₋₁                                  bursts that reach beyond n
//!   πₙ₊₁ · μ(n + 1) = λ·(1 − q) · Aₙ                 μ(n) = c / L(c) with c = min(n, k) creators at work
//!   miss(S) = P(outstanding ≥ S) + q·A(S−1)           the second: jobs that their own burst pushes beyond S
//! ```
//!
//! For `D = 1` and unlimited creators this is the Poisson distribution's tail, and holds for any distribution of `L`.
//! Textbooks have Erlang's loss formula there, for pools whose missed jobs go elsewhere. Here a job that
//! misses waits, and takes the first container that becomes ready; the two agree where misses are rare, and the loss formula
//! promises too much where they aren't.
//!
//! With `k` creators this is exact for exponential times. Real ones vary less, and what waits for a creator is shorter by the
//! factor `1 − (1 − v) / (D + 1) · ρ^((D+1)/3)`, `v` being the times' variance over their squared mean and `ρ` the share of time that creators
//! are busy. For `D = 1` and `ρ` near 1 that is Lee and Longton's `(1 + v) / 2`: about half for a steady engine. The power of `ρ` was
//! found by simulation (tests/policy): where creators are mostly free, and in bursts, steadiness helps less.

use std::collections::VecDeque;
use std::time::Duration;

/// What a pool has to cope with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// λ: jobs per second.
    pub rate: f64,
    /// L: seconds that replacing a container keeps a creator busy, on average, while all creators are.
    pub warm: f64,
    /// The same for one that works alone. An engine that has nothing to gain from parallel creations takes `k` times as
    /// long for each of `k`.
    pub alone: f64,
    /// v: variance over squared mean of those seconds. 1 is exponential; more is taken for 1.
    pub variation: f64,
    /// D: variance over mean of the jobs counted in equal spans of time. 1 is Poisson; below 1 is taken for 1.
    pub dispersion: f64,
    /// k: creations at once; infinite if nothing limits them.
    pub creators: f64,
}

impl Load {
    /// Seconds that one creation takes while this many creators are at work.
    fn each(&self, at_work: f64) -> f64 {
        if self.creators.is_finite() && self.creators > 1.0 {
            let others = ((at_work - 1.0) / (self.creators - 1.0)).clamp(0.0, 1.0);
            self.alone + (self.warm - self.alone) * others
        } else {
            self.warm
        }
    }

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
        // NaN included: nothing is known to be possible.
        if !self.sustainable() {
            return vec![1.0; most + 1];
        }
        if self.offered() <= 0.0 {
            return std::iter::once(1.0).chain(std::iter::repeat_n(0.0, most)).collect();
        }
        let d = self.dispersion.max(1.0);
        let spared = (1.0 - self.variation.clamp(0.0, 1.0)) / (d + 1.0);
        let shorter = 1.0 - spared * (self.offered() / self.creators).powf((d + 1.0) / 3.0);
        if most as f64 <= self.creators || shorter >= 1.0 {
            return self.exponential(most);
        }
        // Of what is outstanding, the part that waits for a creator is shorter than with exponential times.
        let longer = |size: usize| self.creators + (size as f64 - self.creators).max(0.0) / shorter;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "of the order of `most`")]
        let whole = |size: f64| size as usize;
        let misses = self.exponential(whole(longer(most)) + 1);
        let between = |size: f64| {
            let (below, above) = (misses[whole(size)], misses[whole(size) + 1]);
            if below < 1e-12 { below } else { below * (above / below).powf(size.fract()) }
        };
        let miss =
            |size: usize| if size as f64 <= self.creators { misses[size] } else { between(longer(size)) };
        down_to_nothing(miss, most)
    }

    /// The same for exponential times.
    fn exponential(&self, most: usize) -> Vec<f64> {
        let offered = self.offered();
        let d = self.dispersion.max(1.0);
        let q = (d - 1.0) / (d + 1.0);
        let bursts = self.rate * (1.0 - q);
        // Beyond this many busy creators nothing happens any more: as good as unlimited.
        let enough = offered + 40.0 * (offered * d).sqrt() + 64.0;
        let creators = self.creators.min(enough);

        // Unnormalized. `reach[n]` is Aₙ; `below[n]` the probability of fewer than n.
        let (mut a, mut sum) = (1.0, 1.0);
        let mut reach = vec![a];
        let mut below = vec![0.0, sum];
        let mut n = 0.0;
        while n < creators || (reach.len() < most && a > NEVER * sum) {
            n += 1.0;
            let at_work = creators.min(n);
            let p = bursts * a * self.each(at_work) / at_work;
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
        let step = bursts * self.each(creators) / creators;
        let total = sum + step * a / (1.0 - step - q);
        let miss = |size: usize| {
            // What was not computed is never reached.
            let Some(below) = below.get(size) else { return 0.0 };
            let own = if size == 0 { 0.0 } else { q * reach[size - 1] };
            (((total - below) + own) / total).clamp(0.0, 1.0)
        };
        down_to_nothing(miss, most)
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

/// A share of misses that makes no difference to anybody.
const NEVER: f64 = 1e-12;

/// Calls for each size until nothing misses any more: most pools need a few of the thousands that they may have.
fn down_to_nothing(miss: impl Fn(usize) -> f64, most: usize) -> Vec<f64> {
    let mut misses: Vec<f64> = (0..=most).map(miss).take_while(|miss| *miss > NEVER).collect();
    misses.resize(most + 1, 0.0);
    misses
}

/// How long creations take: of the last thousand, or of fewer where the engine has become slower or faster since.
#[derive(Clone, Debug, Default)]
pub struct WarmTimes {
    /// The newest last.
    recent: VecDeque<Creation>,
}

#[derive(Clone, Copy, Debug)]
struct Creation {
    seconds: f64,
    /// How many were under way beside it, itself included, on average.
    at_work: f64,
}

/// What is known of creations; see [`Load`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Seconds that one took, on average.
    pub mean: f64,
    /// Seconds that one takes alone.
    pub alone: f64,
    /// Seconds that one takes while all creators are at work.
    pub full: f64,
    /// Variance over squared mean, of what the number at work doesn't explain.
    pub variation: f64,
    /// 95 of 100 take less; seconds.
    pub p95: f64,
}

impl WarmTimes {
    /// How many are remembered.
    const KEPT: usize = 1024;
    /// Too few to say how much they vary; enough to tell of a change.
    const FEW: usize = 32;
    /// By how many standard errors the newest must differ from more of them before it is believed that the engine has changed.
    const SURPRISE: f64 = 4.0;
    /// One that took so many times the usual time doesn't tell how fast the engine is but that it stood still, and is not
    /// counted for more.
    const STALL: f64 = 8.0;
    /// Taken before the first is known: what a container takes with a network on a small machine.
    const UNKNOWN: Pace = Pace { mean: 0.5, alone: 0.5, full: 0.5, variation: 1.0, p95: 0.5 };
    /// Before it is known what one more at work costs, it is taken for this share of what one takes alone: half way
    /// between an engine with a core for each creator and one that has nothing to gain.
    const SHARED: f64 = 0.5;
    /// The line is drawn no further than to so many at work: the most that can be configured.
    const MOST: f64 = 64.0;
    /// What that guess weighs, against creations times the variance of how many were at work.
    const GUESS: f64 = 4.0;

    /// One more creation succeeded after this time, with so many under way on average, itself included.
    pub fn add(&mut self, took: Duration, at_work: f64) {
        let usual = percentile(self.last(Self::FEW), 50);
        if self.recent.len() == Self::KEPT {
            self.recent.pop_front();
        }
        let took = took.as_secs_f64();
        let seconds = usual.map_or(took, |usual| took.min(Self::STALL * usual));
        self.recent.push_back(Creation { seconds, at_work: at_work.max(1.0) });
    }

    /// What is to be expected of the next ones, with so many creators.
    pub fn pace(&self, creators: f64) -> Pace {
        let (mut n, (mut mean, mut variance)) = (Self::FEW, self.moments(Self::FEW));
        while n < self.recent.len() {
            let longer = self.moments(2 * n);
            let error = (variance.max(longer.1) / n as f64).sqrt();
            if (mean - longer.0).abs() > Self::SURPRISE * error {
                break;
            }
            (n, (mean, variance)) = (2 * n, longer);
        }
        let Some(p95) = percentile(self.last(n), 95) else { return Self::UNKNOWN };
        let known = self.recent.len() >= Self::FEW && mean > 0.0;

        // A line through seconds by number at work, drawn towards the guess while little is known.
        let count = n.min(self.recent.len()) as f64;
        let last = || self.recent.iter().rev().take(n);
        let mean_at_work = last().map(|c| c.at_work).sum::<f64>() / count;
        let spread = last().map(|c| (c.at_work - mean_at_work).powi(2)).sum::<f64>();
        let together = last().map(|c| (c.at_work - mean_at_work) * (c.seconds - mean)).sum::<f64>();
        let guess = Self::SHARED * mean / (1.0 + Self::SHARED * (mean_at_work - 1.0));
        let slope = ((together + Self::GUESS * guess) / (spread + Self::GUESS)).max(0.0);
        let at = |at_work: f64| (mean + slope * (at_work - mean_at_work)).max(mean / 10.0);
        let unexplained = (variance - slope * slope * spread / count).max(0.0);

        let variation = if known { unexplained / (mean * mean) } else { 1.0 };
        Pace { mean, alone: at(1.0), full: at(creators.clamp(1.0, Self::MOST)), variation, p95 }
    }

    fn last(&self, n: usize) -> impl Iterator<Item = f64> {
        self.recent.iter().rev().take(n).map(|c| c.seconds)
    }

    /// Mean and variance of the last `n`.
    fn moments(&self, n: usize) -> (f64, f64) {
        let count = n.min(self.recent.len()).max(1) as f64;
        let (sum, squares) = self.last(n).fold((0.0, 0.0), |(sum, squares), t| (sum + t, squares + t * t));
        let mean = sum / count;
        (mean, (squares / count - mean * mean).max(0.0))
    }
}

fn percentile(times: impl Iterator<Item = f64>, percent: usize) -> Option<f64> {
    let mut times: Vec<f64> = times.collect();
    let index = times.len() * percent / 100;
    (!times.is_empty()).then(|| *times.select_nth_unstable_by(index, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: f64, dispersion: f64, creators: f64) -> Load {
        Load { rate, warm: 0.25, alone: 0.25, variation: 1.0, dispersion, creators }
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

    /// Three creators that share an engine which does one thing at a time are one creator.
    #[test]
    fn creators_that_gain_nothing_by_their_number_are_one() {
        let shared = Load { warm: 0.6, alone: 0.2, ..load(2.5, 1.0, 3.0) };
        for (size, miss) in shared.misses(20).into_iter().enumerate() {
            assert!((miss - 0.5f64.powi(size as i32)).abs() < 1e-9, "size {size}: {miss}");
        }
    }

    #[test]
    fn what_parallel_creations_cost_is_learned() {
        let mut warm = WarmTimes::default();
        warm.add(Duration::from_millis(200), 1.0);
        let guessed = warm.pace(3.0);
        assert!((guessed.alone - 0.2).abs() < 1e-9 && (guessed.full - 0.4).abs() < 1e-9, "{guessed:?}");
        // Twice as long for two, three times for three; then for an engine with a core for each.
        for (factor, full) in [(1.0, 0.6), (0.0, 0.2)] {
            let mut warm = WarmTimes::default();
            for n in 0..300 {
                let at_work = f64::from(n % 3 + 1);
                warm.add(Duration::from_secs_f64(0.2 * (1.0 + factor * (at_work - 1.0))), at_work);
            }
            let found = warm.pace(3.0);
            assert!((found.alone - 0.2).abs() < 0.01 && (found.full - full).abs() < 0.01, "{found:?}");
            assert!(found.variation < 0.01, "{found:?}");
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
    fn steady_times_need_less_where_creators_are_few() {
        let size = |variation: f64, creators: f64| {
            Load { variation, ..load(9.6, 1.0, creators) }.size_for(0.99, 500)
        };
        assert!(size(0.1, 3.0) < size(0.5, 3.0) && size(0.5, 3.0) < size(1.0, 3.0));
        assert_eq!(size(9.0, 3.0), size(1.0, 3.0), "more is taken for 1");
        assert_eq!(
            size(0.1, f64::INFINITY),
            size(1.0, f64::INFINITY),
            "without a queue it makes no difference"
        );
    }

    fn times(of: impl IntoIterator<Item = u64>) -> Pace {
        let mut warm = WarmTimes::default();
        of.into_iter().for_each(|ms| warm.add(Duration::from_millis(ms), 1.0));
        warm.pace(1.0)
    }

    #[test]
    fn warm_times_are_of_the_last_few() {
        assert_eq!(times([]), WarmTimes::UNKNOWN);
        assert_eq!(times([100]).mean, 0.1);
        assert_eq!(times([100]).variation, 1.0, "one says nothing about others");
        let even = times((0..600).map(|n| 100 + 20 * (n % 2)));
        assert!((even.mean - 0.11).abs() < 1e-9 && even.variation < 0.01 && even.p95 == 0.12, "{even:?}");
    }

    #[test]
    fn warm_times_follow_an_engine_that_becomes_slower_and_forget_one_that_stood_still() {
        let slower = times((0..600).map(|n| (if n < 530 { 100 } else { 150 }) + 20 * (n % 2)));
        assert!((slower.mean - 0.16).abs() < 0.01, "{slower:?}");
        let stalled = times((0..600).map(|n| if n == 590 { 20_000 } else { 100 + 20 * (n % 2) }));
        assert!(stalled.mean < 0.13 && stalled.variation <= 1.0, "{stalled:?}");
    }
}
