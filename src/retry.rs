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
}

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
        Backoff { inner, most }
    }

    /// How long to wait before the next attempt.
    #[expect(clippy::should_implement_trait, reason = "an iterator that never ends would invite `for` loops")]
    pub fn next(&mut self) -> Duration {
        // `None` means that the elapsed time ran out, and there is no such limit here.
        self.inner.next_backoff().unwrap_or(self.most)
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
    fn delays_are_jittered() {
        let drawn: std::collections::BTreeSet<_> = (0..20).map(|_| Backoff::default().next()).collect();
        assert!(drawn.len() > 10, "{drawn:?}");
    }
}
