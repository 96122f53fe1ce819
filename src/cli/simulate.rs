//! `prewarm simulate`: what a fleet of workers would do with a load. Needs no broker and no engine, and a configuration only
//! for `--pool`.

mod answer;
mod trace;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use answer::Answer;

use super::{ConfigArgs, exit, fail, load, plan, refuse};
use crate::config::{Isolation, PoolConfig};
use crate::contract::PoolName;
use crate::fleet::autoscaler::{Most, Policy};
use crate::fleet::needs::Needs;
use crate::fleet::{Arrivals, Autoscaler, Pace, Random, Setup, Times, Workers, simulate};
use crate::pool::planner::Host;

/// More would take minutes, and tell no more.
const MOST_JOBS: f64 = 50e6;

/// Likewise.
const MOST_WORKER_HOURS: f64 = 10_000.0;

#[derive(clap::Args)]
#[command(next_help_heading = "Jobs")]
pub struct Args {
    /// Jobs per second, at random
    #[arg(long, value_name = "JOBS", value_parser = plan::rate, allow_negative_numbers = true, required_unless_present = "trace")]
    rate: Option<f64>,
    /// Variance over mean of the jobs counted in equal spans of time; 1: no bursts
    #[arg(long, value_name = "D", value_parser = plan::burst, allow_negative_numbers = true, default_value = "1")]
    burst: f64,
    /// Let the rate rise from a share of it (--night) and fall again, once in this time
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "trace")]
    day: Option<Duration>,
    /// The share of --rate that is left in the middle of the night
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "0.1", requires = "day", conflicts_with = "trace")]
    night: f64,
    /// Take jobs from a file: a line with the seconds of each, or lines with seconds and the rate from then on; without --time the last line's is 0
    #[arg(long, value_name = "FILE", conflicts_with = "rate")]
    trace: Option<PathBuf>,
    /// For how long jobs come [default: 10m, or the trace's length]
    #[arg(long, value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
    /// What comes in the first of it isn't counted: pools learn
    #[arg(long, value_name = "TIME", value_parser = time_or_none, default_value = "0s")]
    skip: Duration,
    /// How long a job runs, on average
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1s")]
    run_time: Duration,
    /// How much that varies: standard deviation over mean; 0: always the same
    #[arg(long, value_name = "S", value_parser = spread, default_value = "1")]
    run_spread: f64,
    /// Pieces of output that a job sends (64 KiB or 100 ms each)
    #[arg(long, value_name = "N", default_value = "0")]
    logs: u32,
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    scale: ScaleArgs,
    /// The same seed gives the same outcome
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Options")]
    seed: u64,
    /// Print JSON
    #[arg(long, help_heading = "Options")]
    json: bool,
}

#[derive(clap::Args)]
#[command(next_help_heading = "A worker")]
struct WorkerArgs {
    /// Take pool and engine's limits from the configuration, as if there were no other pools
    #[arg(long, value_name = "POOL", conflicts_with_all = ["idle_min", "idle_max", "hit_target", "concurrency", "creators", "isolation"])]
    pool: Option<PoolName>,
    /// Fewest idle containers, as idle.min
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    idle_min: u32,
    /// Most idle containers, as idle.max [default: 4, or --idle-min]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    idle_max: Option<u32>,
    /// Share of jobs that are to find a container ready
    #[arg(long, value_name = "SHARE", value_parser = plan::hit_target, allow_negative_numbers = true, default_value = "0.99")]
    hit_target: f64,
    /// Jobs at once
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// Containers being made at once, as engine.creations
    #[arg(long, value_name = "K", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=64))]
    creators: u32,
    /// `container`, or `namespace`: a container serves many jobs
    #[arg(long, value_name = "KIND", default_value = "container", value_parser = ["container", "namespace"])]
    isolation: String,
    /// How long a container takes to be made under this load, on average, as 250ms
    #[arg(long, value_name = "TIME", value_parser = plan::warm_time)]
    warm_time: Duration,
    /// How much that varies: standard deviation over mean
    #[arg(long, value_name = "S", value_parser = spread, default_value = "0.3")]
    warm_spread: f64,
}

