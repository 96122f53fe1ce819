//! What each pool's counters said over the last minutes, for the page: how many leases were hits, how long starting took.
//!
//! Everything is a difference between two readings of counters that Prometheus is given anyway: jobs pay nothing for it.

use std::collections::{BTreeMap, VecDeque};
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::contract::event::LeaseKind;
use crate::metrics::{BUCKETS, Metrics};

/// Time between two readings.
pub const EVERY: Duration = Duration::from_secs(10);
/// How many are kept of each pool, at 170 bytes each: a quarter of an hour.
pub const KEPT: usize = 90;

/// The bounds, and what is beyond the last one.
const SLOTS: usize = BUCKETS.len() + 1;

/// The last readings; cheap to clone. [`History::follow`] is the only one who adds to them. The lock is held for an insertion
/// or a comparison, never across an await.
#[derive(Clone, Debug, Default)]
pub struct History {
    pools: Arc<Mutex<BTreeMap<String, VecDeque<Tally>>>>,
}

/// What happened in a pool: up to a moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Leases that found an idle container.
    pub hits: u64,
    /// Leases that had to wait for one.
    pub misses: u64,
    /// Starts that took at most as long as each bound of [`BUCKETS`]; the last are all of them.
    startup: [u64; SLOTS],
}

impl History {
    /// Takes a reading now and then; doesn't end.
    pub async fn follow(&self, metrics: &Metrics) {
        // What a stalled process missed is made up for, so that a reading's place tells its time.
        let mut every = tokio::time::interval(EVERY);
        loop {
            every.tick().await;
            self.push(read(metrics));
        }
    }

    fn push(&self, readings: BTreeMap<String, Tally>) {
        let mut pools = self.lock();
        for (pool, reading) in readings {
            let kept = pools.entry(pool).or_default();
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(reading);
        }
    }

    /// What happened in each pool between the readings, the oldest first; the last one is from the last reading until now.
    pub fn until_now(&self, metrics: &Metrics) -> BTreeMap<String, Vec<Tally>> {
        // Nobody keeps a reading between this one and the last.
        let pools = self.lock();
        let between = |(pool, now): (String, Tally)| {
            let kept = pools.get(&pool).into_iter().flatten().copied();
            let later = kept.clone().skip(1).chain([now]);
            (pool, kept.zip(later).map(|(from, to)| to - from).collect())
        };
        read(metrics).into_iter().map(between).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, VecDeque<Tally>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All pools' counters as they are now.
fn read(metrics: &Metrics) -> BTreeMap<String, Tally> {
    let mut pools: BTreeMap<String, Tally> = BTreeMap::new();
    for series in metrics.series("pool_leases_total") {
        let tally = pools.entry(series.label("pool")).or_default();
        let count = if series.label("result") == LeaseKind::Hit.as_str() {
            &mut tally.hits
        } else {
            &mut tally.misses
        };
        *count += series.count();
    }
    for series in metrics.series("startup_seconds") {
        let tally = pools.entry(series.label("pool")).or_default();
        for (slot, count) in tally.startup.iter_mut().zip(series.cumulative()) {
            *slot += count;
        }
    }
    pools
}

impl Tally {
    /// All leases.
    pub fn leases(&self) -> u64 {
        self.hits + self.misses
    }

    /// The share of hits; none without a lease.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.leases() > 0).then(|| self.hits as f64 / self.leases() as f64)
    }

    /// How many jobs were started.
    pub fn starts(&self) -> u64 {
        self.startup[SLOTS - 1]
    }

    /// The seconds within which this share of starts took place, as Prometheus estimates it: evenly spread between two
    /// bounds, and the last bound for what is beyond it. None without a start.
    pub fn startup(&self, share: f64) -> Option<f64> {
        if self.starts() == 0 {
            return None;
        }
        let rank = share * self.starts() as f64;
        let slot = self.startup.iter().position(|count| *count as f64 >= rank)?;
        let Some(upper) = BUCKETS.get(slot) else { return BUCKETS.last().copied() };
        let (lower, before) = if slot == 0 { (0.0, 0) } else { (BUCKETS[slot - 1], self.startup[slot - 1]) };
        let within = (rank - before as f64) / (self.startup[slot] - before) as f64;
        Some(lower + (upper - lower) * within)
    }

    #[cfg(test)]
    pub(super) fn of(hits: u64, misses: u64, seconds: &[f64]) -> Tally {
        let mut startup = [seconds.len() as u64; SLOTS];
        for (slot, bound) in startup.iter_mut().zip(BUCKETS) {
            *slot = seconds.iter().filter(|s| **s <= bound).count() as u64;
        }
        Tally { hits, misses, startup }
    }
}

impl Add for Tally {
    type Output = Tally;

