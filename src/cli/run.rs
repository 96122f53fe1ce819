//! `prewarm run`: one job through a pool, without a broker. It is to `docker run` what the worker is to a fleet.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::artifacts::Saver;
use super::job::JobArgs;
use super::{ConfigArgs, block_on, exit, fail, load};
use crate::artifacts::{Collected, Collector, Events};
use crate::attempt::{self, Controls, Ended, Happening, Stopped};
use crate::config::{ArtifactsConfig, Config, IdleConfig};
use crate::contract::content::{self, Artifacts};
use crate::contract::event::Stream;
use crate::contract::job::Env;
use crate::engine::docker::Docker;
use crate::init::wire::End;
use crate::launch::{self, Order};
use crate::metrics::Metrics;
use crate::outcome::Outcome;
use crate::pool::planner::Host;
use crate::pool::{Owner, Pools};
use crate::secrets;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Save these files of the job when it is over: a path, or a pattern with `*`, `?`, `**`
    #[arg(long, value_name = "PATTERN", value_parser = content::pattern)]
    artifact: Vec<String>,
    /// Save them below this directory, each under its path there [default: the current directory]
    #[arg(long, value_name = "DIR", requires = "artifact")]
    artifacts_to: Option<PathBuf>,
    /// Print how fast the job started, on stderr
    #[arg(long)]
    timings: bool,
}

pub fn main(config: &ConfigArgs, args: Args) -> ExitCode {
    let loaded = match load(config) {
        Ok(loaded) => loaded,
        Err(_) => return ExitCode::from(exit::RUN),
    };
    match block_on(run(loaded.config, args)) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(why)) => fail(exit::RUN, why),
        Err(_) => ExitCode::from(exit::RUN),
    }
}

async fn run(mut config: Config, args: Args) -> Result<u8, String> {
    let name = args.job.pool.clone();
    let known: Vec<String> = config.pools.keys().map(ToString::to_string).collect();
    let mut pool = config.pools.remove(&name).ok_or_else(|| {
        format!("there is no pool '{name}' in the configuration; there is {}", known.join(", "))
    })?;
    // One job needs one container: made when it is asked for, and none after it.
    pool.idle = IdleConfig { min: 0, max: 0, ..pool.idle };
    pool.concurrency = 1;
    config.pools.clear();
    config.pools.insert(name.clone(), pool.clone());

    let env = Env(args.job.env()?);
    let stdin = args.job.read_stdin()?.map(Bytes::from);
    let (files, artifacts) = (args.job.read_files()?, Artifacts(args.artifact));
    launch::allowed(&name, &pool, &files, &artifacts).map_err(|rejection| rejection.to_string())?;
    let wanted = !artifacts.0.is_empty();
    let receiver = wanted.then(|| Receiver::new(&artifacts.0, pool.artifacts, args.artifacts_to.as_deref()));
    let receiver = receiver.transpose()?;
    let metrics = Metrics::new();
    let engine = std::sync::Arc::new(Docker::new(&config.engine, &metrics).map_err(|e| e.to_string())?);
    let host = Host { creators: 1, containers: None, memory: None };
    let owner = Owner::new(&config.worker.name);
    let pools = Pools::start(engine, &owner, &config.pools, host, config.engine.image_check, &metrics);
    let outcome = async {
        let lease = tokio::select! {
            lease = pools.lease(&name, config.worker.lease_timeout) => lease.map_err(|e| e.to_string())?,
            failure = first_failure(&pools) => return Err(failure),
        };
        let timeout = args.job.timeout.unwrap_or(pool.timeout.default);
        let argv = args.job.args();
        let given = match &pool.secrets_from {
            Some(directory) => secrets::read(directory).map_err(|e| e.to_string())?,
            None => Env::default(),
        };
        let order = Order {
            args: argv.as_deref(),
            env: &env,
            given: &given,
            stdin,
            files: &files.0,
            artifacts: &artifacts.0,
            traceparent: None,
            timeout,
            stop_grace: pool.stop_grace,
        };
        let (plan, executable) = launch::plan(&lease.image, &pool, order).map_err(|e| e.to_string())?;
        let (happen, happenings) = mpsc::channel(attempt::CHANNEL);
        let controls = Controls::default();
        stop_on_signal(controls.stop.clone());
        let begun = Instant::now();
        let (result, (started, receiver)) =
            tokio::join!(attempt::run(lease, plan, &controls, happen), pass_through(happenings, receiver));
        if let (true, Some(at)) = (args.timings, started) {
            let startup = at.saturating_duration_since(begun);
            eprintln!("prewarm: START to executing in {:.3} ms", startup.as_secs_f64() * 1e3);
        }
        // A signal to this command is the job's, as with `docker run`: how the job takes it is the exit code.
        let result =
            result.map(|ended| Ended { stopped: ended.stopped.filter(|s| *s != Stopped::Worker), ..ended });
        Ok((Outcome::of(result, &executable, timeout), receiver))
    }
    .await;
    pools.close().await;
    let (outcome, receiver) = outcome?;
    let has_run = matches!(outcome, Outcome::Ran(_));
    let code = exit_code(outcome)?;
    Ok(receiver.filter(|_| has_run).map_or(code, |receiver| receiver.conclude(code)))
}

