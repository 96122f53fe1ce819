//! `prewarm bench`: what it measures, what it refuses, and that it leaves nothing behind however it ends.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::broker;
use support::docker::{BUSYBOX, Done, Image, containers, unique};
use support::worker::{Setup, Site, eventually, prewarm, run, signal};

const LIMIT: Duration = Duration::from_secs(300);

/// An image whose containers can be told from all others: they have its label.
struct Marked {
    image: Image,
    label: String,
}

impl Marked {
    fn new() -> Marked {
        let label = format!("prewarm-test.bench={}", unique("mark"));
        let image = Image::build(&format!("FROM {BUSYBOX}\nLABEL {label}\n"));
        Marked { image, label }
    }

    fn containers(&self) -> Vec<String> {
        containers(&self.label)
    }
}

fn bench(args: &[&str]) -> Command {
    let mut command = prewarm();
    command.arg("bench").args(args);
    command
}

fn call(args: &[&str]) -> Done {
    support::docker::run(&mut bench(args), None, LIMIT)
}

fn ends(done: &Done, code: i32, words: &[&str]) {
    let text = format!("{}{}", done.stdout, done.stderr);
    assert_eq!(done.code, Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

fn report(done: Done) -> Value {
    let text = done.stderr.to_string();
    let json = done.ok(&text);
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"))
}

fn of<'a>(list: &'a Value, way: &str) -> Vec<&'a Value> {
    list.as_array().unwrap().iter().filter(|one| one["way"] == way).collect()
}

fn p50(report: &Value, way: &str, step: &str) -> f64 {
    of(&report["latency"], way)[0]["steps_ms"][step]["p50"].as_f64().unwrap()
}

/// Whether every way has what belongs to it.
fn check(report: &Value, ways: &[(&str, &[&str])], at_once: &[u64], jobs: u64) {
    let found: Vec<&str> =
        report["latency"].as_array().unwrap().iter().map(|one| one["way"].as_str().unwrap()).collect();
    assert_eq!(found, ways.iter().map(|(way, _)| *way).collect::<Vec<_>>());
    for (way, steps) in ways {
        let latency = of(&report["latency"], way)[0];
        assert!((1..=jobs).contains(&latency["jobs"].as_u64().unwrap()), "{latency}");
        assert_eq!(latency["failed"], 0, "{latency}");
        assert!(!latency["from"].as_str().unwrap().is_empty());
        let of_steps = latency["steps_ms"].as_object().unwrap();
        let mut expected = steps.to_vec();
        expected.sort_unstable();
        assert_eq!(of_steps.keys().collect::<Vec<_>>(), expected, "{way}");
        let mut before = 0.0;
        for step in *steps {
            let one = &of_steps[*step];
            let quantiles = ["p50", "p95", "p99", "max"].map(|q| one[q].as_f64().unwrap());
            assert!(quantiles.is_sorted() && quantiles[0] > 0.0, "{one}");
            assert!(quantiles[0] >= before, "{way}: {step} comes after: {latency}");
            before = quantiles[0];
            assert!(!one["to"].as_str().unwrap().is_empty());
        }
        let throughput = of(&report["throughput"], way);
        assert_eq!(
            throughput.iter().map(|one| one["at_once"].as_u64().unwrap()).collect::<Vec<_>>(),
            at_once
        );
        assert!(throughput.iter().all(|one| one["jobs_per_second"].as_f64() > Some(0.0)), "{throughput:?}");
    }
}

#[test]
fn an_image_s_ways_are_compared_and_nothing_is_left() {
    run(async |site: &Site| {
        let marked = Marked::new();
        let plot = site.dir.join("bench.svg").display().to_string();
        let name = marked.image.name();
        let done = call(&[
            name,
            "--jobs",
            "5",
            "--at-once",
            "1,2",
            "--seconds",
            "40",
            "--rate",
            "10",
            "--json",
            "--plot",
            &plot,
            "--",
            "echo",
            "x",
        ]);
        assert!(done.stderr.to_string().contains("latency, one job at a time"), "{}", done.stderr);
        let report = report(done);
        assert_eq!(marked.containers(), [""; 0]);
        let prewarm = ["executing", "first_output", "exit"];
        let ways = [
            ("run", &["first_output", "exit", "removed"][..]),
            ("exec", &["first_output", "exit"]),
            ("container", &prewarm),
            ("namespace", &prewarm),
            ("fork", &prewarm),
        ];
        check(&report, &ways, &[1, 2], 5);
        assert!(p50(&report, "container", "exit") < p50(&report, "run", "exit"), "{report:#}");
        assert_eq!((&report["image"], &report["command"]), (&name.into(), &serde_json::json!(["echo", "x"])));
        assert!(p50(&report, "namespace", "exit") < p50(&report, "exec", "exit"), "{report:#}");
        assert_eq!(of(&report["hits"], "namespace").len(), 1);
        let hits = of(&report["hits"], "container")[0];
        assert!(hits["hit_rate"].as_f64() <= Some(1.0) && hits["rate"] == 10.0, "{hits}");
        let ratios = of(&report["ratios"], "container");
        assert!(
            ratios.iter().any(|r| r["than"] == "run" && r["of"] == "exit" && r["times"].as_f64() > Some(1.0))
        );
        let picture = std::fs::read_to_string(&plot).unwrap();
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
        assert_eq!(picture.matches("class=\"bar\"").count(), report["throughput"].as_array().unwrap().len());
    });
}

