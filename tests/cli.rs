//! The commands, and what they say when something is wrong: each kind of fault its own exit code, and words that tell
//! what to do.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::broker;
use support::docker::{BUSYBOX, Done};
use support::worker::{Setup, Site, prewarm, run};

const LIMIT: Duration = Duration::from_secs(60);

/// Where nobody listens, since whoever did has gone.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A configuration file for commands other than `serve`.
fn file(setup: &Setup<'_>) -> String {
    setup.write(nobody(), &broker::url()).display().to_string()
}

fn call(args: &[&str], change: impl FnOnce(&mut Command)) -> Done {
    let mut command = prewarm();
    command.args(args);
    change(&mut command);
    support::docker::run(&mut command, None, LIMIT)
}

/// All that a command said, for messages.
fn said(done: &Done) -> String {
    format!("{}{}", done.stdout, done.stderr)
}

fn ends(done: &Done, code: i32, words: &[&str]) {
    let text = said(done);
    assert_eq!(done.code, Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn check_finds_everything_good() {
    run(async |site: &Site| {
        let config = file(&site.worker().pool("box", "idle = 1"));
        let done = call(&["-c", &config, "check"], |_| ());
        ends(&done, 0, &[&config, "RabbitMQ 3.", "engine", "pool box", BUSYBOX, "sha256:", "hardened"]);
        assert!(!said(&done).contains("FAULT"), "{}", said(&done));
        let password = broker::url().split(['/', '@']).nth(2).unwrap().to_owned();
        assert!(!said(&done).contains(&password), "the broker's password is shown");
    });
}

#[test]
fn a_wrong_configuration_is_3_with_all_places() {
    run(async |site: &Site| {
        let keys = "idle = { min = 5, max = 2 }\nmemry = \"1GiB\"\nmemory = \"1KiB\"\ntimeout = \"soon\"\nstop_grace = 3";
        let config = file(&site.worker().pool("box", keys).section("[pool.\"a b\"]\nimage = \"x\"\n"));
        let text = std::fs::read_to_string(&config).unwrap();
        let line_of = |needle: &str| text.lines().position(|l| l.contains(needle)).unwrap() + 1;
        for verb in [&["check"][..], &["serve"]] {
            let done = call(&[&["-c", &config], verb].concat(), |_| ());
            let place = |needle: &str| format!("{config}:{}:", line_of(needle));
            let places = ["min = 5", "memry", "memory =", "soon", "stop_grace", "a b"].map(place);
            ends(&done, 3, &places.each_ref().map(String::as_str));
            ends(&done, 3, &["'memry'; did you mean 'memory'?", "6MiB"]);
        }
        // `run` speaks as `docker run` does.
        ends(&call(&["-c", &config, "run", "box"], |_| ()), 125, &["memry"]);
        let missing = site.dir.join("none.toml").display().to_string();
        ends(&call(&["-c", &missing, "check"], |_| ()), 3, &["none.toml"]);
        std::fs::write(&missing, "[pool.box\nimage = 1").unwrap();
        ends(&call(&["-c", &missing, "check"], |_| ()), 3, &["none.toml:1:"]);
        let bare = call(&["check"], |c| {
            c.current_dir(&site.dir);
        });
        ends(&bare, 3, &["--config", "PREWARM_CONFIG", "[pool.build]"]);
        let good = file(&site.worker().pool("box", "idle = 1"));
        let variable = call(&["-c", &good, "check"], |c| {
            c.env("PREWARM_POOL_BOX_MEMORY", "lots");
        });
        ends(&variable, 3, &["PREWARM_POOL_BOX_MEMORY"]);
        let filter = call(&["-c", &good, "check"], |c| {
            c.env("PREWARM_LOG", "x=y=z");
        });
        ends(&filter, 3, &["PREWARM_LOG"]);
        ends(&call(&["frobnicate"], |_| ()), 2, &["frobnicate"]);
    });
}

#[test]
fn a_missing_image_is_6() {
    run(async |site: &Site| {
        let keys = "image = \"prewarm-test/no-such-image:1\"\npull = \"never\"";
        let config = file(&site.worker().pool("box", "idle = 1").pool("broken", keys));
        let done = call(&["-c", &config, "check"], |_| ());
        ends(&done, 6, &["pool broken", "prewarm-test/no-such-image:1", "correct `image`"]);
        assert!(said(&done).contains("ok      pool box"), "the other one is looked at too: {}", said(&done));
        ends(&call(&["-c", &config, "run", "broken"], |_| ()), 125, &["prewarm-test/no-such-image:1"]);
    });
}

#[test]
fn no_broker_is_4() {
    run(async |site: &Site| {
        let setup = site.worker().pool("box", "idle = 1");
        let address = nobody();
        let config =
            setup.write(nobody(), &format!("amqp://guest:hunter2@{address}/%2f")).display().to_string();
        let done = call(&["-c", &config, "check"], |_| ());
        ends(&done, 4, &["broker", &address.to_string()]);
        assert!(
            said(&done).contains("ok      engine") && said(&done).contains("ok      pool box"),
            "{}",
            said(&done)
        );
        assert!(!said(&done).contains("hunter2"), "{}", said(&done));
        let done = call(&["-c", &config, "submit", "box"], |_| ());
        ends(&done, 4, &[&address.to_string()]);
        assert!(!said(&done).contains("hunter2"), "{}", said(&done));

        // One that lets nobody in.
        let url = broker::url().replace("guest:guest@", "guest:wrong@");
        let config = setup.write(nobody(), &url).display().to_string();
        ends(&call(&["-c", &config, "check"], |_| ()), 4, &["broker"]);
        // `run` needs none.
        ends(&call(&["-c", &config, "run", "box", "--", "echo", "no broker"], |_| ()), 0, &["no broker"]);
    });
}

#[test]
fn no_engine_is_5() {
    run(async |site: &Site| {
        let config = file(&site.worker().pool("box", "idle = 1"));
        for host in ["unix:///nonexistent/docker.sock".to_owned(), format!("tcp://{}", nobody())] {
            let with = |c: &mut Command| {
                c.env("DOCKER_HOST", &host);
            };
            ends(&call(&["-c", &config, "check"], with), 5, &["engine", &host, "is it running"]);
            ends(&call(&["-c", &config, "run", "box"], with), 125, &[&host]);
        }
        let odd = call(&["-c", &config, "check"], |c| {
            c.env("DOCKER_HOST", "carrier-pigeon://x");
        });
        ends(&odd, 5, &["engine", "carrier-pigeon"]);
    });
}

/// Says what it is to whoever asks, and nothing else.
fn fake_engine(architecture: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Each for itself: one may be opened and not used.
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                    line.clear();
                }
                let body =
                    format!("{{\"Architecture\":\"{architecture}\",\"ServerVersion\":\"99.0\",\"NCPU\":1}}");
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
                let _ = write!(&stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
            });
        }
    });
    address
}