/// Takes a job's artifacts, and saves them.
struct Receiver {
    collector: Collector,
    saver: Saver,
}

/// There is only one.
const ATTEMPT: u64 = 1;

impl Receiver {
    fn new(wanted: &[String], limits: ArtifactsConfig, to: Option<&Path>) -> Result<Receiver, String> {
        // Nothing has to fit into a result: all go to the disk in pieces.
        let limits = ArtifactsConfig { inline: 0, ..limits };
        Ok(Receiver { collector: Collector::new(wanted, limits, Events::Sent, None), saver: Saver::new(to)? })
    }

    fn take(&mut self, bytes: &Bytes) {
        for piece in self.collector.push(bytes) {
            self.saver.piece(ATTEMPT, &piece);
        }
    }

    fn conclude(self, code: u8) -> u8 {
        let Collected { artifacts, missed } = self.collector.finish();
        let result = json!({"attempt": ATTEMPT, "artifacts": artifacts, "artifacts_missed": missed});
        self.saver.conclude(&result, code)
    }
}

/// The first container decides: where `serve` would try again, this says what is wrong.
async fn first_failure(pools: &Pools) -> String {
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Some(failure) = pools.status().await.into_iter().find_map(|s| s.last_failure) {
            return failure;
        }
    }
}

/// Writes the job's output where this command's goes, as it comes, and its artifacts where they belong.
async fn pass_through(
    mut happenings: mpsc::Receiver<Happening>,
    mut receiver: Option<Receiver>,
) -> (Option<Instant>, Option<Receiver>) {
    let mut started = None;
    while let Some(happening) = happenings.recv().await {
        let (stream, bytes) = match happening {
            Happening::Started(at) => {
                started = Some(at);
                continue;
            }
            Happening::Output(stream, bytes) => (stream, bytes),
            Happening::Artifact(bytes) => {
                tokio::task::block_in_place(|| receiver.iter_mut().for_each(|r| r.take(&bytes)));
                continue;
            }
        };
        // Blocking writes, since whoever reads sets the pace; a closed pipe ends the job, as it does with `docker run`.
        let written = tokio::task::block_in_place(|| match stream {
            Stream::Stdout => write_out(&mut std::io::stdout().lock(), &bytes),
            Stream::Stderr => write_out(&mut std::io::stderr().lock(), &bytes),
        });
        if written.is_err() {
            break;
        }
    }
    (started, receiver)
}

fn write_out(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn stop_on_signal(stop: CancellationToken) {
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()),
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()),
        ) else {
            return;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
    });
}

fn exit_code(outcome: Outcome) -> Result<u8, String> {
    match outcome {
        Outcome::Ran(verdict) => {
            if let Some(error) = &verdict.error {
                eprintln!("prewarm: {}", error.message);
            }
            Ok(match verdict.end {
                Some(End::Code(code)) => code,
                Some(End::Signal(signal)) => 128 + signal,
                None => 137,
            })
        }
        Outcome::Rejected(rejection) => Err(rejection.to_string()),
        Outcome::Trouble(error) | Outcome::PerhapsBegun(error) => Err(error.message),
        Outcome::NotBegun | Outcome::Cancelled => Err("stopped before the job began".into()),
    }
}