/// A configuration file with one pool of an image.
fn config(setup: Setup<'_>, image: &str) -> String {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let setup =
        setup.pool("box", &format!("image = \"{image}\"\nnetwork = \"none\"\nenv = {{ A = \"pool\" }}"));
    setup.write(nobody, &broker::url()).display().to_string()
}

#[test]
fn a_configured_pool_is_measured_as_it_is_configured() {
    run(async |site: &Site| {
        let marked = Marked::new();
        let config = config(site.worker(), marked.image.name());
        // It fails unless it has the pool's variable and the job's, and no network but its own.
        let script = "test \"$A $B\" = 'pool job' && test $(ls /sys/class/net | wc -l) = 1 && echo all well";
        let args = ["-c", &config, "--pool", "box", "-e", "B=job", "--jobs", "2", "--seconds", "15"];
        let parts =
            ["--parts", "latency", "--ways", "run,exec,container,namespace", "--", "sh", "-c", script];
        let done = call(&[&args[..], &parts].concat());
        let words = [
            "pool box, image",
            "docker run",
            "docker exec",
            "prewarm container",
            "Times as fast",
            "What is measured",
        ];
        ends(&done, 0, &words);
        let text = done.stdout.to_string();
        assert!(!text.contains("did not exit with 0") && !text.contains("Jobs/s"), "{text}");
        assert_eq!(marked.containers(), [""; 0]);
    });
}

/// A bench that is running, and what it says.
struct Running {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(args: &[&str]) -> Running {
        let mut command = bench(args);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        Running { child, said }
    }

    /// Waits until it says this.
    fn until(&mut self, word: &str) {
        let mut all = String::new();
        let mut line = String::new();
        while self.said.read_line(&mut line).unwrap() > 0 {
            if line.contains(word) {
                return;
            }
            all += &std::mem::take(&mut line);
        }
        panic!("it never said '{word}': {all}");
    }

    /// As Ctrl-C does; gives what it said after that.
    fn interrupt(mut self) -> (ExitStatus, String) {
        signal("INT", self.child.id());
        let begun = Instant::now();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.said, &mut rest).unwrap();
        let status = support::docker::wait(&mut self.child, LIMIT).expect("it ends");
        println!("interrupted: over after {:?}", begun.elapsed());
        (status, rest)
    }
}

#[test]
fn a_ctrl_c_at_any_time_leaves_nothing() {
    run(async |_: &Site| {
        let marked = Marked::new();
        let name = marked.image.name();
        let usual =
            [name, "--jobs", "2", "--at-once", "2", "--seconds", "12", "--rate", "30", "--", "echo", "x"];
        let endless = [name, "--ways", "run,container", "--", "sleep", "1000"];
        let cases: [(&[&str], &str); 5] = [
            (&usual, "setting up"),
            (&endless, "warming up"),
            (&usual, "latency"),
            (&usual, "throughput, 2 at once: prewarm container"),
            (&usual, "hit rate"),
        ];
        for (args, when) in cases {
            let mut bench = Running::start(args);
            bench.until(when);
            if args == endless {
                let up = async || (!marked.containers().is_empty()).then_some(());
                eventually("a container is up", up).await;
            }
            // Somewhere in what it is about.
            tokio::time::sleep(Duration::from_millis(150)).await;
            let (status, said) = bench.interrupt();
            assert_eq!(status.code(), Some(130), "{when}: {said}");
            assert!(said.contains("interrupted; all that was made is removed"), "{when}: {said}");
            assert_eq!(marked.containers(), [""; 0], "{when}");
        }
    });
}

