//! The whole way: a job published to the pool of a worker that runs somewhere, its replies read from a queue of our own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Job;
use super::measure::{Lease, Sample};
use super::ways::{LONGEST_JOB, Runner};
use crate::broker::client::{Client, Replies, Reply, Sender};
use crate::config::BrokerConfig;
use crate::contract::PoolName;
use crate::contract::control::{CANCEL, Cancel};
use crate::contract::topology::{LOG, RESULT, STARTED};

/// How long jobs that were under way at the end may take to end by themselves, and then after they were cancelled.
const END_PATIENCE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(15)];

/// A reply, and the moment in which it came.
type Came = (Instant, Reply);
/// Replies to one job.
type Inbox = mpsc::UnboundedReceiver<Came>;

/// Jobs whose result has not come.
#[derive(Clone, Default)]
struct Open(Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Came>>>>);

impl Open {
    fn insert(&self, id: &str) -> Inbox {
        let (sender, inbox) = mpsc::unbounded_channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), sender);
        inbox
    }

    fn remove(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Gives each reply to whom it is for. A job is open until its result has come, whether or not somebody still waits for it.
    fn sort(&self, at: Instant, reply: Reply) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(id) = reply.properties.correlation_id.clone() else { return };
        let last = reply.properties.kind.as_deref() == Some(RESULT);
        if let Some(sender) = open.get(&id) {
            let _ = sender.send((at, reply));
        }
        if last {
            open.remove(&id);
        }
    }
}

/// Jobs by way of the broker.
pub struct ByBroker {
    sender: Sender,
    pool: PoolName,
    body: Bytes,
    open: Open,
    _reading: AbortOnDropHandle<()>,
}

impl ByBroker {
    /// Connects, and sees whether anybody takes jobs of the pool: what nobody takes would stay in its queue.
    ///
    /// # Errors
    /// What the broker says, or that there is no worker.
    pub async fn connect(config: &BrokerConfig, pool: &PoolName, job: &Job) -> Result<ByBroker, String> {
        let client = Client::connect(config, "prewarm bench").await.map_err(|e| e.to_string())?;
        let (sender, replies) = client.split();
        if sender.seats(pool).await.map_err(|e| e.to_string())? == 0 {
            sender.close().await;
            return Err(format!("no worker takes jobs of pool '{pool}': start one with `prewarm serve`"));
        }
        let open = Open::default();
        let reading = AbortOnDropHandle::new(tokio::spawn(read(replies, open.clone())));
        Ok(ByBroker { sender, pool: pool.clone(), body: body(job), open, _reading: reading })
    }

    async fn follow(&self, id: &str, mut inbox: Inbox) -> Result<Sample, String> {
        let begun = Instant::now();
        let published = async {
            let sent = self.sender.submit(&self.pool, id, self.body.clone(), None).await;
            if sent.is_err() {
                self.open.remove(id);
            }
            sent.map_err(|e| e.to_string())
        };
        let followed = async {
            let mut sample = Sample::default();
            while let Some((at, reply)) = inbox.recv().await {
                let since = at.saturating_duration_since(begun);
                match reply.properties.kind.as_deref() {
                    Some(STARTED) => sample.executing = Some(since),
                    Some(LOG) => _ = sample.first_output.get_or_insert(since),
                    Some(RESULT) => {
                        sample.exit = Some(since);
                        return finished(sample, &reply.body);
                    }
                    _ => {}
                }
            }
            Err("the connection to the broker was lost".into())
        };
        // The worker may have begun before the broker's confirmation is here.
        tokio::try_join!(published, followed).map(|((), sample)| sample)
    }

    /// Sees to it that nothing is under way any more, then says goodbye. False if results of ours may still come, and end in
    /// the queue of those that nobody reads.
    pub async fn close(&self) -> bool {
        let mut clean = self.ended_within(END_PATIENCE[0]).await;
        if !clean {
            for job_id in self.open.ids() {
                // Our own type: no way to fail.
                let body = serde_json::to_vec(&Cancel { job_id }).unwrap_or_default();
                let _ = self.sender.request(CANCEL, body.into()).await;
            }
            clean = self.ended_within(END_PATIENCE[1]).await;
        }
        self.sender.close().await;
        clean
    }

