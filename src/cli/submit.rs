//! `prewarm submit`: publishes jobs and shows what becomes of them.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{ConfigArgs, JobArgs, block_on, exit, fail};
use crate::broker::BrokerError;
use crate::broker::client::{Client, Reply};
use crate::config::{self, BrokerConfig};
use crate::contract::topology::{LOG, RESULT, STARTED};

/// Jobs that may be on their way at once when many are submitted.
const IN_FLIGHT: usize = 1000;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// How many jobs to submit
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Jobs a second [default: as fast as the broker takes them]
    #[arg(long)]
    rate: Option<f64>,
    /// Pass the job's stdout and stderr through as they come, and exit with its code
    #[arg(long, conflicts_with_all = ["count", "rate"])]
    follow: bool,
}

pub fn main(config: &ConfigArgs, args: Args) -> ExitCode {
    // A publisher has no pools: only the broker's section counts here.
    let broker = match config::load_broker(config.config.as_deref(), config::environment()) {
        Ok(broker) => broker,
        Err(faults) => return fail(exit::CONFIG, faults),
    };
    if args.rate.is_some_and(|r| !r.is_finite() || r <= 0.0) {
        return fail(2, "--rate: must be a number of jobs a second above 0");
    }
    let body = match body(&args.job) {
        Ok(body) => body,
        Err(why) => return fail(exit::FAILURE, why),
    };
    let done = block_on(async {
        if args.follow { follow(&broker, &args, body).await } else { many(&broker, &args, body).await }
    });
    match done {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => fail(exit::BROKER, error),
        Err(code) => code,
    }
}

fn body(job: &JobArgs) -> Result<Bytes, String> {
    let env: Map<String, Value> = job.env()?.into_iter().map(|(k, v)| (k, v.into())).collect();
    let mut body = Map::from_iter([("env".to_owned(), Value::from(env))]);
    if let Some(args) = job.args() {
        body.insert("args".into(), args.into());
    }
    if let Some(timeout) = job.timeout {
        body.insert("timeout".into(), humantime::format_duration(timeout).to_string().into());
    }
    if let Some(stdin) = job.read_stdin().map_err(|e| format!("reading stdin: {e}"))? {
        let stdin = match String::from_utf8(stdin) {
            Ok(text) => Value::from(text),
            Err(bytes) => {
                let coded = base64::engine::general_purpose::STANDARD.encode(bytes.as_bytes());
                Value::from(Map::from_iter([("base64".to_owned(), Value::from(coded))]))
            }
        };
        body.insert("stdin".into(), stdin);
    }
    Ok(Bytes::from(Value::from(body).to_string()))
}

/// One job: its output as it comes, its exit code as ours.
async fn follow(broker: &BrokerConfig, args: &Args, body: Bytes) -> Result<u8, BrokerError> {
    let mut client = Client::connect(broker, "prewarm submit").await?;
    let id = uuid::Uuid::now_v7().to_string();
    client.submit(&args.job.pool, &id, body, None).await?;
    let code = loop {
        let reply = client.next_reply().await?;
        let value = parse(&reply);
        match reply.properties.kind.as_deref() {
            Some(LOG) => print_log(&value),
            Some(RESULT) => break final_code(&value),
            _ => {}
        }
    };
    client.close().await;
    Ok(code)
}

fn parse(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or(Value::Null)
}

fn data(of: &Value) -> Vec<u8> {
    match (of["text"].as_str(), of["base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(coded)) => base64::engine::general_purpose::STANDARD.decode(coded).unwrap_or_default(),
        (None, None) => Vec::new(),
    }
}

fn print_log(log: &Value) {
    let bytes = data(log);
    // Whoever reads our output may have gone; the job's exit code still counts.
    let _ = if log["stream"] == "stderr" {
        std::io::stderr().write_all(&bytes)
    } else {
        std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush())
    };
    if let Some(limit) = log["truncated_at"].as_u64() {
        eprintln!("prewarm: the job printed more than {limit} bytes; the rest is not shown");
    }
}

/// The job's exit code; 128 + n for a signal; 125 if it never ran.
fn final_code(result: &Value) -> u8 {
    if let Some(message) = result["error"]["message"].as_str() {
        eprintln!("prewarm: {message}");
    }
    let number = |v: &Value| v.as_u64().and_then(|n| u8::try_from(n).ok());
    number(&result["exit_code"])
        .or_else(|| number(&result["signal"]).map(|s| s.saturating_add(128)))
        .unwrap_or(if result["status"] == "timed_out" { 137 } else { exit::RUN })
}

