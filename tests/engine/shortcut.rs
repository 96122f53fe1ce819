//! Containers that serve many jobs are spoken to past the engine, where engine and worker are on one host.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::broker::Job;
use crate::support::engine::EngineProxy;
use crate::support::worker::{Setup, Site, eventually, run};

/// Bytes that a job prints.
const PRINTED: u64 = 4 << 20;

#[test]
fn what_jobs_print_does_not_pass_through_the_engine() {
    run(async |site: &Site| {
        for (isolation, passes) in [("container", true), ("namespace", false)] {
            let dir = directory(site, isolation);
            let proxy = EngineProxy::new(&dir);
            let worker = at(site, &dir)
                .env("DOCKER_HOST", &proxy.host)
                .pool("box", &format!("idle = 1\nconcurrency = 1\nisolation = \"{isolation}\""))
                .full()
                .await;
            for _ in 0..3 {
                let script =
                    format!("head -c {PRINTED} /dev/zero; ! grep -E 'shortcut|\\.socket' /proc/mounts");
                let job = Job::new(json!({"args": ["sh", "-c", script], "logs": "result"}));
                // What is mounted for it is seen by no job.
                let attempt = site.broker.run("box", job).await.succeeded();
                assert_eq!(attempt.result["stdout"]["total_bytes"], PRINTED, "{:#}", attempt.result);
            }
            assert!(worker.stop().await.success());
            let heard = proxy.heard();
            assert_eq!(heard > PRINTED, passes, "isolation {isolation}: {heard} bytes");
            assert_eq!(names(&dir), ["engine.sock"], "nothing else is left");
        }
    });
}

#[test]
fn where_init_cannot_come_to_the_socket_it_is_spoken_to_as_before() {
    run(async |site: &Site| {
        // As if the engine were on another host, or the worker in a container; and as if the host forbade it.
        for mounted in [false, true] {
            let dir = directory(site, if mounted { "mounted" } else { "absent" });
            let keys = "idle = { min = 0, max = 1 }\nconcurrency = 1\nisolation = \"namespace\"";
            let worker = at(site, &dir).pool("box", keys).ready().await;
            let is_socket = |name: &String| name.ends_with(".socket");
            let socket = eventually("the socket", async || names(&dir).into_iter().find(is_socket)).await;
            fs::remove_file(dir.join(&socket)).unwrap();
            if mounted {
                fs::write(dir.join(&socket), "").unwrap();
            }
            for n in 0..3 {
                let attempt = site.broker.run("box", Job::shell(&format!("echo {n}"))).await.succeeded();
                assert_eq!(attempt.stdout, format!("{n}\n").into_bytes());
            }
            let log = worker.log();
            assert_eq!(log.matches("by way of the engine alone").count(), 1, "it is said, once: {log}");
            assert!(worker.stop().await.success());
            assert_eq!(names(&dir), [""; 0]);
        }
    });
}

/// A worker whose socket is in this directory.
fn at<'a>(site: &'a Site, dir: &Path) -> Setup<'a> {
    site.worker().env("PREWARM_WORKER_RUNTIME_DIR", dir.to_str().unwrap())
}

fn directory(site: &Site, name: &str) -> PathBuf {
    let dir = site.dir.join(name);
    fs::create_dir(&dir).unwrap();
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
