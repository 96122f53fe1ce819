//! One pool's size: what its jobs need now, and what they needed until lately.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use super::super::demand::Demand;
use super::super::sizing::{Load, WarmTimes};
use super::{Limits, Reason, Sizing};
use crate::pool::slots::Serves;

/// What was needed is looked back on this far: a size that was needed for a while is kept for as long again, and
/// for half of this at most.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How often what is needed is noted for that.
const NOTED_EVERY: Duration = Duration::from_secs(5);
/// How often a target is lowered.
const SHRINK_EVERY: Duration = Duration::from_secs(3);
/// How often a size is judged by its hits.
const JUDGED_EVERY: Duration = Duration::from_secs(15);
/// After a large change misses tell of the change, not of the size, for this long.
const SETTLED: Duration = Duration::from_secs(60);
/// Fewer jobs say nothing about a share of hits.
const JUDGEABLE: f64 = 10.0;
/// The share of the misses that the goal allows which is aimed at. Who aims at all of them misses the goal half of the time.
const AIM: f64 = 0.6;
/// How much each miss adds to a size. A whole one would follow chance; a tenth would take an hour.
const PER_MISS: f64 = 0.25;
/// What is added to a size in the beginning, as a share of it, up to two containers: estimates rest on a few creations
/// then, and what the engine does under this load isn't known yet.
const UNPROVEN: f64 = 0.25;
/// Until so many jobs came: enough to tell a share of misses of 1 % from one of 2 %.
const PROVEN: u64 = 1000;
/// Sizes are computed for creators that are busy for at most this share of the time. Beyond, every percent more asks for
/// much more, and an estimate isn't exact to the percent.
const BUSIEST: f64 = 0.95;
/// The same for a rate that was seen for a few seconds only.
const BUSY: f64 = 0.9;
/// Standard errors that the rate of bursts is taken to be higher than estimated. Without bursts a misjudged rate costs little.
const CAUTION: f64 = 0.8;
/// Only a rate that was seen for this long is complained about.
const SURE: Duration = Duration::from_secs(15);

/// What a pool's jobs ask for.
pub(super) struct Asked {
    pub(super) load: Load,
    /// The rate's standard error.
    pub(super) error: f64,
    /// They have for long enough.
    pub(super) sure: bool,
    pub(super) warm_p95: f64,
}

#[derive(Debug)]
pub(super) struct Planned {
    pub(super) limits: Limits,
    pub(super) demand: Demand,
    pub(super) warm: WarmTimes,
    /// Stretches this worker's patience, so that a fleet doesn't shrink in step.
    jitter: f64,
    /// Before sharing out.
    size: usize,
    /// After it, as of the plan before.
    pub(super) target: usize,
    shrunk: Instant,
    /// What was needed, now and then, the newest last.
    needed: VecDeque<usize>,
    noted: Instant,
    /// What misses have added.
    excess: f64,
    /// Jobs, all in all.
    seen: u64,
    judged: Instant,
    /// When the size last grew by much at once.
    stepped: Instant,
    /// Jobs, misses, and containers made since `judged`.
    pub(super) jobs: u64,
    pub(super) missed: u64,
    pub(super) made: u64,
    /// Leased and removing containers, averaged over half a minute.
    busy_average: f64,
    /// The same as a count that doesn't change its mind with every job.
    pub(super) busy: usize,
    /// The expected share of misses by size.
    pub(super) misses: Vec<f64>,
    pub(super) sizing: Sizing,
}

