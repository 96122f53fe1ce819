//! A broker's corner for one test: names of its own, and nothing left behind.

use std::panic::AssertUnwindSafe;
use std::sync::Once;
use std::time::Duration;

use futures_util::FutureExt;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use prewarm::broker::amqp::{self, Amqp, BrokerMetrics, ProbeReport};
use prewarm::broker::topology::Topology;
use prewarm::broker::{
    Broker, BrokerError, Consumer, Delivery, Message, Properties, Publisher, Routed, Target,
};
use prewarm::config::{BrokerConfig, Expired, TlsConfig, TopologyMode};
use prewarm::contract::PoolName;
use prewarm::contract::topology::{Names, RETRY_DELAYS};
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::timeout;

use crate::proxy::Proxy;

/// How long anything that must happen may take. Far more than it does take.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Tests that disturb the whole broker hold this alone; all others share it.
static QUIET: RwLock<()> = RwLock::const_new(());

/// For a test that connects without [`run`], to be held for as long.
pub fn shared() -> RwLockReadGuard<'static, ()> {
    QUIET.blocking_read()
}

#[derive(Clone, Copy)]
pub enum Needs {
    OwnNames,
    WholeBroker,
}

pub struct Setup {
    pub config: BrokerConfig,
    pub names: Names,
    pub pool: PoolName,
    pub admin: Channel,
    _connection: Connection,
    /// Queues besides the topology's, to be deleted.
    extra: std::sync::Mutex<Vec<String>>,
}

/// Runs a test in its own corner, and cleans up whether it passes or not.
pub fn run(needs: Needs, test: impl AsyncFnOnce(&Setup)) {
    run_at(broker_url(), needs, test);
}

/// Likewise, at this broker.
pub fn run_at(url: String, needs: Needs, test: impl AsyncFnOnce(&Setup)) {
    log();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (_shared, _alone) = match needs {
            Needs::OwnNames => (Some(QUIET.read().await), None),
            Needs::WholeBroker => (None, Some(QUIET.write().await)),
        };
        let setup = Setup::at(url).await;
        let result = AssertUnwindSafe(test(&setup)).catch_unwind().await;
        setup.clean_up().await;
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// A failed test shows what the worker's side had to say: threads inherit where the test's output goes.
fn log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::new("prewarm=debug,lapin=info");
        tracing_subscriber::fmt().with_test_writer().with_env_filter(filter).init();
    });
}

pub fn broker_url() -> String {
    std::env::var("PREWARM_BROKER_URL")
        .unwrap_or_else(|_| panic!("run deploy/test.sh, which starts a broker, or set PREWARM_BROKER_URL"))
}

/// What a worker of a test has in `[broker]`.
pub fn config(url: String, prefix: &str) -> BrokerConfig {
    BrokerConfig {
        urls: vec![url],
        tls: TlsConfig::default(),
        prefix: prefix.into(),
        topology: TopologyMode::Declare,
        heartbeat: Duration::from_secs(10),
        timeout: Duration::from_secs(5),
        delivery_limit: 20,
        reply_patience: Duration::from_secs(30),
        retry_delays: RETRY_DELAYS.into(),
        expired: Expired::Dead,
    }
}

impl Setup {
    async fn at(url: String) -> Setup {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let admin = connection.create_channel().await.unwrap();
        let prefix = format!("test-{}", uuid::Uuid::now_v7().simple());
        Setup {
            names: Names::new(&prefix),
            config: config(url, &prefix),
            pool: PoolName::new("build").unwrap(),
            admin,
            _connection: connection,
            extra: std::sync::Mutex::default(),
        }
    }