#[derive(clap::Args)]
#[command(next_help_heading = "How many")]
struct ScaleArgs {
    /// Number of workers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), required_unless_present = "max_workers")]
    workers: Option<u32>,
    /// Let an autoscaler choose, up to this many: KEDA's maxReplicaCount
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "workers")]
    max_workers: Option<u32>,
    /// Fewest workers: KEDA's minReplicaCount
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(0..=10_000), conflicts_with = "workers")]
    min_workers: u32,
    /// Jobs that wait or run, for each worker: the trigger's value [default: --concurrency]
    #[arg(long, value_name = "N", value_parser = plan::rate, conflicts_with = "workers")]
    jobs_per_worker: Option<f64>,
    /// How often the autoscaler looks at the queue: KEDA's pollingInterval
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30s", conflicts_with = "workers")]
    poll: Duration,
    /// How long nothing waits or runs before the last worker goes: KEDA's cooldownPeriod
    #[arg(long, value_name = "TIME", value_parser = time_or_none, default_value = "5m", conflicts_with = "workers")]
    cooldown: Duration,
    /// How long fewer must be enough before workers go: scaleDown.stabilizationWindowSeconds
    #[arg(long, value_name = "TIME", value_parser = time_or_none, default_value = "5m", conflicts_with = "workers")]
    stabilization: Duration,
    /// How fast workers are added, scaleUp's policy, as 4/15s or 100%/30s [default: the larger of 4/15s and 100%/15s]
    #[arg(long, value_name = "N/TIME", value_parser = policy, conflicts_with = "workers")]
    up: Option<Policy>,
    /// How fast workers are taken away, scaleDown's policy [default: 100%/15s]
    #[arg(long, value_name = "N/TIME", value_parser = policy, conflicts_with = "workers")]
    down: Option<Policy>,
    /// From the decision until a worker's process runs
    #[arg(long, value_name = "TIME", value_parser = time_or_none, default_value = "30s", conflicts_with = "workers")]
    start_up: Duration,
    /// How long a worker that goes lets its jobs run: worker.drain_timeout
    #[arg(long, value_name = "TIME", value_parser = time_or_none, default_value = "1h", conflicts_with = "workers")]
    drain_timeout: Duration,
}

fn time(text: &str) -> Result<Duration, String> {
    time_or_none(text).ok().filter(|time| !time.is_zero()).ok_or_else(wanted_time)
}

fn time_or_none(text: &str) -> Result<Duration, String> {
    let most = Duration::from_secs(366 * 86400);
    humantime::parse_duration(text).ok().filter(|time| *time <= most).ok_or_else(wanted_time)
}

fn wanted_time() -> String {
    "write a time with its unit, as 10m or 1s, of a year at most".into()
}

fn share(text: &str) -> Result<f64, String> {
    plan::number(text, |n| (0.0..=1.0).contains(&n), "a share from 0 to 1, as 0.1")
}

fn spread(text: &str) -> Result<f64, String> {
    plan::number(text, |n| (0.0..=20.0).contains(&n), "a number from 0 to 20, as 0.3")
}

fn policy(text: &str) -> Result<Policy, String> {
    let read = || {
        let (most, period) = text.split_once('/')?;
        let most = match most.strip_suffix('%') {
            Some(percent) => Most::Percent(percent.parse().ok().filter(|n: &f64| (0.0..=1e6).contains(n))?),
            None => Most::Workers(most.parse().ok()?),
        };
        // Kubernetes allows no more.
        let period = time(period).ok().filter(|period| period.as_secs() <= 1800)?;
        Some(Policy { most, period })
    };
    read().ok_or_else(|| "write workers or a share, and a time of 30m at most: as 1/2m or 50%/30s".into())
}

fn times(mean: Duration, spread: f64) -> Times {
    let mean = mean.as_secs_f64();
    if spread > 0.0 { Times::Lognormal { mean, cv: spread } } else { Times::Constant(mean) }
}