    async fn ended_within(&self, patience: Duration) -> bool {
        let begun = Instant::now();
        while !self.open.ids().is_empty() {
            if begun.elapsed() > patience {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }
}

async fn read(mut replies: Replies, open: Open) {
    while let Ok(reply) = replies.next().await {
        open.sort(Instant::now(), reply);
    }
    // Nothing comes any more: whoever waits is told so by the end of its inbox.
    open.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn body(job: &Job) -> Bytes {
    let env: Map<String, Value> =
        job.env.0.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let mut body = Map::from_iter([("env".to_owned(), Value::from(env))]);
    if let Some(args) = &job.args {
        body.insert("args".into(), args.clone().into());
    }
    Bytes::from(Value::from(body).to_string())
}

/// What the result says.
fn finished(sample: Sample, result: &[u8]) -> Result<Sample, String> {
    let result: Value =
        serde_json::from_slice(result).map_err(|e| format!("a result that is no JSON: {e}"))?;
    if let ("rejected" | "error" | "cancelled", said) =
        (result["status"].as_str().unwrap_or_default(), &result["error"])
    {
        let why = said["message"].as_str().unwrap_or("it was cancelled");
        return Err(format!("the worker says: {}", why.escape_debug()));
    }
    let waited = result["timings_ms"]["lease"].as_f64().unwrap_or_default().max(0.0) / 1e3;
    let lease = result["lease"].as_str().map(|lease| Lease {
        hit: lease == "hit",
        waited: Duration::try_from_secs_f64(waited).unwrap_or_default(),
    });
    Ok(Sample { succeeded: result["status"] == "succeeded", lease, ..sample })
}

#[async_trait]
impl Runner for ByBroker {
    async fn one(&self) -> Result<Sample, String> {
        let id = uuid::Uuid::now_v7().to_string();
        let inbox = self.open.insert(&id);
        let done = tokio::time::timeout(LONGEST_JOB, self.follow(&id, inbox)).await;
        done.unwrap_or_else(|_| Err(format!("no result after {LONGEST_JOB:?}; this is for short jobs")))
    }

    fn note(&self) -> Option<String> {
        Some(format!(
            "`prewarm, by broker` is a worker of pool {} that runs elsewhere: its idle containers, its concurrency and its \
             machine's other work are in the figures",
            self.pool
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::broker::Properties;

    #[test]
    fn what_a_result_says_is_taken_over() {
        let result = |value: Value| finished(Sample::default(), value.to_string().as_bytes());
        let miss =
            json!({"status": "failed", "exit_code": 3, "lease": "miss", "timings_ms": {"lease": 250.0}});
        let sample = result(miss).unwrap();
        let lease = Lease { hit: false, waited: Duration::from_millis(250) };
        assert_eq!((sample.succeeded, sample.lease), (false, Some(lease)));
        let rejected = json!({"status": "rejected", "error": {"kind": "env", "message": "no\u{1b} good"}});
        assert_eq!(result(rejected).unwrap_err(), "the worker says: no\\u{1b} good");
        assert!(finished(Sample::default(), b"{").is_err());
    }

    #[test]
    fn a_job_is_open_until_its_result_has_come() {
        let open = Open::default();
        let (mut a, b) = (open.insert("a"), open.insert("b"));
        drop(b);
        let reply = |id: &str, kind: &str| Reply {
            body: Bytes::new(),
            properties: Properties {
                correlation_id: Some(id.into()),
                kind: Some(kind.into()),
                ..Properties::default()
            },
        };
        open.sort(Instant::now(), reply("a", STARTED));
        open.sort(Instant::now(), reply("b", LOG));
        open.sort(Instant::now(), reply("unknown", RESULT));
        assert_eq!(open.ids().len(), 2, "nobody waits for b, and yet it is under way");
        open.sort(Instant::now(), reply("b", RESULT));
        open.sort(Instant::now(), reply("a", RESULT));
        assert!(open.ids().is_empty());
        let kinds: Vec<_> = std::iter::from_fn(|| a.try_recv().ok())
            .map(|(_, reply)| reply.properties.kind.unwrap())
            .collect();
        assert_eq!(kinds, [STARTED, RESULT]);
    }
}
