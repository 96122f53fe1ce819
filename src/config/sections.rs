//! The sections of the configuration other than the pools.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use super::address::{check_broker, check_engine, split_urls};
use super::field::Field;
use super::pool::pool;
use super::reader::{Outcome, Section};
use super::tls::tls;
use super::values::{LONGEST, choice, duration, flag, list, number, size, text, within};
use super::{
    BrokerConfig, Config, EngineConfig, Expired, HttpConfig, PoolConfig, TlsConfig, TopologyMode,
    WorkerConfig,
};
use crate::contract::PoolName;
use crate::contract::topology::RETRY_DELAYS;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The whole file.
pub(super) fn config(root: &mut Section<'_, '_>) -> Outcome<Config> {
    let broker = root.section("broker", broker);
    let engine = root.section("engine", engine);
    let http = root.section("http", http);
    let worker = root.section("worker", worker);
    let mut pools = root.named("pool", "image", |section, name| {
        let name = PoolName::new(name).map_err(|bad| section.wrong_at_all(bad.to_string()));
        let pool = pool(section);
        Ok((name?, pool?))
    });
    if pools.as_ref().is_ok_and(Vec::is_empty) {
        let example = "[pool.build] with image = \"busybox:1.36\"";
        pools = Err(root.wrong_at_all(format!("no pool is configured: write one, such as {example}")));
    }
    let (broker, engine, http, worker) = (broker?, engine?, http?, worker?);
    let pools = BTreeMap::from_iter(pools?);
    if let Some(message) = over_budget(&engine, &pools) {
        return Err(root.wrong("engine", message));
    }
    Ok(Config { broker, engine, http, worker, pools })
}

/// What is wrong if the host's budget can't hold the least that the pools ask for.
fn over_budget(engine: &EngineConfig, pools: &BTreeMap<PoolName, PoolConfig>) -> Option<String> {
    let least = |pool: &PoolConfig| pool.idle.min.max(1);
    let places: usize = pools.values().map(least).sum();
    if let Some(containers) = engine.containers.filter(|containers| *containers < places) {
        return Some(format!(
            "containers: {containers} is less than the pools need with one container, or idle.min, each: write at least {places}"
        ));
    }
    let memory = engine.memory?;
    let mut needed = 0u64;
    for (name, pool) in pools {
        let Some(each) = pool.memory else {
            return Some(format!(
                "memory is shared out by what each container may take, and pool.{name} doesn't say: write its memory, such as \"512MiB\""
            ));
        };
        needed = needed.saturating_add(each.saturating_mul(least(pool) as u64));
    }
    (needed > memory).then(|| {
        format!(
            "memory: {memory} is less than the pools need with one container, or idle.min, each: write at least {needed}"
        )
    })
}

/// The `[broker]` section of a file whose other sections don't matter.
pub(super) fn broker_alone(root: &mut Section<'_, '_>) -> Outcome<BrokerConfig> {
    root.pass_over(&["engine", "http", "worker", "pool"]);
    root.section("broker", broker)
}

/// The `[engine]` section of a file whose other sections don't matter.
pub(super) fn engine_alone(root: &mut Section<'_, '_>) -> Outcome<EngineConfig> {
    root.pass_over(&["broker", "http", "worker", "pool"]);
    root.section("engine", engine)
}

fn broker(section: &mut Section<'_, '_>) -> Outcome<BrokerConfig> {
    let urls = section.or("url", vec!["amqp://guest:guest@127.0.0.1:5672/%2f".to_owned()], broker_urls);
    let tls = section.section("tls", tls);
    let prefix = section.or("prefix", "prewarm".to_owned(), name);
    let topology = section.or(
        "topology",
        TopologyMode::Declare,
        choice(&[("declare", TopologyMode::Declare), ("check", TopologyMode::Check)]),
    );
    let heartbeat = section.or("heartbeat", 10 * SECOND, within(duration, SECOND..=5 * MINUTE, "1s to 5m"));
    let timeout = section.or("timeout", 10 * SECOND, within(duration, SECOND..=10 * MINUTE, "1s to 10m"));
    let delivery_limit = section.or("delivery_limit", 20, number(1..=1_000_000));
    let reply_patience =
        section.or("reply_patience", 30 * SECOND, within(duration, Duration::ZERO..=60 * MINUTE, "0s to 1h"));
    let retry_delays = section.or("retry_delays", RETRY_DELAYS.to_vec(), delays);
    let expired =
        section.or("expired", Expired::Dead, choice(&[("dead", Expired::Dead), ("answer", Expired::Answer)]));
    let (urls, tls) = (urls?, tls?);
    if tls != TlsConfig::default() && !urls.iter().any(|url| url.starts_with("amqps://")) {
        let message = "of no effect, since no address in broker.url starts with amqps://: write it so, or leave this out";
        return Err(section.wrong("tls", message));
    }
    Ok(BrokerConfig {
        urls,
        tls,
        prefix: prefix?,
        topology: topology?,
        heartbeat: heartbeat?,
        timeout: timeout?,
        delivery_limit: delivery_limit?,
        reply_patience: reply_patience?,
        retry_delays: retry_delays?,
        expired: expired?,
    })
}

