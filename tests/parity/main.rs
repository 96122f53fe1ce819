//! Parity: what a job is to `docker run --init`, it is to prewarm; and what it is to `docker run` without `--init`, where it
//! is the first process, it is to a pool with isolation `namespace`.
//!
//! Tables of jobs. Each is run by Docker's own command line and by `prewarm run`, and what they print and exit
//! with is compared byte for byte. What can't be the same in any two containers is masked, by name, where a row says
//! so; what differs because it is meant to is written in the row (`but`, `note`, `not_run_but`), and has to be there. What
//! differs with isolation `namespace` alone is collected in `meant.rs`.
//!
//! Needs the servers and images of `deploy/test.sh`. `PREWARM_TEST_PARITY=WORDS` runs only rows whose name contains that.

#[path = "../support/docker.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod docker;

mod command;
mod endings;
mod environment;
mod identity;
mod limits;
mod meant;
mod row;
mod streams;
mod too_large;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use row::{Bench, Isolation, Row};

/// Rows at a time. More make the engine slower, not faster.
const AT_A_TIME: usize = 3;

#[test]
fn a_job_is_what_docker_run_would_have_made_of_it() {
    judge_all(Isolation::Container);
}

#[test]
fn and_so_is_one_of_many_in_a_container() {
    judge_all(Isolation::Namespace);
}

fn judge_all(isolation: Isolation) {
    let only = std::env::var("PREWARM_TEST_PARITY").unwrap_or_default();
    let directory = Directory::new();
    let (mounted, volume) = (directory.below("mounted"), docker::Volume::create());
    let rows: Vec<Row> = [
        streams::rows(),
        command::rows(),
        environment::rows(),
        identity::rows(&mounted, volume.name()),
        limits::rows(),
        endings::rows(),
    ]
    .into_iter()
    .flatten()
    .filter(|row| row.is_for(isolation) && row.name().contains(&only))
    .collect();
    let bench = Bench::new(&directory.0, isolation);
    let begun = Instant::now();

    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // A row that panics is one of many.
                    let judged = catch_unwind(AssertUnwindSafe(|| bench.judge(row)));
                    if let Err(wrong) = judged.unwrap_or_else(|_| Err("panicked; see above\n".into())) {
                        failures.lock().unwrap().push(format!("--- {}\n{wrong}", row.name()));
                    }
                }
            });
        }
    });
    println!("{isolation:?}: {} rows in {:.0?}", rows.len(), begun.elapsed());

    let mut failures = failures.into_inner().unwrap();
    failures.extend(left_behind(bench));
    assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), rows.len(), failures.join("\n"));
}

/// What the rows left in the engine, once it had time to remove it.
fn left_behind(bench: Bench<'_>) -> Option<String> {
    let seen = std::mem::take(&mut *bench.seen.lock().unwrap());
    // Images first: they can't be removed while a container uses them.
    drop(bench);
    let mut left = Vec::new();
    let nothing = docker::eventually(docker::PATIENCE, || {
        left = containers();
        left.extend(
            docker::volumes().into_iter().filter(|volume| seen.iter().any(|text| text.contains(volume))),
        );
        left.is_empty()
    });
    (!nothing).then(|| format!("--- left behind: {left:?}\n"))
}

fn containers() -> Vec<String> {
    let format = "{{.Label \"prewarm.worker\"}} {{.Names}}";
    let ours = docker::docker_ok(["ps", "-a", "--filter", "label=prewarm.worker", "--format", format]);
    let ours = ours.lines().filter(|line| line.starts_with(&docker::prefix())).map(str::to_owned);
    ours.chain(docker::containers(&row::label())).collect()
}

/// A directory for configurations.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        let path = std::env::temp_dir().join(docker::unique("parity"));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn below(&self, name: &str) -> String {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
