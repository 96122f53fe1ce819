//! Pure: what came of many jobs, in words and in JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::inert;
use crate::cli::reply::data;

/// What came of the jobs so far. 16 bytes for each.
#[derive(Default)]
pub(super) struct Tally {
    jobs: u32,
    succeeded: u32,
    hits: u32,
    startups: Vec<f64>,
    totals: Vec<f64>,
}

impl Tally {
    /// Counts a job that ended, `total` milliseconds after it was published; gives its line.
    pub(super) fn take(&mut self, number: u32, startup: Option<f64>, total: f64, result: &Value) -> String {
        let lease = result["lease"].as_str().unwrap_or("none");
        let startup = startup.or_else(|| result["timings_ms"]["startup"].as_f64());
        let end = match (&result["exit_code"], &result["signal"]) {
            (Value::Number(code), _) => format!("exit {code}"),
            (_, Value::Number(signal)) => format!("signal {signal}"),
            _ => result["status"].as_str().unwrap_or("?").to_owned(),
        };
        let output = data(&result["stdout"]);
        let first = String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned();
        let said = inert(result["error"]["message"].as_str().unwrap_or(&first));
        let startup_text = startup.map_or_else(|| "-".into(), |s| format!("{s:.2} ms"));
        self.jobs += 1;
        self.hits += u32::from(lease == "hit");
        self.succeeded += u32::from(result["status"] == "succeeded");
        self.startups.extend(startup);
        self.totals.push(total);
        format!("#{number:<5} {lease:<5} {startup_text:>10}  {end:<9} | {said}\n")
    }

    pub(super) fn all_succeeded(&self) -> bool {
        self.succeeded == self.jobs
    }

    /// How far it has come.
    pub(super) fn progress(&self, of: u32) -> String {
        format!("{} of {of} jobs; hits {:.0} %", self.jobs, self.hit_percent())
    }

    fn hit_percent(&self) -> f64 {
        100.0 * f64::from(self.hits) / f64::from(self.jobs.max(1))
    }

    /// The summary, a line.
    pub(super) fn text(&mut self, took: Duration) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".into(), |v| format!("{v:.2} ms"));
        format!(
            "{} jobs, {} succeeded, {:.1} a second; hits {:.0} %; startup p50 {} p99 {}; publish to result p50 {} p99 {}\n",
            self.jobs,
            self.succeeded,
            f64::from(self.jobs) / took.as_secs_f64(),
            self.hit_percent(),
            ms(quantile(&mut self.startups, 0.5)),
            ms(quantile(&mut self.startups, 0.99)),
            ms(quantile(&mut self.totals, 0.5)),
            ms(quantile(&mut self.totals, 0.99)),
        )
    }

    /// The same, for machines.
    pub(super) fn json(&mut self, took: Duration) -> Value {
        json!({
            "jobs": self.jobs,
            "succeeded": self.succeeded,
            "hits": self.hits,
            "seconds": took.as_secs_f64(),
            "startup_ms": {
                "p50": quantile(&mut self.startups, 0.5),
                "p99": quantile(&mut self.startups, 0.99),
            },
            "publish_to_result_ms": {
                "p50": quantile(&mut self.totals, 0.5),
                "p99": quantile(&mut self.totals, 0.99),
            },
        })
    }
}

/// The smallest value that so large a share of all doesn't exceed.
fn quantile(values: &mut [f64], q: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * q).ceil() as usize).clamp(1, values.len().max(1)) - 1;
    values.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert_eq!(quantile(&mut [], 0.5), None);
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.99), Some(3.0));
    }

    #[test]
    fn what_is_said_of_a_job_does_a_terminal_no_harm() {
        let mut tally = Tally::default();
        let result = json!({"status": "succeeded", "exit_code": 0, "lease": "hit", "stdout": {"text": "a\u{1b}[2Jb\nc"}});
        let line = tally.take(1, Some(1.25), 4.0, &result);
        assert_eq!(line, "#1     hit      1.25 ms  exit 0    | a\\u001b[2Jb\n");
        assert_eq!(tally.progress(2), "1 of 2 jobs; hits 100 %");
        let summary = tally.json(Duration::from_secs(2));
        assert_eq!((&summary["jobs"], &summary["startup_ms"]["p50"]), (&json!(1), &json!(1.25)));
        let nothing = Tally::default().json(Duration::from_secs(1));
        assert_eq!(nothing["publish_to_result_ms"]["p99"], Value::Null);
    }
}
