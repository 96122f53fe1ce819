//! `prewarm bench`: the ways to run a job side by side, on the user's own engine, image and machine.
//!
//! [`ways`] says which there are; `plain`, `warm`, `host` and `broker` run jobs in them; `parts` measures them in turn;
//! `measure`, `report`, `table` and `plot` are pure. `bed` is what is set up, and taken away again however it ends.

mod bed;
mod broker;
mod host;
mod measure;
mod parts;
mod plain;
mod plot;
pub(super) mod progress;
mod report;
mod table;
mod warm;
mod ways;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use bed::{Bed, Subject};
use progress::Progress;
use report::Report;
use tokio::signal::unix::{SignalKind, signal};
use ways::Way;

use super::{ConfigArgs, block_on, exit, fail, inert, load, variables};
use crate::config::{self, EngineConfig, IdleConfig, PoolConfig};
use crate::contract::PoolName;
use crate::contract::job::Env;

/// Whose containers these are where no configuration names a worker, and the pool of an image.
const NAME: &str = "prewarm-bench";
/// Containers that an image's pool may have at most while it sizes itself.
const MOST_IDLE: usize = 16;
/// Shares of the time for latency, and of what is then left for throughput. What is left after both is for the hit rate.
const SHARES: [f64; 2] = [0.45, 0.6];
/// Share of the time that the hit rate has at least.
const LEAST_SHARE: f64 = 0.15;
/// What a shell gives for a command that a Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    of: Of,
    /// Set a variable of the job's environment; NAME alone takes it from this one
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Compare these, with commas between them [default: all that can be; with --broker that alone; fork only for
    /// true, false, echo and printf, as it runs the command outside of any container]
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Measure these, with commas between them
    #[arg(long, value_enum, value_delimiter = ',', default_value = "latency,throughput,hits")]
    parts: Vec<Part>,
    /// Publish jobs to a running worker's pool, and measure until the result is received
    #[arg(long, requires = "pool")]
    broker: bool,
    /// Jobs of each way for latency [default: 50, or 200 where one takes milliseconds]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    jobs: Option<u32>,
    /// Jobs at once for throughput, with commas between them
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8", value_parser = at_once)]
    at_once: Vec<usize>,
    /// Jobs per second that come at random for the hit rate [default: half of what throughput was]
    #[arg(long, value_name = "JOBS", value_parser = rate, allow_negative_numbers = true)]
    rate: Option<f64>,
    /// About how long all of it may take; with less time there are fewer jobs
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw it too, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Arguments for the entrypoint, in place of the image's CMD
    #[arg(last = true)]
    args: Vec<String>,
}

/// Whose job it is.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Of {
    /// The image to run, in a pool of defaults; needs no configuration
    image: Option<String>,
    /// Measure a pool of the configuration instead; with --broker, that of a running worker
    #[arg(long)]
    pool: Option<PoolName>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One job at a time
    Latency,
    /// As many as possible
    Throughput,
    /// How many of those that come at random find a container ready
    Hits,
}

fn at_once(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=1000).contains(n))
        .ok_or_else(|| "write numbers from 1 to 1000, as 1,2,4,8".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|n: &f64| (0.01..=10_000.0).contains(n));
    rate.ok_or_else(|| "write a number of jobs per second from 0.01 to 10000".into())
}

/// What is executed, the same in all ways.
#[derive(Clone, Debug)]
struct Job {
    args: Option<Vec<String>>,
    env: Env,
}

/// Why nothing was measured; each has its exit code.
#[derive(Debug)]
enum Failure {
    Broker(String),
    Engine(String),
    Image(String),
    Other(String),
    Interrupted,
}

impl Failure {
    fn report(self) -> ExitCode {
        match self {
            Failure::Broker(why) => fail(exit::BROKER, why),
            Failure::Engine(why) => fail(exit::ENGINE, why),
            Failure::Image(why) => fail(exit::IMAGE, why),
            Failure::Other(why) => fail(exit::FAILURE, why),
            Failure::Interrupted => fail(INTERRUPTED, "interrupted"),
        }
    }
}

pub fn main(config: &ConfigArgs, args: Args) -> ExitCode {
    let subject = match subject(config, &args) {
        Ok(subject) => subject,
        Err(code) => return code,
    };
    let found = match block_on(measure(&subject, &args)) {
        Ok(found) => found,
        Err(code) => return code,
    };
    let report = match found {
        Ok(report) => report,
        Err(failure) => return failure.report(),
    };
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{}", inert(&text)),
            Err(error) => return fail(exit::FAILURE, error),
        }
    } else {
        print!("{}", table::text(&report));
    }
    if let Some(path) = &args.plot
        && let Err(error) = std::fs::write(path, plot::svg(&report))
    {
        return fail(exit::FAILURE, format!("--plot {}: {error}", path.display()));
    }
    ExitCode::SUCCESS
}

