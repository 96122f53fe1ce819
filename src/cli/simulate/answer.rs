//! What is answered: what became of the jobs, what it took, what the broker has to bear.

use std::fmt::Write as _;

use serde::Serialize;

use crate::cli::figures::{percent, short};
use crate::config::Isolation;
use crate::fleet::needs::{CHANNEL_MAX, Needs};
use crate::fleet::{Outcome, Quantiles, Setup, Workers};
use crate::pool::limits;

/// The JSON output.
#[derive(Serialize)]
pub(super) struct Answer {
    jobs: u64,
    finished: u64,
    lost: u64,
    run_again: u64,
    handed_back: u64,
    seconds: f64,
    jobs_per_second: f64,
    hit_rate: Option<f64>,
    queue_wait_seconds: Times,
    start_up_seconds: Times,
    miss_wait_seconds: Times,
    longest_queue: usize,
    queued_at_end: usize,
    workers: WorkerFigures,
    container_seconds: ContainerSeconds,
    /// What the workers can run, in jobs a second.
    capacity: Capacity,
    broker: Needs,
    advice: Vec<String>,
}

#[derive(Serialize)]
struct Times {
    p50: f64,
    p95: f64,
    p99: f64,
    longest: f64,
}

impl Times {
    fn of(times: &Quantiles) -> Times {
        let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| times.at(share));
        Times { p50, p95, p99, longest: times.longest() }
    }

    fn line(&self, what: &str) -> String {
        let [p50, p95, p99, longest] = [self.p50, self.p95, self.p99, self.longest].map(duration);
        format!("  {what:<16}{p50:>12}{p95:>12}{p99:>12}{longest:>12}\n")
    }
}

#[derive(Serialize)]
struct WorkerFigures {
    average: f64,
    most: usize,
    started: usize,
    stopped: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct ContainerSeconds {
    starting: f64,
    idle: f64,
    leased: f64,
}

#[derive(Serialize)]
struct Capacity {
    /// As many as have seats.
    seats: f64,
    /// As many as have containers; none: containers serve many.
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<f64>,
}

impl Capacity {
    fn of(setup: &Setup, workers: usize) -> Capacity {
        let pace = &setup.pace;
        let each = pace.run.mean() + pace.start.as_secs_f64() + pace.settle.as_secs_f64();
        // As many as the host has room for.
        let host = setup.host;
        let by_memory = limits(&setup.pool).memory;
        let by_memory = host.memory.filter(|_| by_memory > 0).map_or(u64::MAX, |all| all / by_memory);
        let fit = host.containers.unwrap_or(usize::MAX).min(usize::try_from(by_memory).unwrap_or(usize::MAX));
        let seats = setup.pool.concurrency.min(fit);
        let made = (setup.pool.isolation == Isolation::Container)
            .then(|| workers as f64 * setup.host.creators as f64 / pace.warm.mean());
        Capacity { seats: workers as f64 * seats as f64 / each, containers: made }
    }

    fn least(&self) -> f64 {
        self.containers.map_or(self.seats, |made| made.min(self.seats))
    }
}

impl Answer {
    /// `rate`: jobs a second, on average.
    pub(super) fn new(setup: &Setup, outcome: &Outcome, rate: f64, broker: Needs) -> Answer {
        let capacity = Capacity::of(setup, outcome.most_workers);
        Answer {
            jobs: outcome.jobs,
            finished: outcome.finished,
            lost: outcome.lost(),
            run_again: outcome.attempts - outcome.finished,
            handed_back: outcome.handed_back,
            seconds: outcome.seconds,
            jobs_per_second: outcome.throughput(),
            hit_rate: outcome.hit_rate(),
            queue_wait_seconds: Times::of(&outcome.queue_wait),
            start_up_seconds: Times::of(&outcome.start_up),
            miss_wait_seconds: Times::of(&outcome.miss_wait),
            longest_queue: outcome.longest_queue,
            queued_at_end: outcome.queued_at_end,
            workers: WorkerFigures {
                average: outcome.workers(),
                most: outcome.most_workers,
                started: outcome.workers_started,
                stopped: outcome.workers_stopped,
                seconds: outcome.worker_seconds,
            },
            container_seconds: ContainerSeconds {
                starting: outcome.starting_seconds,
                idle: outcome.idle_seconds,
                leased: outcome.leased_seconds,
            },
            advice: advice(outcome, setup.pace.run.mean(), rate, &capacity, &broker),
            capacity,
            broker,
        }
    }

