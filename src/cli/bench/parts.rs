//! The parts of a run. In each, the ways take turns, so that whatever else the machine does meets all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::measure::{Quantiles, Sample, ms, rounds, turns};
use super::progress::Progress;
use super::report::{Hits, Latency, Throughput};
use super::ways::{Idle, Runner, Way};

/// Containers that a pool keeps while throughput is measured: what a pool has by default, or as many as jobs at once.
const STOCK: usize = 4;
/// The least that throughput is measured for at a time.
const LEAST: Duration = Duration::from_secs(1);
/// Jobs a second if nothing is known of how many a pool can do.
const RATE: f64 = 1.0;
/// More jobs a second at random tell no more.
const MOST_RATE: f64 = 200.0;
/// More jobs that are under way at the same time aren't begun: they could only wait.
const MOST_OPEN: usize = 1000;
/// The share of the time in which a pool learns how jobs come.
const LEARNING: f64 = 0.3;

/// A way, and who runs jobs in it.
#[derive(Clone)]
pub struct Contender {
    /// The way.
    pub way: Way,
    /// Who does.
    pub runner: Arc<dyn Runner>,
}

impl Contender {
    /// A job; an error says whose it is.
    async fn one(&self) -> Result<Sample, String> {
        self.runner.one().await.map_err(|error| format!("{}: {error}", self.way.name()))
    }

    async fn settle(&self) -> Result<(), String> {
        self.runner.settle().await.map_err(|error| format!("{}: {error}", self.way.name()))
    }
}

async fn settle(all: &[Contender]) -> Result<(), String> {
    for one in all {
        one.settle().await?;
    }
    Ok(())
}

/// Runs one job in each way that counts nowhere: it shows whether it works at all, and what is only slow once is over.
pub async fn warm_up(all: &[Contender], progress: &Progress) -> Result<(), String> {
    for one in all {
        progress.say("warming up:", one.way.name());
        settle(all).await?;
        one.one().await?;
    }
    Ok(())
}

/// One job at a time, each way in its turn, with nothing else going on. `jobs`: in each way, none for as many as is usual. Ends in time, after
/// a whole round.
pub async fn latency(
    all: &[Contender],
    jobs: Option<u32>,
    time: Duration,
    progress: &Progress,
) -> Result<Vec<Latency>, String> {
    let begun = Instant::now();
    let jobs: Vec<u32> = all.iter().map(|one| jobs.unwrap_or_else(|| one.way.usual_jobs())).collect();
    let rounds = rounds(&jobs);
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); all.len()];
    all.iter().for_each(|one| one.runner.keep(Idle::Fixed(1)));
    for round in 0..rounds {
        if round > 0 && begun.elapsed() > time {
            break;
        }
        for (index, one) in all.iter().enumerate() {
            for _ in 0..turns(&jobs, rounds, round, index) {
                // All of them: another way's container that is being replaced takes time of this one's job.
                settle(all).await?;
                progress.say("latency, one job at a time:", &format!("round {} of {rounds}", round + 1));
                samples[index].push(one.one().await?);
            }
        }
    }
    Ok(all.iter().zip(&samples).map(|(one, samples)| Latency::of(one.way, samples)).collect())
}

/// As many jobs as possible, so many at once.
pub async fn throughput(
    all: &[Contender],
    at_once: &[usize],
    time: Duration,
    progress: &Progress,
) -> Result<Vec<Throughput>, String> {
    let end = Instant::now() + time;
    let mut rest = (all.len() * at_once.len()) as u32;
    let mut found = Vec::new();
    for &level in at_once {
        all.iter().for_each(|one| one.runner.keep(Idle::Fixed(STOCK.max(level))));
        for one in all {
            // What waiting for pools takes is taken from what is left to all.
            let each = (end.saturating_duration_since(Instant::now()) / rest).max(LEAST);
            rest -= 1;
            let what = format!("throughput, {level} at once: {},", one.way.name());
            progress.say(&what, "");
            settle(all).await?;
            found.push(many(one, level, each, |done| progress.say(&what, &format!("{done} jobs"))).await?);
        }
    }
    all.iter().for_each(|one| one.runner.keep(Idle::Fixed(1)));
    Ok(found)
}