    async fn clean_up(self) {
        // A test may have closed the channel by a mistake that it makes on purpose.
        let connection = Connection::connect(self.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let topology = self.topology();
        let queues =
            topology.queues.into_iter().map(|queue| queue.name).chain(self.extra.into_inner().unwrap());
        for queue in queues {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        }
        for exchange in topology.exchanges {
            channel.exchange_delete(exchange.name.into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        connection.close(200, "OK".into()).await.unwrap();
    }

    /// The broker, without a proxy.
    pub fn url(&self) -> &str {
        &self.config.urls[0]
    }

    pub fn topology(&self) -> Topology {
        let BrokerConfig { delivery_limit, retry_delays, .. } = &self.config;
        Topology::new(&self.names, [&self.pool], *delivery_limit, retry_delays)
    }

    /// A worker's broker, connected.
    pub async fn broker(&self) -> Amqp {
        self.broker_with(&self.config).await
    }

    pub async fn broker_with(&self, config: &BrokerConfig) -> Amqp {
        let broker = self.start(config);
        until_connected(&broker).await;
        broker
    }

    pub fn start(&self, config: &BrokerConfig) -> Amqp {
        let metrics = BrokerMetrics::new(&prewarm::metrics::Metrics::new());
        Amqp::new(config, "tester", [&self.pool], metrics).unwrap()
    }

    /// A proxy to the broker, and the configuration to go through it.
    pub async fn proxy(&self) -> (Proxy, BrokerConfig) {
        let mut uri: AMQPUri = self.url().parse().unwrap();
        let proxy = Proxy::to(format!("{}:{}", uri.authority.host, uri.authority.port)).await;
        uri.authority.host = proxy.address.ip().to_string();
        uri.authority.port = proxy.address.port();
        let config = BrokerConfig { urls: vec![uri.to_string()], ..self.config.clone() };
        (proxy, config)
    }

    /// Whether this broker adds to the delivery count what a worker hands back: it did until 4.2.
    pub async fn counts_what_is_handed_back(&self) -> bool {
        let version = probe(&self.config, &self.pool).await.unwrap().server.unwrap().version;
        let numbers: Vec<u32> = version.split('.').map_while(|number| number.parse().ok()).collect();
        numbers < vec![4, 3]
    }

    /// A durable classic queue, for replies.
    pub async fn reply_queue(&self, arguments: FieldTable) -> String {
        let name = format!("{}.replies-{}", self.config.prefix, self.extra.lock().unwrap().len());
        self.extra.lock().unwrap().push(name.clone());
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        self.admin.queue_declare(name.as_str().into(), durable, arguments).await.unwrap();
        name
    }

    /// Publishes a job as a publisher elsewhere does.
    pub async fn publish_job(&self, body: &str) {
        let confirm = self
            .admin
            .basic_publish(
                self.names.jobs().into(),
                self.pool.as_str().into(),
                BasicPublishOptions::default(),
                body.as_bytes(),
                BasicProperties::default().with_message_id(body.into()),
            )
            .await
            .unwrap();
        confirm.await.unwrap();
    }

    pub async fn delete_queue(&self, queue: &str) {
        self.admin.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    /// Messages that are ready in a queue; those that are out with a consumer don't count.
    pub async fn ready(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        self.admin.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap().message_count()
    }

    pub async fn until_ready(&self, queue: &str, count: u32) {
        eventually(&format!("{count} messages ready in {queue}"), async || self.ready(queue).await == count)
            .await;
    }

    /// Takes the next message's body off a queue; waits for it.
    pub async fn take(&self, queue: &str) -> String {
        let taking = async {
            loop {
                let no_ack = BasicGetOptions { no_ack: true };
                if let Some(message) = self.admin.basic_get(queue.into(), no_ack).await.unwrap() {
                    return String::from_utf8(message.delivery.data).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, taking).await.unwrap_or_else(|_| panic!("no message in {queue}"))
    }
}

/// What `prewarm check` finds at the only address.
pub async fn probe(config: &BrokerConfig, pool: &PoolName) -> Result<ProbeReport, BrokerError> {
    let mut reports = timeout(DEADLINE, amqp::probe(config, [pool])).await.expect("looked in time");
    assert_eq!(reports.len(), 1);
    reports.remove(0)
}

pub async fn until_connected(broker: &Amqp) {
    let mut connected = broker.connected();
    timeout(DEADLINE, connected.wait_for(|connected| *connected)).await.expect("connected in time").unwrap();
}

/// Ends a broker's connections, and waits until that has been noticed; there may be new ones by then.
pub async fn cut_off(broker: &Amqp, cut: impl FnOnce()) {
    until_connected(broker).await;
    let mut connected = broker.connected();
    cut();
    timeout(DEADLINE, connected.changed()).await.expect("disconnect noticed in time").unwrap();
}

/// Waits for a disconnect that lasts.
pub async fn until_disconnected(broker: &Amqp) {
    let mut connected = broker.connected();
    timeout(DEADLINE, connected.wait_for(|connected| !connected))
        .await
        .expect("disconnect noticed in time")
        .unwrap();
}

/// Waits for a condition that nothing announces.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    timeout(DEADLINE, consumer.next()).await.expect("a delivery in time")
}

pub async fn send(publisher: &mut Box<dyn Publisher>, message: Message) {
    timeout(DEADLINE, publisher.send(message)).await.expect("sent in time");
}

pub async fn confirmed(publisher: &mut Box<dyn Publisher>, message: Message) -> Routed {
    timeout(DEADLINE, publisher.send_confirmed(message)).await.expect("confirmed in time")
}

pub fn message(queue: &str, body: impl Into<bytes::Bytes>) -> Message {
    Message { target: Target::Queue(queue.to_owned()), body: body.into(), properties: Properties::default() }
}

pub async fn close(broker: &Amqp) {
    timeout(DEADLINE, broker.close()).await.expect("closed in time");
}
