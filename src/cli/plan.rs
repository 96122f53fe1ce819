//! `prewarm plan`: how many idle containers a load needs, from figures or from a running worker. Needs no configuration, no
//! broker, no engine.

mod answer;
mod bounds;
pub(super) mod source;
mod status;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use answer::{Plan, Question};
use status::Host;

use super::{exit, fail, inert, refuse};
use crate::pool::sizing::Load;

/// How long all pools together may take. One alone takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Args {
    /// Jobs per second
    #[arg(long, value_name = "JOBS", value_parser = rate, allow_negative_numbers = true, required_unless_present = "from")]
    rate: Option<f64>,
    /// How long a container takes to be made, on average, as 250ms
    #[arg(long, value_name = "TIME", value_parser = warm_time, required_unless_present = "from")]
    warm_time: Option<Duration>,
    /// Variance over mean of the jobs counted in equal spans of time; 1: no bursts
    #[arg(long, value_name = "D", value_parser = burst, allow_negative_numbers = true, default_value = "1")]
    burst: f64,
    /// Share of jobs that are to find a container ready [default: 0.99, or the pool's]
    #[arg(long, value_name = "SHARE", value_parser = hit_target, allow_negative_numbers = true)]
    hit_target: Option<f64>,
    /// Containers being made at once, as engine.creations, or `unlimited`
    #[arg(long, value_name = "K", value_parser = creators, allow_negative_numbers = true, default_value = "3")]
    creators: f64,
    /// What one container may take, as 2GiB
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
    /// Take all that from a running worker: http://127.0.0.1:9464, or a file with its /status
    #[arg(long, value_name = "URL|FILE", conflicts_with_all = ["rate", "warm_time", "burst", "creators", "memory"])]
    from: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn number(text: &str, accepts: impl Fn(f64) -> bool, wanted: &str) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| accepts(*n)).ok_or_else(|| format!("write {wanted}"))
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    number(
        text,
        |n| bounds::RATE.hold(n),
        "a number of jobs per second above 0 and at most 1000000, as 5 or 0.2",
    )
}

pub(super) fn burst(text: &str) -> Result<f64, String> {
    number(text, |n| bounds::BURST.hold(n), "a number of at least 1 and at most 10000; 1 is no bursts")
}

pub(super) fn hit_target(text: &str) -> Result<f64, String> {
    number(text, bounds::is_hit_target, bounds::HIT_TARGET)
}

fn creators(text: &str) -> Result<f64, String> {
    if text == "unlimited" {
        return Ok(f64::INFINITY);
    }
    let accepts = |n: f64| bounds::CREATORS.hold(n) && n.fract() == 0.0;
    number(text, accepts, "a whole number of at least 1 and at most 1000000, or unlimited")
}

pub(super) fn warm_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).ok().filter(|time| bounds::WARM.hold(time.as_secs_f64()));
    time.ok_or_else(|| "write a time from 1ms to 1h with its unit, as 250ms".into())
}

/// As in the configuration: binary units.
fn memory(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        "t" | "tb" | "tib" => Some(40),
        _ => None,
    };
    let bytes = shift.zip(digits.parse::<u64>().ok()).and_then(|(shift, n)| n.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "write a size, as 512MiB or 2GiB".into())
}

pub fn main(args: Args) -> ExitCode {
    if let Some((rate, warm)) = args.rate.zip(args.warm_time)
        && let Some(why) = bounds::too_many(rate, warm.as_secs_f64())
    {
        let why = format!("--rate {rate} with --warm-time {}: {why}", humantime::format_duration(warm));
        refuse(&why);
    }
    let plans = match questions(&args).and_then(|questions| plans(&questions)) {
        Ok(plans) => plans,
        Err(why) => return fail(exit::FAILURE, why),
    };
    if args.json {
        match serde_json::to_string_pretty(&plans) {
            Ok(text) => println!("{}", inert(&text)),
            Err(error) => return fail(exit::FAILURE, error),
        }
    } else {
        let texts: Vec<String> = plans.iter().map(Plan::text).collect();
        print!("{}", texts.join("\n"));
    }
    if plans.iter().all(|plan| plan.sustainable) { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) }
}

fn plans(questions: &[Question]) -> Result<Vec<Plan>, String> {
    let begun = Instant::now();
    let plan = |question: &Question| {
        let late = begun.elapsed() > PATIENCE;
        if late {
            Err("more pools, with larger loads, than are planned for at once".into())
        } else {
            Ok(question.plan())
        }
    };
    questions.iter().map(plan).collect()
}

fn questions(args: &Args) -> Result<Vec<Question>, String> {
    let (Some(rate), Some(warm)) = (args.rate, args.warm_time) else {
        let from = args.from.as_deref().unwrap_or_default();
        let questions = source::read(from).and_then(|text| status::questions(&text, args.hit_target));
        return questions.map_err(|why| format!("{from}: {why}"));
    };
    // Nothing is known of how much creation times vary: the safe side.
    let load = Load {
        rate,
        warm: warm.as_secs_f64(),
        alone: warm.as_secs_f64(),
        variation: 1.0,
        dispersion: args.burst,
        creators: args.creators,
    };
    let hit_target = args.hit_target.unwrap_or(0.99);
    let (memory, host) = (args.memory, Host::default());
    Ok(vec![Question { pool: None, load, hit_target, memory, idle_max: None, host }])
}
