//! Secrets that a pool gives its jobs, and what becomes of them and of a job's own wherever they show up.

use std::fs;

use serde_json::json;

use super::{KINDS, both, message, run, script, text};
use crate::support::docker::docker_ok;
use crate::support::gate::Gate;
use crate::support::worker::{self, eventually, signal};

#[test]
fn a_pool_s_secrets_reach_its_jobs_and_nobody_else() {
    worker::run(async |site| {
        let dir = site.dir.join("secrets");
        fs::create_dir_all(dir.join("..1")).unwrap();
        let secret = "of/the pool+42";
        for (name, value) in [("POOL_TOKEN", &format!("{secret}\n")[..]), ("OTHER", "second-one")] {
            fs::write(dir.join("..1").join(name), value).unwrap();
            std::os::unix::fs::symlink(format!("..data/{name}"), dir.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("..1", dir.join("..data")).unwrap();
        let gate = Gate::new(site);
        let keys = format!(
            "secrets_from = {dir:?}\nenv = {{ OTHER = \"of the image's own\" }}\nidle = {{ min = 1, max = 2 }}\n\
             {}",
            gate.mount_read_only()
        );
        let worker = both(site.worker().env("PREWARM_LOG", "trace"), "", &keys).ready().await;
        let own = "my own s3cret";
        for kind in KINDS {
            let print = "echo \"$POOL_TOKEN/$OTHER/$OWN\"; printf %s \"user:$POOL_TOKEN\" | base64; \
                       printf 'x%s' \"$OWN\" | base64 | tr / _; \
                       echo 'of%2Fthe+pool%2b42 of%2fthe%20pool%2b42'; echo \"err $OTHER\" >&2; \
                       touch \"/tmp/$OWN-x\" \"/tmp/plain\"; echo ${#POOL_TOKEN}";
            let job = format!("{print}; {}", Gate::WAIT);
            let body =
                json!({"env": {"OWN": own}, "secrets": ["OWN"], "artifacts": ["/tmp/*", "/second-one"]});
            let job = site.broker.submit(kind, script(&job, body)).await;
            let started = site.broker.started(&job).await;
            let inspected = docker_ok(["inspect", started["container"].as_str().unwrap()]);
            assert!(!inspected.contains(secret) && !inspected.contains("second-one"), "{inspected}");
            gate.open();
            let attempt = site.broker.finished(&job).await.succeeded();
            gate.shut();
            let out: Vec<&str> = text(&attempt.stdout).lines().collect();
            assert_eq!(out[0], "***/***/***", "{kind}");
            // What stands before it is seen, as far as it shares no character.
            assert_eq!(out[1], "dXNlcjp***==", "{kind}: {out:?}");
            assert!(out[2].ends_with("***=") && out[2].len() == 6, "{kind}: {out:?}");
            assert_eq!(out[4], secret.len().to_string(), "without the line end");
            assert_eq!(text(&attempt.stderr), "err ***\n");
            assert_eq!(attempt.artifacts(), ["/tmp/***-x", "/tmp/plain"]);
            assert_eq!(attempt.missed(), [("/***", "not_found")]);
            let replies = format!("{:?}", attempt.replies);
            assert!(
                !replies.contains(secret) && !replies.contains(own) && !replies.contains("second-one"),
                "{replies}"
            );

            // The job's own value wins, and both are masked.
            let mine = json!({"env": {"OTHER": "mine instead"}});
            let attempt =
                run(site, kind, "echo \"$OTHER\" second-one; test \"$OTHER\" = 'mine instead'", mine).await;
            assert_eq!(text(&attempt.succeeded().stdout), "*** ***\n");
            // Errors are masked too.
            let missing = script("", json!({"args": [format!("/no/{secret}")]}));
            let attempt = site.broker.run(kind, missing).await;
            assert!(message(&attempt).contains("/no/***"), "{}", message(&attempt));
            let nowhere = json!({"files": {"/proc/second-one": "x"}});
            let attempt = run(site, kind, "true", nowhere).await;
            assert!(message(&attempt).contains("/proc/***"), "{}", message(&attempt));
            let dead = site.broker.take(&site.broker.dead()).await;
            assert!(!dead.header("x-prewarm-reason").unwrap().contains("second-one"));
        }
        // Another generation, as Kubernetes makes it.
        fs::create_dir(dir.join("..2")).unwrap();
        for name in ["POOL_TOKEN", "OTHER"] {
            fs::write(dir.join("..2").join(name), "rotated-value").unwrap();
        }
        std::os::unix::fs::symlink("..2", dir.join("..new")).unwrap();
        fs::rename(dir.join("..new"), dir.join("..data")).unwrap();
        signal("HUP", worker.pid());
        eventually("the new values", async || {
            let attempt = run(site, "n", "test $POOL_TOKEN = rotated-value && echo $OTHER", json!({})).await;
            (text(&attempt.stdout) == "***\n").then_some(())
        })
        .await;
        let log = worker.log();
        for value in [secret, "second-one", "rotated-value", own] {
            let at = log.lines().find(|line| line.contains(value));
            assert_eq!(at, None, "in the worker's log");
        }
        assert!(worker.stop().await.success());
    });
}
