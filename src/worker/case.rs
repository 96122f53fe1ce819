//! One delivery, from decoding to the end of its attempt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::claims::{Claim, Incoming, Unheard};
use super::metrics::PoolSeries;
use super::remembered::{Known, Run};
use super::{Shutdown, Worker};
use crate::artifacts::{Collected, Collector};
use crate::attempt::{self, AttemptError, Controls, Ended, Plan};
use crate::broker::{Properties, Publisher};
use crate::config::{PoolConfig, WorkerConfig};
use crate::contract::PoolName;
use crate::contract::event::{JobResult, LeaseKind, Stream};
use crate::contract::job::{self, Env, Job, Rejection};
use crate::launch::{self, Order};
use crate::outcome::{self, Disposition, Met, Outcome, Tries};
use crate::output::Output;
use crate::pool::Lease;
use crate::redact::Secrets;
use crate::replies::{Followed, Replies, StartFacts};
use crate::trace::Trace;

/// One delivery, while it is here.
pub(super) struct Case<'a> {
    pub(super) worker: &'a Worker,
    pub(super) pool: &'a PoolName,
    pub(super) config: &'a PoolConfig,
    pub(super) metrics: &'a PoolSeries,
    pub(super) id: String,
    pub(super) attempt: u32,
    pub(super) received: Instant,
    pub(super) queued: Option<Duration>,
    pub(super) trace: Trace,
}

/// What to do with a job that may have been published before.
enum First {
    /// Run it.
    Run(Run),
    /// It was run, with this result.
    Over(Arc<JobResult>),
    /// An equal one still runs: look again after that time, or, if the worker is stopping, let another one look.
    NotNow(Option<Duration>),
}

/// How long a job that was published again waits in its seat for the end of the first.
const REPEAT_PATIENCE: Duration = Duration::from_secs(2);

/// What is known of a case when it is over; goes into the result.
pub(super) struct Report {
    pub(super) outcome: Outcome,
    pub(super) lease: Option<LeaseFacts>,
    pub(super) startup: Option<Duration>,
    pub(super) ran: Option<Duration>,
    pub(super) output: Option<Output>,
    pub(super) collected: Option<Collected>,
}

pub(super) struct LeaseFacts {
    pub(super) kind: LeaseKind,
    pub(super) waited: Duration,
    pub(super) container: String,
    pub(super) image: String,
}

impl Report {
    fn only(outcome: Outcome) -> Report {
        Report { outcome, lease: None, startup: None, ran: None, output: None, collected: None }
    }
}

