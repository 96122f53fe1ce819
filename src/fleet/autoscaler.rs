//! An autoscaler as KEDA makes one of Kubernetes' HorizontalPodAutoscaler, for a trigger on a queue's length.
//!
//! KEDA itself looks every `pollingInterval`, and does one thing: it takes the fleet from none to its least or to one, and
//! back to none when the queue has been empty for `cooldownPeriod`. Between one and the most it is the HorizontalPodAutoscaler that decides,
//! every 15 s: so many workers that each has its share of the queue, but no change for less than a tenth; no more at once than the
//! policies of `scaleUp` and `scaleDown` allow; fewer only if nothing has asked for more for `stabilizationWindowSeconds`.

use std::collections::VecDeque;
use std::time::Duration;

/// How often the HorizontalPodAutoscaler looks: its default.
pub const SYNC: Duration = Duration::from_secs(15);
/// What is nearer to the goal than this share is left alone: its default.
const TOLERANCE: f64 = 0.1;

/// How many workers may come or go in a time: a policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// That many at most.
    pub most: Most,
    /// `periodSeconds`
    pub period: Duration,
}

/// How many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Most {
    /// `type: Pods`
    Workers(usize),
    /// `type: Percent`, of those that were there when the time began.
    Percent(f64),
}

impl Policy {
    /// How many may come or go, of those that were there when the time began.
    fn of(&self, workers: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, rounded up")]
        let share = |percent: f64| (workers as f64 * percent / 100.0).ceil() as usize;
        match self.most {
            Most::Workers(n) => n,
            Most::Percent(percent) => share(percent),
        }
    }
}

/// Kubernetes' own for `scaleUp`, the larger of them: four, or as many as there are, every 15 s.
const UP: [Policy; 2] =
    [Policy { most: Most::Workers(4), period: SYNC }, Policy { most: Most::Percent(100.0), period: SYNC }];
/// Kubernetes' own for `scaleDown`: all.
const DOWN: [Policy; 1] = [Policy { most: Most::Percent(100.0), period: SYNC }];

/// What is configured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Autoscaler {
    /// `minReplicaCount`
    pub min: usize,
    /// `maxReplicaCount`
    pub max: usize,
    /// `value` of the trigger: jobs for each worker, waiting and running.
    pub jobs_per_worker: f64,
    /// `pollingInterval`
    pub poll: Duration,
    /// `cooldownPeriod`
    pub cooldown: Duration,
    /// `scaleDown.stabilizationWindowSeconds`
    pub stabilization: Duration,
    /// The policy of `scaleUp`; none: Kubernetes' own.
    pub up: Option<Policy>,
    /// The policy of `scaleDown`; none: Kubernetes' own.
    pub down: Option<Policy>,
    /// From the decision until a new worker takes jobs, but for its first container.
    pub start_up: Duration,
}

impl Autoscaler {
    /// With KEDA's and Kubernetes' own defaults.
    pub fn new(min: usize, max: usize, jobs_per_worker: f64) -> Autoscaler {
        Autoscaler {
            min,
            max,
            jobs_per_worker,
            poll: Duration::from_secs(30),
            cooldown: Duration::from_secs(300),
            stabilization: Duration::from_secs(300),
            up: None,
            down: None,
            start_up: Duration::from_secs(30),
        }
    }
}

/// What it remembers.
#[derive(Debug)]
pub(super) struct Control {
    config: Autoscaler,
    /// Since the beginning.
    polled: Option<Duration>,
    synced: Option<Duration>,
    /// When the queue last had something in it.
    active: Duration,
    /// What was asked for, and when; no longer ago than the window.
    asked: VecDeque<(Duration, usize)>,
    came: Changes,
    went: Changes,
}

/// When how many came, or went.
#[derive(Debug, Default)]
struct Changes(VecDeque<(Duration, usize)>);

impl Changes {
    /// How many in the time before now.
    fn within(&self, period: Duration, now: Duration) -> usize {
        self.0.iter().filter(|(at, _)| *at + period > now).map(|(_, n)| n).sum()
    }

    fn note(&mut self, now: Duration, n: usize) {
        // No policy looks back further.
        self.0.retain(|(at, _)| *at + Duration::from_secs(1800) > now);
        if n > 0 {
            self.0.push_back((now, n));
        }
    }
}

impl Control {
    pub(super) fn new(config: Autoscaler) -> Control {
        Control {
            config,
            polled: None,
            synced: None,
            active: Duration::ZERO,
            asked: VecDeque::new(),
            came: Changes::default(),
            went: Changes::default(),
        }
    }

    /// How many workers there are to be, with so many jobs that wait or run. To be asked once a second.
    pub(super) fn look(&mut self, now: Duration, jobs: usize, workers: usize) -> usize {
        let Autoscaler { min, max, poll, cooldown, .. } = self.config;
        if jobs > 0 {
            self.active = now;
        }
        let polls = self.polled.is_none_or(|at| now >= at + poll);
        if polls {
            self.polled = Some(now);
        }
        if workers == 0 {
            return if polls && jobs > 0 { min.max(1).min(max) } else { 0 };
        }
        if min == 0 && polls && now >= self.active + cooldown {
            self.asked.clear();
            return 0;
        }
        if self.synced.is_some_and(|at| now < at + SYNC) {
            return workers;
        }
        self.synced = Some(now);
        self.sync(now, jobs, workers)
    }

