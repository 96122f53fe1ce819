//! A publisher as there may be in any upstream system: publishes with confirms, reads replies from a queue of its own,
//! and looks into the worker's queues. It knows the contract by its text (DESIGN section 7), not by our types.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::docker::variable;
use super::schema;
use super::worker::DEADLINE;

pub const STARTED: &str = "prewarm.started.v1";
pub const LOG: &str = "prewarm.log.v1";
pub const RESULT: &str = "prewarm.result.v1";
pub const ARTIFACT: &str = "prewarm.artifact.v1";
/// The broker's direct reply-to, which is no queue.
pub const DIRECT: &str = "amq.rabbitmq.reply-to";

pub fn url() -> String {
    std::env::var("PREWARM_BROKER_URL")
        .unwrap_or_else(|_| panic!("run deploy/test.sh, which starts a broker, or set PREWARM_BROKER_URL"))
}

/// Has the tests' broker administered; gives what that prints.
pub fn rabbitmqctl(args: &[&str]) -> String {
    let command = variable("PREWARM_TEST_RABBITMQCTL");
    // A command line, so it may be several words.
    let line = format!("{command} -q \"$@\"");
    let done = Command::new("sh").args(["-c", &line, "sh"]).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A job message as it is published.
#[derive(Clone)]
pub struct Job {
    pub id: String,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
}

impl Job {
    /// A proper job, whose replies go to the broker's reply queue unless said otherwise.
    pub fn new(body: Value) -> Job {
        Job::raw(body.to_string())
    }

    /// A job that runs a shell script.
    pub fn shell(script: &str) -> Job {
        Job::new(serde_json::json!({"args": ["sh", "-c", script]}))
    }

    pub fn raw(body: impl Into<Vec<u8>>) -> Job {
        let id = uuid::Uuid::now_v7().to_string();
        let properties = BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_correlation_id(format!("correlation of {id}").into())
            .with_content_type("application/json".into());
        Job { id, body: body.into(), properties }
    }

    pub fn reply_to(mut self, queue: &str) -> Job {
        self.properties = self.properties.with_reply_to(queue.into());
        self
    }

    pub fn content_type(mut self, content_type: &str) -> Job {
        self.properties = self.properties.with_content_type(content_type.into());
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Job {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
        self.properties = self.properties.with_headers(headers);
        self
    }
}

/// A message that came from a worker.
#[derive(Clone)]
pub struct Reply {
    /// The AMQP `type`.
    pub kind: String,
    pub body: Value,
    pub bytes: Vec<u8>,
    pub properties: BasicProperties,
    /// What its schema says against it.
    fault: Option<String>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.body)
    }
}

impl Reply {
    fn of(data: Vec<u8>, properties: BasicProperties) -> Reply {
        let kind = properties.kind().as_ref().map(ToString::to_string).unwrap_or_default();
        let body = serde_json::from_slice(&data).unwrap_or(Value::Null);
        Reply { fault: schema::fault(&kind, &body), kind, body, bytes: data, properties }
    }

    pub fn header(&self, name: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            other => Some(format!("{other:?}")),
        }
    }
}

