//! Isolation `namespace`: jobs that come one after the other in the same container, over the real broker and engine.
//!
//! What one can leave behind, the next one must not find (`leaks`); none may get further out than a job of `docker run`
//! (`escapes`); and after jobs that end badly the container is as new, or is replaced (`endings`). The image's programs
//! `traces` and `escape` do what is tried, and say what they found.
//!
//! Needs the servers and images of `deploy/test.sh`.

mod endings;
mod escapes;
mod leaks;
#[path = "../support/mod.rs"]
mod support;

use std::fmt::Write as _;

use serde_json::{Value, json};
use support::broker::{Attempt, Job};
use support::worker::{Site, Worker};

/// busybox, with `traces` and `escape`, and a VOLUME at /data.
const IMAGE: &str = "prewarm-test/isolation";

/// Keys of a pool with one container, which serves one job after the other.
fn one_container(keys: &str) -> String {
    format!(
        "image = \"{IMAGE}\"\npull = \"never\"\nisolation = \"namespace\"\nidle = {{ min = 1, max = 1 }}\n\
         concurrency = 1\n{keys}"
    )
}

/// Capabilities that a pool may ask for beside the default ones; but for SYS_RESOURCE, which engines that are in a
/// container themselves often don't have to give.
const ALLOWED: [&str; 6] = ["IPC_LOCK", "IPC_OWNER", "LEASE", "NET_BROADCAST", "SYS_NICE", "SYS_PTRACE"];

/// The kinds of pools that tests go through: a name, keys, and the same to `docker run`.
fn kinds() -> Vec<(&'static str, String, Vec<String>)> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let allowed = ALLOWED.map(|name| format!("\"{name}\"")).join(", ");
    let added = ALLOWED.map(|name| format!("--cap-add {name}")).join(" ");
    let hardened = "--cap-drop ALL --security-opt no-new-privileges --pids-limit 512";
    vec![
        ("root", String::new(), Vec::new()),
        ("user", "user = \"app\"".into(), words("--user app")),
        ("bridge", "network = \"bridge\"".into(), words("--network bridge")),
        ("capable", format!("cap_add = [{allowed}]"), words(&added)),
        ("hardened", "security = \"hardened\"".into(), words(hardened)),
        (
            "read-only",
            "read_only = true\ntmpfs = { \"/tmp\" = \"\" }".into(),
            words("--read-only --tmpfs /tmp"),
        ),
    ]
}

/// A worker with such pools.
struct Ground<'a> {
    site: &'a Site,
    worker: Worker,
}

impl Ground<'_> {
    /// Runs a job in a container that was idle. (One that has to wait for it may have caused the creation of another.)
    async fn run(&self, pool: &str, job: Value) -> Attempt {
        self.worker.until_full().await;
        self.site.broker.run(pool, Job::new(job)).await
    }

    /// Runs a program of the image's.
    async fn program(&self, pool: &str, args: &[&str]) -> Attempt {
        self.run(pool, json!({"args": args, "env": {"VERBOSE": "1"}})).await.succeeded()
    }

    async fn inventory(&self, pool: &str) -> Inventory {
        let attempt = self.run(pool, json!({"args": ["traces", "inventory"]})).await.succeeded();
        Inventory { text: text(&attempt), container: attempt.result["container"].clone() }
    }

    async fn stop(self) {
        assert!(self.worker.stop().await.success());
    }
}

fn text(attempt: &Attempt) -> String {
    String::from_utf8_lossy(&attempt.stdout).into_owned()
}

/// What a job found, and where.
struct Inventory {
    text: String,
    container: Value,
}

impl Inventory {
    /// Panics with the lines that differ, if there are any but those that may.
    fn must_be(&self, first: &Inventory, what: &str) {
        assert_eq!(self.container, first.container, "{what}: the container serves again");
        self.must_look_like(first, what);
    }

    /// The same, whatever the container.
    fn must_look_like(&self, first: &Inventory, what: &str) {
        let different = different(&first.lines(), &self.lines());
        assert!(different.is_empty(), "{what}:\n{different}");
    }

    fn lines(&self) -> Vec<String> {
        self.text.lines().filter_map(comparable).collect()
    }
}

/// A line, without what jobs of one container have in common, or what says nothing of other jobs.
fn comparable(line: &str) -> Option<String> {
    let word = line.split_whitespace().next().unwrap_or_default();
    // Memory, signals queued on the whole machine, and how often it was interrupted are the process's own affair.
    let usage = [" Vm", " Rss", " SigQ"].iter().any(|name| line.starts_with(name));
    // The scheduler numbers sessions.
    if let Some(rest) = line.strip_prefix(" /autogroup-") {
        return Some(format!("autogroup{}", rest.trim_start_matches(|c: char| c.is_ascii_digit())));
    }
    // The network is the container's: a connection that is closed waits a minute for packets that are late. It belongs
    // to nobody any more, and nothing of its content is left.
    let waits = word == "TIME_WAIT";
    // So is its knowledge of who is where on the wire.
    let neighbour = line.contains(" 0x1 0x");
    // One entry for each file system that is mounted on the machine.
    let machine = line.contains("/bdi/") || line.contains("/kernel/slab/");
    (!usage && !word.ends_with("_ctxt_switches:") && !waits && !neighbour && !machine)
        .then(|| line.to_owned())
}

/// What is only in the one list, and what is only in the other.
fn different(before: &[String], after: &[String]) -> String {
    let mut all = String::new();
    for (sign, these, those) in [('-', before, after), ('+', after, before)] {
        let mut those: Vec<&String> = those.iter().collect();
        those.sort_unstable();
        for line in these.iter().filter(|line| those.binary_search(line).is_err()) {
            writeln!(all, "{sign} {line}").unwrap();
        }
    }
    all
}
