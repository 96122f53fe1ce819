//! `prewarm plan`: how many idle containers a load needs, from figures or from a running worker. Needs no configuration, no
//! broker, no engine.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{exit, fail};
use crate::pool::sizing::Load;

/// No pool is larger.
const MOST: usize = 10_000;
/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// No status is longer.
const LONGEST: u64 = 64 << 20;

#[derive(clap::Args)]
pub struct Args {
    /// Jobs per second
    #[arg(long, value_name = "JOBS", value_parser = rate, required_unless_present = "from")]
    rate: Option<f64>,
    /// How long a container takes to be made, on average, as 250ms
    #[arg(long, value_name = "TIME", value_parser = warm_time, required_unless_present = "from")]
    warm_time: Option<Duration>,
    /// Variance over mean of the jobs counted in equal spans of time; 1: no bursts
    #[arg(long, value_name = "D", value_parser = burst, default_value = "1")]
    burst: f64,
    /// Share of jobs that are to find a container ready [default: 0.99, or the pool's]
    #[arg(long, value_name = "SHARE", value_parser = hit_target)]
    hit_target: Option<f64>,
    /// Containers being made at once, as engine.creations, or `unlimited`
    #[arg(long, value_name = "K", value_parser = creators, default_value = "3")]
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

fn number(text: &str, accepts: impl Fn(f64) -> bool, wanted: &str) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| n.is_finite() && accepts(*n)).ok_or_else(|| format!("write {wanted}"))
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, |n| n > 0.0, "a number of jobs per second above 0, as 5 or 0.2")
}

fn burst(text: &str) -> Result<f64, String> {
    number(text, |n| n >= 1.0, "a number of at least 1; 1 is no bursts")
}

fn hit_target(text: &str) -> Result<f64, String> {
    number(text, |n| n > 0.0 && n < 1.0, "a share above 0 and below 1, as 0.99")
}

fn creators(text: &str) -> Result<f64, String> {
    if text == "unlimited" {
        return Ok(f64::INFINITY);
    }
    number(text, |n| n >= 1.0 && n.fract() == 0.0, "a whole number of at least 1, or unlimited")
}

fn warm_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).ok().filter(|time| !time.is_zero());
    time.ok_or_else(|| "write a time above 0 with its unit, as 250ms".into())
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

/// What of a worker's `/status` is needed.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    host: Host,
    pools: Vec<Pool>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Host {
    containers: Option<usize>,
    memory: Option<u64>,
}

#[derive(Deserialize)]
struct Pool {
    pool: String,
    memory: Option<u64>,
    idle_max: Option<usize>,
    sizing: Sizing,
}

#[derive(Deserialize)]
struct Sizing {
    rate: f64,
    burst: f64,
    warm_seconds: f64,
    warm_seconds_alone: Option<f64>,
    #[serde(default = "exponential")]
    warm_variation: f64,
    creators: f64,
    hit_target: f64,
}

fn exponential() -> f64 {
    1.0
}

/// One pool to be planned.
struct Question {
    pool: Option<String>,
    load: Load,
    hit_target: f64,
    memory: Option<u64>,
    idle_max: Option<usize>,
    host: Host,
}

/// What is found; the JSON output is a list of these.
#[derive(Serialize)]
struct Plan {
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    rate: f64,
    burst: f64,
    warm_seconds: f64,
    /// None: unlimited.
    creators: Option<f64>,
    /// What they sustain; none: any rate.
    highest_rate: Option<f64>,
    sustainable: bool,
    sizes: Vec<Size>,
    advice: Vec<String>,
}

#[derive(Serialize)]
struct Size {
    hit_target: f64,
    /// None: even the largest pool doesn't reach it.
    size: Option<usize>,
    expected_hit_rate: f64,
    idle: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
}