    fn sync(&mut self, now: Duration, jobs: usize, workers: usize) -> usize {
        let Autoscaler { min, max, jobs_per_worker, stabilization, up, down, .. } = self.config;
        let ratio = jobs as f64 / (jobs_per_worker * workers as f64);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, rounded up")]
        let wanted = (jobs as f64 / jobs_per_worker).ceil() as usize;
        let wanted = if (ratio - 1.0).abs() <= TOLERANCE { workers } else { wanted };
        let wanted = wanted.clamp(min.max(1).min(max), max);
        self.asked.push_back((now, wanted));
        while self.asked.front().is_some_and(|(at, _)| *at + stabilization < now) {
            self.asked.pop_front();
        }
        if wanted >= workers {
            let policies = up.as_ref().map_or(&UP[..], std::slice::from_ref);
            let may = |policy: &Policy| {
                let begun = self.when_it_began(policy.period, now, workers);
                (begun + policy.of(begun)).saturating_sub(workers)
            };
            let more = (wanted - workers).min(policies.iter().map(may).max().unwrap_or(0));
            self.came.note(now, more);
            return workers + more;
        }
        let stable = self.asked.iter().map(|(_, n)| *n).max().unwrap_or(wanted).min(workers);
        let policies = down.as_ref().map_or(&DOWN[..], std::slice::from_ref);
        let may = |policy: &Policy| {
            let begun = self.when_it_began(policy.period, now, workers);
            workers.saturating_sub(begun.saturating_sub(policy.of(begun)))
        };
        let fewer = (workers - stable).min(policies.iter().map(may).max().unwrap_or(0));
        self.went.note(now, fewer);
        workers - fewer
    }

    /// How many there were when a policy's time began (`periodStartReplicas` of Kubernetes' `horizontal.go`).
    fn when_it_began(&self, period: Duration, now: Duration, workers: usize) -> usize {
        (workers + self.went.within(period, now)).saturating_sub(self.came.within(period, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_grows_at_most_twofold_or_by_four_every_15_seconds() {
        let mut control = Control::new(Autoscaler::new(1, 100, 10.0));
        let mut workers = 1;
        let mut seen = Vec::new();
        for look in 0..6 {
            workers = control.look(at(15 * look), 700, workers);
            seen.push(workers);
        }
        assert_eq!(seen, [5, 10, 20, 40, 70, 70]);
    }

    #[test]
    fn it_shrinks_only_when_nothing_asked_for_more_for_five_minutes() {
        let mut control = Control::new(Autoscaler::new(1, 100, 10.0));
        assert_eq!(control.look(at(0), 400, 40), 40);
        for look in 1..=20 {
            assert_eq!(control.look(at(15 * look), 100, 40), 40, "after {} s", 15 * look);
        }
        assert_eq!(control.look(at(315), 100, 40), 10);
    }

    #[test]
    fn a_policy_lets_a_few_go_each_minute() {
        let scaler = Autoscaler {
            stabilization: Duration::ZERO,
            down: Some(Policy { most: Most::Workers(3), period: Duration::from_secs(60) }),
            ..Autoscaler::new(1, 100, 10.0)
        };
        let mut control = Control::new(scaler);
        let mut workers = 40;
        let mut seen = Vec::new();
        for look in 0..9 {
            workers = control.look(at(15 * look), 100, workers);
            seen.push(workers);
        }
        assert_eq!(seen, [37, 37, 37, 37, 34, 34, 34, 34, 31]);
    }

    #[test]
    fn a_policy_bounds_what_comes() {
        let up = Some(Policy { most: Most::Percent(50.0), period: Duration::from_secs(30) });
        let mut control = Control::new(Autoscaler { up, ..Autoscaler::new(1, 100, 10.0) });
        let mut workers = 8;
        let mut seen = Vec::new();
        for look in 0..6 {
            workers = control.look(at(15 * look), 700, workers);
            seen.push(workers);
        }
        assert_eq!(seen, [12, 12, 18, 18, 27, 27]);
    }

    #[test]
    fn what_went_within_a_policy_s_time_may_come_back() {
        let a_few = Some(Policy { most: Most::Workers(2), period: Duration::from_secs(60) });
        let scaler = Autoscaler { stabilization: Duration::ZERO, up: a_few, ..Autoscaler::new(1, 100, 10.0) };
        let mut control = Control::new(scaler);
        assert_eq!(control.look(at(0), 100, 20), 10);
        assert_eq!(control.look(at(15), 400, 10), 22, "two more than when the minute began");
    }

    #[test]
    fn a_tenth_more_or_less_is_no_reason() {
        let mut control = Control::new(Autoscaler::new(1, 100, 10.0));
        assert_eq!(control.look(at(0), 109, 10), 10);
        assert_eq!(control.look(at(15), 112, 10), 12);
    }

    #[test]
    fn none_becomes_one_at_a_poll_and_none_again_after_the_cooldown() {
        let mut control = Control::new(Autoscaler::new(0, 100, 10.0));
        assert_eq!(control.look(at(0), 0, 0), 0);
        assert_eq!(control.look(at(15), 5, 0), 0, "it polls every 30 s");
        assert_eq!(control.look(at(30), 5, 0), 1);
        assert_eq!(control.look(at(45), 5, 1), 1);
        for look in 4..22 {
            assert_eq!(control.look(at(15 * look), 0, 1), 1, "after {} s", 15 * look);
        }
        assert_eq!(control.look(at(360), 0, 1), 0);
    }
}
