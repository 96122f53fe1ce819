//! The story: one delivery from receipt to settlement.
//!
//! ```text
//! Delivery ─► decode ─► lease ─► START ─► output ─► EXITED ─► release ─► result, confirmed ─► ack
//!                │ rejected   │ none          │ lost                        ▲
//!                └────────────┴───────────────┴── disposition ──────────────┘
//! ```
//!
//! A pool with `concurrency = 4` has four seats. A seat has a channel of its own on either connection
//! and one job at a time, so the number of seats is the only limit on intake there has to be.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::attempt::{self, AttemptError, Ended, Plan};
use crate::broker::{Broker, Delivery, Message, Properties, Publisher, Receipt, Settle, Target};
use crate::config::{PoolConfig, WorkerConfig};
use crate::contract::PoolName;
use crate::contract::event::{
    Error, ErrorKind, JobResult, LeaseKind, Status, Stream, Timings, Usage, millis,
};
use crate::contract::job::{self, Job, Logs, Rejection};
use crate::contract::topology::{KIND_HEADER, Names, POOL_HEADER, REASON_HEADER};
use crate::engine::link::{self, Stdin};
use crate::init::wire::End;
use crate::launch;
use crate::metrics::{BUCKETS, Metrics, RUN_BUCKETS};
use crate::outcome::{self, Disposition, Outcome};
use crate::output::Output;
use crate::pool::{Lease, Pools};
use crate::replies::{Delivered, Replies, StartFacts};
use crate::running::Running;

const SIGTERM: u8 = 15;

/// How often a job whose container was lost before it executed gets another at once.
const FRESH_CONTAINERS: u32 = 3;

/// What all seats share.
pub struct Worker {
    config: WorkerConfig,
    names: Names,
    pools: Pools,
    broker: Arc<dyn Broker>,
    running: Running,
    metrics: WorkerMetrics,
}

/// When a seat is to stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Take no more deliveries; finish what runs.
    pub drain: CancellationToken,
    /// Stop what runs.
    pub stop: CancellationToken,
}

impl Worker {
    /// A worker over these pools and this broker.
    pub fn new(
        config: WorkerConfig,
        names: Names,
        pools: Pools,
        broker: Arc<dyn Broker>,
        running: Running,
        metrics: &Metrics,
    ) -> Worker {
        let metrics = WorkerMetrics::new(metrics, pools.names());
        Worker { config, names, pools, broker, running, metrics }
    }

    /// Takes deliveries of one pool, one at a time, until told to drain.
    pub async fn seat(&self, pool: &PoolName, shutdown: &Shutdown) {
        // The pools were made from the same configuration as the seats.
        let (Ok(mut able), Ok(config)) = (self.pools.able(pool), self.pools.config(pool)) else { return };
        let config = Arc::clone(config);
        let mut consumer = self.broker.consumer(pool);
        let mut publisher = self.broker.publisher();
        loop {
            // A worker that can't run this pool's jobs leaves them to others.
            if !*able.borrow_and_update() {
                consumer.pause().await;
                tokio::select! {
                    () = shutdown.drain.cancelled() => break,
                    changed = able.wait_for(|able| *able) => if changed.is_err() { break },
                }
            }
            let delivery = tokio::select! {
                biased;
                () = shutdown.drain.cancelled() => break,
                changed = able.changed() => if changed.is_ok() { continue } else { break },
                delivery = consumer.next() => delivery,
            };
            let case = Case::new(self, pool, &config, &delivery);
            let span = tracing::info_span!("job", id = %case.id, pool = %pool, attempt = case.attempt);
            case.handle(delivery, &mut *publisher, shutdown).instrument(span).await;
        }
        consumer.pause().await;
    }
}

/// One delivery, while it is here.
struct Case<'a> {
    worker: &'a Worker,
    pool: &'a PoolName,
    config: &'a PoolConfig,
    metrics: &'a PoolSeries,
    id: String,
    attempt: u32,
    received: Instant,
    queued: Option<Duration>,
}