/// All replies to one attempt, found to be what the contract says.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub replies: Vec<Reply>,
    pub result: Value,
    /// What the log events of either stream put together give.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Attempt {
    /// Checks what holds for every attempt: `seq` without gaps, `started` first, logs whose offsets follow each other, the
    /// result last and once; every reply marked with the job.
    pub fn check(job: &Job, replies: Vec<Reply>) -> Attempt {
        let context =
            || replies.iter().map(|r| format!("{} {}", r.kind, r.body)).collect::<Vec<_>>().join("\n");
        let correlation = job.properties.correlation_id();
        let attempt = &replies[0].body["attempt"];
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        for (seq, reply) in replies.iter().enumerate() {
            let body = &reply.body;
            assert_eq!(reply.fault, None, "{reply:?}");
            assert_eq!(body["seq"], seq, "{}", context());
            assert_eq!(body["job_id"], job.id);
            assert_eq!(&body["attempt"], attempt);
            humantime::parse_rfc3339(body["time"].as_str().unwrap()).expect("RFC 3339 in UTC");
            assert_eq!(reply.properties.correlation_id(), correlation);
            assert_eq!(
                reply.properties.content_type().as_ref().map(|t| t.as_str()),
                Some("application/json")
            );
            let last = seq + 1 == replies.len();
            match reply.kind.as_str() {
                STARTED => assert_eq!(seq, 0, "{}", context()),
                LOG => {
                    assert!(seq > 0 && !last, "{}", context());
                    let stream = match body["stream"].as_str() {
                        Some("stdout") => &mut stdout,
                        Some("stderr") => &mut stderr,
                        other => panic!("stream {other:?}"),
                    };
                    assert_eq!(body["offset"], stream.len(), "{}", context());
                    stream.extend(data(body));
                }
                ARTIFACT => assert!(seq > 0 && !last, "{}", context()),
                RESULT => assert!(last, "{}", context()),
                other => panic!("a reply of type '{other}'"),
            }
        }
        let result = replies.last().filter(|r| r.kind == RESULT).expect("a result").body.clone();
        Attempt { result, replies, stdout, stderr }
    }

    pub fn started(&self) -> &Value {
        assert_eq!(self.replies[0].kind, STARTED);
        &self.replies[0].body
    }

    pub fn logs(&self) -> Vec<&Value> {
        self.replies.iter().filter(|r| r.kind == LOG).map(|r| &r.body).collect()
    }

    /// The bytes of one of the result's artifacts, put together from events if they aren't in it, and found to be what size
    /// and digest say.
    pub fn artifact(&self, path: &str) -> Vec<u8> {
        let all = self.result["artifacts"].as_array().unwrap();
        let found =
            all.iter().find(|a| a["path"] == path).unwrap_or_else(|| panic!("{path}: {:#}", self.result));
        let bytes = match found["events"].as_u64() {
            None => data(found),
            Some(events) => {
                let of_it = |r: &&Reply| r.kind == ARTIFACT && r.body["path"] == path;
                let pieces: Vec<&Value> = self.replies.iter().filter(of_it).map(|r| &r.body).collect();
                assert_eq!(pieces.len() as u64, events);
                let mut bytes = Vec::new();
                for piece in pieces {
                    assert_eq!((&piece["offset"], &piece["size"]), (&bytes.len().into(), &found["size"]));
                    bytes.extend(data(piece));
                }
                bytes
            }
        };
        assert_eq!(found["size"], bytes.len());
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found["sha256"], digest);
        bytes
    }

    /// The paths of the artifacts that came, sorted.
    pub fn artifacts(&self) -> Vec<&str> {
        let all = self.result["artifacts"].as_array().unwrap_or_else(|| panic!("{:#}", self.result));
        let mut paths: Vec<&str> = all.iter().map(|a| a["path"].as_str().unwrap()).collect();
        paths.sort_unstable();
        paths
    }

    /// The paths of those that didn't, and why, sorted.
    pub fn missed(&self) -> Vec<(&str, &str)> {
        let all = self.result["artifacts_missed"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut pairs: Vec<(&str, &str)> =
            all.iter().map(|m| (m["path"].as_str().unwrap(), m["reason"].as_str().unwrap())).collect();
        pairs.sort_unstable();
        pairs
    }

    pub fn status(&self) -> &str {
        self.result["status"].as_str().unwrap()
    }

    /// Panics with everything known unless the job succeeded.
    pub fn succeeded(self) -> Attempt {
        assert_eq!(self.status(), "succeeded", "{:#}", self.result);
        self
    }
}