#[test]
fn an_engine_of_another_architecture_is_refused_with_both_names() {
    run(async |site: &Site| {
        let (other, ours) =
            if cfg!(target_arch = "aarch64") { ("x86_64", "aarch64") } else { ("aarch64", "x86_64") };
        let host = format!("tcp://{}", fake_engine(other));
        let config = file(&site.worker().pool("box", "idle = 1"));
        let with = |c: &mut Command| {
            c.env("DOCKER_HOST", &host);
        };
        ends(&call(&["-c", &config, "check"], with), 5, &[other, ours]);
        ends(&call(&["-c", &config, "run", "box"], with), 125, &[other, ours]);
    });
}

#[test]
fn run_is_docker_run() {
    run(async |site: &Site| {
        let config = file(&site.worker().pool("box", "idle = 1"));
        let done = call(&["-c", &config, "run", "nope"], |_| ());
        ends(&done, 125, &["nope", "box"]);
        let script = "echo out $A; echo err >&2; exit 7";
        let done =
            call(&["-c", &config, "run", "box", "-e", "A=1", "--timings", "--", "sh", "-c", script], |_| ());
        ends(&done, 7, &["START to executing in"]);
        assert_eq!(done.stdout.bytes, b"out 1\n");
        assert!(done.stderr.to_string().contains("err\n"));
        ends(&call(&["-c", &config, "run", "box", "--", "nope"], |_| ()), 127, &["nope"]);
        ends(&call(&["-c", &config, "run", "box", "--", "sh", "-c", "kill -9 $$"], |_| ()), 137, &[]);
    });
}

