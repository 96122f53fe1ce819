//! The command line: one file a verb.

mod artifacts;
mod bench;
mod cancel;
mod check;
mod completions;
mod dead;
mod figures;
mod interrupt;
mod job;
mod logs;
mod plan;
mod reply;
mod run;
mod schema;
mod serve;
mod simulate;
mod status;
mod submit;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use job::variables;
use tracing::level_filters::LevelFilter;

use crate::config::{self, Loaded};
use crate::telemetry;

/// Exit codes beside 0 and those of jobs. 2 is clap's, for a wrong command line.
mod exit {
    /// It failed for a reason that has no code of its own.
    pub const FAILURE: u8 = 1;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 3;
    /// The broker can't be used.
    pub const BROKER: u8 = 4;
    /// The engine can't be used.
    pub const ENGINE: u8 = 5;
    /// A pool's image can't be used.
    pub const IMAGE: u8 = 6;
    /// As `docker run`: ours, not the job's.
    pub const RUN: u8 = 125;
}

/// Runs jobs from RabbitMQ in fresh, pre-warmed containers: about a millisecond to start, exactly what
/// `docker run` would have done.
#[derive(Parser)]
#[command(name = "prewarm", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct ConfigArgs {
    /// Configuration file [default: $PREWARM_CONFIG, ./prewarm.toml, /etc/prewarm/prewarm.toml]
    #[arg(long, short = 'c', global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Take jobs from the broker and run them, until told to stop
    Serve,
    /// Check configuration, broker, engine and images, and say what to do about what is wrong
    Check,
    /// Run one job through a pool, without a broker; exits with the job's code
    Run(run::Args),
    /// Publish jobs and show their results
    Submit(submit::Args),
    /// Cancel a job, wherever it is
    Cancel(cancel::Args),
    /// Follow the output of a running job, from wherever you are
    Logs(logs::Args),
    /// Show pools, containers, running jobs and the last failures of one worker or of all
    Status(status::Args),
    /// Say how many idle containers a load needs, and what the limit is
    Plan(plan::Args),
    /// Say what a fleet of workers would do with a load: hits, waiting, what it takes of hosts and broker
    Simulate(simulate::Args),
    /// Measure `docker run`, `docker exec` and prewarm side by side, on this engine and image
    Bench(bench::Args),
    /// Look at jobs that could not be processed; run them again, or delete them
    Dead(dead::Args),
    /// Print the JSON Schema of a message, or all of them as an AsyncAPI document
    Schema(schema::Args),
    /// Print what completes these commands in a shell, or write their manual pages
    Completions(completions::Args),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let default = match cli.verb {
        Verb::Serve => LevelFilter::INFO,
        // lapin reports as an error that the broker hangs up after an orderly goodbye, or has no queue of a name that is asked for.
        Verb::Check | Verb::Dead(_) | Verb::Submit(_) | Verb::Logs(_) | Verb::Status(_) | Verb::Cancel(_) => {
            LevelFilter::OFF
        }
        // What goes wrong is this command's own message, and stderr is the job's.
        _ => LevelFilter::ERROR,
    };
    if let Err(error) = telemetry::init(default) {
        return fail(exit::CONFIG, error);
    }
    match cli.verb {
        Verb::Serve => serve::main(&cli.config),
        Verb::Check => check::main(&cli.config),
        Verb::Run(args) => run::main(&cli.config, args),
        Verb::Submit(args) => submit::main(&cli.config, args),
        Verb::Cancel(args) => cancel::main(&cli.config, &args),
        Verb::Logs(args) => logs::main(&cli.config, &args),
        Verb::Status(args) => status::main(&cli.config, &args),
        Verb::Plan(args) => plan::main(args),
        Verb::Simulate(args) => simulate::main(&cli.config, args),
        Verb::Bench(args) => bench::main(&cli.config, args),
        Verb::Dead(args) => dead::main(&cli.config, args),
        Verb::Schema(args) => schema::main(args),
        Verb::Completions(args) => completions::main(args),
    }
}

/// Reads the configuration, or says all that is wrong with it.
fn load(args: &ConfigArgs) -> Result<Loaded, ExitCode> {
    config::load(args.config.as_deref(), config::environment()).map_err(|faults| fail(exit::CONFIG, faults))
}

/// Ends as clap does for a wrong command line, where it can't see by itself that it is wrong.
fn refuse(why: &str) -> ! {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{why}\n")).exit()
}

fn fail(code: u8, why: impl std::fmt::Display) -> ExitCode {
    eprintln!("prewarm: {why}");
    ExitCode::from(code)
}

/// Text that makes no terminal do anything: somebody else's may hold control characters, also in JSON.
fn inert(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_control() && c != '\n' {
            text += &format!("\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

/// Threads of the runtime: half of what the machine can run at once. Each connection to the broker has a thread of its own
/// beside them (lapin's), and all a job's journey asks of a thread is to pass small messages on: with as many threads as
/// cores, most of what they do is wake each other. On two cores one thread runs an eighth more jobs a second than two.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// A runtime for a verb that needs one.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, ExitCode> {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build() {
        Ok(runtime) => Ok(runtime.block_on(work)),
        Err(error) => Err(fail(exit::FAILURE, format!("starting the runtime: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
