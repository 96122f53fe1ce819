//! Two workers, a broker and a Prometheus, a short load with a fault of each kind: then everything that dashboards and rules ask for is
//! there, and the figures are those that publishers measured.

use std::net::{SocketAddr, TcpListener};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::dashboards::{NAMES, expressions, list, load, panels, text};
use crate::prometheus::Prometheus;
use crate::support::broker::{Broker, Job, STARTED};
use crate::support::own_broker::OwnBroker;
use crate::support::worker::{Site, Worker, eventually, run};
use crate::{RABBITMQ, rules};

/// Hits, one after the other on each worker's pool.
const STEADY: usize = 150;
/// Bursts on a pool with one idle container, and how many jobs each has.
const BURSTS: usize = 5;
const BURST: usize = 6;
/// `$__rate_interval`: everything that happens is in it.
const WINDOW: &str = "10m";

#[test]
fn everything_that_is_asked_for_is_there_and_agrees_with_what_publishers_see() {
    run(async |site: &Site| {
        let (server, metrics) = broker_with_metrics();
        let url = server.url();
        let broker = Broker::connect_to(&url, "prewarm").await;
        let workers = [worker(site, &url).await, worker(site, &url).await];
        for worker in &workers {
            eventually("its pools are full", async || {
                let status = worker.status().await;
                let full = |pool: &Value| pool["pool"] == "broken" || pool["idle"] == pool["target"];
                list(&status["pools"]).iter().all(full).then_some(())
            })
            .await;
        }
        let prometheus = Prometheus::start(&site.dir, &workers.each_ref().map(|w| w.listen), metrics).await;
        eventually("all targets are scraped", async || {
            let series = prometheus.query("up == 1").await;
            let leases = prometheus.query("prewarm_pool_leases_total").await;
            (series.len() == 3 && leases.len() == 2 * 3 * 2).then_some(())
        })
        .await;

        let jobs = load_it(&broker).await;
        eventually("Prometheus has seen all jobs", async || {
            let seen = prometheus.value("sum(prewarm_jobs_total)").await;
            (seen == Some(jobs.total as f64)).then_some(())
        })
        .await;
        metrics_of_the_broker(&prometheus).await;
        let all = |_: &str| ".+".to_owned();
        let addresses = workers.each_ref().map(|w| w.listen.to_string()).join("|");
        let chosen = |name: &str| match name {
            "job" => "prewarm".to_owned(),
            "pool" => "(one|steady)".to_owned(),
            "instance" => format!("({addresses})"),
            _ => "rabbitmq|.+:.+".to_owned(),
        };
        for name in NAMES {
            let dashboard = load(name);
            variables_have_values(&prometheus, &dashboard).await;
            panels_have_series(&prometheus, &dashboard, all).await;
            panels_have_series(&prometheus, &dashboard, chosen).await;
        }
        figures_agree(&prometheus, &jobs).await;
        rules_work(&prometheus).await;
        for worker in workers {
            assert!(worker.stop().await.success());
        }
        assert_eq!(broker.faults(), [""; 0]);
        broker.close().await;
    });
}

/// RabbitMQ with its plugin for Prometheus, and where that is. A broker of its own, so that queues have the names that the rules know, and no
/// other test's broker has to gather metrics.
fn broker_with_metrics() -> (OwnBroker, SocketAddr) {
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = format!(
        "prometheus.tcp.ip = {}\nprometheus.tcp.port = {}\nmanagement_agent.disable_metrics_collector = true",
        metrics.ip(),
        metrics.port()
    );
    let mut server = OwnBroker::prepare(None, |_| config);
    std::fs::write(server.dir.join("enabled_plugins"), "[rabbitmq_prometheus].\n").unwrap();
    server.up();
    (server, metrics)
}

async fn worker(site: &Site, url: &str) -> Worker {
    let setup = site.worker().env("PREWARM_BROKER_PREFIX", "prewarm");
    // Many jobs in few containers, for hits; one container a job, for misses; and one that can't be served.
    let setup =
        setup.pool("steady", "isolation = \"namespace\"\nidle = 2\nconcurrency = 2\nmemory = \"64MiB\"");
    let setup = setup.pool("one", "idle = 1\nconcurrency = 3");
    let setup = setup.pool("broken", "image = \"prewarm-test/no-such-image\"\npull = \"never\"");
    setup.start_with(url).await
}