pub fn main(args: Args) -> ExitCode {
    let questions = match questions(&args) {
        Ok(questions) => questions,
        Err(why) => return fail(exit::FAILURE, why),
    };
    let plans: Vec<Plan> = questions.iter().map(Question::plan).collect();
    if args.json {
        match serde_json::to_string_pretty(&plans) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(exit::FAILURE, error),
        }
    } else {
        let texts: Vec<String> = plans.iter().map(Plan::text).collect();
        print!("{}", texts.join("\n"));
    }
    if plans.iter().all(|plan| plan.sustainable) { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) }
}

fn questions(args: &Args) -> Result<Vec<Question>, String> {
    let (Some(rate), Some(warm)) = (args.rate, args.warm_time) else {
        let from = args.from.as_deref().unwrap_or_default();
        let text = read(from).map_err(|why| format!("{from}: {why}"))?;
        return of_status(&text, args.hit_target).map_err(|why| format!("{from}: {why}"));
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

fn of_status(text: &str, hit_target: Option<f64>) -> Result<Vec<Question>, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let status: Status = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| format!("not the /status of a worker that can be planned for: {error}"))?;
    if status.pools.is_empty() {
        return Err("the worker has no pools".into());
    }
    let question = |pool: Pool| {
        let Sizing { rate, burst, warm_seconds, warm_variation, creators, .. } = pool.sizing;
        let alone = pool.sizing.warm_seconds_alone.unwrap_or(warm_seconds);
        let known = [rate, burst, warm_seconds, alone, creators].iter().all(|n| n.is_finite() && *n >= 0.0);
        if !known || creators == 0.0 {
            return Err(format!("pool {}: its sizing has figures that can't be", pool.pool));
        }
        Ok(Question {
            load: Load {
                rate,
                warm: warm_seconds,
                alone,
                variation: warm_variation,
                dispersion: burst,
                creators,
            },
            hit_target: hit_target.unwrap_or(pool.sizing.hit_target),
            memory: pool.memory,
            idle_max: pool.idle_max,
            host: status.host,
            pool: Some(pool.pool),
        })
    };
    status.pools.into_iter().map(question).collect()
}

/// A worker's status, from the worker or from a file.
fn read(from: &str) -> Result<String, String> {
    if from.starts_with("https://") {
        return Err("a worker speaks plain HTTP: write http://".into());
    }
    match from.strip_prefix("http://") {
        Some(address) => get(address),
        None => std::fs::read_to_string(from).map_err(|error| error.to_string()),
    }
}

/// HTTP/1.0, so that the body is what comes until the end.
fn get(address: &str) -> Result<String, String> {
    let (host, path) = address.split_once('/').unwrap_or((address, ""));
    let path = if path.is_empty() { "status" } else { path };
    let say = |error: std::io::Error| error.to_string();
    let named = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = Err("no such host".to_owned());
    for address in named.to_socket_addrs().map_err(say)? {
        stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(say);
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(say)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(say)?;
    // In one piece.
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(say)?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).map_err(say)?;
    let answer = String::from_utf8(answer).map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("the answer is {status}")),
    }
}

impl Question {
    fn plan(&self) -> Plan {
        let load = self.load;
        let sustainable = load.sustainable();
        let mut goals = vec![0.95, 0.99, 0.999, self.hit_target];
        goals.sort_by(f64::total_cmp);
        goals.dedup();
        let misses = load.misses(MOST);
        let size = |goal: f64| {
            let size = misses.iter().position(|miss| *miss <= 1.0 - goal);
            let counted = size.unwrap_or(MOST);
            Size {
                hit_target: goal,
                size,
                expected_hit_rate: 1.0 - misses[counted],
                idle: load.idle(counted),
                memory: self.memory.map(|memory| memory.saturating_mul(counted as u64)),
            }
        };
        let wanted = load.rate > 0.0 && sustainable;
        let sizes: Vec<Size> = if wanted { goals.into_iter().map(size).collect() } else { Vec::new() };
        Plan {
            pool: self.pool.clone(),
            rate: load.rate,
            burst: load.dispersion.max(1.0),
            warm_seconds: load.warm,
            creators: (load.creators < 1e9).then_some(load.creators),
            highest_rate: (load.creators < 1e9).then_some(load.creators / load.warm),
            sustainable,
            advice: self.advice(&sizes),
            sizes,
        }
    }

