//! Requests to all workers.

use std::time::SystemTime;

use super::Worker;
use crate::broker::{Message, Properties, Request, Target};
use crate::contract::control::{CANCEL, CANCELLING, Cancel, Cancelling};

impl Worker {
    /// Answers requests that are sent to all workers, for as long as it is polled.
    pub async fn obey(&self) {
        let mut control = self.broker.control();
        let mut publisher = self.broker.publisher();
        loop {
            // Answers are sent while the next request is waited for.
            let request = tokio::select! {
                request = control.next() => request,
                () = publisher.drive(), if !publisher.is_idle() => continue,
            };
            if let Some(answer) = self.answer(&request) {
                publisher.send(answer).await;
            }
        }
    }

    fn answer(&self, request: &Request) -> Option<Message> {
        let Properties { kind, reply_to, correlation_id, .. } = &request.properties;
        if kind.as_deref() != Some(CANCEL) {
            tracing::warn!(?kind, "a request on the control exchange that this version doesn't know");
            return None;
        }
        let Cancel { job_id } = match serde_json::from_slice(&request.body) {
            Ok(cancel) => cancel,
            Err(error) => {
                tracing::warn!("a request to cancel that can't be read: {error}");
                return None;
            }
        };
        // A message id is no longer than that: AMQP's short string.
        if job_id.is_empty() || job_id.len() > 255 {
            tracing::warn!(
                bytes = job_id.len(),
                "a request to cancel whose job_id is not 1 to 255 bytes long"
            );
            return None;
        }
        let found = self.running.cancel(&job_id);
        tracing::info!(id = job_id, ?found, "asked to cancel a job");
        let queue = reply_to.clone().filter(|queue| self.may_reply_to(queue))?;
        let answer = Cancelling { job_id, worker: self.config.name.clone(), found };
        Some(Message {
            target: Target::Queue(queue),
            // Our own types: no way to fail.
            body: serde_json::to_vec(&answer).unwrap_or_default().into(),
            properties: Properties {
                correlation_id: correlation_id.clone(),
                content_type: Some("application/json".into()),
                kind: Some(CANCELLING.into()),
                timestamp: Some(SystemTime::now()),
                ..Properties::default()
            },
        })
    }
}