impl Planned {
    pub(super) fn new(limits: Limits, jitter: f64, now: Instant) -> Planned {
        let sizing = Sizing {
            target: 0,
            away: 0,
            reason: Reason::Min,
            rate: 0.0,
            burst: 1.0,
            warm_seconds: 0.0,
            warm_seconds_alone: 0.0,
            warm_seconds_p95: 0.0,
            warm_variation: 1.0,
            creators: 0.0,
            hit_target: limits.hit_target,
            expected_hit_rate: 0.0,
            hit_rate: None,
            correction: 0,
        };
        Planned {
            limits,
            demand: Demand::new(now),
            warm: WarmTimes::default(),
            jitter,
            size: 0,
            target: 0,
            shrunk: now,
            needed: VecDeque::new(),
            noted: now,
            excess: 0.0,
            seen: 0,
            judged: now,
            stepped: now,
            jobs: 0,
            missed: 0,
            made: 0,
            busy_average: 0.0,
            busy: 0,
            misses: Vec::new(),
            sizing,
        }
    }

    /// So many of its containers are leased or being removed.
    pub(super) fn count_busy(&mut self, busy: usize) {
        self.busy_average += (busy as f64 - self.busy_average) * 0.02;
        if (self.busy_average - self.busy as f64).abs() > 0.9 {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, averaged")]
            let busy = self.busy_average.round() as usize;
            self.busy = busy;
        }
    }

    /// What its jobs ask for, but for the creators.
    pub(super) fn asked(&mut self, creators: f64, now: Instant) -> Asked {
        let pace = self.warm.pace(creators);
        let found = self.demand.estimate(Duration::from_secs_f64(pace.mean), now);
        let load = Load {
            rate: found.rate,
            warm: pace.full,
            alone: pace.alone,
            variation: pace.variation.min(1.0),
            dispersion: found.dispersion,
            creators: f64::INFINITY,
        };
        Asked { load, error: found.error, sure: found.over >= SURE, warm_p95: pace.p95 }
    }

    pub(super) fn decide(&mut self, Asked { load, error, sure, warm_p95 }: Asked, now: Instant) {
        // What was given last time, after sharing out.
        self.target = self.sizing.target;
        let busiest = if sure { BUSIEST } else { BUSY };
        let most = busiest * load.creators / load.warm;
        let strained = load.rate > most;
        let caution = CAUTION * (1.0 - 1.0 / load.dispersion);
        let bearable = Load { rate: (load.rate + caution * error).min(most), ..load };
        // Those that are usually away with a job, and come back, are needed beside the idle ones.
        let away = if self.limits.serves == Serves::Many { self.busy } else { 0 };
        self.misses = bearable.misses(self.limits.max + away).split_off(away);
        let (jobs, missed) = self.demand.last_minute(now);
        self.judge(&load, now);
        let computed = self.misses.iter().position(|miss| *miss <= 1.0 - self.limits.hit_target);
        let correction = computed.map_or(0, |size| self.correction(size));
        let (needed, reason) = match self.needed(computed.map(|size| size + correction), now) {
            (size, Reason::Demand | Reason::Max) if strained && sure => (size, Reason::Unreachable),
            found => found,
        };
        let wanted = self.wanted(needed, now);
        if matches!(reason, Reason::Fixed | Reason::Ttl) {
            self.needed.clear();
            self.size = needed;
        } else if wanted > self.size {
            if wanted - self.size > 1 {
                self.stepped = now;
            }
            self.size = wanted;
        } else {
            self.shrink(wanted, now);
        }
        self.size = self.size.min(self.limits.max);
        let target = self.size;
        let expected =
            if bearable == load { self.misses[target] } else { load.misses(target + away)[target + away] };
        self.sizing = Sizing {
            target,
            away,
            reason: if target > needed && reason != Reason::Unreachable { Reason::Recent } else { reason },
            rate: load.rate,
            burst: load.dispersion,
            warm_seconds: load.warm,
            warm_seconds_alone: load.alone,
            warm_seconds_p95: warm_p95,
            warm_variation: load.variation,
            creators: load.creators,
            hit_target: self.limits.hit_target,
            expected_hit_rate: 1.0 - expected,
            hit_rate: (jobs > 0).then(|| 1.0 - missed as f64 / jobs as f64),
            correction,
        };
    }