pub fn main(config: &ConfigArgs, args: Args) -> ExitCode {
    let (pool, host) = match args.worker.setup(config) {
        Ok(found) => found,
        Err(code) => return code,
    };
    let arrivals = match args.arrivals() {
        Ok(arrivals) => arrivals,
        Err(why) => return fail(exit::FAILURE, why),
    };
    let setup = Setup {
        workers: args.scale.workers(pool.concurrency),
        pace: Pace::new(
            times(args.worker.warm_time, args.worker.warm_spread),
            times(args.run_time, args.run_spread),
        ),
        drain_timeout: args.scale.drain_timeout,
        worker_hours: MOST_WORKER_HOURS,
        skip: args.skip.as_secs_f64(),
        seed: args.seed,
        pool,
        host,
    };
    let Some(outcome) = simulate(&setup, &arrivals) else {
        let why = format!(
            "the workers would need more than the {MOST_WORKER_HOURS:.0} hours together that are simulated: take less time, fewer \
             workers or fewer jobs"
        );
        return fail(exit::FAILURE, why);
    };
    if outcome.jobs == 0 {
        return fail(exit::FAILURE, "no job came in the time that counts");
    }
    // Of the minute with most jobs, or of what there is if that is shorter.
    let lasted = arrivals.end() - setup.skip;
    let needs = Needs::of(
        outcome.most_workers,
        setup.pool.concurrency,
        outcome.busiest_minute as f64 / lasted.clamp(1.0, 60.0),
        f64::from(args.logs),
    );
    let answer = Answer::new(&setup, &outcome, outcome.jobs as f64 / lasted.max(1.0), needs);
    if args.json {
        match serde_json::to_string_pretty(&answer) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(exit::FAILURE, error),
        }
    } else {
        print!("{}", answer.text(&setup));
    }
    ExitCode::SUCCESS
}

impl Args {
    fn arrivals(&self) -> Result<Arrivals, String> {
        let Some(rate) = self.rate else {
            let path = self.trace.as_deref().unwrap_or_else(|| std::path::Path::new(""));
            let text = text_of(path).map_err(|error| error.to_string());
            let arrivals = text.and_then(|text| trace::read(&text, self.burst, self.time));
            return arrivals.map_err(|why| format!("{}: {why}", path.display()));
        };
        let time = self.time.unwrap_or(Duration::from_secs(600)).as_secs_f64();
        at_most(rate * time)?;
        let random = match self.day {
            None => Random::steady(rate, self.burst),
            Some(day) => {
                let (day, night) = (day.as_secs_f64(), self.night);
                let of_noon = move |t: f64| 0.5 - 0.5 * (std::f64::consts::TAU * t / day).cos();
                Random::new(self.burst, rate, move |t| rate * (night + (1.0 - night) * of_noon(t)))
            }
        };
        Ok(Arrivals::Random(random.until(time)))
    }
}

/// A trace of the most jobs that are simulated isn't longer.
const LONGEST_TRACE: u64 = 1 << 30;

fn text_of(path: &std::path::Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(LONGEST_TRACE).read_to_string(&mut text)?;
    Ok(text)
}

fn at_most(jobs: f64) -> Result<(), String> {
    if jobs > MOST_JOBS {
        return Err(format!(
            "{jobs:.0} jobs are more than are simulated: {MOST_JOBS:.0} at most; take less time"
        ));
    }
    Ok(())
}

impl WorkerArgs {
    fn setup(&self, config: &ConfigArgs) -> Result<(PoolConfig, Host), ExitCode> {
        let Some(name) = &self.pool else {
            if config.config.is_some() {
                refuse("--config is read for --pool only; name a pool, or leave it out");
            }
            let mut pool = PoolConfig::of_image("");
            let (min, max) = (self.idle_min, self.idle_max.unwrap_or(self.idle_min.max(4)));
            if max < min {
                refuse(&format!("--idle-max {max} is less than --idle-min {min}"));
            }
            pool.idle.min = min as usize;
            pool.idle.max = max as usize;
            pool.idle.hit_target = self.hit_target;
            pool.concurrency = self.concurrency as usize;
            pool.isolation =
                if self.isolation == "namespace" { Isolation::Namespace } else { Isolation::Container };
            return Ok((pool, Host { creators: self.creators as usize, containers: None, memory: None }));
        };
        let config = load(config)?.config;
        let host = Host::from(&config.engine);
        match config.pools.get(name) {
            Some(pool) => Ok((pool.clone(), host)),
            None => Err(fail(exit::CONFIG, format!("pool {name} is not configured"))),
        }
    }
}

impl ScaleArgs {
    fn workers(&self, concurrency: usize) -> Workers {
        let Some(max) = self.max_workers else { return Workers::Fixed(self.workers.unwrap_or(1) as usize) };
        if max < self.min_workers {
            refuse(&format!("--max-workers {max} is less than --min-workers {}", self.min_workers));
        }
        let each = self.jobs_per_worker.unwrap_or(concurrency as f64);
        Workers::Scaled(Autoscaler {
            poll: self.poll,
            cooldown: self.cooldown,
            stabilization: self.stabilization,
            up: self.up,
            down: self.down,
            start_up: self.start_up,
            ..Autoscaler::new(self.min_workers as usize, max as usize, each)
        })
    }
}