impl<'a> Case<'a> {
    pub(super) fn new(
        worker: &'a Worker,
        pool: &'a PoolName,
        config: &'a PoolConfig,
        incoming: &Incoming,
    ) -> Case<'a> {
        let p = &incoming.properties;
        let metrics = worker.metrics.of(pool);
        let queued = p.age();
        if let Some(queued) = queued {
            metrics.queue_wait.observe(queued.as_secs_f64());
        }
        let id = p.message_id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        // A message's count grows each time that it comes back, and a copy goes on where its original was. So each run has a number
        // of its own, but for one case: a copy for a retry is confirmed, the acknowledgement of its original is lost
        // together with its channel, and another worker gets the original. Then both go on from the same number, and neither can
        // know of the other. Numbers that can't meet would have to be set apart beforehand, and then either retries or what
        // comes back would no longer count 1, 2, 3. `worker` and `container` tell such runs apart.
        let attempt = p.attempt();
        let received = incoming.received;
        let trace = Trace::begin(p.traceparent.as_deref(), received, &id, pool.as_str(), attempt);
        Case { worker, pool, config, metrics, id, attempt, received, queued, trace }
    }

    pub(super) async fn handle(
        self,
        incoming: Incoming,
        claim: Claim,
        publisher: &mut dyn Publisher,
        shutdown: &Shutdown,
    ) -> Option<Unheard> {
        let given_out = incoming.given_out();
        let Incoming { body, properties, .. } = incoming;
        let allowed = properties.reply_to.as_deref().is_none_or(|queue| self.worker.may_reply_to(queue));
        let mut replies =
            Replies::new(publisher, &self.worker.names, self.id.clone(), self.attempt, &properties, allowed);
        let Worker { config: WorkerConfig { retries, .. }, retry_delays, .. } = self.worker;
        let mut tries = Tries { ours: *retries, own: 1, delays: retry_delays };
        let met = Met { troubles: properties.troubles, failures: properties.failures };
        let mut run = None;
        let report = match self.decode(&body, &properties) {
            Ok(mut job) => {
                replies.set_metadata(job.metadata.take());
                match self.first(&properties, &body, shutdown).await {
                    First::Run(first) => run = Some(first),
                    First::Over(result) => {
                        let ending = self.repeat(&result, replies).await;
                        return ending.apply(&self, publisher, body, properties, claim).await;
                    }
                    First::NotNow(delay) => {
                        let disposition =
                            delay.map_or(Disposition::HandBack, |delay| Disposition::Later(delay, met));
                        let report = Report::only(Outcome::NotBegun);
                        let ending = self.conclude(report, disposition, replies, None).await;
                        return ending.apply(&self, publisher, body, properties, claim).await;
                    }
                }
                tries.own = job.retries.saturating_add(1);
                self.metrics.running.inc();
                let report = self.execute(job, &properties, &mut replies, shutdown).await;
                self.metrics.running.dec();
                report
            }
            Err(rejection) => Report::only(Outcome::Rejected(rejection)),
        };
        let disposition = outcome::disposition(&report.outcome, met, given_out, tries);
        tracing::debug!(outcome = ?report.outcome, ?disposition, "over");
        self.conclude(report, disposition, replies, run)
            .await
            .apply(&self, publisher, body, properties, claim)
            .await
    }

    /// Whether the job is to be run, or was. While an equal one runs here, its end is waited for: a moment in this seat, and
    /// then in a delay queue, so that one job's copies don't take the seats that others could have.
    async fn first(&self, properties: &Properties, body: &[u8], shutdown: &Shutdown) -> First {
        let Worker { config: WorkerConfig { remember, .. }, retry_delays, .. } = self.worker;
        // Back while the result is still remembered; without such a queue there is only the seat.
        let delay = retry_delays.iter().rev().find(|delay| **delay <= *remember / 2).copied();
        let patience = tokio::time::sleep(REPEAT_PATIENCE);
        tokio::pin!(patience);
        loop {
            match self.worker.remembered.enter(self.pool, properties.message_id.as_deref(), body) {
                Known::New(run) => return First::Run(run),
                Known::Over(result) => return First::Over(result),
                Known::Running(over) => {
                    tracing::info!("published again while it runs here: waiting for its result");
                    tokio::select! {
                        () = over.cancelled() => {}
                        () = shutdown.drain.cancelled() => return First::NotNow(None),
                        () = &mut patience, if delay.is_some() => return First::NotNow(delay),
                    }
                }
            }
        }
    }

    /// Reads the message, and refuses what can't be run here.
    fn decode(&self, body: &[u8], properties: &Properties) -> Result<Job, Rejection> {
        if let Some(reply_to) = properties.reply_to.as_deref().filter(|q| !self.worker.may_reply_to(q)) {
            let message = if self.worker.names.may_reply_to(reply_to) {
                format!(
                    "'{reply_to}' is no queue that replies may go to here; the operator allows {}",
                    self.worker.config.reply_to.join(", ")
                )
            } else {
                format!("'{reply_to}' is one of prewarm's own queues; name a queue of the publisher's")
            };
            return Err(Rejection::of("reply_to", message));
        }
        match properties.content_type.as_deref() {
            None | Some("" | "application/json") => {}
            Some(other) if other.starts_with("application/json;") => {}
            Some(other) => {
                return Err(Rejection::of("content_type", format!("'{other}' is not application/json")));
            }
        }
        if let Some(other) =
            properties.content_encoding.as_deref().filter(|e| !matches!(*e, "" | "identity" | "utf-8"))
        {
            return Err(Rejection::of(
                "content_encoding",
                format!("'{other}' is not supported; send plain JSON"),
            ));
        }
        let max = self.worker.config.max_message;
        if body.len() as u64 > max {
            let message = format!("the message has {} bytes; the most is {max}", body.len());
            return Err(Rejection { field: None, message });
        }
        let job = job::decode(body)?;
        if let Some(asked) = job.timeout.filter(|t| *t > self.config.timeout.max) {
            let (asked, max) =
                (humantime::format_duration(asked), humantime::format_duration(self.config.timeout.max));
            return Err(Rejection::of(
                "timeout",
                format!("{asked} is more than the most of pool {}, {max}", self.pool),
            ));
        }
        launch::allowed(self.pool, self.config, &job.files, &job.artifacts)?;
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
        let mut listed = self.worker.running.enter(&self.id, self.pool, self.attempt);
        replies.watched_by(listed.onlookers());
        let asked = Instant::now();
        self.trace.step("received", self.received, asked);
        let lease = tokio::select! {
            biased;
            () = listed.cancel.cancelled() => return Report::only(Outcome::Cancelled),
            () = shutdown.drain.cancelled() => return Report::only(Outcome::NotBegun),
            lease = self.worker.pools.lease(self.pool, self.worker.config.lease_timeout) => lease,
        };
        let lease = match lease {
            Ok(lease) => lease,
            Err(error) => return Report::only(Outcome::no_container(&error)),
        };
        self.trace.step("lease", asked, Instant::now());
        let given = self.worker.secrets.of(self.pool);
        let secrets = secrets_of(&job, &given);
        let masked = |outcome: Outcome| match &secrets {
            Some(secrets) => outcome.masked(secrets),
            None => outcome,
        };
        let (plan, executable) = match self.plan(&job, &given, &lease, properties, timeout) {
            Ok(plan) => plan,
            Err(rejection) => return Report::only(masked(Outcome::Rejected(rejection))),
        };
        let facts = LeaseFacts {
            kind: lease.kind,
            waited: lease.waited,
            container: lease.container().as_str().to_owned(),
            image: format!("{}@{}", lease.image.name, lease.image.id),
        };
        listed.set_container(&facts.container);
        let controls = Controls {
            stop: shutdown.stop.clone(),
            cancel: listed.cancel.clone(),
            hurry: CancellationToken::new(),
        };
        let wanted = &job.artifacts.0;
        let collector = (!wanted.is_empty())
            .then(|| Collector::new(wanted, self.config.artifacts, replies.events(), secrets.clone()));
        let output = Output::new(job.logs, self.config.logs_limit, secrets.clone());
        let kept = (output, collector);
        let (result, followed) = self.attempt(lease, plan, &facts, kept, replies, &controls).await;
        let ran = result.as_ref().ok().map(|ended| ended.ran);
        Report {
            outcome: masked(Outcome::of(result, &executable, timeout)),
            lease: Some(facts),
            startup: followed.started.map(|at| at.saturating_duration_since(self.received)),
            ran,
            output: Some(followed.output),
            collected: followed.collected,
        }
    }

    fn plan(
        &self,
        job: &Job,
        given: &Env,
        lease: &Lease,
        properties: &Properties,
        timeout: Duration,
    ) -> Result<(Plan, String), Rejection> {
        // What the job does belongs below what is known of it here.
        let traceparent = self.trace.traceparent();
        let order = Order {
            args: job.args.as_deref(),
            env: &job.env,
            given,
            stdin: job.stdin.as_ref().map(|stdin| stdin.0.clone()),
            files: &job.files.0,
            artifacts: &job.artifacts.0,
            traceparent: traceparent.as_deref().or(properties.traceparent.as_deref()),
            timeout,
            stop_grace: self.config.stop_grace,
        };
        launch::plan(&lease.image, &lease.config, order)
    }

    /// Runs the job and publishes what happens, by way of what keeps its output and artifacts, side by side: a slow reply
    /// queue slows the job's output, not its deadlines.
    async fn attempt(
        &self,
        lease: Lease,
        plan: Plan,
        facts: &LeaseFacts,
        kept: (Output, Option<Collector>),
        replies: &mut Replies<'_>,
        controls: &Controls,
    ) -> (Result<Ended, AttemptError>, Followed) {
        let (happen, happenings) = tokio::sync::mpsc::channel(attempt::CHANNEL);
        let start = StartFacts {
            pool: self.pool.as_str(),
            worker: &self.worker.config.name,
            lease: facts.kind,
            received: self.received,
            container: facts.container.clone(),
        };
        let begun = Instant::now();
        let (result, followed) = tokio::join!(
            attempt::run(lease, plan, controls, happen),
            replies.follow(kept, start, happenings, &controls.hurry),
        );
        if let Some(at) = followed.started {
            self.trace.step("start", begun, at);
            let ran = result.as_ref().map_or_else(|_| at.elapsed(), |ended| ended.ran);
            self.trace.step("run", at, at + ran);
            let startup = at.saturating_duration_since(self.received);
            self.metrics.startup(facts.kind).observe(startup.as_secs_f64());
            tracing::debug!(lease = facts.kind.as_str(), container = %facts.container, ?startup, "started");
        }
        for stream in Stream::ALL {
            self.metrics.output(stream).inc_by(followed.output.total(stream));
        }
        if let Ok(ended) = &result {
            self.metrics.run.observe(ended.ran.as_secs_f64());
        }
        (result, followed)
    }
}

/// What is masked in what a job prints, in its errors and in the names of its artifacts: the variables that it names as secrets, and those
/// that its pool gives it, with the job's own value too where it sets one of these itself.
fn secrets_of(job: &Job, given: &Env) -> Option<Secrets> {
    let is_secret =
        |name: &String| job.secrets.contains(name) || given.0.iter().any(|(given, _)| given == name);
    let own = job.env.0.iter().filter(|(name, _)| is_secret(name));
    Secrets::new(own.chain(&given.0).map(|(_, value)| value.as_bytes()))
}