    /// How many would do now, given how many what comes asks for; `None` if no size within the limits is enough.
    fn needed(&self, for_demand: Option<usize>, now: Instant) -> (usize, Reason) {
        let Limits { min, max, ttl, .. } = self.limits;
        if min == max {
            return (max, Reason::Fixed);
        }
        match (self.demand.last(), ttl) {
            (None, _) => return (min, Reason::Min),
            (Some(last), Some(ttl)) if now.saturating_duration_since(last) >= ttl => {
                return (min, Reason::Ttl);
            }
            _ => {}
        }
        match for_demand {
            Some(size) if size < min => (min, Reason::Min),
            Some(size) if size <= max => (size, Reason::Demand),
            _ => (max, Reason::Max),
        }
    }

    /// What is added to what the model says: for what nothing confirms yet, and for misses beyond the goal.
    fn correction(&self, computed: usize) -> usize {
        let unproven = if self.seen < PROVEN { (UNPROVEN * computed as f64).min(2.0) } else { 0.0 };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "of the order of the limits"
        )]
        let correction = (unproven + self.excess) as usize;
        correction
    }

    /// What is needed now, or was for long enough not to be forgotten yet: the largest of the medians of what was needed over
    /// half a minute, some minutes and ten. An excess of a few seconds is gone after a few more; what half of ten minutes
    /// asked for is kept for five. One more than that may be chance, and has to last for as long as the median takes.
    fn wanted(&mut self, needed: usize, now: Instant) -> usize {
        if now.saturating_duration_since(self.noted) >= NOTED_EVERY.mul_f64(self.jitter) {
            self.noted = now;
            if self.needed.len() as u64 == REMEMBERED.as_secs() / NOTED_EVERY.as_secs() {
                self.needed.pop_front();
            }
            self.needed.push_back(needed);
        }
        let medians = [6, 30, usize::MAX].into_iter().filter_map(|notes| {
            let mut last: Vec<usize> = self.needed.iter().rev().take(notes).copied().collect();
            last.sort_unstable();
            last.get(last.len().saturating_sub(1) / 2).copied()
        });
        let lately = medians.max().unwrap_or(0);
        if needed > lately + 1 || lately == 0 { needed } else { lately }
    }

    /// Models are wrong somewhere. So each miss adds a little, and each hit takes as much less as there may be hits for
    /// each miss: in the long run the goal is met with a margin, and where the model promises too little nothing is added.
    fn judge(&mut self, load: &Load, now: Instant) {
        if now.saturating_duration_since(self.judged) < JUDGED_EVERY {
            return;
        }
        self.judged = now;
        let (jobs, missed, made) =
            (mem::take(&mut self.jobs), mem::take(&mut self.missed), mem::take(&mut self.made));
        self.seen += jobs;
        let settled = now.saturating_duration_since(self.stepped) >= SETTLED;
        // If containers were not made as fast as jobs came, or the host had no place for them, that was the reason.
        let kept_up = made * 10 >= jobs * 8 && load.sustainable();
        if !settled || !kept_up || self.target < self.size {
            return;
        }
        let (jobs, missed) = (jobs as f64, missed as f64);
        self.excess += PER_MISS * (missed - AIM * (1.0 - self.limits.hit_target) * jobs);
        if missed * 2.0 > jobs && jobs >= JUDGEABLE {
            // Far from it, by something that no model knows.
            self.excess += self.size as f64 * missed / jobs;
        }
        self.excess = self.excess.clamp(0.0, self.limits.max as f64);
    }

    fn shrink(&mut self, wanted: usize, now: Instant) {
        if self.size > wanted
            && now.saturating_duration_since(self.shrunk) >= SHRINK_EVERY.mul_f64(self.jitter)
        {
            // Half of what is too much at a time.
            self.size -= ((self.size - wanted) / 2).max(1);
            self.shrunk = now;
        }
    }
}
