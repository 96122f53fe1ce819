//! After a job that ends badly: nothing of it is left, or its container serves nobody else.

use std::process::Command;

use serde_json::{Value, json};
use tokio::net::unix::pipe::OpenOptions;

use crate::support::broker::{Attempt, Job};
use crate::support::docker::docker_ok;
use crate::support::worker::{self, Site, eventually};
use crate::{Ground, Inventory, one_container};

/// What becomes of the container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    ServesAgain,
    Retired,
}

/// A job that ends badly between two inventories.
async fn between_inventories(ground: &Ground<'_>, pool: &str, job: Value, container: Container) -> Attempt {
    let retired = async || {
        let metrics = ground.worker.metrics().await;
        let of =
            |reason| metrics.get("prewarm_containers_retired_total", &[("pool", pool), ("reason", reason)]);
        (of("used") + of("doubt"), of("died") + of("failed"))
    };
    let first = ground.inventory(pool).await;
    let before = retired().await;
    let bad = ground.run(pool, job).await;
    assert_eq!(bad.result["container"], first.container, "{:#}", bad.result);
    let second = ground.inventory(pool).await;
    match container {
        Container::ServesAgain => {
            second.must_be(&first, pool);
            assert_eq!(retired().await, before, "{pool}: nothing is retired");
        }
        Container::Retired => {
            assert_ne!(second.container, first.container, "{pool}: another container");
            eventually("the worker says so", async || {
                (retired().await == (before.0 + 1.0, before.1)).then_some(())
            })
            .await;
            let of_its_own = |inventory: &Inventory| {
                let id: String = inventory.container.as_str().unwrap().chars().take(12).collect();
                inventory.text.replace(inventory.container.as_str().unwrap(), "(id)").replace(&id, "(name)")
            };
            let paths = |inventory: &Inventory| {
                let text = of_its_own(inventory);
                let files = text.split("[files]").nth(1).unwrap();
                files.lines().map(|l| l.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
            };
            let different = crate::different(&paths(&first), &paths(&second));
            let different: Vec<&str> =
                different.lines().filter(|l| !l.contains("/bdi/") && !l.contains("/slab/")).collect();
            assert!(different.is_empty(), "{pool}: {different:#?}");
        }
    }
    bad
}

fn shell(script: &str) -> Value {
    json!({"args": ["sh", "-c", script]})
}

#[test]
fn who_was_short_of_memory_retires_its_container() {
    worker::run(async |site: &Site| {
        let pool = one_container("memory = \"64MiB\"\nscratch = \"256MiB\"");
        let worker = site.worker().pool("box", &pool).full().await;
        let ground = Ground { site, worker };
        let eats = json!({"args": ["probe", "memory", "200000000"]});
        let bad = between_inventories(&ground, "box", eats, Container::Retired).await;
        assert_eq!((bad.status(), &bad.result["oom_killed"]), ("failed", &json!(true)), "{:#}", bad.result);
        // A child of it, which its parent survives.
        let child = shell("probe memory 200000000; echo $?; echo survived");
        let bad = between_inventories(&ground, "box", child, Container::Retired).await;
        assert_eq!(bad.status(), "succeeded", "{:#}", bad.result);
        // Files count as memory: of the root, and of /dev/shm, which outlive who wrote them.
        let fills =
            shell("head -c 60000000 /dev/zero >/dev/shm/x; head -c 200000000 /dev/zero >/tmp/x; sleep 1");
        let bad = between_inventories(&ground, "box", fills, Container::Retired).await;
        assert_eq!(bad.result["oom_killed"], true, "{:#}", bad.result);
        ground.stop().await;
    });
}

/// To read artifacts takes memory, too, of which what the job has written there leaves none.
#[test]
fn who_wants_files_of_a_full_memory_has_its_result() {
    worker::run(async |site: &Site| {
        let pool = one_container("memory = \"64MiB\"\nscratch = \"256MiB\"");
        let worker = site.worker().pool("box", &pool).full().await;
        for _ in 0..3 {
            let fills = json!({
                "args": ["sh", "-c", "exec head -c 200000000 /dev/zero >/tmp/x"], "artifacts": ["/tmp/x"]
            });
            let full = site.broker.run("box", Job::new(fills)).await;
            let said = (&full.result["oom_killed"], &full.result["attempt"]);
            assert_eq!(said, (&json!(true), &json!(1)), "{:#}", full.result);
            worker.until_full().await;
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn who_fills_its_file_system_has_filled_its_own() {
    worker::run(async |site: &Site| {
        let worker = site.worker().pool("box", &one_container("scratch = \"16MiB\"")).full().await;
        let ground = Ground { site, worker };
        let free = async || {
            let attempt = ground.run("box", shell("df -k / | tail -n 1")).await.succeeded();
            String::from_utf8(attempt.stdout).unwrap()
        };
        let before = free().await;
        for script in [
            "head -c 100000000 /dev/zero >/x || wc -c </x",
            "head -c 100000000 /dev/zero >/data/x; head -c 100000000 /dev/zero >/dev/shm/x; df -k / | tail -n 1",
            // As many files as there can be.
            "i=0; while : >/tmp/$i; do i=$((i+1)); [ $i -lt 30000 ] || break; done 2>/dev/null; echo $i",
        ] {
            between_inventories(&ground, "box", shell(script), Container::ServesAgain).await;
            assert_eq!(free().await, before, "{script}");
        }
        ground.stop().await;
    });
}

/// How much later one is than the other, by what `/proc/uptime` said.
fn between(earlier: &str, later: &str) -> f64 {
    let seconds = |text: &str| text.split(' ').next().unwrap().parse::<f64>().unwrap();
    seconds(later) - seconds(earlier)
}

#[test]
fn no_end_is_kept_waiting_while_the_kernel_takes_a_world_apart() {
    worker::run(async |site: &Site| {
        // No other container is made for the one that waits.
        let setup = site.worker().section("[engine]\ncontainers = 1\n");
        let worker = setup.pool("box", &one_container("scratch = \"1GiB\"")).full().await;
        let fills = "i=0; while [ $i -lt 30000 ]; do : >/tmp/$i; i=$((i+1)); done; \
                     head -c 600000000 /dev/zero >/x; head -c 130000 /dev/zero; exec cat /proc/uptime";
        let full = site.broker.submit("box", Job::shell(fills)).await;
        let next = site.broker.submit("box", Job::shell("exec cat /proc/uptime")).await;
        let full = site.broker.finished(&full).await.succeeded();
        let known = std::fs::read_to_string("/proc/uptime").unwrap();
        let next = site.broker.finished(&next).await.succeeded();
        assert_eq!(full.result["container"], next.result["container"]);
        let said = String::from_utf8_lossy(&full.stdout);
        let told = between(said.trim_start_matches('\0'), &known);
        let apart = between(&known, &String::from_utf8_lossy(&next.stdout));
        // With the next job comes what the kernel needs for it, and the making of the next world.
        assert!(told < apart, "{told:.2} s from the end to the result, {apart:.2} s more to the next job");
        println!("{told:.2} s from the end to the result, {apart:.2} s more to the next job");
        assert!(worker.stop().await.success());
    });
}

#[test]
fn who_forks_to_the_limit_leaves_no_process() {
    worker::run(async |site: &Site| {
        let worker = site.worker().pool("box", &one_container("pids = 40")).full().await;
        let ground = Ground { site, worker };
        for script in [
            "while :; do sleep 1000 & done",
            // Each of a session of its own, deaf, and asking for more.
            "trap '' TERM HUP INT; f() { setsid sh -c 'trap \"\" TERM; while :; do sleep 1000 & done' & f; }; f",
        ] {
            between_inventories(&ground, "box", shell(script), Container::ServesAgain).await;
        }
        ground.stop().await;
    });
}

#[test]
fn who_is_stopped_leaves_nothing() {
    worker::run(async |site: &Site| {
        let worker = site.worker().pool("box", &one_container("stop_grace = \"300ms\"")).full().await;
        let ground = Ground { site, worker };
        let deaf = "trap '' TERM; traces leave >/dev/null; (setsid sleep 1000 &) ; sleep 1000";
        let mut job = shell(deaf);
        job["timeout"] = json!("2s");
        let bad = between_inventories(&ground, "box", job, Container::ServesAgain).await;
        assert_eq!(bad.status(), "timed_out", "{:#}", bad.result);
        ground.stop().await;
    });
}

#[test]
fn what_is_no_program_costs_no_container() {
    worker::run(async |site: &Site| {
        let worker = site.worker().pool("box", &one_container("")).full().await;
        let ground = Ground { site, worker };
        for (program, code) in [("/etc", 126), ("no-such-program", 127), ("", 127)] {
            let job = json!({"args": [program]});
            let bad = between_inventories(&ground, "box", job, Container::ServesAgain).await;
            assert_eq!(bad.result["exit_code"], code, "{:#}", bad.result);
        }
        // Whatever ends the first process ends the job, and it alone.
        for script in ["kill -KILL -1; exit 3", "exec probe zombies 200", "exec probe daemon 1000 late"] {
            between_inventories(&ground, "box", shell(script), Container::ServesAgain).await;
        }
        ground.stop().await;
    });
}

/// Whoever may use the engine can get at a container past the worker.
#[test]
fn a_container_that_somebody_changed_serves_nobody_else() {
    worker::run(async |site: &Site| {
        // A pipe: to go through it leaves no trace in an inventory, as writing a file would.
        let gate = site.dir.join("gate");
        assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
        let mount =
            format!("mounts = [{{ source = \"{}\", target = \"/gate\", read_only = true }}]", gate.display());
        let worker = site.worker().pool("box", &one_container(&mount)).full().await;
        let ground = Ground { site, worker };
        let first = ground.inventory("box").await;
        let while_a_job_runs = async |command: &[&str], container: &Value| {
            ground.worker.until_full().await;
            let job = site.broker.submit("box", Job::shell("echo here; cat /gate")).await;
            site.broker.printed(&job, "here").await;
            docker_ok(["exec", container.as_str().unwrap()].iter().chain(command));
            eventually("it waits at the gate", async || OpenOptions::new().open_sender(&gate).ok()).await;
            site.broker.finished(&job).await.succeeded();
        };
        // A process is killed with those of the job.
        let daemon = ["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"];
        while_a_job_runs(&daemon, &first.container).await;
        ground.inventory("box").await.must_be(&first, "after a process");

        while_a_job_runs(&["mount", "-t", "tmpfs", "theirs", "/tmp"], &first.container).await;
        assert_ne!(ground.inventory("box").await.container, first.container, "after a mount");
        let doubt = [("pool", "box"), ("reason", "doubt")];
        let metrics = ground.worker.metrics().await;
        assert_eq!(metrics.get("prewarm_containers_retired_total", &doubt), 1.0);
        assert!(ground.worker.log().contains("not to be trusted with another job"));
        ground.stop().await;
    });
}

#[test]
fn what_was_sent_to_one_job_does_not_come_to_the_next() {
    worker::run(async |site: &Site| {
        let worker = site.worker().pool("box", &one_container("")).full().await;
        let ground = Ground { site, worker };
        let secret = "secret".repeat(100_000);
        for (script, said) in [
            ("exit 0", ""),
            ("head -c 6", "secret"),
            ("(setsid sh -c 'while :; do echo $SECRET; cat; done' &) ; exit 0", ""),
            ("yes $SECRET | head -c 3000000 >&2; kill -KILL -1; exit 0", ""),
        ] {
            let job = json!({"args": ["sh", "-c", script], "stdin": secret, "env": {"SECRET": "secret"}});
            let before = ground.run("box", job).await.succeeded();
            assert!(before.stdout.starts_with(said.as_bytes()), "{script}");
            // At once: whatever is on its way still is.
            for stdin in [None, Some("mine")] {
                let job = json!({"args": ["sh", "-c", "cat; env; cat /proc/1/environ; ps"], "stdin": stdin});
                let after = site.broker.run("box", Job::new(job)).await.succeeded();
                let all = [&after.stdout[..], &after.stderr].concat();
                let all = String::from_utf8_lossy(&all);
                assert!(!all.contains("ecre"), "{script}: {all}");
                assert!(after.stdout.starts_with(stdin.unwrap_or_default().as_bytes()), "{script}: {all}");
            }
        }
        ground.stop().await;
    });
}