/// What publishers saw.
#[derive(Default)]
struct Seen {
    /// Results of all kinds.
    total: usize,
    steady: Leases,
    one: Leases,
}

#[derive(Default)]
struct Leases {
    hits: usize,
    all: usize,
    /// Milliseconds.
    hit_startups: Vec<f64>,
}

impl Leases {
    fn add(&mut self, started: &Value) {
        self.all += 1;
        if started["lease"] == "hit" {
            self.hits += 1;
            self.hit_startups.push(started["startup_ms"].as_f64().unwrap());
        }
    }

    fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.all as f64
    }
}

fn stamped(body: Value) -> Job {
    let mut job = Job::new(body);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    job.properties = job.properties.with_timestamp(now);
    job
}

async fn load_it(broker: &Broker) -> Seen {
    let mut seen = Seen::default();
    for n in 0..STEADY {
        // Some fail, by themselves.
        let script = if n % 10 == 0 { "echo oh; exit 3" } else { "echo ok; echo err >&2" };
        let attempt = broker.run("steady", stamped(json!({"args": ["sh", "-c", script]}))).await;
        seen.steady.add(attempt.started());
        seen.total += 1;
    }
    for _ in 0..BURSTS {
        let mut burst = Vec::new();
        for _ in 0..BURST {
            burst.push(broker.submit("one", stamped(json!({"args": ["sleep", "0.2"]}))).await);
        }
        for job in burst {
            seen.one.add(broker.finished(&job).await.started());
            seen.total += 1;
        }
    }
    // Not a job: a dead letter.
    let bad = broker.submit("one", Job::raw("{\"timeout\": 7}")).await;
    assert_eq!(broker.finished(&bad).await.status(), "rejected");
    // Fails, and is tried again a second later.
    let again = broker.submit("steady", stamped(json!({"args": ["false"], "retries": 1}))).await;
    let replies = broker.until(&again, |replies| replies.iter().any(|r| r.body["status"] == "failed")).await;
    replies.iter().filter(|reply| reply.kind == STARTED).for_each(|reply| seen.steady.add(&reply.body));
    // Its publisher has gone.
    let gone = Job::shell("true").reply_to("nobody-reads-this");
    broker.publish("steady", &gone).await;
    let kept = broker.take(&broker.results()).await;
    assert_eq!(kept.body["job_id"], gone.id);
    seen.steady.add(&json!({"lease": kept.body["lease"], "startup_ms": kept.body["timings_ms"]["startup"]}));
    seen.total += 3;
    println!("hits: steady {}/{}, one {}/{}", seen.steady.hits, seen.steady.all, seen.one.hits, seen.one.all);
    seen
}

/// Waits until an expression gives what is wanted: a scrape that took too long leaves nothing to see until the next one.
async fn until(
    prometheus: &Prometheus,
    expr: &str,
    is_so: impl Fn(&[(Value, f64)]) -> bool,
) -> Vec<(Value, f64)> {
    eventually(expr, async || Some(prometheus.query(expr).await).filter(|series| is_so(series))).await
}

async fn metrics_of_the_broker(prometheus: &Prometheus) {
    for name in RABBITMQ {
        let queue = format!("{name}{{job=\"rabbitmq\", queue=\"prewarm.jobs.one\"}}");
        until(prometheus, &queue, |queues| queues.len() == 1).await;
    }
}

/// As Grafana asks for them: `label_values(series, label)`.
async fn variables_have_values(prometheus: &Prometheus, dashboard: &Value) {
    for variable in list(&dashboard["templating"]["list"]).iter().filter(|v| v["type"] == "query") {
        let query = text(&variable["definition"]);
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) =
            inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values(series, label)");
        let series = filled(series, |_| ".+".to_owned());
        let values = prometheus.api(&format!("label/{label}/values"), &[("match[]", &series)]).await;
        assert!(!list(&values).is_empty(), "{query}: no values");
    }
}

/// An expression with its variables replaced, the longest names first.
fn filled(expr: &str, value: impl Fn(&str) -> String) -> String {
    let mut filled =
        expr.replace("$__rate_interval", WINDOW).replace("$__from", "0").replace("$prefix", "prewarm");
    for name in ["instance", "broker", "node", "pool", "job"] {
        filled = filled.replace(&format!("${name}"), &value(name));
    }
    assert!(!filled.contains('$'), "{filled}");
    filled
}