    fn add(self, other: Tally) -> Tally {
        let startup = std::array::from_fn(|slot| self.startup[slot] + other.startup[slot]);
        Tally { hits: self.hits + other.hits, misses: self.misses + other.misses, startup }
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Tally {
        tallies.fold(Tally::default(), Tally::add)
    }
}

impl Sub for Tally {
    type Output = Tally;

    /// From an earlier reading to this one; counters only grow.
    fn sub(self, other: Tally) -> Tally {
        let startup = std::array::from_fn(|slot| self.startup[slot].saturating_sub(other.startup[slot]));
        Tally {
            hits: self.hits.saturating_sub(other.hits),
            misses: self.misses.saturating_sub(other.misses),
            startup,
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramVec, IntCounterVec};

    use super::*;

    struct Counters {
        metrics: Metrics,
        leases: IntCounterVec,
        startup: HistogramVec,
    }

    impl Counters {
        fn new() -> Counters {
            let metrics = Metrics::new();
            let leases = metrics.counters("pool_leases_total", "Leases.", &["pool", "result"]);
            let startup = metrics.histograms("startup_seconds", "Starts.", &["pool", "lease"], &BUCKETS);
            for kind in ["hit", "miss"] {
                leases.with_label_values(&["a", kind]);
                startup.with_label_values(&["a", kind]);
            }
            Counters { metrics, leases, startup }
        }

        fn job(&self, kind: &str, seconds: f64) {
            self.leases.with_label_values(&["a", kind]).inc();
            self.startup.with_label_values(&["a", kind]).observe(seconds);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_reading_tells_what_came_since_the_last_one() {
        let (counters, history) = (Counters::new(), History::default());
        let spans = || history.until_now(&counters.metrics)["a"].clone();
        assert_eq!(spans(), [], "before the first reading there is nothing to compare with");
        let follow = {
            let (history, metrics) = (history.clone(), counters.metrics.clone());
            tokio::spawn(async move { history.follow(&metrics).await })
        };
        tokio::time::sleep(EVERY / 2).await;
        assert_eq!(spans(), [Tally::default()]);
        counters.job("hit", 0.0008);
        counters.job("miss", 0.3);
        assert_eq!(spans(), [Tally::of(1, 1, &[0.0008, 0.3])], "what is new is there at once");
        tokio::time::sleep(EVERY).await;
        counters.job("hit", 0.002);
        assert_eq!(spans(), [Tally::of(1, 1, &[0.0008, 0.3]), Tally::of(1, 0, &[0.002])]);
        tokio::time::sleep(EVERY * u32::try_from(KEPT - 1).unwrap()).await;
        let kept = spans();
        assert_eq!(kept.len(), KEPT, "and no more");
        assert_eq!(kept[0], Tally::of(1, 0, &[0.002]), "the oldest has made room");
        assert!(kept[1..].iter().all(|span| *span == Tally::default()));
        follow.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_process_does_not_move_the_past() {
        let (counters, history) = (Counters::new(), History::default());
        let follow = {
            let (history, metrics) = (history.clone(), counters.metrics.clone());
            tokio::spawn(async move { history.follow(&metrics).await })
        };
        tokio::time::sleep(EVERY / 2).await;
        counters.job("hit", 0.001);
        // Nobody is polled meanwhile.
        tokio::time::advance(EVERY * 5).await;
        tokio::time::sleep(EVERY / 10).await;
        let spans = history.until_now(&counters.metrics)["a"].clone();
        assert_eq!((spans.len(), spans[0]), (6, Tally::of(1, 0, &[0.001])));
        follow.abort();
    }

    #[test]
    fn shares_and_quantiles_are_those_of_prometheus() {
        let none = Tally::default();
        assert_eq!((none.hit_rate(), none.startup(0.5)), (None, None));
        // Half of the starts within 1 ms, evenly spread from 0.5 ms on: the median is the bound itself.
        let tally = Tally::of(3, 1, &[0.0008, 0.0009, 0.002, 0.3]);
        assert_eq!(tally.hit_rate(), Some(0.75));
        assert_eq!(tally.starts(), 4);
        assert!((tally.startup(0.5).unwrap() - 0.001).abs() < 1e-9);
        assert!((tally.startup(0.25).unwrap() - 0.00075).abs() < 1e-9);
        assert!((tally.startup(0.99).unwrap() - (0.25 + 0.25 * 0.96)).abs() < 1e-9);
        assert_eq!(Tally::of(0, 1, &[500.0]).startup(0.99), Some(60.0), "beyond the last bound");
        assert_eq!(Tally::of(1, 0, &[0.00001]).startup(1.0), Some(0.0001));
        assert_eq!((tally + tally).leases(), 8);
        assert_eq!(tally + tally - tally, tally);
    }
}