/// What is known of a case when it is over; goes into the result.
struct Report {
    outcome: Outcome,
    lease: Option<LeaseFacts>,
    startup: Option<Duration>,
    ran: Option<Duration>,
    output: Option<Output>,
}

struct LeaseFacts {
    kind: LeaseKind,
    waited: Duration,
    container: String,
    image: String,
}

impl Report {
    fn only(outcome: Outcome) -> Report {
        Report { outcome, lease: None, startup: None, ran: None, output: None }
    }
}

impl<'a> Case<'a> {
    fn new(worker: &'a Worker, pool: &'a PoolName, config: &'a PoolConfig, delivery: &Delivery) -> Case<'a> {
        let p = &delivery.properties;
        let metrics = worker.metrics.of(pool);
        metrics.deliveries(delivery.redelivered).inc();
        let queued = p.timestamp.and_then(|t| SystemTime::now().duration_since(t).ok());
        if let Some(queued) = queued {
            metrics.queue_wait.observe(queued.as_secs_f64());
        }
        Case {
            worker,
            pool,
            config,
            metrics,
            id: p.message_id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
            attempt: 1u32.saturating_add(p.attempts).saturating_add(p.delivery_count),
            received: delivery.received,
            queued,
        }
    }

    async fn handle(self, delivery: Delivery, publisher: &mut dyn Publisher, shutdown: &Shutdown) {
        let Delivery { body, properties, receipt, .. } = delivery;
        let mut replies =
            Replies::new(publisher, &self.worker.names, self.id.clone(), self.attempt, &properties);
        let report = match self.decode(&body, &properties) {
            Ok(mut job) => {
                replies.set_metadata(job.metadata.take());
                self.metrics.running.inc();
                let report = self.execute(job, &properties, &mut replies, shutdown).await;
                self.metrics.running.dec();
                report
            }
            Err(rejection) => Report::only(Outcome::Rejected(rejection)),
        };
        let disposition = outcome::disposition(&report.outcome, self.attempt, self.worker.config.retries);
        tracing::debug!(outcome = ?report.outcome, ?disposition, "over");
        self.conclude(report, disposition, replies).await.apply(&self, publisher, body, properties, receipt).await;
    }

    /// Reads the message, and refuses what can't be run here.
    fn decode(&self, body: &[u8], properties: &Properties) -> Result<Job, Rejection> {
        if let Some(reply_to) = properties.reply_to.as_deref().filter(|q| !self.worker.names.may_reply_to(q)) {
            let message = format!("'{reply_to}' is one of prewarm's own queues; name a queue of the publisher's");
            return Err(Rejection::of("reply_to", message));
        }
        match properties.content_type.as_deref() {
            None | Some("" | "application/json") => {}
            Some(other) if other.starts_with("application/json;") => {}
            Some(other) => {
                return Err(Rejection::of("content_type", format!("'{other}' is not application/json")));
            }
        }
        if let Some(other) = properties.content_encoding.as_deref().filter(|e| !matches!(*e, "" | "identity" | "utf-8")) {
            return Err(Rejection::of("content_encoding", format!("'{other}' is not supported; send plain JSON")));
        }
        let max = self.worker.config.max_message;
        if body.len() as u64 > max {
            let message = format!("the message has {} bytes; the most is {max}", body.len());
            return Err(Rejection { field: None, message });
        }
        let job = job::decode(body)?;
        if let Some(asked) = job.timeout.filter(|t| *t > self.config.timeout.max) {
            let (asked, max) = (humantime::format_duration(asked), humantime::format_duration(self.config.timeout.max));
            return Err(Rejection::of("timeout", format!("{asked} is more than the most of pool {}, {max}", self.pool)));
        }
        Ok(job)
    }

    /// From a container to the end of the attempt. When this returns the container is released.
    async fn execute(
        &self,
        job: Job,
        properties: &Properties,
        replies: &mut Replies<'_>,
        shutdown: &Shutdown,
    ) -> Report {
        let timeout = job.timeout.unwrap_or(self.config.timeout.default);
        let listed = self.worker.running.enter(&self.id, self.pool, self.attempt);
        let mut fresh = 0;
        loop {
            let lease = tokio::select! {
                biased;
                lease = self.worker.pools.lease(self.pool, self.worker.config.lease_timeout) => lease,
                () = shutdown.drain.cancelled() => return Report::only(Outcome::NotBegun),
            };
            let lease = match lease {
                Ok(lease) => lease,
                Err(error) => return Report::only(Outcome::no_container(&error)),
            };
            let (plan, executable) = match self.plan(&job, &lease, properties, timeout) {
                Ok(plan) => plan,
                Err(rejection) => return Report::only(Outcome::Rejected(rejection)),
            };
            let facts = LeaseFacts {
                kind: lease.kind,
                waited: lease.waited,
                container: lease.container().as_str().to_owned(),
                image: format!("{}@{}", lease.image.name, lease.image.id),
            };
            listed.set_container(&facts.container);
            let (result, started, output) = self.attempt(lease, plan, &facts, job.logs, replies, shutdown).await;
            if let Err(AttemptError::LostEarly(error)) = &result {
                // Idle containers may die at any moment, this one in that of its lease. It costs the job some time.
                fresh += 1;
                if fresh < FRESH_CONTAINERS {
                    tracing::info!("{error}; taking another container");
                    continue;
                }
            }
            let ran = result.as_ref().ok().map(|ended| ended.ran);
            return Report {
                outcome: Outcome::of(result, &executable, timeout),
                lease: Some(facts),
                startup: started.map(|at| at.saturating_duration_since(self.received)),
                ran,
                output: Some(output),
            };
        }
    }

    fn plan(
        &self,
        job: &Job,
        lease: &Lease,
        properties: &Properties,
        timeout: Duration,
    ) -> Result<(Plan, String), Rejection> {
        let argv = launch::argv(&lease.image, self.config, job.args.as_deref())?;
        let env = launch::environment(&lease.image, self.config, &job.env, properties.traceparent.as_deref());
        let stdin = if job.stdin.is_some() { Stdin::Pipe } else { Stdin::Null };
        let start = link::start_frame(&argv, &env, stdin).map_err(|e| Rejection::of("env", e.to_string()))?;
        let stop_signal = lease.image.stop_signal.as_deref().and_then(launch::signal_number).unwrap_or(SIGTERM);
        let plan = Plan {
            start,
            stdin: job.stdin.clone().map(Bytes::from),
            timeout,
            stop_signal,
            stop_grace: self.config.stop_grace,
        };
        // argv is not empty: that was refused.
        Ok((plan, argv.into_iter().next().unwrap_or_default()))
    }

    /// Runs the job and publishes what happens, side by side: a slow reply queue slows the job's output, not
    /// its deadlines.
    async fn attempt(
        &self,
        lease: Lease,
        plan: Plan,
        facts: &LeaseFacts,
        logs: Logs,
        replies: &mut Replies<'_>,
        shutdown: &Shutdown,
    ) -> (Result<Ended, AttemptError>, Option<Instant>, Output) {
        let (happen, happenings) = tokio::sync::mpsc::channel(attempt::CHANNEL);
        let output = Output::new(logs, self.config.logs_limit);
        let start = StartFacts {
            pool: self.pool.as_str(),
            worker: &self.worker.config.name,
            lease: facts.kind,
            received: self.received,
            container: facts.container.clone(),
        };
        let (result, followed) = tokio::join!(
            attempt::run(lease, plan, &shutdown.stop, happen),
            replies.follow(output, start, happenings),
        );
        let (output, started) = followed;
        if let Some(at) = started {
            let startup = at.saturating_duration_since(self.received);
            self.metrics.startup(facts.kind).observe(startup.as_secs_f64());
            tracing::debug!(lease = facts.kind.as_str(), container = %facts.container, ?startup, "started");
        }
        for stream in Stream::ALL {
            self.metrics.output(stream).inc_by(output.total(stream));
        }
        if let Ok(ended) = &result {
            self.metrics.run.observe(ended.ran.as_secs_f64());
        }
        (result, started, output)
    }

    /// Publishes the result, if there is one to publish.
    async fn conclude(&self, report: Report, disposition: Disposition, mut replies: Replies<'_>) -> Ending {
        let (reason, status) = match &report.outcome {
            Outcome::Ran(verdict) => (None, Some(verdict.status)),
            Outcome::Rejected(rejection) => {
                tracing::warn!("rejected: {rejection}");
                (Some(Error { kind: ErrorKind::InvalidJob, message: rejection.to_string() }), Some(Status::Rejected))
            }
            Outcome::Trouble(error) => {
                tracing::warn!(kind = error.kind.as_str(), ?disposition, "{}", error.message);
                (Some(error.clone()), Some(Status::Error))
            }
            Outcome::NotBegun => (None, None),
        };
        let final_status = status.filter(|_| matches!(disposition, Disposition::Done | Disposition::DeadLetter));
        if let Some(status) = final_status {
            let result = self.result(report, status, reason.clone(), &mut replies);
            if replies.result(&result).await == Delivered::Unroutable {
                self.worker.metrics.unroutable.inc();
                tracing::warn!("the reply queue is gone; the result went to {}", self.worker.names.results());
            }
            self.metrics.jobs(status).inc();
        }
        Ending { disposition, reason }
    }

    fn result(&self, report: Report, status: Status, error: Option<Error>, replies: &mut Replies<'_>) -> JobResult {
        let verdict = match report.outcome {
            Outcome::Ran(verdict) => Some(verdict),
            _ => None,
        };
        let end = verdict.as_ref().and_then(|v| v.end);
        let (stdout, stderr) = report.output.and_then(Output::tails).unzip();
        let lease = report.lease;
        JobResult {
            envelope: replies.envelope(),
            status,
            exit_code: if let Some(End::Code(code)) = end { Some(code) } else { None },
            signal: if let Some(End::Signal(signal)) = end { Some(signal) } else { None },
            oom_killed: verdict.as_ref().is_some_and(|v| v.oom_killed),
            error: error.or_else(|| verdict.as_ref().and_then(|v| v.error.clone())),
            lease: lease.as_ref().map(|l| l.kind),
            timings_ms: Timings {
                queued: self.queued.map(millis),
                lease: lease.as_ref().map(|l| millis(l.waited)),
                startup: report.startup.map(millis),
                run: report.ran.map(millis),
                total: millis(self.received.elapsed()),
            },
            usage: verdict
                .and_then(|v| v.exited)
                .map(|e| Usage { cpu_ms: e.cpu_us / 1000, max_rss_bytes: e.max_rss }),
            stdout,
            stderr,
            image: lease.as_ref().map(|l| l.image.clone()),
            container: lease.map(|l| l.container),
            pool: self.pool.to_string(),
            worker: self.worker.config.name.clone(),
        }
    }
}

/// The last step: the result is confirmed, the delivery is to be settled.
struct Ending {
    disposition: Disposition,
    reason: Option<Error>,
}

impl Ending {
    async fn apply(
        self,
        case: &Case<'_>,
        publisher: &mut dyn Publisher,
        body: Bytes,
        properties: Properties,
        receipt: Box<dyn Receipt>,
    ) {
        let copy = match self.disposition {
            Disposition::Done | Disposition::HandBack => None,
            Disposition::Retry(delay) => Some(Target::Retry(delay, case.pool.clone())),
            Disposition::DeadLetter => Some(Target::Queue(case.worker.names.dead())),
        };
        if let Some(target) = copy {
            let message = self.copy(case, target, body, properties);
            while publisher.send_confirmed(message.clone()).await == crate::broker::Routed::No {
                tracing::error!("{:?} is gone; declare it, or restart a worker that does", message.target);
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
        let settle = match self.disposition {
            Disposition::HandBack => Settle::HandBack,
            Disposition::Done | Disposition::DeadLetter | Disposition::Retry(_) => Settle::Ack,
        };
        if let Err(error) = receipt.settle(settle).await {
            tracing::warn!("not settled: {error}");
        }
    }

    fn copy(&self, case: &Case<'_>, target: Target, body: Bytes, mut properties: Properties) -> Message {
        properties.message_id = Some(case.id.clone());
        properties.attempts = case.attempt;
        properties.delivery_count = 0;
        if let (Some(reason), Disposition::DeadLetter) = (&self.reason, self.disposition) {
            properties.headers.retain(|(name, _)| !matches!(name.as_str(), REASON_HEADER | KIND_HEADER | POOL_HEADER));
            properties.headers.extend([
                (REASON_HEADER.to_owned(), reason.message.clone()),
                (KIND_HEADER.to_owned(), reason.kind.as_str().to_owned()),
                (POOL_HEADER.to_owned(), case.pool.to_string()),
            ]);
        }
        Message { target, body, properties }
    }
}

/// The worker's metrics.
struct WorkerMetrics {
    pools: std::collections::BTreeMap<PoolName, PoolSeries>,
    unroutable: IntCounter,
}

/// One pool's series, looked up once.
struct PoolSeries {
    startup: [Histogram; 2],
    queue_wait: Histogram,
    run: Histogram,
    jobs: [IntCounter; 6],
    running: prometheus::IntGauge,
    deliveries: [IntCounter; 2],
    output: [IntCounter; 2],
}

impl WorkerMetrics {
    fn new<'a>(metrics: &Metrics, pools: impl Iterator<Item = &'a PoolName>) -> WorkerMetrics {
        let startup: HistogramVec = metrics.histograms(
            "startup_seconds",
            "From the delivery to the entrypoint executing.",
            &["pool", "lease"],
            &BUCKETS,
        );
        let queue_wait: HistogramVec = metrics.histograms(
            "queue_wait_seconds",
            "From the publisher's timestamp (whole seconds) to the delivery.",
            &["pool"],
            &RUN_BUCKETS,
        );
        let run: HistogramVec =
            metrics.histograms("run_seconds", "From the entrypoint executing to its end.", &["pool"], &RUN_BUCKETS);
        let jobs: IntCounterVec = metrics.counters("jobs_total", "Attempts by how they ended.", &["pool", "status"]);
        let running: IntGaugeVec = metrics.gauges("jobs_running", "Jobs that have or wait for a container.", &["pool"]);
        let deliveries: IntCounterVec =
            metrics.counters("deliveries_total", "Deliveries received.", &["pool", "redelivered"]);
        let output: IntCounterVec =
            metrics.counters("output_bytes_total", "Bytes that jobs printed.", &["pool", "stream"]);
        let series = |pool: &PoolName| {
            let p = pool.as_str();
            let series = PoolSeries {
                startup: LeaseKind::ALL.map(|k| startup.with_label_values(&[p, k.as_str()])),
                queue_wait: queue_wait.with_label_values(&[p]),
                run: run.with_label_values(&[p]),
                jobs: Status::ALL.map(|s| jobs.with_label_values(&[p, s.as_str()])),
                running: running.with_label_values(&[p]),
                deliveries: ["false", "true"].map(|r| deliveries.with_label_values(&[p, r])),
                output: Stream::ALL.map(|s| output.with_label_values(&[p, s.as_str()])),
            };
            (pool.clone(), series)
        };
        WorkerMetrics {
            pools: pools.map(series).collect(),
            unroutable: metrics.counter("replies_unroutable_total", "Results whose reply queue was gone."),
        }
    }

    /// Pools are known from the start; the seats are made from the same configuration.
    fn of(&self, pool: &PoolName) -> &PoolSeries {
        &self.pools[pool]
    }
}

impl PoolSeries {
    fn startup(&self, kind: LeaseKind) -> &Histogram {
        &self.startup[kind as usize]
    }

    fn jobs(&self, status: Status) -> &IntCounter {
        &self.jobs[status as usize]
    }

    fn deliveries(&self, redelivered: bool) -> &IntCounter {
        &self.deliveries[usize::from(redelivered)]
    }

    fn output(&self, stream: Stream) -> &IntCounter {
        &self.output[stream as usize]
    }
}
