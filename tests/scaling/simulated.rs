//! What happened to a stretch of jobs, and what `prewarm simulate` says of the same.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::support::broker::{Attempt, Job};
use crate::support::worker::{Site, Worker, prewarm};

/// A job and when it was published, by either clock.
pub struct Sent {
    pub job: Job,
    pub at: Instant,
    pub wall: SystemTime,
}

impl Sent {
    pub async fn submit(site: &Site, pool: &str, job: Job) -> Sent {
        let (at, wall) = (Instant::now(), SystemTime::now());
        Sent { job: site.broker.submit(pool, job).await, at, wall }
    }
}

/// What is compared.
#[derive(Debug)]
pub struct Figures {
    pub jobs: usize,
    pub hits: f64,
    /// Jobs in a second, from the first publish to the last result.
    pub throughput: f64,
    /// Seconds from publish to a worker.
    pub wait_p50: f64,
    pub wait_p95: f64,
}

/// What was measured: of the jobs, and of the times that a simulation needs to know.
pub struct Measured {
    pub figures: Figures,
    /// Seconds from publish to a worker, the shortest first.
    pub waits: Vec<f64>,
    /// When each was published, seconds since the first.
    times: Vec<f64>,
    run_mean: f64,
    start_up: f64,
}

impl Measured {
    pub async fn of(site: &Site, sent: &[Sent]) -> Measured {
        let begun = sent[0].at;
        let mut attempts = Vec::new();
        for sent in sent {
            attempts.push(site.broker.finished(&sent.job).await.succeeded());
        }
        let seconds = begun.elapsed().as_secs_f64();
        let jobs = attempts.len();
        let hit = |a: &&Attempt| a.result["lease"] == "hit";
        let startup = |a: &Attempt| a.result["timings_ms"]["startup"].as_f64().unwrap() / 1000.0;
        let wait = |(sent, attempt): (&Sent, &Attempt)| {
            let executing = humantime::parse_rfc3339(attempt.started()["time"].as_str().unwrap()).unwrap();
            let since = executing.duration_since(sent.wall).unwrap_or_default().as_secs_f64();
            (since - startup(attempt)).max(0.0)
        };
        let mut waits: Vec<f64> = sent.iter().zip(&attempts).map(wait).collect();
        waits.sort_by(f64::total_cmp);
        let run = |a: &Attempt| a.result["timings_ms"]["run"].as_f64().unwrap() / 1000.0;
        let hits: Vec<f64> = attempts.iter().filter(hit).map(startup).collect();
        Measured {
            figures: Figures {
                jobs,
                hits: hits.len() as f64 / jobs as f64,
                throughput: jobs as f64 / seconds,
                wait_p50: waits[jobs / 2],
                wait_p95: waits[jobs * 95 / 100],
            },
            waits,
            times: sent.iter().map(|s| s.at.duration_since(begun).as_secs_f64()).collect(),
            run_mean: attempts.iter().map(run).sum::<f64>() / jobs as f64,
            start_up: hits.iter().sum::<f64>() / hits.len().max(1) as f64,
        }
    }

    /// What is simulated with the same jobs, on so many workers with these options, whose containers take so long to make.
    pub fn simulate(&self, site: &Site, workers: usize, warm: Duration, options: &str) -> Figures {
        let trace = site.dir.join("trace");
        let lines: Vec<String> = self.times.iter().map(|at| format!("{at:.6}")).collect();
        fs::write(&trace, lines.join("\n")).unwrap();
        let run = Duration::from_secs_f64(self.run_mean);
        let mut command = prewarm();
        command.args(["simulate", "--json", "--run-spread", "0", "--trace"]).arg(&trace);
        command.args(["--workers", &workers.to_string()]);
        command.args(["--run-time", &humantime::format_duration(run).to_string()]);
        command.args(["--warm-time", &humantime::format_duration(warm).to_string()]);
        command.args(options.split_whitespace());
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let said: Value = serde_json::from_slice(&done.stdout).unwrap();
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{said:#}"));
        assert_eq!((&said["lost"], &said["run_again"]), (&0.into(), &0.into()));
        Figures {
            jobs: said["jobs"].as_u64().unwrap() as usize,
            hits: number(&said["hit_rate"]),
            throughput: number(&said["jobs_per_second"]),
            wait_p50: number(&said["queue_wait_seconds"]["p50"]),
            wait_p95: number(&said["queue_wait_seconds"]["p95"]),
        }
    }

    pub fn show(&self, what: &str, simulated: &Figures) {
        let line = |whose: &str, f: &Figures| {
            println!(
                "{what}, {whose}: {} jobs, {:.2}/s, {:.1} % hits, queue wait p50 {:.3} s, p95 {:.3} s",
                f.jobs,
                f.throughput,
                100.0 * f.hits,
                f.wait_p50,
                f.wait_p95
            );
        };
        line("real", &self.figures);
        line("simulated", simulated);
        println!("  a job ran {:.3} s; a hit started in {:.1} ms", self.run_mean, 1000.0 * self.start_up);
    }
}

/// What creations took so far, from the workers' own histograms: sum and count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Warmups(f64, f64);

impl Warmups {
    pub async fn so_far(workers: &[Worker], pool: &str) -> Warmups {
        let mut all = Warmups::default();
        for worker in workers {
            let samples = worker.metrics().await;
            all.0 += samples.get("prewarm_warmup_seconds_sum", &[("pool", pool)]);
            all.1 += samples.get("prewarm_warmup_seconds_count", &[("pool", pool)]);
        }
        all
    }

    /// What one took on average since then.
    pub fn since(self, before: Warmups) -> Duration {
        let made = self.1 - before.1;
        assert!(made > 0.0, "nothing was made");
        Duration::from_secs_f64((self.0 - before.0) / made)
    }
}