#[test]
fn jobs_by_the_broker_are_measured_to_their_results() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 2\nconcurrency = 2").full().await;
        let file = worker.config.display().to_string();
        let by_broker = ["-c", &file, "--pool", "box", "--broker"];
        let call_with = |more: &[&str]| call(&[&by_broker[..], more].concat());
        let done = call_with(&[
            "--jobs",
            "5",
            "--at-once",
            "1,2",
            "--seconds",
            "15",
            "--rate",
            "10",
            "--json",
            "--",
            "echo",
            "x",
        ]);
        let report = report(done);
        check(&report, &[("broker", &["executing", "first_output", "exit"])], &[1, 2], 5);
        assert_eq!((&report["pool"], report.get("engine")), (&"box".into(), None));
        assert_eq!(of(&report["hits"], "broker").len(), 1);

        // What runs when it is interrupted is cancelled, and its result has come before the queue for it is gone.
        let mut bench = Running::start(&[&by_broker[..], &["--", "sleep", "1000"]].concat());
        bench.until("warming up");
        worker.until_one(async |pool| pool["leased"] == 1).await;
        let (status, said) = bench.interrupt();
        assert_eq!(status.code(), Some(130), "{said}");
        worker.until_one(async |pool| pool["leased"] == 0).await;
        ends(&call_with(&["--parts", "latency", "--", "no-such-command"]), 0, &["5", "did not exit with 0"]);
        for queue in [site.broker.pool_queue("box"), site.broker.results(), site.broker.dead()] {
            assert_eq!(site.broker.ready(&queue).await, 0, "{queue}");
        }

        let other = ["-c", &file, "--pool", "nope", "--broker"];
        ends(&call(&other), 4, &["no queue for pool 'nope'"]);
        assert!(worker.stop().await.success());
        ends(&call_with(&[]), 4, &["no worker takes jobs of pool 'box'", "prewarm serve"]);
        assert_eq!(site.broker.ready(&site.broker.pool_queue("box")).await, 0, "nothing was published");
    });
}

#[test]
fn what_can_not_be_measured_is_told_with_what_to_do() {
    run(async |site: &Site| {
        let marked = Marked::new();
        let name = marked.image.name();
        let config = config(site.worker(), name);
        ends(&call(&[]), 2, &["IMAGE", "--pool"]);
        ends(&call(&[name, "--pool", "box"]), 2, &["--pool"]);
        ends(&call(&["../images/x"]), 2, &["../images/x", "acme/build:7"]);
        ends(&call(&[name, "--broker"]), 2, &["--pool"]);
        ends(&call(&[name, "--ways", "broker"]), 2, &["--pool"]);
        ends(&call(&[name, "--ways", "walk"]), 2, &["walk", "container"]);
        ends(&call(&[name, "--at-once", "0"]), 2, &["1 to 1000"]);
        ends(&call(&[name, "--rate", "-1"]), 2, &["--rate", "0.01 to 10000"]);
        ends(&call(&["-c", &config, "--pool", "nope"]), 3, &["no pool 'nope'", "box"]);
        ends(&call(&["prewarm-test/no-such-image:1"]), 6, &["prewarm-test/no-such-image:1"]);
        ends(
            &call(&[name, "--ways", "fork", "--", "no-such-command"]),
            1,
            &["this host has no no-such-command"],
        );
        ends(
            &call(&[name, "--ways", "container", "--", "no-such-command"]),
            1,
            &["prewarm container", "no-such-command"],
        );
        let open = site.dir.join("open.toml").display().to_string();
        std::fs::write(&open, format!("[pool.box]\nimage = \"{name}\"\nnetwork = \"host\"\n")).unwrap();
        let of_host = ["-c", &open, "--pool", "box", "--ways", "namespace"];
        ends(&call(&of_host), 1, &["prewarm namespace is left out: network:", "host"]);
        let mut nowhere = bench(&[name]);
        nowhere.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        ends(&support::docker::run(&mut nowhere, None, LIMIT), 5, &["unix:///nonexistent/docker.sock"]);
        // A command that may be meant for the inside of a container runs on the host for no one who didn't ask for it.
        let here = site.dir.join("touched").display().to_string();
        let done = call(&[name, "--jobs", "1", "--parts", "latency", "--seconds", "9", "--", "touch", &here]);
        ends(&done, 0, &["prewarm container"]);
        assert!(!std::path::Path::new(&here).exists());
        assert_eq!(marked.containers(), [""; 0]);
    });
}
