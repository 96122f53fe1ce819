//! How much is done: a short form with every `cargo test`, a long one by `PREWARM_TEST_CHAOS=long`.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub seed: u64,
    /// Jobs of one run, at least.
    pub jobs: usize,
    /// How often what is quickly over is repeated.
    pub times: usize,
    /// The same for outages, which last.
    pub outages: usize,
    pub long: bool,
}

impl Scale {
    fn new(seed: u64, long: bool) -> Scale {
        let (jobs, times, outages) = if long { (200, 10, 5) } else { (24, 2, 1) };
        Scale { seed, jobs, times, outages, long }
    }

    /// What lasts longer in the long form.
    pub fn lasting(&self, short: u64, long: u64) -> Duration {
        Duration::from_secs(if self.long { long } else { short })
    }

    pub fn choose<T>(&self, short: T, long: T) -> T {
        if self.long { long } else { short }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The runs of each fault.
pub fn scales() -> Vec<Scale> {
    let long = match variable("PREWARM_TEST_CHAOS").as_deref() {
        None | Some("short") => false,
        Some("long") => true,
        Some(other) => panic!("PREWARM_TEST_CHAOS={other}: write short or long"),
    };
    let seed =
        variable("PREWARM_TEST_CHAOS_SEED").map(|n| n.parse().expect("PREWARM_TEST_CHAOS_SEED is a number"));
    let seeds = match (seed, long) {
        (Some(seed), _) => vec![seed],
        (None, false) => vec![1],
        (None, true) => vec![1, 2, 3],
    };
    seeds.into_iter().map(|seed| Scale::new(seed, long)).collect()
}

/// Whether a fault is wanted: all are, unless `PREWARM_TEST_CHAOS_ONLY` names some by number (`1,7,13b`).
pub fn wanted(fault: &str) -> bool {
    let number = fault.split_whitespace().next().unwrap_or_default();
    variable("PREWARM_TEST_CHAOS_ONLY").is_none_or(|only| only.split(',').any(|one| one.trim() == number))
}

/// Where to keep what workers log, in all detail.
pub fn logs() -> Option<PathBuf> {
    variable("PREWARM_TEST_CHAOS_LOGS").map(PathBuf::from)
}