#[test]
fn run_takes_files_and_saves_artifacts() {
    run(async |site: &Site| {
        let keys = "idle = 1\nfiles = { max = 1 }\nartifacts = { inline = \"1KiB\" }";
        let none = "idle = 1\nartifacts = { max = 0 }";
        let config = file(&site.worker().pool("box", keys).pool("none", none));
        let local = |name: &str| site.dir.join(name);
        std::fs::write(local("input"), b"\xff\0 bytes").unwrap();
        let run = |args: &[&str]| {
            call(&[&["-c", &config, "run"], args].concat(), |command| {
                command.current_dir(&site.dir);
            })
        };
        let script = "cat /data/in; mkdir -p /out && cp /data/in /out/ && : >/out/empty && head -c 3000000 /dev/zero >/out/big; exit 3";
        let job = ["--", "sh", "-c", script];
        let given = ["box", "--file", "input:/data/in", "--artifact", "/out", "--artifact", "nope"];
        let done = run(&[&given[..], &["--artifacts-to", "saved"], &job].concat());
        ends(&done, 3, &["artifact \"nope\" is missing: not_found: there is no such file"]);
        assert_eq!(done.stdout.bytes, b"\xff\0 bytes");
        let read = |name: &str| std::fs::read(local(name)).unwrap();
        assert_eq!((read("saved/out/in"), read("saved/out/empty")), (b"\xff\0 bytes".to_vec(), vec![]));
        assert!(read("saved/out/big") == vec![0; 3_000_000]);
        // Below the current directory if none is named; and what can't be saved isn't success.
        let job = ["--", "sh", "-c", "mkdir /out && echo x >/out/x"];
        ends(&run(&[&["box", "--artifact", "/out/*"][..], &job].concat()), 0, &[]);
        assert_eq!(read("out/x"), b"x\n");
        std::fs::remove_dir_all(local("out")).unwrap();
        std::fs::write(local("out"), "").unwrap();
        ends(
            &run(&[&["box", "--artifact", "/out/*"][..], &job].concat()),
            125,
            &["artifact \"/out/x\" is not saved"],
        );
        // What the pool doesn't allow.
        ends(&run(&["box", "--file", "input:a", "--file", "input:b"]), 125, &["files: 2 files are more"]);
        ends(&run(&["none", "--artifact", "x"]), 125, &["artifacts: pool none returns none"]);
    });
}

#[test]
fn schemas_are_json() {
    for (message, field) in
        [("job", "secrets"), ("started", "startup_ms"), ("log", "offset"), ("result", "timings_ms")]
    {
        let done = call(&["schema", message], |_| ());
        ends(&done, 0, &[]);
        let schema: Value = serde_json::from_slice(&done.stdout.bytes).unwrap();
        assert!(schema["$schema"].as_str().unwrap().contains("2020-12"), "{schema:#}");
        assert!(schema["properties"].get(field).is_some(), "{schema:#}");
    }
}

#[test]
fn submit() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 3\nconcurrency = 3").ready().await;
        let config = worker.config.display().to_string();

        let done = call(&["-c", &config, "submit", "nope"], |_| ());
        ends(&done, 4, &["no queue for pool 'nope'", "[pool.nope]"]);

        let script = "echo \"out $A\"; printf 'err é' >&2; exit 42";
        let follow = ["-c", &config, "submit", "box", "--follow", "-e", "A=x y", "--", "sh", "-c", script];
        let done = call(&follow, |_| ());
        ends(&done, 42, &[]);
        assert_eq!(done.stdout.bytes, b"out x y\n");
        assert_eq!(done.stderr.to_string(), "err é");
        let signalled = ["-c", &config, "submit", "box", "--follow", "--", "sh", "-c", "kill -11 $$"];
        ends(&call(&signalled, |_| ()), 139, &[]);
        ends(&call(&["-c", &config, "submit", "box", "--follow", "--", "nope"], |_| ()), 127, &["nope"]);
        let slow = ["-c", &config, "submit", "box", "--follow", "--timeout", "300ms", "--", "sleep", "1000"];
        ends(&call(&slow, |_| ()), 143, &["timeout of 300ms"]);
        let refused = ["-c", &config, "submit", "box", "--follow", "--timeout", "30d"];
        ends(&call(&refused, |_| ()), 125, &["timeout", "1day"]);

        // What comes in goes to the job, and what is binary comes out as it was.
        let mut cat = prewarm();
        cat.args([
            "-c",
            &config,
            "submit",
            "box",
            "--follow",
            "-i",
            "--",
            "sh",
            "-c",
            "cat; printf '\\377\\000'",
        ]);
        let done = support::docker::run(&mut cat, Some("höre\n".as_bytes()), LIMIT);
        ends(&done, 0, &[]);
        assert_eq!(done.stdout.bytes, ["höre\n".as_bytes(), &[0xff, 0]].concat());

        let done = call(&["-c", &config, "submit", "box", "--count", "5", "--", "echo", "hello"], |_| ());
        ends(&done, 0, &["5 jobs, 5 succeeded", "p50", "p99"]);
        let lines: Vec<String> = done.stdout.to_string().lines().map(str::to_owned).collect();
        assert_eq!(
            lines
                .iter()
                .filter(|l| l.starts_with('#') && l.contains("exit 0") && l.contains("hello"))
                .count(),
            5
        );
        let done = call(&["-c", &config, "submit", "box", "--count", "2", "--", "false"], |_| ());
        ends(&done, 1, &["2 jobs, 0 succeeded"]);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn two_workers_can_t_listen_on_one_port() {
    run(async |site: &Site| {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let config =
            site.worker().pool("box", "idle = 1").write(address, &broker::url()).display().to_string();
        let mut serve = prewarm();
        serve.args(["-c", &config, "serve"]).stdin(Stdio::null());
        let done = support::docker::run(&mut serve, None, LIMIT);
        ends(&done, 1, &["http.listen", &address.to_string()]);
    });
}