async fn panels_have_series(prometheus: &Prometheus, dashboard: &Value, value: impl Fn(&str) -> String) {
    for (title, expr) in expressions(dashboard) {
        println!("{}: {title}", dashboard["title"]);
        let has_figures = |series: &[(Value, f64)]| series.iter().any(|(_, value)| value.is_finite());
        until(prometheus, &filled(&expr, &value), has_figures).await;
    }
}

/// What a panel asks for in one of its targets, of this pool.
fn of_pool(dashboard: &str, title: &str, target: usize, pool: &str) -> String {
    let dashboard = load(dashboard);
    let panel = panels(&dashboard).find(|panel| panel["title"] == title).expect("the panel");
    let expr = text(&panel["targets"][target]["expr"]);
    filled(expr, |name| if name == "pool" { pool.to_owned() } else { ".+".to_owned() })
}

async fn figures_agree(prometheus: &Prometheus, seen: &Seen) {
    for (pool, leases) in [("steady", &seen.steady), ("one", &seen.one)] {
        let expr = of_pool("overview", "Hit rate by pool", 0, pool);
        let shown = prometheus.value(&expr).await.expect("a hit rate");
        println!("hit rate of {pool}: {shown:.4} on the dashboard, {:.4} by the replies", leases.hit_rate());
        assert!((shown - leases.hit_rate()).abs() < 0.01);
    }
    assert!(seen.one.hits < seen.one.all, "there were misses");
    let mut startups = seen.steady.hit_startups.clone();
    startups.sort_by(f64::total_cmp);
    let measured = startups[(startups.len() * 99).div_ceil(100) - 1] / 1e3;
    let shown = prometheus.value(&of_pool("overview", "Start-up of hits", 2, "steady")).await.unwrap();
    let bucket = |seconds: f64| prewarm::metrics::BUCKETS.iter().position(|bound| seconds <= *bound).unwrap();
    println!("p99 of hits: {:.2} ms on the dashboard, {:.2} ms by the replies", shown * 1e3, measured * 1e3);
    assert!(bucket(shown).abs_diff(bucket(measured)) <= 1, "more than a bucket apart");
}

async fn rules_work(prometheus: &Prometheus) {
    for name in rules::recorded() {
        let recorded = format!("{name}{{job=\"prewarm\", pool=\"steady\"}}");
        until(prometheus, &recorded, |series| series.len() == 1 && series[0].1.is_finite()).await;
    }
    let groups = prometheus.api("rules", &[]).await;
    let groups = list(&groups["groups"]).iter();
    let evaluated: Vec<&Value> = groups.flat_map(|group| list(&group["rules"])).collect();
    assert_eq!(evaluated.len(), rules::all().len());
    for rule in &evaluated {
        assert_eq!(rule["health"], "ok", "{rule:#}");
    }
    let state = |name: &str| evaluated.iter().find(|rule| rule["name"] == name).unwrap()["state"].clone();
    assert_eq!(state("PrewarmDeadLetters"), "firing");
    // The worker has just come; of an older one it would be told.
    assert_eq!(state("PrewarmPoolBroken"), "inactive");
    let rule = rules::all().into_iter().find(|rule| rule.name == "PrewarmPoolBroken").unwrap();
    let young = "> 900";
    assert!(rule.expr().contains(young), "{}", rule.expr());
    let told = until(prometheus, &rule.expr().replace(young, "> 1"), |told| told.len() == 1).await;
    assert_eq!(told[0].0["pool"], "broken");
    for quiet in ["PrewarmBrokerAway", "PrewarmWorkerDown", "PrewarmWorkersAbsent", "PrewarmErrorsBurn"] {
        // A single scrape that took too long makes some of them pending.
        assert_ne!(state(quiet), "firing", "{quiet}");
    }
    let firing = prometheus.api("alerts", &[]).await;
    let firing = list(&firing["alerts"]).iter();
    let told: Vec<&str> = firing
        .filter(|alert| alert["labels"]["alertname"] == "PrewarmDeadLetters")
        .map(|alert| text(&alert["annotations"]["description"]))
        .collect();
    let [told] = told[..] else { panic!("{told:?}") };
    assert!(told.contains("pool one (prewarm)") && told.contains("kind invalid_job"), "{told}");
}
