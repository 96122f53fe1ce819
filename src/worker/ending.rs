//! How a delivery ends: the result for its publisher, a copy where one is due, and the settlement.

use std::time::{Instant, SystemTime};

use bytes::Bytes;

use super::case::{Case, Report};
use super::claims::{Claim, Unheard};
use super::remembered::Run;
use crate::broker::{Message, Properties, Publisher, Settle, Target};
use crate::contract::brief;
use crate::contract::event::{Error, ErrorKind, JobResult, Status, Timings, Usage, millis, timestamp};
use crate::contract::topology::{DIED_AT_HEADER, KIND_HEADER, POOL_HEADER, REASON_HEADER};
use crate::failures::Failure;
use crate::init::wire::End;
use crate::outcome::{self, Disposition, Met, Outcome};
use crate::output::Output;
use crate::replies::{Delivered, Replies, publish_surely};

/// Most characters of a reason in a header: what an engine, or a proxy before it, answers can be a whole page.
const REASON_MAX: usize = 600;

impl Case<'_> {
    /// Publishes the result, if there is one to publish.
    pub(super) async fn conclude(
        &self,
        report: Report,
        disposition: Disposition,
        mut replies: Replies<'_>,
        run: Option<Run>,
    ) -> Ending {
        let ran_to_an_end = matches!(report.outcome, Outcome::Ran(_)) && disposition == Disposition::Done;
        let (reason, status) = match &report.outcome {
            Outcome::Ran(verdict) => (None, Some(verdict.status)),
            Outcome::Rejected(rejection) => {
                tracing::warn!("rejected: {rejection}");
                (
                    Some(Error { kind: ErrorKind::InvalidJob, message: rejection.to_string() }),
                    Some(Status::Rejected),
                )
            }
            Outcome::PerhapsBegun(error) if disposition == Disposition::Again => {
                tracing::info!("{}; handed back, for another attempt", error.message);
                (None, None)
            }
            Outcome::Trouble(error) | Outcome::PerhapsBegun(error) => {
                tracing::warn!(kind = error.kind.as_str(), ?disposition, "{}", error.message);
                (Some(error.clone()), Some(Status::Error))
            }
            Outcome::NotBegun => (None, None),
            Outcome::Cancelled => (Some(outcome::cancelled()), Some(Status::Cancelled)),
        };
        if let Some(status) = status {
            self.trace.outcome(status);
            self.note(&report.outcome, status, reason.as_ref(), disposition);
        }
        let final_status =
            status.filter(|_| matches!(disposition, Disposition::Done | Disposition::DeadLetter));
        if let Some(status) = final_status {
            let result = self.result(report, status, reason.clone(), &mut replies);
            let begun = Instant::now();
            self.publish(&result, &mut replies).await;
            self.trace.step("publish", begun, Instant::now());
            let dropped = replies.dropped();
            if dropped > 0 {
                self.worker.metrics.dropped.inc_by(dropped);
                tracing::warn!(dropped, "events could not be delivered for too long, and were dropped");
            }
            self.metrics.jobs(status).inc();
            // Cancelled: not wanted then, but whoever publishes it again may want it.
            if let Some(run) = run.filter(|_| ran_to_an_end && status != Status::Cancelled) {
                run.over(&result);
            }
        }
        Ending { disposition, reason }
    }

    /// Answers a job that was published again with the result that it had.
    pub(super) async fn repeat(&self, known: &JobResult, mut replies: Replies<'_>) -> Ending {
        tracing::info!("published again: answered with the result that it had");
        self.metrics.repeated.inc();
        let result = JobResult { envelope: replies.envelope(), repeated: true, dropped: 0, ..known.clone() };
        self.publish(&result, &mut replies).await;
        Ending { disposition: Disposition::Done, reason: None }
    }

    async fn publish(&self, result: &JobResult, replies: &mut Replies<'_>) {
        let metrics = &self.worker.metrics;
        let results = self.worker.names.results();
        match replies.result(result).await {
            Delivered::ToPublisher | Delivered::ToResults => {}
            Delivered::Unroutable => {
                metrics.unroutable.inc();
                tracing::warn!("the reply queue is gone; the result went to {results}");
            }
            Delivered::Refused => {
                metrics.refused.inc();
                tracing::warn!("the reply queue takes no messages, is it full? The result went to {results}");
            }
        }
    }

    /// Keeps what ended badly for `/status`.
    fn note(&self, outcome: &Outcome, status: Status, reason: Option<&Error>, disposition: Disposition) {
        if matches!(status, Status::Succeeded | Status::Cancelled) {
            return;
        }
        let verdict = if let Outcome::Ran(verdict) = outcome { Some(verdict) } else { None };
        let error = reason.or_else(|| verdict.and_then(|v| v.error.as_ref()));
        let message = match (error, verdict.and_then(|v| v.end)) {
            (Some(error), _) => error.message.clone(),
            (None, Some(End::Code(code))) => format!("exit code {code}"),
            (None, Some(End::Signal(signal))) => format!("signal {signal}"),
            (None, None) => String::new(),
        };
        self.worker.failures.push(Failure {
            kind: error.map(|error| error.kind),
            retried: matches!(disposition, Disposition::Retry(..)),
            ..Failure::new(&self.id, self.pool, self.attempt, status, &message)
        });
    }

    fn result(
        &self,
        report: Report,
        status: Status,
        error: Option<Error>,
        replies: &mut Replies<'_>,
    ) -> JobResult {
        let verdict = match report.outcome {
            Outcome::Ran(verdict) => Some(verdict),
            _ => None,
        };
        let end = verdict.as_ref().and_then(|v| v.end);
        let (stdout, stderr) = report.output.and_then(Output::tails).unzip();
        let collected = report.collected.map(|c| (c.artifacts, c.missed)).unzip();
        let lease = report.lease;
        let dropped = replies.dropped();
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
            artifacts: collected.0,
            artifacts_missed: collected.1.unwrap_or_default(),
            image: lease.as_ref().map(|l| l.image.clone()),
            container: lease.map(|l| l.container),
            dropped,
            repeated: false,
            pool: self.pool.to_string(),
            worker: self.worker.config.name.clone(),
        }
    }
}

