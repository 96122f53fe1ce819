//! The operators' reference, `deploy/configuration.md`, says what is read here: every key, its variable, default, range and
//! words; and nothing else.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use super::reader::Reading;
use super::source::Source;
use super::variables::Variables;
use super::{Config, load, sections};

const DOCUMENT: &str = include_str!("../../deploy/configuration.md");
/// A pool whose name is the document's placeholder.
const LEAST: &str = "[pool.NAME]\nimage = \"x\"\n";

/// One line of the document's tables.
struct Row {
    key: &'static str,
    kind: &'static str,
    default: &'static str,
    variable: String,
    meaning: &'static str,
}

fn rows() -> Vec<Row> {
    let lines = DOCUMENT.lines().filter(|line| line.starts_with("| `") && line.contains("PREWARM_"));
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.trim_matches('|').splitn(5, " | ").map(str::trim).collect();
        let [key, kind, default, variable, meaning] = cells[..] else { panic!("not five cells: {line}") };
        let variable = variable.trim_matches('`').replace("<NAME>", "NAME");
        Row { key: key.trim_matches('`'), kind, default, variable, meaning }
    };
    lines.map(row).collect()
}

/// Reads the least configuration with these variables over it.
fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
    let owned = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    load::parse(Path::new("f.toml"), LEAST, owned).map(|loaded| loaded.config).map_err(|f| f.to_string())
}

/// What a key needs beside it to be read by itself.
fn beside(key: &str) -> Vec<(&'static str, &'static str)> {
    match key {
        "pool.NAME.scratch" | "pool.NAME.max_jobs" => vec![("PREWARM_POOL_NAME_ISOLATION", "namespace")],
        "engine.memory" => vec![("PREWARM_POOL_NAME_MEMORY", "6MiB")],
        _ => Vec::new(),
    }
}

fn read_with(row: &Row, text: &str) -> Result<Config, String> {
    let mut variables = beside(row.key);
    variables.push((row.variable.as_str(), text));
    read(&variables)
}

/// A part of the configuration in words, to see which of its fields are `None`.
fn shown(config: &Config, key: &str) -> String {
    let part: &dyn Debug = match key {
        key if key.starts_with("broker.tls.") => &config.broker.tls,
        key if key.starts_with("engine.") => &config.engine,
        key if key.starts_with("worker.") => &config.worker,
        key if key.contains(".idle.") => &config.pools.values().next().expect("a pool").idle,
        _ => config.pools.values().next().expect("a pool"),
    };
    format!("{part:?}")
}

#[test]
fn every_key_is_documented_with_its_variable_and_no_other() {
    let (environment, source) = (Vec::new(), Source::new(Path::new("f.toml"), LEAST));
    let variables = Variables::pick(&environment);
    let table = toml::de::DeTable::parse(LEAST).expect("TOML").into_inner();
    let mut reading = Reading::new(Some(&source), &variables);
    reading.root(&table, sections::config).expect("valid");
    let documented: BTreeMap<String, String> =
        rows().into_iter().map(|row| (row.variable, row.key.to_owned())).collect();
    assert_eq!(documented, *reading.asked());
    assert_eq!(rows().len(), documented.len(), "a key stands there twice");
}

#[test]
fn defaults_are_those_that_are_read() {
    for row in rows() {
        let plain = read(&beside(row.key)).expect("valid");
        let field = match row.key.rsplit('.').next().expect("a name") {
            "cpus" => "cpus_milli",
            "cert" | "key" => "identity",
            name => name,
        };
        match row.default {
            "required" => assert_eq!(row.key, "pool.NAME.image"),
            "the host's name" => assert_eq!(row.key, "worker.name"),
            // Its parts have lines of their own.
            "table" => assert!(rows().iter().any(|r| r.key.starts_with(&format!("{}.", row.key)))),
            // Nothing is said of the memory here, which others need beside them.
            "none" => {
                let shown = shown(&read(&[]).expect("valid"), row.key);
                assert!(shown.contains(&format!(" {field}: None")), "{}: {shown}", row.key);
            }
            default => {
                let default = default.trim_matches('`');
                let same = read_with(&row, default).unwrap_or_else(|faults| panic!("{}: {faults}", row.key));
                assert_eq!(same, plain, "{} = {default} is not the default", row.key);
            }
        }
    }
}

#[test]
fn ranges_and_words_are_those_that_are_read() {
    let mut looked_at = 0;
    for row in rows() {
        let accepted = |text: &str| {
            if let Err(faults) = read_with(&row, text) {
                panic!("{} = {text}: {faults}", row.key);
            }
        };
        let refused = |text: &str| {
            let found = read_with(&row, text);
            found.expect_err(&format!("{} = {text} is read, and the document's range ends before", row.key))
        };
        if row.kind.starts_with('`') {
            let words: Vec<&str> = row.kind.split(", ").map(|word| word.trim_matches('`')).collect();
            words.iter().for_each(|word| accepted(word));
            let known: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
            let said = refused("zzz");
            assert!(said.contains(&format!("write {}", known.join(", "))), "{}: {said}", row.key);
            looked_at += 1;
            continue;
        }
        let Some((kind, rest)) = row.kind.split_once(", ") else { continue };
        let range = rest.trim_end_matches(", or a table");
        let (low, high) = match range.split_once(" to ") {
            Some((low, high)) => (Some(low), Some(high)),
            None => (range.strip_prefix("at least "), range.strip_prefix("at most ")),
        };
        for end in low.iter().chain(&high) {
            accepted(end);
            looked_at += 1;
        }
        match kind {
            "number" => {
                let number = |end: &str| end.parse::<i64>().expect("a number");
                low.into_iter().for_each(|end| drop(refused(&(number(end) - 1).to_string())));
                high.into_iter().for_each(|end| drop(refused(&(number(end) + 1).to_string())));
            }
            "duration" => {
                let duration = |end: &str| humantime::parse_duration(end).expect("a duration");
                let step = Duration::from_nanos(1);
                let said = |duration| humantime::format_duration(duration).to_string();
                let below = low.and_then(|end| duration(end).checked_sub(step));
                below.into_iter().for_each(|below| drop(refused(&said(below))));
                high.into_iter().for_each(|end| drop(refused(&said(duration(end) + step))));
            }
            _ => {}
        }
    }
    assert!(looked_at > 50, "only {looked_at} were found");
}

#[test]
fn the_keys_of_a_mount_and_of_a_limit_are_documented() {
    for (key, text, known) in [
        ("pool.NAME.mounts", "[{ zzz = 1 }]", ["read_only", "shared", "source", "target"].as_slice()),
        ("pool.NAME.ulimits", "{ nofile = { zzz = 1 } }", &["hard", "soft"]),
    ] {
        let row = rows().into_iter().find(|row| row.key == key).expect(key);
        let said = read_with(&row, text).expect_err(text);
        assert!(said.contains(&format!("known are {}", known.join(", "))), "{said}");
        known.iter().for_each(|name| assert!(row.meaning.contains(name), "{key}: {name}"));
    }
}
