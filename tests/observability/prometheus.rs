//! A Prometheus of the test's own, with the configuration and the rules that operators get, and faster scrapes.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::dashboards::{list, text};
use crate::support::worker::{eventually, http_get};
use crate::{path, read};

pub struct Prometheus {
    server: Child,
    listen: SocketAddr,
    log: std::path::PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Prometheus {
    /// Starts it over these targets, with all its files in `dir`.
    pub async fn start(dir: &Path, workers: &[SocketAddr], broker: SocketAddr) -> Prometheus {
        let targets = workers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let broker = broker.to_string();
        let mut config = read("deploy/prometheus/prometheus.yml");
        for (theirs, ours) in [
            ("scrape_interval: 15s", "scrape_interval: 1s"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
            ("worker-1:9464, worker-2:9464", targets.as_str()),
            ("rabbitmq:15692", broker.as_str()),
        ] {
            assert!(config.contains(theirs), "prometheus.yml has no '{theirs}'");
            config = config.replace(theirs, ours);
        }
        let file = dir.join("prometheus.yml");
        fs::write(&file, config).unwrap();
        std::os::unix::fs::symlink(path("deploy/prometheus/rules"), dir.join("rules")).unwrap();
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = dir.join("prometheus.log");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()));
        command.arg(format!("--web.listen-address={listen}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let server = command
            .spawn()
            .unwrap_or_else(|e| panic!("prometheus (Debian: apt-get install prometheus): {e}"));
        let mut prometheus = Prometheus { server, listen, log };
        eventually("Prometheus is ready", async || {
            let ended = prometheus.server.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {}", fs::read_to_string(&prometheus.log).unwrap());
            prometheus.get("/-/ready").await.filter(|(code, _)| *code == 200)
        })
        .await;
        prometheus
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.listen, path).await
    }

    /// What the API answers, whatever is asked.
    pub async fn api(&self, what: &str, parameters: &[(&str, &str)]) -> Value {
        let pair = |(name, value): &(&str, &str)| format!("{}={}", encoded(name), encoded(value));
        let query = parameters.iter().map(pair).collect::<Vec<_>>().join("&");
        let (_, body) = self.get(&format!("/api/v1/{what}?{query}")).await.expect("Prometheus answers");
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"));
        assert_eq!(answer["status"], "success", "{what} {parameters:?}: {answer}");
        answer["data"].clone()
    }

    /// The series that an expression gives now: their labels, and their values.
    pub async fn query(&self, expr: &str) -> Vec<(Value, f64)> {
        let data = self.api("query", &[("query", expr)]).await;
        let series = |one: &Value| (one["metric"].clone(), text(&one["value"][1]).parse().unwrap());
        list(&data["result"]).iter().map(series).collect()
    }

    /// The only value that an expression gives; none if it gives nothing.
    pub async fn value(&self, expr: &str) -> Option<f64> {
        let mut series = self.query(expr).await;
        assert!(series.len() <= 1, "{expr}: {series:?}");
        series.pop().map(|(_, value)| value)
    }
}

fn encoded(text: &str) -> String {
    let byte = |b: u8| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(byte).collect()
}