/// The last step: the result is confirmed, the delivery is to be settled.
pub(super) struct Ending {
    disposition: Disposition,
    reason: Option<Error>,
}

impl Ending {
    pub(super) async fn apply(
        self,
        case: &Case<'_>,
        publisher: &mut dyn Publisher,
        body: Bytes,
        properties: Properties,
        claim: Claim,
    ) -> Option<Unheard> {
        let copy = match self.disposition {
            Disposition::Done | Disposition::HandBack | Disposition::Again => None,
            Disposition::Retry(delay, _) | Disposition::Later(delay, _) => {
                Some(Target::Retry(delay, case.pool.clone()))
            }
            Disposition::DeadLetter => Some(Target::Queue(case.worker.names.dead())),
        };
        if let Some(target) = copy {
            publish_surely(publisher, self.copy(case, target, body, properties)).await;
        }
        match (self.disposition, &self.reason) {
            (Disposition::Retry(..), _) => case.metrics.retried.inc(),
            (Disposition::DeadLetter, Some(reason)) => case.metrics.dead_letter(reason.kind),
            _ => {}
        }
        let settle = match self.disposition {
            Disposition::HandBack => Settle::HandBack,
            Disposition::Again => Settle::Again,
            Disposition::Done | Disposition::DeadLetter | Disposition::Retry(..) | Disposition::Later(..) => {
                Settle::Ack
            }
        };
        match claim.settle(settle).await {
            Ok(unheard) => Some(unheard),
            Err(error) => {
                tracing::warn!("not settled: {error}");
                None
            }
        }
    }

    fn copy(&self, case: &Case<'_>, target: Target, body: Bytes, mut properties: Properties) -> Message {
        properties.message_id = Some(case.id.clone());
        properties.attempts = case.attempt;
        properties.delivery_count = 0;
        if let Disposition::Later(..) = self.disposition {
            properties.attempts = case.attempt.saturating_sub(1);
        }
        if let Disposition::Retry(_, met) | Disposition::Later(_, met) = self.disposition {
            let Met { troubles, failures } = met;
            (properties.troubles, properties.failures) = (troubles, failures);
        }
        properties.bound_headers();
        if let (Some(reason), Disposition::DeadLetter) = (&self.reason, self.disposition) {
            properties.set_header(REASON_HEADER, brief(&reason.message, REASON_MAX).into_owned());
            properties.set_header(KIND_HEADER, reason.kind.as_str().to_owned());
            properties.set_header(POOL_HEADER, case.pool.to_string());
            properties.set_header(DIED_AT_HEADER, timestamp(SystemTime::now()));
        }
        Message { target, body, properties }
    }
}
