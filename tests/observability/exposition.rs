//! What a worker says at `/metrics`, read from its text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::LazyLock;

use crate::support::docker::{PATIENCE, eventually, unique};
use crate::support::worker::prewarm;

/// Names to what is known of them.
pub type Families = BTreeMap<String, Family>;

#[derive(Debug, Default)]
pub struct Family {
    /// `counter`, `gauge`, `histogram`.
    pub kind: String,
    pub help: String,
    /// The values of each label, but for a histogram's bounds.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

/// Those of a worker that has two pools and neither engine nor broker: every series is there from the start.
pub static FAMILIES: LazyLock<Families> = LazyLock::new(|| parse(&of_a_new_worker()));

/// The family that a series is of, and whether it only ever grows.
pub fn family(series: &str) -> Option<(&'static str, bool)> {
    let of = |name: &str| FAMILIES.get_key_value(name);
    if let Some((name, family)) = of(series).filter(|(_, family)| family.kind != "histogram") {
        return Some((name.as_str(), family.kind == "counter"));
    }
    let histogram = ["_bucket", "_count", "_sum"].iter().find_map(|end| of(series.strip_suffix(end)?))?;
    (histogram.1.kind == "histogram").then_some((histogram.0.as_str(), true))
}

pub fn parse(text: &str) -> Families {
    let mut families = Families::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            current = name.to_owned();
            families.entry(current.clone()).or_default().kind = kind.to_owned();
        } else if let Some((_, labels)) = line.split_once('{') {
            let labels = &labels[..labels.rfind('}').unwrap()];
            let family = families.get_mut(&current).unwrap();
            // Our labels are names of pools, closed enums and a version: no comma, no quote.
            for (name, value) in labels.split(',').map(|label| label.split_once('=').unwrap()) {
                if name != "le" {
                    let values = family.labels.entry(name.to_owned()).or_default();
                    values.insert(value.trim_matches('"').to_owned());
                }
            }
        }
    }
    families
}

/// A worker, and its files; both go with this.
struct Lonely {
    child: Child,
    dir: std::path::PathBuf,
}

impl Drop for Lonely {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn of_a_new_worker() -> String {
    let dir = std::env::temp_dir().join(unique("metrics"));
    fs::create_dir(&dir).unwrap();
    // Both held until they are known to differ. Nobody listens where broker and engine should be.
    let [listen, nobody] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [listen, nobody] = [listen, nobody].map(|listener| listener.local_addr().unwrap());
    let config = format!(
        "broker.url = \"amqp://{nobody}/%2f\"\nhttp.listen = \"{listen}\"\nengine.host = \"tcp://{nobody}\"\n\
         worker.runtime_dir = {dir:?}\n[pool.one]\nimage = \"none\"\n[pool.two]\nimage = \"none\"\n"
    );
    fs::write(dir.join("prewarm.toml"), config).unwrap();
    let log = dir.join("log");
    let mut command = prewarm();
    command.arg("--config").arg(dir.join("prewarm.toml")).arg("serve");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
    let worker = Lonely { child: command.spawn().unwrap(), dir };
    let mut text = String::new();
    let ask = || -> Option<String> {
        let mut stream = TcpStream::connect(listen).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    };
    let up = eventually(PATIENCE, || {
        ask().is_some_and(|answer| {
            text = answer;
            true
        })
    });
    assert!(up, "no /metrics: {}", fs::read_to_string(&log).unwrap());
    drop(worker);
    text
}