/// What the command line and the configuration ask for.
fn subject(config: &ConfigArgs, args: &Args) -> Result<Subject, ExitCode> {
    let job = Job {
        args: (!args.args.is_empty()).then(|| args.args.clone()),
        env: Env(variables(&args.env).map_err(|why| fail(2, why))?),
    };
    let mut ways = args.ways.clone();
    if args.broker {
        ways.push(Way::Broker);
    } else if ways.is_empty() {
        ways = Way::ALL.into_iter().filter(|way| !matches!(way, Way::Broker | Way::Fork)).collect();
        // Without arguments it is the image's own command, made for its container.
        ways.extend(job.args.as_deref().filter(|argv| host::is_harmless(argv)).map(|_| Way::Fork));
    }
    ways.sort_unstable();
    ways.dedup();
    if ways.contains(&Way::Broker) && args.of.pool.is_none() {
        return Err(fail(2, "--broker needs --pool: the pool of a worker that runs"));
    }
    let mut at_once = args.at_once.clone();
    at_once.sort_unstable();
    let most = at_once.last().copied().unwrap_or(1);
    let subject = |name, pool, worker, engine, broker| Subject {
        pool,
        name,
        job,
        ways: ways.clone(),
        at_once: most,
        worker,
        engine,
        runtime_dir: None,
        broker,
    };
    let environment = config::environment;
    let Some(name) = args.of.pool.clone() else {
        let image = args.of.image.as_deref().unwrap_or_default();
        config::check_image(image)
            .map_err(|why| fail(2, format!("image '{}': {why}", image.escape_debug())))?;
        let engine = config::load_engine(config.config.as_deref(), environment());
        let engine = engine.map_err(|faults| fail(exit::CONFIG, faults))?;
        let pool = PoolConfig::of_image(image);
        let pool = PoolConfig { idle: IdleConfig { max: MOST_IDLE, ..pool.idle }, ..pool };
        let name = PoolName::new(NAME).map_err(|e| fail(exit::FAILURE, e))?;
        return Ok(subject(name, Some(pool), NAME.into(), engine, None));
    };
    if ways == [Way::Broker] {
        // A publisher needs no more than the way to the broker.
        let broker = config::load_broker(config.config.as_deref(), environment());
        let broker = broker.map_err(|faults| fail(exit::CONFIG, faults))?;
        return Ok(subject(name, None, NAME.into(), EngineConfig::default(), Some(broker)));
    }
    let mut config = load(config)?.config;
    let known: Vec<String> = config.pools.keys().map(ToString::to_string).collect();
    let Some(pool) = config.pools.remove(&name) else {
        let known = known.join(", ");
        return Err(fail(
            exit::CONFIG,
            format!("there is no pool '{name}' in the configuration; there is {known}"),
        ));
    };
    let worker = config.worker;
    let of_pool = subject(name, Some(pool), worker.name, config.engine, Some(config.broker));
    Ok(Subject { runtime_dir: worker.runtime_dir, ..of_pool })
}

/// Sets up, measures, and takes all of it away again, whether it works, fails or is interrupted.
async fn measure(subject: &Subject, args: &Args) -> Result<Report, Failure> {
    let progress = Progress::new();
    let mut bed = Bed::default();
    let found = tokio::select! {
        found = run(subject, args, &mut bed, &progress) => found,
        () = told_to_stop() => Err(Failure::Interrupted),
    };
    let interrupted = matches!(found, Err(Failure::Interrupted));
    progress.say("removing what was made", "");
    let left = tokio::select! {
        left = bed.clear() => left,
        // A second time: now. What is left ends by itself, since its stream does.
        () = told_to_stop() => std::process::exit(INTERRUPTED.into()),
    };
    progress.end();
    for what in &left {
        eprintln!("prewarm: {what}");
    }
    if interrupted {
        let rest = if left.is_empty() { "; all that was made is removed" } else { "" };
        eprintln!("prewarm: interrupted{rest}");
        // Not by way of the runtime, which would wait for a command on this host that may take its time.
        std::process::exit(INTERRUPTED.into());
    }
    found
}

async fn told_to_stop() {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = hup.recv() => {}
    }
}

async fn run(subject: &Subject, args: &Args, bed: &mut Bed, progress: &Progress) -> Result<Report, Failure> {
    let begun = Instant::now();
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    progress.say("setting up", "");
    bed.set_up(subject).await?;
    if !args.ways.contains(&Way::Namespace) {
        bed.leave_out_impossible().await;
    }
    if bed.contenders.is_empty() {
        return Err(Failure::Other(format!("nothing to measure: {}", bed.notes.join("; "))));
    }
    let all = &bed.contenders;
    let left = || Duration::from_secs(args.seconds).saturating_sub(begun.elapsed());
    let wants = |part: Part| args.parts.contains(&part);
    let share = |share: f64, others: &[Part]| {
        if others.iter().any(|part| wants(*part)) { left().mul_f64(share) } else { left() }
    };
    parts::warm_up(all, progress).await.map_err(Failure::Other)?;
    let (mut latency, mut throughput, mut hits) = (Vec::new(), Vec::new(), Vec::new());
    if wants(Part::Latency) {
        let time = share(SHARES[0], &[Part::Throughput, Part::Hits]);
        latency = parts::latency(all, args.jobs, time, progress).await.map_err(Failure::Other)?;
    }
    if wants(Part::Throughput) {
        let time = share(SHARES[1], &[Part::Hits]);
        throughput = parts::throughput(all, &args.at_once, time, progress).await.map_err(Failure::Other)?;
    }
    if wants(Part::Hits) {
        // Something, though others have taken longer than they should.
        let time = left().max(Duration::from_secs(args.seconds).mul_f64(LEAST_SHARE));
        hits = parts::hits(all, args.rate, &throughput, time, progress).await.map_err(Failure::Other)?;
    }
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        time,
        image: subject.pool.as_ref().map(|pool| pool.image.clone()),
        pool: args.of.pool.as_ref().map(ToString::to_string),
        command: bed.command.clone(),
        engine: bed.about.clone(),
        seconds: begun.elapsed().as_secs_f64(),
        ratios: report::ratios(&latency, &throughput),
        latency,
        throughput,
        hits,
        notes: bed.notes.clone(),
    })
}
