//! The programs of `tests/publishers/README.md`, taken out of it and run as they stand there, against a real worker.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use serde_json::{Value, json};

use support::docker::{self, Done};
use support::worker::{Site, eventually, run, signal};

const README: &str = include_str!("publishers/README.md");
const LIMIT: Duration = Duration::from_secs(60);

/// The text of the program with this name: what is between its fence and the next.
fn program(name: &str) -> &'static str {
    let (_, rest) = README.split_once(&format!(" {name}\n")).unwrap_or_else(|| panic!("no program {name}"));
    rest.split_once("\n```\n").unwrap().0
}

/// A folder with the pinned clients; installed if they aren't.
fn clients() -> &'static Path {
    static CLIENTS: OnceLock<PathBuf> = OnceLock::new();
    CLIENTS.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/lib/publishers.sh");
        let made = docker::run(&mut Command::new(script), None, Duration::from_secs(300));
        made.ok("deploy/lib/publishers.sh").trim().into()
    })
}

/// Puts a program into the test's folder.
fn write(site: &Site, name: &str) -> String {
    let path = site.dir.join(name);
    std::fs::write(&path, format!("{}\n", program(name))).unwrap();
    path.display().to_string()
}

fn python(site: &Site, name: &str) -> Vec<String> {
    vec![clients().join("venv/bin/python").display().to_string(), write(site, name)]
}

/// A command with the worker's broker and prefix.
fn command(site: &Site, line: &[String], args: &[&str]) -> Command {
    // Ctrl-C means something to them even where whoever runs the tests ignores it, as a shell's background does.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").args(line).args(args).current_dir(&site.dir);
    command.env("PREWARM_BROKER_URL", support::broker::url()).env("PREWARM_BROKER_PREFIX", &site.name);
    command.env("NODE_PATH", clients().join("node_modules")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

const SCRIPT: &str = r#"echo "hello $WHO"; printf 'h\303\266re \377\000'; echo err >&2; exit 7"#;
const POLITE: &str = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done";

fn follows(site: &Site, line: &[String]) -> Done {
    let done = docker::run(&mut command(site, line, &["build", "sh", "-c", SCRIPT]), None, LIMIT);
    assert_eq!(done.code, Some(7), "{done:?}");
    assert_eq!(done.stdout.bytes, b"hello world\nh\xc3\xb6re \xff\x00", "{done:?}");
    done
}

fn is_refused(site: &Site, line: &[String]) {
    let done = docker::run(&mut command(site, line, &["nope", "true"]), None, LIMIT);
    assert_eq!(done.code, Some(1), "a pool that nobody serves: {done:?}");
}

/// Ctrl-C, once the job has printed something.
fn cancels(site: &Site, line: &[String]) {
    let mut command = command(site, line, &["build", "sh", "-c", POLITE]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let (mut first, mut rest) = (String::new(), String::new());
    stdout.read_line(&mut first).unwrap();
    assert_eq!(first, "up\n");
    signal("INT", child.id());
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("bye\n", Some(9)));
}

/// A worker with a pool `build`, and a program that does all that it has to.
fn all_of(line: impl Fn(&Site) -> Vec<String>) {
    run(async |site: &Site| {
        let worker =
            site.worker().pool("build", "idle = 1\nconcurrency = 1\nstop_grace = \"10s\"").ready().await;
        let line = line(site);
        assert_eq!(follows(site, &line).stderr.to_string(), "err\n");
        is_refused(site, &line);
        cancels(site, &line);
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.results()).await, 0);
    });
}

#[test]
fn pika() {
    all_of(|site| python(site, "follow_pika.py"));
}

#[test]
fn aio_pika() {
    all_of(|site| python(site, "follow_aio_pika.py"));
}

#[test]
fn node_amqplib() {
    all_of(|site| vec!["node".to_owned(), write(site, "follow.js")]);
}

/// The program is built as an example of this package; here it is seen that it is the one in the text.
#[test]
fn rust_lapin() {
    assert_eq!(format!("{}\n", program("follow.rs")), include_str!("publishers/follow.rs"));
    all_of(|_| {
        let built = Path::new(env!("CARGO_BIN_EXE_prewarm")).with_file_name("examples").join("follow");
        assert!(built.exists(), "{} is missing: cargo build --example follow", built.display());
        vec![built.display().to_string()]
    });
}

/// Neither confirms nor cancellation: what `amqp-publish` can't do.
#[test]
fn shell_amqp_tools() {
    run(async |site: &Site| {
        let worker = site.worker().pool("build", "idle = 1\nconcurrency = 1").ready().await;
        let done = follows(site, &["sh".to_owned(), write(site, "follow.sh")]);
        let err = done.stderr.to_string();
        assert!(err.starts_with("job ") && err.ends_with("\nerr\n"), "{err}");
        assert!(worker.stop().await.success());
    });
}

#[test]
fn celery() {
    run(async |site: &Site| {
        let worker = site.worker().pool("build", "idle = 1\nconcurrency = 1").ready().await;
        write(site, "tasks.py");
        let celery = [clients().join("venv/bin/celery").display().to_string()];
        let args = "-A tasks worker --concurrency 1 --without-gossip --without-mingle --without-heartbeat";
        let args: Vec<&str> = args.split(' ').collect();
        let log = std::fs::File::create(site.dir.join("celery.log")).unwrap();
        let mut tasks = command(site, &celery, &args);
        let tasks = tasks.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut tasks = KilledAtTheEnd(tasks);

        let call = python(site, "call_task.py");
        let done =
            docker::run(&mut command(site, &call, &["sh", "-c", "echo \"hello $WHO\"; exit 7"]), None, LIMIT);
        let result: Value = serde_json::from_str(&done.ok("call_task.py")).unwrap();
        assert_eq!(result, json!({"status": "failed", "exit_code": 7, "stdout": "hello world\n"}));

        let mut polite = command(site, &call, &["sh", "-c", POLITE]);
        let polite =
            polite.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("the job runs", async || {
            (worker.status().await["jobs"].as_array()?.len() == 1).then_some(())
        })
        .await;
        signal("INT", polite.id());
        let polite = polite.wait_with_output().unwrap();
        let err = String::from_utf8(polite.stderr).unwrap();
        assert_eq!((polite.status.code(), err.as_str()), (Some(1), "revoked\n"));
        eventually("the job is cancelled", async || {
            let cancelled = [("pool", "build"), ("status", "cancelled")];
            (worker.metrics().await.get("prewarm_jobs_total", &cancelled) == 1.0).then_some(())
        })
        .await;

        signal("TERM", tasks.0.id());
        eventually("Celery ends", async || tasks.0.try_wait().unwrap()).await;
        // What Celery declares for its tasks, and for asking its workers.
        let queue = format!("{}-celery", site.name);
        let channel = &site.broker.channel;
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        for exchange in [queue.clone(), format!("{queue}.pidbox"), format!("reply.{queue}.pidbox")] {
            channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        assert!(worker.stop().await.success());
    });
}

struct KilledAtTheEnd(Child);

impl Drop for KilledAtTheEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