    pub(super) fn text(&self, setup: &Setup) -> String {
        let mut text = said(setup);
        let _ = write!(
            text,
            "\n  {} jobs, the last done after {}: {}/s; {} lost, {} run again\n  {} % hits\n",
            self.jobs,
            duration(self.seconds),
            short(self.jobs_per_second),
            self.lost,
            self.run_again,
            self.hit_rate.map_or("-".into(), percent)
        );
        text += "\n                           p50         p95         p99     longest\n";
        text += &self.queue_wait_seconds.line("queue wait");
        text += &self.start_up_seconds.line("start-up");
        text += &self.miss_wait_seconds.line("a miss waits");
        text += "\n                    on average     at most     seconds\n";
        let workers = &self.workers;
        let line = |what: &str, average: f64, most: &str, seconds: f64| {
            format!("  {what:<16}{:>12}{most:>12}{seconds:>12.0}\n", format!("{average:.1}"))
        };
        text += &line("workers", workers.average, &workers.most.to_string(), workers.seconds);
        let ContainerSeconds { starting, idle, leased } = self.container_seconds;
        for (what, seconds) in [("idle", idle), ("leased", leased), ("being made", starting)] {
            text += &line(what, seconds / self.seconds.max(1e-9), "", seconds);
        }
        if workers.started + workers.stopped > 0 {
            let _ = writeln!(text, "  {} workers came, {} went", workers.started, workers.stopped);
        }
        text += &self.limits();
        for advice in &self.advice {
            let _ = write!(text, "\n{advice}\n");
        }
        text
    }

    fn limits(&self) -> String {
        let made = match self.capacity.containers {
            Some(made) => format!(", and make containers for {}", short(made)),
            None => String::new(),
        };
        let needs = &self.broker;
        format!(
            "\n  So many workers have seats for {} jobs/s{made}.\n\n\
             The broker\n\
             \x20 queues            {} quorum, {} exclusive ones of workers\n\
             \x20 connections       {}\n\
             \x20 channels          {}, at most {} on one connection (channel_max: {CHANNEL_MAX})\n\
             \x20 consumers         {}\n\
             \x20 jobs              {}/s through one queue, in the busiest minute\n\
             \x20 messages          {} for each job: {}/s published and confirmed, as many delivered\n",
            short(self.capacity.seats),
            needs.quorum_queues,
            needs.control_queues,
            needs.connections,
            needs.channels,
            needs.channels_of_a_connection,
            needs.consumers,
            short(needs.jobs_per_second),
            needs.messages_per_job,
            short(needs.confirms_per_second),
        )
    }
}

/// What was asked.
fn said(setup: &Setup) -> String {
    let workers = match setup.workers {
        Workers::Fixed(1) => "1 worker".into(),
        Workers::Fixed(n) => format!("{n} workers"),
        Workers::Scaled(scaler) => {
            let each = short(scaler.jobs_per_worker);
            format!("{} to {} workers, one for each {each} jobs", scaler.min, scaler.max)
        }
    };
    let idle = setup.pool.idle;
    let idle =
        if idle.min == idle.max { idle.min.to_string() } else { format!("{} to {}", idle.min, idle.max) };
    let many = match setup.pool.isolation {
        Isolation::Container => "",
        Isolation::Namespace => ", that serves many jobs",
    };
    format!(
        "{workers}, each {} jobs at once and {idle} idle; a container{many} is made in {}, {} at once; a job runs {}\n",
        setup.pool.concurrency,
        duration(setup.pace.warm.mean()),
        setup.host.creators,
        duration(setup.pace.run.mean()),
    )
}

/// What is too little, and what would help.
fn advice(outcome: &Outcome, run: f64, rate: f64, capacity: &Capacity, broker: &Needs) -> Vec<String> {
    let mut advice = Vec::new();
    if outcome.lost() > 0 {
        advice.push(format!("{} jobs never ended: no worker took them.", outcome.lost()));
    }
    // By the minute of most jobs if that left a mark: by chance there is always one with a few more.
    let crowded = broker.jobs_per_second >= capacity.least() && outcome.queue_wait.at(0.95) > run;
    if rate >= capacity.least() || crowded {
        let short_of = match capacity.containers {
            Some(made) if made < capacity.seats => {
                "containers: more workers, or isolation = \"namespace\", where a container serves many jobs"
            }
            _ => "seats: more workers, or a higher concurrency if the hosts have cores and memory for it",
        };
        advice.push(format!(
            "{} jobs come as fast as {} workers can run them, or faster. What is short is {short_of}.",
            if rate >= capacity.least() { "On average," } else { "In the busiest minute" },
            outcome.most_workers
        ));
    }
    if broker.channels_of_a_connection > CHANNEL_MAX {
        advice.push(format!(
            "A worker needs {} channels on one connection: set channel_max in rabbitmq.conf, or take more workers with a lower \
             concurrency each.",
            broker.channels_of_a_connection
        ));
    }
    advice
}

fn duration(seconds: f64) -> String {
    match seconds {
        0.0 => "0 ms".into(),
        s if s < 0.1 => format!("{} ms", (s * 10_000.0).round() / 10.0),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{} s", (s * 100.0).round() / 100.0),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
