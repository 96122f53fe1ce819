//! `prewarm simulate` as it is called: needs no broker and no engine.

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::support::docker::unique;
use crate::support::worker::prewarm;

fn simulate(arguments: &str) -> Output {
    prewarm().arg("simulate").args(arguments.split_whitespace()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(arguments: &str) -> Value {
    let done = simulate(&format!("--json {arguments}"));
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

const SMALL: &str = "--workers 2 --rate 6 --warm-time 250ms --time 2m";

#[test]
fn the_table_and_json_say_the_same_and_a_seed_fixes_both() {
    let table = text(&simulate(SMALL).stdout);
    assert_eq!(text(&simulate(SMALL).stdout), table);
    let found = json(SMALL);
    assert_eq!(json(SMALL), found);
    assert_ne!(json(&format!("{SMALL} --seed 2"))["jobs"], found["jobs"]);
    let jobs = found["jobs"].as_u64().unwrap();
    assert!((600..840).contains(&jobs), "{jobs}");
    assert_eq!((&found["lost"], &found["finished"]), (&0.into(), &found["jobs"]));
    assert!(table.contains(&format!("{jobs} jobs, ")) && table.contains("0 lost"), "{table}");
    assert_eq!((&found["broker"]["connections"], &found["broker"]["channels"]), (&4.into(), &18.into()));
    let hits = found["hit_rate"].as_f64().unwrap();
    let said = table.lines().find_map(|line| line.trim().strip_suffix(" % hits")).expect("the hit rate");
    let said = said.parse::<f64>().unwrap() / 100.0;
    assert!(said <= hits && hits - said < 1e-4, "{hits} {table}");
}

#[test]
fn what_is_too_little_is_said() {
    for (arguments, said) in [
        (
            "--workers 1 --rate 20 --warm-time 250ms --concurrency 100 --time 1m",
            "What is short is containers",
        ),
        ("--workers 1 --rate 20 --warm-time 250ms --isolation namespace --time 1m", "What is short is seats"),
        ("--workers 1 --rate 5 --warm-time 250ms --concurrency 3000 --time 1m", "set channel_max"),
    ] {
        let done = simulate(arguments);
        assert!(done.status.success() && text(&done.stdout).contains(said), "{arguments}: {done:?}");
    }
    let done = simulate(SMALL);
    assert!(!text(&done.stdout).contains("short"), "{done:?}");
}

#[test]
fn a_pool_of_the_configuration_is_simulated_as_it_is() {
    let dir = std::env::temp_dir().join(unique("simulate"));
    fs::create_dir(&dir).unwrap();
    let (config, trace) = (dir.join("prewarm.toml"), dir.join("trace"));
    fs::write(
        &config,
        "[engine]\ncreations = 5\n[pool.box]\nimage = \"x\"\nidle = { min = 2, max = 9 }\nconcurrency = 7\n",
    )
    .unwrap();
    fs::write(&trace, "0 2\n60 6\n120 0\n").unwrap();
    let (config, trace) = (config.display(), trace.display());
    let common = "--workers 2 --warm-time 250ms --trace";
    let named = json(&format!("--config {config} --pool box {common} {trace}"));
    let written = json(&format!("--idle-min 2 --idle-max 9 --concurrency 7 --creators 5 {common} {trace}"));
    assert_eq!(named, written);
    let jobs = named["jobs"].as_u64().unwrap();
    assert!((390..570).contains(&jobs), "2 and then 6 jobs a second, a minute each: {jobs}");
    let unknown = simulate(&format!("--config {config} --pool other {common} {trace}"));
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_can_t_be_simulated_is_refused() {
    for (arguments, code, said) in [
        ("", 2, "--rate"),
        ("--rate 5 --warm-time 250ms", 2, "--workers"),
        ("--rate 5 --warm-time 250ms --workers 2 --max-workers 4", 2, "cannot be used"),
        ("--rate 5 --warm-time 250ms --workers 2 --min-workers 4", 2, "--min-workers"),
        ("--rate 5 --warm-time 250ms --max-workers 2 --min-workers 4", 2, "less than --min-workers 4"),
        ("--rate 5 --warm-time 250ms --workers 2 --idle-min 9 --idle-max 2", 2, "less than --idle-min 9"),
        ("--warm-time 250ms --workers 2 --trace jobs --day 1h", 2, "--day"),
        ("--rate 5 --warm-time 250 --workers 2", 2, "as 250ms"),
        ("--rate 5 --warm-time 250ms --max-workers 2 --down all", 2, "as 1/2m"),
        ("--rate 1e6 --time 1h --warm-time 250ms --workers 2", 1, "more than are simulated"),
        ("--rate 1 --time 30d --warm-time 250ms --workers 100", 1, "fewer workers"),
        ("--rate 5 --warm-time 250ms --workers 2 --config x", 2, "--pool"),
        ("--trace /nonexistent --warm-time 250ms --workers 2", 1, "/nonexistent"),
        ("--rate 5 --time 1m --skip 2m --warm-time 250ms --workers 2", 1, "no job came"),
    ] {
        let done = simulate(arguments);
        assert_eq!(done.status.code(), Some(code), "{arguments}: {done:?}");
        assert!(text(&done.stderr).contains(said), "{arguments}: {done:?}");
    }
}
