//! `prewarm plan`: what it prints, what it refuses, and where it takes its figures from.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::Value;

const STATUS: &str = r#"{"worker": "w", "host": {"creations": 3, "containers": 4}, "pools": [
    {"pool": "build", "memory": 2147483648, "idle_max": 4, "idle_min": 1, "sizing": {"target": 4, "reason": "max",
     "rate": 5.0, "burst": 2.0, "warm_seconds": 0.25, "warm_variation": 0.1, "creators": 3.0, "hit_target": 0.98}},
    {"pool": "rare", "sizing": {"rate": 0.0, "burst": 1.0, "warm_seconds": 0.5, "creators": 3.0, "hit_target": 0.99}}]}"#;

fn plan(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_prewarm")).arg("plan").args(args).output().unwrap()
}

/// With no more than 500 MB, and so many seconds of a CPU: other programs that run meanwhile take none of those.
fn bounded(args: &[&str], seconds: u32) -> Output {
    let script = format!(r#"ulimit -v 500000; ulimit -t {seconds}; exec "$0" plan "$@""#);
    Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_prewarm")]).args(args).output().unwrap()
}

fn ends(args: &[&str], code: i32, words: &[&str]) {
    ended(args, bounded(args, 10), code, words);
}

fn ended(args: &[&str], output: Output, code: i32, words: &[&str]) {
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap()).concat();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}: {text}", output.status);
    for word in words {
        assert!(text.contains(word), "{args:?}: '{word}' is not in: {text}");
    }
}

fn json(args: &[&str]) -> Value {
    serde_json::from_slice(&plan(&[args, &["--json"]].concat()).stdout).unwrap()
}

#[test]
fn sizes_are_told_for_the_usual_goals_and_the_one_asked_for() {
    let args = ["--rate", "5", "--warm-time", "250ms", "--hit-target", "0.995", "--memory", "2GiB"];
    ends(
        &args,
        0,
        &[
            "5 jobs/s",
            "250 ms",
            "3 at once",
            "95 %",
            "99 %",
            "99.5 %",
            "99.9 %",
            "At most 12 containers/s",
            "GiB",
        ],
    );
    let found = json(&args);
    let sizes = found[0]["sizes"].as_array().unwrap();
    let goals: Vec<f64> = sizes.iter().map(|s| s["hit_target"].as_f64().unwrap()).collect();
    assert_eq!(goals, [0.95, 0.99, 0.995, 0.999]);
    for size in sizes {
        assert!(size["expected_hit_rate"].as_f64() >= size["hit_target"].as_f64(), "{size}");
        assert_eq!(size["memory"].as_u64(), size["size"].as_u64().map(|n| n << 31), "{size}");
    }
}

#[test]
fn more_creations_at_once_need_fewer_containers() {
    let size = |creators: &str| {
        let found = json(&["--rate", "9", "--warm-time", "250ms", "--creators", creators]);
        found[0]["sizes"][1]["size"].as_u64().unwrap()
    };
    assert!(size("3") > size("4") && size("4") > size("unlimited"));
}

#[test]
fn a_load_that_no_size_sustains_is_said_with_what_would_help() {
    let args = ["--rate", "20", "--warm-time", "250ms"];
    ends(
        &args,
        1,
        &[
            "No size helps",
            "at least 6 creations",
            "less than 150 ms",
            "2 workers",
            "At most 12 containers/s",
        ],
    );
    assert_eq!(json(&args)[0]["sustainable"], false);
    ends(&["--rate", "20", "--warm-time", "250ms", "--creators", "unlimited"], 0, &["without limit"]);
}

#[test]
fn wrong_values_are_answered_with_right_ones() {
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--rate", "0", "--warm-time", "1s"], &["--rate", "above 0"]),
        (&["--rate", "inf", "--warm-time", "1s"], &["--rate", "above 0"]),
        (&["--rate", "1", "--warm-time", "250"], &["--warm-time", "250ms"]),
        (&["--rate", "1", "--warm-time", "1s", "--burst", "0.5"], &["--burst", "at least 1"]),
        (&["--rate", "1", "--warm-time", "1s", "--hit-target", "99"], &["--hit-target", "below 1"]),
        (&["--rate", "1", "--warm-time", "1s", "--creators", "0"], &["--creators", "unlimited"]),
        (&["--rate", "1", "--warm-time", "1s", "--memory", "many"], &["--memory", "2GiB"]),
        (&["--warm-time", "1s"], &["--rate"]),
        (&["--rate", "1", "--from", "x"], &["--rate", "--from"]),
    ];
    for (args, words) in cases {
        ends(args, 2, words);
    }
}

#[test]
fn a_running_worker_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let n = stream.read(&mut request).unwrap();
        assert!(request[..n].starts_with(b"GET /status HTTP/1.0\r\n"));
        write!(stream, "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{STATUS}").unwrap();
    });
    ends(
        &["--from", &url],
        0,
        &["pool build", "98 %", "idle.max = ", "engine.containers", "pool rare", "no job"],
    );
    server.join().unwrap();
}

