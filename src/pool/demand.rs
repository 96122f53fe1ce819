//! Pure: what a pool's jobs have asked for lately. Counted on arrivals, not on misses: a pool that is
//! well sized has none of those, and would be made smaller for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Arrivals are counted in spans of this length.
const SPAN: Duration = Duration::from_millis(250);
/// How many spans are remembered: four minutes.
const KEPT: usize = 960;
/// The windows that a rate is taken from, in spans: 1 to 240 seconds.
const WINDOWS: [usize; 9] = [4, 8, 16, 32, 60, 120, 240, 480, KEPT];
/// By how many standard deviations a window's count must differ from what a longer one lets expect before it is believed to
/// be another rate. With nine windows looked at every half second this is wrong about once a day.
const SURPRISE: f64 = 4.0;
/// The same for a higher rate while jobs miss: each is evidence for the other.
const SURPRISE_PRESSED: f64 = 2.0;
/// A lower rate is believed after so many seconds: a lull is no hurry.
const LULL: f64 = 7.0;
/// Misses say so over this many spans: 8 seconds.
const PRESSED: usize = 32;
/// Misses are judged over this many spans: a minute.
const JUDGED: usize = 240;

/// The arrivals of one pool.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The beginning of the newest span.
    span: Instant,
    /// The newest last, never empty.
    spans: VecDeque<Span>,
    last: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    arrivals: u32,
    misses: u32,
}

/// What is to be expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Jobs per second.
    pub rate: f64,
    /// Variance over mean of counts: 1 unless bursts are plain to see.
    pub dispersion: f64,
    /// The rate's standard error.
    pub error: f64,
    /// The time that the rate was taken from.
    pub over: Duration,
}

impl Demand {
    /// Nothing has been asked for before now.
    pub fn new(now: Instant) -> Demand {
        Demand { span: now, spans: VecDeque::from([Span::default()]), last: None }
    }

    /// A job came.
    pub fn arrived(&mut self, hit: bool, now: Instant) {
        self.advance(now);
        self.last = Some(now);
        if let Some(span) = self.spans.back_mut() {
            span.arrivals = span.arrivals.saturating_add(1);
            span.misses = span.misses.saturating_add(u32::from(!hit));
        }
    }

    /// When the last job came.
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    /// Jobs that came in the last minute, and how many of them missed.
    pub fn last_minute(&mut self, now: Instant) -> (u64, u64) {
        self.advance(now);
        self.last_spans(JUDGED)
    }

    fn last_spans(&self, spans: usize) -> (u64, u64) {
        let last = self.spans.iter().rev().take(spans);
        last.fold((0, 0), |(a, m), s| (a + u64::from(s.arrivals), m + u64::from(s.misses)))
    }

    /// The rate of the longest window that the recent past doesn't contradict: steady where arrivals are, and
    /// at the new rate within a second or a few where they change. `warm` is the time over which
    /// bursts matter.
    pub fn estimate(&mut self, warm: Duration, now: Instant) -> Estimate {
        self.advance(now);
        let dispersion = self.dispersion(warm);
        // The newest span has only begun.
        let begun = now.saturating_duration_since(self.span).as_secs_f64();
        let seconds = |spans: usize| (spans.min(self.spans.len()) - 1) as f64 * SPAN.as_secs_f64() + begun;
        let count =
            |spans: usize| self.spans.iter().rev().take(spans).map(|s| f64::from(s.arrivals)).sum::<f64>();

        let lately = self.last_spans(PRESSED);
        let pressed = lately.1 >= 3 && lately.1 * 5 >= lately.0;
        let higher = if pressed { SURPRISE_PRESSED } else { SURPRISE };

        let mut chosen = (count(WINDOWS[0]), seconds(WINDOWS[0]).max(1.0));
        for window in WINDOWS[1..].iter().copied() {
            let longer = (count(window), seconds(window));
            let rest = (longer.0 - chosen.0, longer.1 - chosen.1);
            if rest.1 <= 0.0 {
                break;
            }
            // The square root of a Poisson count has a deviation of 1/2, whatever its mean; both sides have theirs.
            let expected = rest.0 / rest.1 * chosen.1;
            let deviation = (dispersion * (1.0 + chosen.1 / rest.1)).sqrt();
            let surprise = 2.0 * ((chosen.0 + 0.375).sqrt() - (expected + 0.375).sqrt()) / deviation;
            if surprise > higher || (surprise < -SURPRISE && chosen.1 >= LULL) {
                break;
            }
            chosen = longer;
        }
        Estimate {
            rate: chosen.0 / chosen.1,
            dispersion,
            error: (dispersion * chosen.0).sqrt() / chosen.1,
            over: Duration::from_secs_f64(chosen.1),
        }
    }