/// Delays that grow. Each has a queue of its own, named after it in milliseconds.
fn delays(field: &mut Field<'_, '_>) -> Outcome<Vec<Duration>> {
    let one = within(duration, Duration::from_millis(10)..=24 * 60 * MINUTE, "10ms to 1d");
    let mut last = Duration::ZERO;
    let delays = field.each("an array: write [\"1s\", \"10s\"]", |field| {
        let delay = one(field)?;
        if delay.subsec_nanos() % 1_000_000 != 0 {
            return Err(field.is_not("a whole number of milliseconds: write 10ms, 1s or 1m"));
        }
        if delay <= last {
            let last = humantime::format_duration(last);
            return Err(field
                .is_not(&format!("longer than the delay before it, {last}: write them in growing order")));
        }
        last = delay;
        Ok(delay)
    })?;
    match delays.len() {
        1..=10 => Ok(delays),
        n => Err(field.wrong(format!("has {n} delays: write 1 to 10"))),
    }
}

/// One URL, several with commas between them (as a variable has to be), or an array.
fn broker_urls(field: &mut Field<'_, '_>) -> Outcome<Vec<String>> {
    let urls = if field.value().is_array() {
        field.each("an array", |field| address(field, check_broker))?
    } else {
        let Some(text) = field.text() else {
            return Err(field.wrong("not text: write an address in quotes, or an array of them"));
        };
        let urls: Vec<String> = split_urls(text).map(str::to_owned).collect();
        for url in &urls {
            check_broker(url).map_err(|message| field.wrong(message))?;
        }
        urls
    };
    if urls.is_empty() { Err(field.wrong("empty: write at least one address")) } else { Ok(urls) }
}

fn engine(section: &mut Section<'_, '_>) -> Outcome<EngineConfig> {
    let host = section.optional("host", |field| address(field, check_engine));
    let default = EngineConfig::default();
    let timeout = section.or("timeout", default.timeout, within(duration, SECOND..=60 * MINUTE, "1s to 1h"));
    let creations = section.or("creations", default.creations, number(1..=64));
    let containers = section.optional("containers", number(1..=100_000));
    let memory = section.optional("memory", within(size, 6 << 20..=u64::MAX, "at least 6MiB"));
    let day = 24 * 60 * MINUTE;
    let image_check =
        section.or("image_check", default.image_check, within(duration, SECOND..=day, "1s to 1d"));
    Ok(EngineConfig {
        host: host?,
        timeout: timeout?,
        creations: creations?,
        containers: containers?,
        memory: memory?,
        image_check: image_check?,
    })
}

fn http(section: &mut Section<'_, '_>) -> Outcome<HttpConfig> {
    let default = SocketAddr::from(([127, 0, 0, 1], 9464));
    let listen = section.or("listen", default, |field| {
        let listen = field.text().and_then(|text| text.parse().ok());
        listen.ok_or_else(|| {
            field.is_not("an IP address and port: write 127.0.0.1:9464, or 0.0.0.0:9464 for all interfaces")
        })
    });
    let page = section.or("page", true, flag);
    Ok(HttpConfig { listen: listen?, page: page? })
}

fn worker(section: &mut Section<'_, '_>) -> Outcome<WorkerConfig> {
    let given = section.optional("name", name);
    let name = given.and_then(|given| given.map_or_else(|| host_name(section), Ok));
    let drain_timeout =
        section.or("drain_timeout", 60 * MINUTE, within(duration, Duration::ZERO..=LONGEST, "0s to 365d"));
    let retries = section.or("retries", 4, number(1..=20));
    let lease_timeout =
        section.or("lease_timeout", 2 * MINUTE, within(duration, SECOND..=LONGEST, "1s to 365d"));
    // RabbitMQ takes no message above 512 MiB, and none above 16 MiB by default since 4.0.
    let max_message =
        section.or("max_message", 16 << 20, within(size, 1 << 10..=512 << 20, "1KiB to 512MiB"));
    let runtime_dir = section.optional("runtime_dir", |field| match text(field)? {
        path if path.starts_with('/') => Ok(path.into()),
        _ => Err(field.is_not("an absolute path: write one such as /run/prewarm")),
    });
    let reply_to = section.or("reply_to", vec!["*".to_owned()], list(text));
    let cancel_memory = section.or(
        "cancel_memory",
        24 * 60 * MINUTE,
        within(duration, Duration::ZERO..=LONGEST, "0s to 365d"),
    );
    let remember =
        section.or("remember", MINUTE, within(duration, Duration::ZERO..=24 * 60 * MINUTE, "0s to 1d"));
    Ok(WorkerConfig {
        remember: remember?,
        runtime_dir: runtime_dir?,
        reply_to: reply_to?,
        cancel_memory: cancel_memory?,
        name: name?,
        drain_timeout: drain_timeout?,
        retries: retries?,
        lease_timeout: lease_timeout?,
        max_message: max_message?,
    })
}

/// A name that is safe wherever a pool's is: in queues' names, labels and log lines.
fn name(field: &mut Field<'_, '_>) -> Outcome<String> {
    match field.text() {
        Some(text) if PoolName::new(text).is_ok() => Ok(text.to_owned()),
        _ => Err(field.is_not(
            "a name: use 1 to 64 ASCII letters, digits, '-', '_' or '.', starting with a letter or a digit",
        )),
    }
}

fn host_name(section: &mut Section<'_, '_>) -> Outcome<String> {
    let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match PoolName::new(host_name.trim_end()) {
        Ok(name) => Ok(name.to_string()),
        Err(_) => Err(section.wrong("name", "missing, and the host's name can't be used: write one")),
    }
}

/// An address that may contain a password, and that no message shows therefore.
fn address(field: &mut Field<'_, '_>, check: fn(&str) -> Result<(), &'static str>) -> Outcome<String> {
    let Some(text) = field.text() else { return Err(field.wrong("not text: write an address in quotes")) };
    check(text).map_err(|message| field.wrong(message))?;
    Ok(text.to_owned())
}