/// A directory for a test's files, removed at its end.
struct Dir(std::path::PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("prewarm-plan-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_cannot_be_read_is_told() {
    let dir = Dir::new("unread");
    ends(&["--from", &dir.file("good", STATUS), "--hit-target", "0.9"], 0, &["90 %"]);
    let less = STATUS.replace("\"rate\": 5.0, ", "");
    ends(&["--from", &dir.file("less", &less)], 1, &["pools[0].sizing", "rate"]);
    ends(&["--from", &dir.file("none", r#"{"pools": []}"#)], 1, &["no pools"]);
    ends(&["--from", &dir.path("missing")], 1, &["missing"]);
    ends(&["--from", "https://127.0.0.1:1"], 1, &["http://"]);
    ends(&["--from", "HTTPS://127.0.0.1:1"], 1, &["write http://"]);
    ends(&["--from", "http://::1"], 1, &["http://[::1]:9464"]);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    ends(&["--from", &format!("http://{nobody}/status")], 1, &["refused"]);
}

#[test]
fn loads_beyond_what_is_planned_for_are_refused_at_once() {
    let cases: [(&[&str], &[&str]); 12] = [
        (
            &["--rate", "5", "--warm-time", "1s", "--burst", "1e300", "--creators", "unlimited"],
            &["--burst", "at most 10000"],
        ),
        (&["--rate", "5", "--warm-time", "1s", "--burst", "1e17"], &["--burst", "at most 10000"]),
        (&["--rate", "5", "--warm-time", "1s", "--burst=-1"], &["--burst", "at least 1"]),
        (&["--rate", "5", "--warm-time", "1s", "--burst", "nan"], &["--burst", "at least 1"]),
        (&["--rate", "1000001", "--warm-time", "1ms"], &["--rate", "at most 1000000"]),
        (&["--rate", "-1", "--warm-time", "1ms"], &["--rate", "above 0"]),
        (&["--rate", "1", "--warm-time", "999us"], &["--warm-time", "from 1ms to 1h"]),
        (&["--rate", "1", "--warm-time", "61m"], &["--warm-time", "from 1ms to 1h"]),
        (&["--rate", "1", "--warm-time", "1s", "--creators", "1000001"], &["--creators", "at most 1000000"]),
        (&["--rate", "1", "--warm-time", "1s", "--creators", "inf"], &["--creators", "or unlimited"]),
        (
            &["--rate", "1e6", "--warm-time", "1h", "--creators", "unlimited"],
            &["--rate", "--warm-time 1h", "3600000000 creations at once is beyond what is planned for"],
        ),
        (&["--rate", "100001", "--warm-time", "1s"], &["beyond what is planned for"]),
    ];
    for (args, words) in cases {
        ends(args, 2, words);
    }
}

#[test]
fn the_largest_loads_are_answered_soon() {
    for args in [
        &["--rate", "1e6", "--warm-time", "100ms", "--creators", "unlimited"][..],
        &["--rate", "1e6", "--warm-time", "100ms", "--creators", "unlimited", "--burst", "1e4"],
        &[
            "--rate",
            "1e6",
            "--warm-time",
            "100ms",
            "--creators",
            "1e6",
            "--burst",
            "1e4",
            "--hit-target",
            "0.99999999999999",
        ],
        &["--rate", "1e6", "--warm-time", "100ms", "--creators", "100001", "--burst", "1e4"],
        &["--rate", "27.7", "--warm-time", "1h", "--creators", "1e6", "--burst", "1e4"],
        &["--rate", "1e-300", "--warm-time", "1ms", "--creators", "unlimited", "--burst", "1e4"],
    ] {
        ended(args, bounded(args, 5), 0, &["99.9 %"]);
    }
}

#[test]
fn sizes_beyond_a_pool_or_beyond_all_looked_for_are_told() {
    let large = ["--rate", "1e6", "--warm-time", "100ms", "--creators", "unlimited"];
    ends(&large, 0, &["99 % need 100737 containers, and idle.max is at most 10000: have more workers"]);
    let beyond = ["--rate", "11.9999", "--warm-time", "250ms", "--burst", "1e4"];
    ends(&beyond, 0, &[">1e6", "99 % need more than 1000000 containers", "more creations at once"]);
    assert!(json(&beyond)[0]["sizes"][0]["size"].is_null());
    // Nothing is known of creators that are free for a billionth of the time.
    let full = ["--rate", "11.9999999999999", "--warm-time", "250ms", "--burst", "1e4"];
    ends(&full, 1, &["No size helps", "at least 4 creations", "2 workers"]);
}

#[test]
fn figures_of_a_worker_that_cannot_be_are_refused_by_name() {
    let dir = Dir::new("figures");
    for (from, to, field) in [
        ("0.98", "5", "hit_target is 5.0, not a share above 0 and below 1"),
        ("0.98", "0", "hit_target is 0.0"),
        ("0.98", "1.0", "hit_target is 1.0"),
        ("0.25", "0", "warm_seconds is 0.0, not from 0.001 to 3600"),
        ("0.25", "-0.25", "warm_seconds is -0.25"),
        ("0.25", "3601", "warm_seconds is 3601.0"),
        ("5.0", "1000001", "rate is 1000001.0"),
        ("5.0", "-1", "rate is -1.0, not from 0 to 1000000"),
        ("5.0", "1000000", "rate × warm_seconds: 250000 creations at once is beyond"),
        ("2.0", "1e300", "burst is 1e300, not from 0 to 10000"),
        ("0.1", "-0.1", "warm_variation is -0.1"),
        ("3.0, \"hit_target\": 0.98", "0, \"hit_target\": 0.98", "creators is 0.0"),
        ("3.0, \"hit_target\": 0.98", "1e7, \"hit_target\": 0.98", "creators is 10000000.0"),
        ("0.25", "0.25, \"warm_seconds_alone\": 0.5", "warm_seconds_alone is 0.5"),
    ] {
        let file = dir.file("status", &STATUS.replacen(&format!(": {from}"), &format!(": {to}"), 1));
        ends(&["--from", &file], 1, &["pool build: sizing.", field]);
    }
}

#[test]
fn a_pool_without_jobs_yet_is_fine() {
    let dir = Dir::new("new");
    let new = r#"{"pools": [{"pool": "new", "sizing": {"rate": 0.0, "burst": 1.0, "warm_seconds": 0.0,
        "warm_seconds_alone": 0.0, "warm_variation": 1.0, "creators": 0.0, "hit_target": 0.99}}]}"#;
    let file = dir.file("status", new);
    ends(&["--from", &file], 0, &["pool new", "no job has come"]);
    let text = String::from_utf8(plan(&["--from", &file]).stdout).unwrap();
    assert!(!text.contains("inf") && !text.contains("NaN"), "{text}");
    // Its share of the creators may be less than one.
    let share = new.replace("\"rate\": 0.0", "\"rate\": 0.1").replace(": 0.0,", ": 0.5,");
    ends(&["--from", &dir.file("share", &share)], 0, &["0.5 at once", "99 %"]);
}