    /// Taken from the differences of neighbours, which a slow change of the rate doesn't inflate.
    fn dispersion(&self, warm: Duration) -> f64 {
        let per = (warm.as_secs_f64() / SPAN.as_secs_f64()).ceil().clamp(1.0, 40.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1 to 40")]
        let per = per as usize;
        // Without the newest, which is not over.
        let whole: Vec<Span> = self.spans.iter().rev().skip(1).copied().collect();
        let counts: Vec<f64> =
            whole.chunks_exact(per).map(|c| c.iter().map(|s| f64::from(s.arrivals)).sum()).collect();
        let n = counts.len() as f64;
        let mean = counts.iter().sum::<f64>() / n;
        if counts.len() < 8 || mean <= 0.0 {
            return 1.0;
        }
        let squares: f64 = counts.windows(2).map(|w| (w[1] - w[0]).powi(2)).sum();
        let found = squares / (2.0 * (n - 1.0)) / mean;
        // What Poisson arrivals show by chance is no burst.
        let chance = 3.0 * ((2.0 + 1.0 / mean) / n).sqrt();
        if found > 1.0 + chance { found } else { 1.0 }
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.span);
        let spans = passed.as_nanos() / SPAN.as_nanos();
        for _ in 0..spans.min(KEPT as u128) {
            if self.spans.len() == KEPT {
                self.spans.pop_front();
            }
            self.spans.push_back(Span::default());
        }
        // Kept on the grid, so that spans are equally long.
        self.span = now - Duration::from_nanos((passed.as_nanos() % SPAN.as_nanos()) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARM: Duration = SPAN;

    /// Evenly spaced arrivals at a rate, for a time.
    fn feed(demand: &mut Demand, from: Instant, rate: f64, seconds: f64) -> Instant {
        let n = (rate * seconds) as u32;
        for i in 0..n {
            demand.arrived(true, from + Duration::from_secs_f64(f64::from(i) / rate));
        }
        from + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn nothing_asked_is_no_demand() {
        let now = Instant::now();
        let mut demand = Demand::new(now);
        assert_eq!(demand.estimate(WARM, now).rate, 0.0);
        assert_eq!(demand.estimate(WARM, now + Duration::from_secs(10_000)).rate, 0.0);
        assert_eq!((demand.last(), demand.last_minute(now)), (None, (0, 0)));
    }

    #[test]
    fn a_steady_rate_is_found_from_all_that_is_remembered() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        let now = feed(&mut demand, start, 7.0, 300.0);
        let found = demand.estimate(WARM, now);
        assert!((found.rate - 7.0).abs() < 0.1, "{found:?}");
        assert!(found.over > Duration::from_secs(230), "{found:?}");
        assert_eq!(found.dispersion, 1.0);
    }

    #[test]
    fn a_step_is_followed_within_seconds_both_ways() {
        for (before, after) in [(2.0, 20.0), (20.0, 2.0), (0.5, 8.0)] {
            let start = Instant::now();
            let mut demand = Demand::new(start);
            let step = feed(&mut demand, start, before, 300.0);
            let now = feed(&mut demand, step, after, 15.0);
            let found = demand.estimate(WARM, now);
            assert!((found.rate / after - 1.0).abs() < 0.25, "{before} to {after}: {found:?}");
        }
    }

    #[test]
    fn one_job_after_a_long_silence_is_a_low_rate() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        let now = start + Duration::from_secs(3600);
        demand.arrived(false, now);
        let found = demand.estimate(WARM, now + Duration::from_millis(1));
        assert!(found.rate < 0.01, "{found:?}");
        assert_eq!(demand.last_minute(now), (1, 1));
    }

    #[test]
    fn bursts_show_and_a_change_of_rate_does_not_look_like_one() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        for second in 0..240 {
            // Ten at once, every second.
            (0..10).for_each(|_| demand.arrived(true, start + Duration::from_secs(second)));
        }
        let found = demand.estimate(WARM, start + Duration::from_secs(240));
        assert!(found.dispersion > 5.0, "{found:?}");

        let mut demand = Demand::new(start);
        let step = feed(&mut demand, start, 4.0, 120.0);
        let now = feed(&mut demand, step, 40.0, 120.0);
        assert_eq!(demand.estimate(WARM, now).dispersion, 1.0);
    }

    #[test]
    fn what_is_older_than_is_remembered_counts_no_more() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        feed(&mut demand, start, 50.0, 20.0);
        let now = start + Duration::from_secs(400);
        assert_eq!(demand.estimate(WARM, now).rate, 0.0);
        assert_eq!(demand.last_minute(now), (0, 0));
        assert!(demand.spans.len() <= KEPT);
    }
}
