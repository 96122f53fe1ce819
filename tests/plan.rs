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

fn ends(args: &[&str], code: i32, words: &[&str]) {
    let output = plan(args);
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap()).concat();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
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

#[test]
fn what_cannot_be_read_is_told() {
    let dir = std::env::temp_dir().join(format!("prewarm-plan-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    ends(&["--from", &file("good", STATUS), "--hit-target", "0.9"], 0, &["90 %"]);
    ends(&["--from", &file("less", &STATUS.replace("\"rate\": 5.0, ", ""))], 1, &["pools[0].sizing", "rate"]);
    ends(&["--from", &file("none", r#"{"pools": []}"#)], 1, &["no pools"]);
    ends(&["--from", &dir.join("missing").display().to_string()], 1, &["missing"]);
    ends(&["--from", "https://127.0.0.1:1"], 1, &["http://"]);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    ends(&["--from", &format!("http://{nobody}/status")], 1, &["refused"]);
    std::fs::remove_dir_all(&dir).unwrap();
}
