//! Requests to all workers.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Worker;
use crate::broker::{Message, Properties, Publisher, Request, Target};
use crate::contract::control::{
    CANCEL, CANCELLING, Cancel, Cancelling, STATUS, StatusQuery, WATCH, WATCHING, WORKER, Watch,
};
use crate::status;

/// How long an answer may wait for room behind others: the next request may be to cancel a job.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);

impl Worker {
    /// Answers requests that are sent to all workers, for as long as it is polled. `view` is what is told of this one.
    pub async fn obey(&self, view: &status::View) {
        let mut control = self.broker.control();
        let mut publisher = self.broker.publisher();
        loop {
            // Answers are sent while the next request is waited for.
            let request = tokio::select! {
                request = control.next() => request,
                () = publisher.drive(), if !publisher.is_idle() => continue,
            };
            self.answer(&request, view, &mut *publisher).await;
        }
    }

    async fn answer(&self, request: &Request, view: &status::View, publisher: &mut dyn Publisher) {
        let answer = match request.properties.kind.as_deref() {
            Some(CANCEL) => read(request, |cancel: &Cancel| Some(&cancel.job_id))
                .and_then(|cancel| self.message(request, CANCELLING, &self.cancel(cancel))),
            Some(STATUS) => match read(request, |_: &StatusQuery| None) {
                Some(StatusQuery {}) => self.message(request, WORKER, &view.status().await),
                None => None,
            },
            Some(WATCH) => read(request, |watch: &Watch| Some(&watch.job_id))
                .and_then(|watch| self.look_on(watch, &request.properties))
                .and_then(|watching| self.message(request, WATCHING, &watching)),
            kind => {
                tracing::warn!(?kind, "a request on the control exchange that this version doesn't know");
                None
            }
        };
        if let Some(answer) = answer
            && tokio::time::timeout(ANSWER_PATIENCE, publisher.send(answer)).await.is_err()
        {
            tracing::warn!("an answer to a request on the control exchange had no room, and was dropped");
        }
    }

    fn cancel(&self, Cancel { job_id }: Cancel) -> Cancelling {
        let found = self.running.cancel(&job_id);
        tracing::info!(id = job_id, ?found, "asked to cancel a job");
        Cancelling { job_id, worker: self.config.name.clone(), found }
    }

    /// The answer to a request, if it says where answers go and they may go there.
    fn message(&self, request: &Request, kind: &str, answer: &impl Serialize) -> Option<Message> {
        let Properties { reply_to, correlation_id, .. } = &request.properties;
        let queue = reply_to.clone().filter(|queue| self.may_reply_to(queue))?;
        Some(Message {
            target: Target::Queue(queue),
            // Our own types: no way to fail.
            body: serde_json::to_vec(answer).unwrap_or_default().into(),
            properties: Properties {
                correlation_id: correlation_id.clone(),
                content_type: Some("application/json".into()),
                kind: Some(kind.into()),
                timestamp: Some(SystemTime::now()),
                ..Properties::default()
            },
        })
    }
}

/// A request's body, if it can be read, and the job's id in it, if there is to be one, can be one.
fn read<T: DeserializeOwned>(request: &Request, job_id: impl Fn(&T) -> Option<&String>) -> Option<T> {
    let kind = request.properties.kind.as_deref().unwrap_or_default();
    let asked = match serde_json::from_slice(&request.body) {
        Ok(asked) => asked,
        Err(error) => {
            tracing::warn!(kind, "a request on the control exchange that can't be read: {error}");
            return None;
        }
    };
    // A message id is no longer than that: AMQP's short string.
    if let Some(bytes) = job_id(&asked).map(String::len).filter(|bytes| !(1..=255).contains(bytes)) {
        tracing::warn!(
            kind,
            bytes,
            "a request on the control exchange whose job_id is not 1 to 255 bytes long"
        );
        return None;
    }
    Some(asked)
}
