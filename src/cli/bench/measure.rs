//! Pure: from measured jobs to figures.

use std::time::Duration;

use serde::Serialize;

use super::ways::Step;

/// One job: how long after its beginning it came to each step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// See [`Step::Executing`].
    pub executing: Option<Duration>,
    /// See [`Step::FirstOutput`].
    pub first_output: Option<Duration>,
    /// See [`Step::Exit`].
    pub exit: Option<Duration>,
    /// See [`Step::Removed`].
    pub removed: Option<Duration>,
    /// Whether it exited with 0.
    pub succeeded: bool,
    /// How it came to its container, where it waits for one.
    pub lease: Option<Lease>,
}

/// How a job came to its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whether one was there at once.
    pub hit: bool,
    /// How long it was waited for.
    pub waited: Duration,
}

impl Sample {
    /// When it came to a step.
    pub fn at(&self, step: Step) -> Option<Duration> {
        match step {
            Step::Executing => self.executing,
            Step::FirstOutput => self.first_output,
            Step::Exit => self.exit,
            Step::Removed => self.removed,
        }
    }
}

/// Quantiles in milliseconds; each is a value that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half took no longer.
    pub p50: f64,
    /// 95 of 100.
    pub p95: f64,
    /// 99 of 100.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Quantiles {
    /// Of these; none of nothing. Sorts them.
    pub fn of(values: &mut [f64]) -> Option<Quantiles> {
        values.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (values.len() as f64 * q).ceil() as usize;
            values.get(rank.clamp(1, values.len().max(1)) - 1).copied()
        };
        Some(Quantiles { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

/// Milliseconds, to the microsecond.
pub fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// What all of some jobs took to a step, in milliseconds; empty if none of them came to it.
pub fn times(samples: &[Sample], step: Step) -> Vec<f64> {
    samples.iter().filter_map(|sample| sample.at(step)).map(ms).collect()
}

/// When each way's jobs are measured: in every round each way has a turn, with as many jobs as make its sum even over all
/// rounds. Gives how many jobs way `index` has in `round`.
pub fn turns(jobs: &[u32], rounds: u32, round: u32, index: usize) -> u32 {
    let until = |round: u32| u64::from(jobs[index]) * u64::from(round) / u64::from(rounds.max(1));
    (until(round + 1) - until(round)) as u32
}

/// Rounds that give each way at least one job in each.
pub fn rounds(jobs: &[u32]) -> u32 {
    jobs.iter().copied().min().unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ordered_values_that_were_measured() {
        assert_eq!(Quantiles::of(&mut []), None);
        let one = Quantiles { p50: 3.0, p95: 3.0, p99: 3.0, max: 3.0 };
        assert_eq!(Quantiles::of(&mut [3.0]), Some(one));
        let mut hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let of_hundred = Quantiles { p50: 50.0, p95: 95.0, p99: 99.0, max: 100.0 };
        assert_eq!(Quantiles::of(&mut hundred), Some(of_hundred));
        let few = Quantiles::of(&mut [2.0, 1.0]).unwrap();
        assert_eq!((few.p50, few.p95, few.max), (1.0, 2.0, 2.0));
    }

    #[test]
    fn a_step_that_no_job_came_to_has_no_times() {
        let done = Sample { exit: Some(Duration::from_micros(1500)), ..Sample::default() };
        assert_eq!(times(&[done, Sample::default(), done], Step::Exit), [1.5, 1.5]);
        assert!(times(&[done], Step::FirstOutput).is_empty());
    }

    #[test]
    fn every_way_has_its_jobs_spread_over_all_rounds() {
        let jobs = [50, 200, 73];
        let rounds = rounds(&jobs);
        assert_eq!(rounds, 50);
        for (index, all) in jobs.iter().enumerate() {
            let turns: Vec<u32> = (0..rounds).map(|round| turns(&jobs, rounds, round, index)).collect();
            assert_eq!(turns.iter().sum::<u32>(), *all);
            let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
            assert!(*least >= 1 && most - least <= 1, "{turns:?}");
        }
    }
}