/// Many jobs: a line for each as it ends, and a summary.
async fn many(broker: &BrokerConfig, args: &Args, body: Bytes) -> Result<u8, BrokerError> {
    let mut client = Client::connect(broker, "prewarm submit").await?;
    let pause = args.rate.map(|r| Duration::from_secs_f64(1.0 / r));
    let begun = Instant::now();
    let mut next_at = tokio::time::Instant::now();
    let mut sent = 0;
    let mut open: HashMap<String, Open> = HashMap::new();
    let mut summary = Summary::default();
    while sent < args.count || !open.is_empty() {
        tokio::select! {
            biased;
            reply = client.next_reply(), if !open.is_empty() => summary.take(&reply?, &mut open),
            () = tokio::time::sleep_until(next_at), if sent < args.count && open.len() < IN_FLIGHT => {
                sent += 1;
                let id = uuid::Uuid::now_v7().to_string();
                open.insert(id.clone(), Open { number: sent, since: Instant::now(), startup: None });
                client.submit(&args.job.pool, &id, body.clone(), None).await?;
                if let Some(pause) = pause {
                    next_at += pause;
                }
            }
        }
    }
    client.close().await;
    summary.print(begun.elapsed());
    Ok(if summary.succeeded == summary.lines { 0 } else { exit::FAILURE })
}

/// A job that was submitted and has no result yet.
struct Open {
    number: u32,
    since: Instant,
    startup: Option<f64>,
}

#[derive(Default)]
struct Summary {
    lines: u32,
    succeeded: u32,
    hits: u32,
    startups: Vec<f64>,
    totals: Vec<f64>,
}

impl Summary {
    fn take(&mut self, reply: &Reply, open: &mut HashMap<String, Open>) {
        let value = parse(reply);
        let Some(id) = value["job_id"].as_str() else { return };
        match reply.properties.kind.as_deref() {
            Some(STARTED) => {
                if let Some(job) = open.get_mut(id) {
                    job.startup = value["startup_ms"].as_f64();
                }
            }
            Some(RESULT) => {
                if let Some(job) = open.remove(id) {
                    self.line(&job, &value);
                }
            }
            _ => {}
        }
    }

    fn line(&mut self, job: &Open, result: &Value) {
        let total = job.since.elapsed().as_secs_f64() * 1e3;
        let lease = result["lease"].as_str().unwrap_or("none");
        let startup = job.startup.or_else(|| result["timings_ms"]["startup"].as_f64());
        let end = match (&result["exit_code"], &result["signal"]) {
            (Value::Number(code), _) => format!("exit {code}"),
            (_, Value::Number(signal)) => format!("signal {signal}"),
            _ => result["status"].as_str().unwrap_or("?").to_owned(),
        };
        let output = data(&result["stdout"]);
        let first = String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned();
        let said = result["error"]["message"].as_str().unwrap_or(&first);
        let startup_text = startup.map_or_else(|| "-".into(), |s| format!("{s:.2} ms"));
        println!("#{:<5} {lease:<5} {startup_text:>10}  {end:<9} | {said}", job.number);
        self.lines += 1;
        self.hits += u32::from(lease == "hit");
        self.succeeded += u32::from(result["status"] == "succeeded");
        self.startups.extend(startup);
        self.totals.push(total);
    }

    fn print(&mut self, took: Duration) {
        let rate = f64::from(self.lines) / took.as_secs_f64();
        let share = 100.0 * f64::from(self.hits) / f64::from(self.lines.max(1));
        println!(
            "{} jobs, {} succeeded, {:.1} a second; hits {share:.0} %; startup p50 {} p99 {}; publish to result p50 {} p99 {}",
            self.lines,
            self.succeeded,
            rate,
            quantile(&mut self.startups, 0.5),
            quantile(&mut self.startups, 0.99),
            quantile(&mut self.totals, 0.5),
            quantile(&mut self.totals, 0.99),
        );
    }
}

fn quantile(values: &mut [f64], q: f64) -> String {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * q).ceil() as usize).clamp(1, values.len().max(1)) - 1;
    values.get(at).map_or_else(|| "-".into(), |v| format!("{v:.2} ms"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exit_codes_are_the_jobs_own() {
        assert_eq!(final_code(&json!({"exit_code": 7})), 7);
        assert_eq!(final_code(&json!({"signal": 11})), 139);
        assert_eq!(final_code(&json!({"status": "timed_out"})), 137);
        assert_eq!(final_code(&json!({"status": "rejected"})), 125);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert_eq!(quantile(&mut [], 0.5), "-");
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.5), "2.00 ms");
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.99), "3.00 ms");
    }
}