#[test]
fn names_of_pools_do_not_reach_the_terminal_raw() {
    let dir = Dir::new("names");
    let named = STATUS.replace("\"build\"", "\"a\\u001b[2Jb\\u007fc\\u009bd\"");
    let wrong = named.replace(": 0.98", ": 5");
    let (named, wrong) = (dir.file("named", &named), dir.file("wrong", &wrong));
    for args in [&["--from", &named][..], &["--from", &named, "--json"], &["--from", &wrong]] {
        let output = plan(args);
        let text = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap()).concat();
        assert!(text.contains("[2J"), "{args:?}: {text:?}");
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{args:?}: {text:?}");
    }
    assert_eq!(json(&["--from", &named])[0]["pool"], "a\u{1b}[2Jb\u{7f}c\u{9b}d");
}

/// Answers one request, and hands back the request.
fn serve(listener: TcpListener, answer: Vec<u8>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let n = stream.read(&mut request).unwrap();
        // The other side may have seen enough.
        let _ = stream.write_all(&answer);
        String::from_utf8_lossy(&request[..n]).into_owned()
    })
}

#[test]
fn addresses_are_taken_as_http_has_them() {
    let ok = || format!("HTTP/1.1 200 OK\r\n\r\n{STATUS}").into_bytes();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("HTTP://{}/", listener.local_addr().unwrap());
    let server = serve(listener, ok());
    ends(&["--from", &url], 0, &["pool build"]);
    assert!(server.join().unwrap().starts_with("GET /status HTTP/1.0\r\n"));
    // Not every machine has IPv6.
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = serve(listener, ok());
    ends(&["--from", &url], 0, &["pool build"]);
    assert!(server.join().unwrap().contains(&format!("\r\nHost: {}\r\n", &url[7..])));
    // At port 80, whoever listens there: it is an address in any case.
    let output = plan(&["--from", "http://[::1]"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("invalid") && !text.contains("HOST:PORT"), "{text}");
}

#[test]
fn endless_answers_are_refused() {
    let mut endless = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
    endless.resize(17 << 20, b' ');
    let dir = Dir::new("long");
    let file = dir.file("status", std::str::from_utf8(&endless).unwrap());
    ends(&["--from", &file], 1, &["longer than 16 MiB"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = serve(listener, endless);
    ends(&["--from", &url], 1, &["longer than 16 MiB"]);
    server.join().unwrap();
}

#[test]
fn pools_without_number_are_refused_or_answered_soon() {
    let dir = Dir::new("many");
    let pool = r#"{"pool": "p", "sizing": {"rate": 99999, "burst": 10000, "warm_seconds": 1, "warm_variation": 0,
        "creators": 100001, "hit_target": 0.99}}"#;
    let file = dir.file("status", &format!(r#"{{"pools": [{}]}}"#, vec![pool; 1000].join(",")));
    ends(&["--from", &file], 1, &["more pools"]);
}
