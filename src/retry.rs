//! How long to wait before trying again: growing, jittered, without end.
//!
//! The one file that knows the crate `backoff`. It is unmaintained (RUSTSEC-2025-0012) and kept by
//! choice, so replacing it means rewriting [`Backoff::next`] and nothing else.

use std::time::Duration;

use backoff::SystemClock;
use backoff::backoff::Backoff as _;
use backoff::exponential::{ExponentialBackoff, ExponentialBackoffBuilder};

/// The delays between attempts at one thing that has to work sooner or later.
///
/// Each is drawn from ±50 % around a value that starts at `first` and doubles up to `most`, so that a
/// fleet of workers that lost the same broker doesn't come back in step. There is no last attempt.
#[derive(Debug)]
pub struct Backoff {
    inner: ExponentialBackoff<SystemClock>,
    most: Duration,
    /// The delay before what is tried now.
    last: Duration,
}

/// What worked for less than this didn't work.
const WORKED: Duration = Duration::from_secs(1);

impl Backoff {
    /// Delays from about `first` to about `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Backoff {
        let inner = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_max_interval(most)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            .with_max_elapsed_time(None)
            .build();
        Backoff { inner, most, last: Duration::ZERO }
    }

    /// How long to wait before the next attempt.
    #[expect(clippy::should_implement_trait, reason = "an iterator that never ends would invite `for` loops")]
    pub fn next(&mut self) -> Duration {
        // `None` means that the elapsed time ran out, and there is no such limit here.
        self.last = self.inner.next_backoff().unwrap_or(self.most);
        self.last
    }

    /// How long to wait before the next attempt at what worked for so long, and then didn't any more. If that was longer than the
    /// wait before it, the delays start over: one outage after the other is not one long one. What is lost again as soon as it works
    /// has growing delays all the same.
    pub fn next_after(&mut self, worked: Duration) -> Duration {
        if worked >= self.last.max(WORKED) {
            self.reset();
        }
        self.next()
    }

    /// Starts over from the shortest delay: the thing worked.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

/// From 100 ms to 30 s: right for a peer on the network.
impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_stay_there() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let within = |delay: Duration, middle_ms: u64| {
            delay >= Duration::from_millis(middle_ms / 2)
                && delay <= Duration::from_millis(middle_ms * 3 / 2 + 1)
        };
        for middle in [100, 200, 400, 800, 1000, 1000, 1000] {
            let delay = backoff.next();
            assert!(within(delay, middle), "{delay:?} around {middle} ms");
        }
        backoff.reset();
        assert!(within(backoff.next(), 100));
    }

    #[test]
    fn what_worked_for_a_while_is_tried_again_soon() {
        let most = Duration::from_secs(10);
        let mut backoff = Backoff::new(Duration::from_millis(100), most);
        for _ in 0..20 {
            backoff.next();
        }
        assert!(backoff.next_after(Duration::from_millis(999)) >= most / 2, "it broke at once");
        assert!(backoff.next_after(Duration::from_secs(4)) >= most / 2, "most of the time it didn't work");
        for _ in 0..10 {
            let next = backoff.next_after(2 * most);
            assert!(next <= Duration::from_millis(151), "{next:?}");
        }
        let short = Duration::from_millis(200);
        let last = (0..10).map(|_| backoff.next_after(short)).last();
        assert!(last >= Some(most / 2), "{last:?}: one that is lost at once is not made in a tight loop");
    }

    #[test]
    fn delays_are_jittered() {
        let drawn: std::collections::BTreeSet<_> = (0..20).map(|_| Backoff::default().next()).collect();
        assert!(drawn.len() > 10, "{drawn:?}");
    }
}