/// The time ends when all is as it was before: what a pool had in stock is not counted as done in no time.
async fn many(
    one: &Contender,
    level: usize,
    time: Duration,
    mut tell: impl FnMut(usize),
) -> Result<Throughput, String> {
    let begun = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..level {
        let (one, done) = (one.clone(), Arc::clone(&done));
        workers.spawn(async move {
            while begun.elapsed() < time {
                one.one().await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), String>(())
        });
    }
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(ended) => ended.map_err(|error| error.to_string())??,
                None => break,
            },
            _ = tick.tick() => tell(done.load(Ordering::Relaxed)),
        }
    }
    one.runner.restore().await.map_err(|error| format!("{}: {error}", one.way.name()))?;
    let (jobs, seconds) = (done.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    Ok(Throughput { way: one.way, at_once: level, jobs, seconds, jobs_per_second: jobs as f64 / seconds })
}

/// Jobs that come at random (Poisson), to pools that size themselves. `rate`: a second; without it, half of the most that was
/// `found` for the way.
pub async fn hits(
    all: &[Contender],
    rate: Option<f64>,
    found: &[Throughput],
    time: Duration,
    progress: &Progress,
) -> Result<Vec<Hits>, String> {
    let pooled: Vec<&Contender> = all.iter().filter(|one| one.way.is_prewarm()).collect();
    let each = time / pooled.len().max(1) as u32;
    let mut hits = Vec::new();
    for one in pooled {
        let most =
            found.iter().filter(|t| t.way == one.way).map(|t| t.jobs_per_second).max_by(f64::total_cmp);
        let rate = rate.unwrap_or_else(|| most.map_or(RATE, |most| (most / 2.0).min(MOST_RATE)));
        one.runner.keep(Idle::Adaptive);
        settle(all).await?;
        let what = format!("hit rate, {rate:.1} jobs/s at random: {},", one.way.name());
        let found = poisson(one, rate, each, |jobs| progress.say(&what, &format!("{jobs} jobs"))).await?;
        // At so low a rate in so short a time none may have come.
        hits.extend(Some(found).filter(|found| found.jobs > 0));
        one.runner.keep(Idle::Fixed(1));
    }
    Ok(hits)
}

async fn poisson(
    one: &Contender,
    rate: f64,
    time: Duration,
    mut tell: impl FnMut(usize),
) -> Result<Hits, String> {
    let begun = tokio::time::Instant::now();
    let learning = time.mul_f64(LEARNING);
    let mut open = JoinSet::new();
    let (mut at, mut jobs, mut learned) = (Duration::ZERO, 0, 0);
    let (mut idle, mut looks) = (0, 0);
    let mut samples = Vec::new();
    loop {
        // The time between two events of a Poisson process.
        at += Duration::from_secs_f64(-(1.0 - rand::random::<f64>()).ln() / rate);
        if at > time {
            break;
        }
        tokio::time::sleep_until(begun + at).await;
        while let Some(ended) = open.try_join_next() {
            samples.push(taken(ended)?);
        }
        if open.len() >= MOST_OPEN {
            return Err(format!("{}: more than {MOST_OPEN} jobs wait: use a lower --rate", one.way.name()));
        }
        jobs += 1;
        tell(jobs);
        let counts = at > learning;
        learned += usize::from(!counts);
        let one = one.clone();
        if counts && let Some(now) = one.runner.idle().await {
            (idle, looks) = (idle + now, looks + 1);
        }
        open.spawn(async move { (counts, one.one().await) });
    }
    while let Some(ended) = open.join_next().await {
        samples.push(taken(ended)?);
    }
    let leases: Vec<_> =
        samples.into_iter().filter(|(counts, _)| *counts).filter_map(|(_, s)| s.lease).collect();
    let hit = leases.iter().filter(|lease| lease.hit).count();
    let mut waited: Vec<f64> =
        leases.iter().filter(|lease| !lease.hit).map(|lease| ms(lease.waited)).collect();
    Ok(Hits {
        way: one.way,
        rate,
        learning: learned,
        jobs: leases.len(),
        hits: hit,
        hit_rate: if leases.is_empty() { 0.0 } else { hit as f64 / leases.len() as f64 },
        miss_waited_ms: Quantiles::of(&mut waited),
        idle: (looks > 0).then(|| idle as f64 / f64::from(looks)),
    })
}