/// The bytes of a log event or of a tail.
pub fn data(of: &Value) -> Vec<u8> {
    match (of["text"].as_str(), of["base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(coded)) => base64::engine::general_purpose::STANDARD.decode(coded).unwrap(),
        _ => panic!("neither text nor base64: {of}"),
    }
}

type Inbox = HashMap<String, Vec<Reply>>;

pub struct Broker {
    pub prefix: String,
    pub reply_queue: String,
    connection: Connection,
    pub channel: Channel,
    /// Replies by job.
    inbox: watch::Sender<Inbox>,
}

impl Broker {
    pub async fn connect(prefix: &str) -> Broker {
        Broker::connect_to(&url(), prefix).await
    }

    pub async fn connect_to(url: &str, prefix: &str) -> Broker {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.unwrap();
        let broker = Broker {
            prefix: prefix.to_owned(),
            reply_queue: queue.name().to_string(),
            connection,
            channel,
            inbox: watch::Sender::new(Inbox::new()),
        };
        broker.listen(&broker.reply_queue.clone()).await;
        broker.listen(DIRECT).await;
        broker
    }

    /// Puts what comes into a queue into the inbox.
    async fn listen(&self, queue: &str) {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consume = self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let mut consumer = consume.await.unwrap();
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let reply = Reply::of(delivery.data, delivery.properties);
                let id = reply.body["job_id"].as_str().unwrap_or_default().to_owned();
                inbox.send_modify(|all| all.entry(id).or_default().push(reply));
            }
        });
    }

    pub fn pool_queue(&self, pool: &str) -> String {
        format!("{}.jobs.{pool}", self.prefix)
    }

    pub fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    pub fn results(&self) -> String {
        format!("{}.results", self.prefix)
    }

    /// Publishes a job exactly as it is; returns when the broker has it.
    pub async fn publish(&self, pool: &str, job: &Job) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let exchange = format!("{}.jobs", self.prefix);
        let properties = job.properties.clone();
        let sent = self.channel.basic_publish(exchange.into(), pool.into(), options, &job.body, properties);
        match sent.await.unwrap().await.unwrap() {
            Confirmation::Ack(None) => {}
            other => panic!("job not taken: {other:?}"),
        }
    }

    /// Publishes a job whose replies come here.
    pub async fn submit(&self, pool: &str, job: Job) -> Job {
        let job = job.reply_to(&self.reply_queue);
        self.publish(pool, &job).await;
        job
    }

    /// Publishes a job and waits for its result, in its first attempt.
    pub async fn run(&self, pool: &str, job: Job) -> Attempt {
        let job = self.submit(pool, job).await;
        self.finished(&job).await
    }

    /// Waits for a job's result; there was one attempt.
    pub async fn finished(&self, job: &Job) -> Attempt {
        let replies = self.until(job, |replies| replies.iter().any(|r| r.kind == RESULT)).await;
        Attempt::check(job, replies)
    }

    /// Waits until the entrypoint is executing; gives `started`.
    pub async fn started(&self, job: &Job) -> Value {
        let replies = self.until(job, |replies| replies.iter().any(|r| r.kind == STARTED)).await;
        replies.into_iter().rfind(|r| r.kind == STARTED).unwrap().body
    }

    /// Waits until a job has printed something.
    pub async fn printed(&self, job: &Job, text: &str) {
        let has = |r: &Reply| r.kind == LOG && String::from_utf8_lossy(&data(&r.body)).contains(text);
        let replies = self.until(job, |replies| replies.iter().any(|r| has(r) || r.kind == RESULT)).await;
        assert!(replies.iter().any(has), "'{text}' was not printed: {replies:#?}");
    }

    /// Waits for replies to a job.
    pub async fn until(&self, job: &Job, enough: impl Fn(&[Reply]) -> bool) -> Vec<Reply> {
        let mut inbox = self.inbox.subscribe();
        let waiting = inbox.wait_for(|all| all.get(&job.id).is_some_and(|replies| enough(replies)));
        match tokio::time::timeout(DEADLINE, waiting).await {
            Ok(all) => all.unwrap()[&job.id].clone(),
            Err(_) => panic!("not in time; so far: {:#?}", self.inbox.borrow().get(&job.id)),
        }
    }

    /// What schemas say against replies that came here, whether anybody looked at them or not.
    pub fn faults(&self) -> Vec<String> {
        self.inbox.borrow().values().flatten().filter_map(|r| r.fault.clone()).collect()
    }

    /// All replies to a job so far.
    pub fn so_far(&self, job: &Job) -> Vec<Reply> {
        self.inbox.borrow().get(&job.id).cloned().unwrap_or_default()
    }

    /// Messages that are ready in a queue; those that are out with a consumer don't count.
    pub async fn ready(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        declared.unwrap().message_count()
    }

    /// Takes the next message off a queue; waits for it.
    pub async fn take(&self, queue: &str) -> Reply {
        super::worker::eventually(&format!("a message in {queue}"), async || {
            let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap();
            got.map(|message| Reply::of(message.delivery.data, message.delivery.properties))
        })
        .await
    }

    /// Deletes everything that workers with this prefix and these pools declare.
    pub async fn delete_all(&self, pools: impl IntoIterator<Item = &str>) {
        // The test may have outlived its own connection.
        let connection = Connection::connect(&url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let retries = [1000, 10_000, 60_000, 300_000].map(|ms| format!("{}.retry.{ms}ms", self.prefix));
        let mut queues = vec![self.dead(), self.results(), format!("{}.died", self.prefix)];
        queues.extend(pools.into_iter().map(|pool| self.pool_queue(pool)));
        queues.extend(retries.clone());
        for queue in queues {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        }
        let others = ["jobs", "control"].map(|name| format!("{}.{name}", self.prefix));
        for exchange in others.into_iter().chain(retries) {
            channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), connection.close(200, "OK".into())).await;
    }

    pub async fn close(self) {
        let closing = self.connection.close(200, "OK".into());
        let _ = tokio::time::timeout(Duration::from_secs(5), closing).await;
    }
}