    /// What keeps the goal from being reached, and what would help.
    fn advice(&self, sizes: &[Size]) -> Vec<String> {
        let load = self.load;
        let mut advice = Vec::new();
        if !load.sustainable() {
            // One that is always busy doesn't keep up.
            let creators = (load.offered().floor() + 1.0).max(load.offered().ceil());
            let workers = (load.offered() / load.creators).floor() + 1.0;
            advice.push(format!(
                "no size helps: jobs come faster than containers can be made. What would help: at least {creators} creations \
                 at once (engine.creations) if the host has idle cores for them; containers that are made in less than {} ms \
                 (network = \"none\" or \"host\" takes about half the time); {workers} workers on hosts of their own",
                (load.creators / load.rate * 1000.0).floor(),
            ));
            return advice;
        }
        let Some(asked) = sizes.iter().find(|size| size.hit_target == self.hit_target) else { return advice };
        let Some(size) = asked.size else {
            advice.push(format!("more than {MOST} containers would be needed: have more creations at once"));
            return advice;
        };
        let goal = percent(self.hit_target);
        if self.idle_max.is_some_and(|max| max < size) {
            advice.push(format!(
                "{goal} % need idle.max = {size}; it is {}",
                self.idle_max.unwrap_or_default()
            ));
        }
        if self.host.containers.is_some_and(|most| most < size) {
            advice.push(format!("{goal} % need more containers than engine.containers allows"));
        }
        if self.host.memory.zip(asked.memory).is_some_and(|(most, needed)| most < needed) {
            advice.push(format!("{goal} % need more memory than engine.memory allows"));
        }
        advice
    }
}

impl Plan {
    fn text(&self) -> String {
        let mut text = self.pool.as_ref().map(|pool| format!("pool {pool}\n")).unwrap_or_default();
        let bursts = if self.burst > 1.0 { format!("bursts {:.1}", self.burst) } else { "no bursts".into() };
        let creators = match self.creators {
            Some(n) => format!("{} at once", short(n)),
            None => "without limit".into(),
        };
        let (rate, ms) = (short(self.rate), short(self.warm_seconds * 1000.0));
        text += &format!("{rate} jobs/s, {bursts}; a container is made in {ms} ms, {creators}\n");
        if self.rate == 0.0 {
            text += "no job has come for a while: there is nothing to size for\n";
        }
        if !self.sizes.is_empty() {
            text += "\n    goal    size    hits expected    idle on average    memory\n";
        }
        for size in &self.sizes {
            let memory = size.memory.map_or("-".into(), gib);
            let n = size.size.map_or(format!(">{MOST}"), |n| n.to_string());
            let (goal, hits) = (percent(size.hit_target), percent(size.expected_hit_rate));
            text += &format!("{goal:>6} %{n:>8}{hits:>15} %{:>19.1}{memory:>10}\n", size.idle);
        }
        if let Some(highest) = self.highest_rate {
            let share = self.rate / highest * 100.0;
            let highest = short(highest);
            text += &format!(
                "\nAt most {highest} containers/s can be made; this load takes {share:.0} % of that.\n"
            );
        }
        for advice in &self.advice {
            text += &format!("{}\n", sentence(advice));
        }
        text
    }
}

/// Three digits at most where they say enough.
fn short(n: f64) -> String {
    let decimals = if n >= 100.0 { 0 } else { 2 };
    let text = format!("{n:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn percent(share: f64) -> String {
    // Never rounded up to what isn't reached.
    short((share * 100_000.0 + 1e-6).floor() / 1000.0)
}

fn gib(bytes: u64) -> String {
    format!("{:.1}GiB", bytes as f64 / f64::from(1 << 30))
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}