type Counted = (bool, Result<Sample, String>);

fn taken(ended: Result<Counted, tokio::task::JoinError>) -> Result<(bool, Sample), String> {
    let (counts, sample) = ended.map_err(|error| error.to_string())?;
    Ok((counts, sample?))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::cli::bench::measure::Lease;

    /// Jobs of 10 ms in order of their ways, and what was said about containers to keep.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Vec<&'static str>>>, Arc<Mutex<Vec<Idle>>>, &'static str);

    #[async_trait]
    impl Runner for Fake {
        async fn one(&self) -> Result<Sample, String> {
            self.0.lock().unwrap().push(self.2);
            let took = Duration::from_millis(10);
            tokio::time::sleep(took).await;
            let lease = Some(Lease { hit: true, waited: Duration::ZERO });
            Ok(Sample { exit: Some(took), lease, succeeded: true, ..Sample::default() })
        }

        fn keep(&self, idle: Idle) {
            self.1.lock().unwrap().push(idle);
        }
    }

    fn two() -> (Vec<Contender>, Fake) {
        let fake = Fake::default();
        let of =
            |way: Way| Contender { way, runner: Arc::new(Fake(fake.0.clone(), fake.1.clone(), way.name())) };
        (vec![of(Way::Run), of(Way::Container)], fake)
    }

    #[tokio::test(start_paused = true)]
    async fn ways_take_turns() {
        let (all, fake) = two();
        let found = latency(&all, Some(3), Duration::from_secs(60), &Progress::new()).await.unwrap();
        assert_eq!(*fake.0.lock().unwrap(), [Way::Run.name(), Way::Container.name()].repeat(3));
        assert_eq!(found.iter().map(|one| one.jobs).collect::<Vec<_>>(), [3, 3]);
        let none = latency(&all, Some(9), Duration::ZERO, &Progress::new()).await.unwrap();
        assert_eq!(none[0].jobs, 1, "one round at least");
    }

    #[tokio::test]
    async fn throughput_is_of_every_way_at_every_level() {
        let (all, fake) = two();
        let found = throughput(&all, &[1, 8], Duration::ZERO, &Progress::new()).await.unwrap();
        let seen: Vec<_> = found.iter().map(|one| (one.way, one.at_once)).collect();
        assert_eq!(seen, [(Way::Run, 1), (Way::Container, 1), (Way::Run, 8), (Way::Container, 8)]);
        assert!(found[3].jobs_per_second > 3.0 * found[1].jobs_per_second, "{found:?}");
        assert!(fake.1.lock().unwrap().contains(&Idle::Fixed(8)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_ours_have_a_hit_rate_and_jobs_come_as_often_as_they_should() {
        let (all, _) = two();
        let found = hits(&all, Some(20.0), &[], Duration::from_secs(100), &Progress::new()).await.unwrap();
        assert_eq!(found.iter().map(|one| one.way).collect::<Vec<_>>(), [Way::Container]);
        let jobs = found[0].jobs + found[0].learning;
        assert!((1700..2300).contains(&jobs), "{jobs} of about 2000");
        assert!((found[0].hit_rate - 1.0).abs() < f64::EPSILON);
    }
}
