//! Pure: what workers say of themselves, for people.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::cli::dead::table::age;

/// Jobs and failures that are shown of each worker; JSON has them all.
const SHOWN: usize = 20;
/// Characters of a container's id, as `docker ps` shows it.
const SHORT_ID: usize = 12;

/// Tables of workers, pools, jobs and failures; what there is none of has none.
pub(super) fn text(workers: &[Value], now: SystemTime) -> String {
    let (mut states, mut pools, mut jobs, mut failures) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for worker in workers {
        let name = word(&worker["worker"]);
        states.push(vec![
            name.clone(),
            seconds(&worker["uptime_seconds"]),
            word(&worker["version"]),
            state(worker),
        ]);
        for pool in list(&worker["pools"]) {
            let counts = ["idle", "target", "starting", "leased", "removing", "waiting"];
            let counts = counts.map(|count| word(&pool[count]));
            let able = if pool["able"] == true { "yes" } else { "no" };
            let head = [name.clone(), word(&pool["pool"]), able.to_owned()];
            pools.push([&head[..], &counts, &[word(&pool["image"])]].concat());
        }
        let all = list(&worker["jobs"]);
        jobs.extend(all.iter().take(SHOWN).map(|job| {
            let container: String = word(&job["container"]).chars().take(SHORT_ID).collect();
            let head = [&job["pool"], &job["job_id"], &job["attempt"]].map(word);
            [&[name.clone()][..], &head, &[seconds(&job["seconds"]), container]].concat()
        }));
        if all.len() > SHOWN {
            jobs.push(vec![name.clone(), String::new(), format!("and {} more", all.len() - SHOWN)]);
        }
        failures.extend(list(&worker["failures"]).iter().take(SHOWN).map(|failure| {
            let head =
                [&failure["pool"], &failure["job_id"], &failure["attempt"], &failure["status"]].map(word);
            let said = word(&failure["message"]) + if failure["retried"] == true { "; retried" } else { "" };
            [&[name.clone()][..], &head, &[since(&failure["time"], now), said]].concat()
        }));
    }
    let tables = [
        table(&["WORKER", "UP", "VERSION", "STATE"], states),
        table(
            &[
                "WORKER", "POOL", "ABLE", "IDLE", "TARGET", "STARTING", "LEASED", "REMOVING", "WAITING",
                "IMAGE",
            ],
            pools,
        ),
        table(&["WORKER", "POOL", "RUNNING JOB", "ATTEMPT", "AGE", "CONTAINER"], jobs),
        table(&["WORKER", "POOL", "FAILED JOB", "ATTEMPT", "STATUS", "AGO", "WHY"], failures),
    ];
    tables.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value on one line.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.replace(['\n', '\r', '\t'], " "),
        other => other.to_string(),
    }
}

fn state(worker: &Value) -> String {
    if worker["ready"] == true {
        return "ready".to_owned();
    }
    let why: Vec<String> = list(&worker["not_ready_because"]).iter().map(word).collect();
    format!("not ready: {}", why.join("; "))
}

fn seconds(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |s| age(Duration::from_secs(s)))
}

fn since(time: &Value, now: SystemTime) -> String {
    let at = time.as_str().and_then(|text| humantime::parse_rfc3339(text).ok());
    at.map_or_else(|| "-".to_owned(), |at| age(now.duration_since(at).unwrap_or_default()))
}

/// Columns as wide as what is in them; the last one is as long as it is. None without rows.
fn table(head: &[&str], rows: Vec<Vec<String>>) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let head = head.iter().map(|&name| name.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    Some(rows.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workers_pools_jobs_and_failures_have_a_table_each() {
        let jobs: Vec<Value> = (0..22)
            .map(|n| json!({"job_id": format!("j{n}"), "pool": "build", "attempt": 1, "seconds": 75, "container": "0123456789abcdef"}))
            .collect();
        let one = json!({
            "worker": "a", "version": "0.1.0", "uptime_seconds": 7200, "ready": true,
            "pools": [{"pool": "build", "able": true, "idle": 2, "target": 2, "starting": 0, "leased": 1, "removing": 0, "waiting": 0, "image": "acme/build:7"}],
            "jobs": jobs,
            "failures": [{"job_id": "f", "pool": "build", "attempt": 2, "status": "failed", "message": "exit\ncode 3", "retried": true, "time": "1970-01-01T00:00:10Z"}],
        });
        let other = json!({"worker": "b", "ready": false, "not_ready_because": ["broker: not connected", "draining"]});
        let text = text(&[one, other], SystemTime::UNIX_EPOCH + Duration::from_secs(20));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..6],
            [
                "WORKER  UP  VERSION  STATE",
                "a       2h  0.1.0    ready",
                "b       -   -        not ready: broker: not connected; draining",
                "",
                "WORKER  POOL   ABLE  IDLE  TARGET  STARTING  LEASED  REMOVING  WAITING  IMAGE",
                "a       build  yes   2     2       0         1       0         0        acme/build:7",
            ]
        );
        assert_eq!(lines[8], "a       build  j0           1        1m   0123456789ab");
        assert_eq!(lines[28], "a              and 2 more");
        assert_eq!(lines[31], "a       build  f           2        failed  10s  exit code 3; retried");
        assert_eq!(super::text(&[], SystemTime::now()), "");
    }
}
