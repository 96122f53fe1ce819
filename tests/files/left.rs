//! Artifacts.

use std::time::Duration;

use serde_json::json;

use super::{KINDS, both, run, script, text};
use crate::support::broker::{self, Job, Reply};
use crate::support::docker::Image;
use crate::support::worker;

#[test]
fn files_come_back_in_the_result_or_in_pieces() {
    worker::run(async |site| {
        let keys = "workdir = \"/work\"\nartifacts = { inline = \"1KiB\" }\ntmpfs = { \"/scratch\" = \"\" }";
        let setup = both(site.worker(), "", keys);
        let read_only = "read_only = true\ntmpfs = { \"/tmp\" = \"\" }";
        let worker = both(setup, "-ro", read_only).ready().await;
        for kind in KINDS {
            let job = "mkdir -p out/sub && echo report > out/report.txt && printf '\\377\\0' > out/sub/bytes \
                       && chmod 751 out/sub/bytes && yes 0123456789 | head -c 700000 > out/big && : > out/empty \
                       && echo tmp > /scratch/t && echo .hidden > .h && mkfifo out/pipe && exit 3";
            let wanted = ["out", "./out/*.txt", "/scratch/?", "*.log", ".h", "/nope/x", "out/report.txt/x"];
            let attempt = run(site, kind, job, json!({"artifacts": wanted, "logs": "off"})).await;
            assert_eq!((attempt.status(), &attempt.result["exit_code"]), ("failed", &json!(3)), "{kind}");
            let all = [".h", "/scratch/t", "out/big", "out/empty", "out/report.txt", "out/sub/bytes"];
            assert_eq!(attempt.artifacts(), all, "{kind}");
            assert_eq!(attempt.artifact("out/report.txt"), b"report\n");
            assert_eq!(attempt.artifact("out/sub/bytes"), b"\xff\0");
            assert_eq!(attempt.artifact("out/empty"), b"");
            let big = attempt.artifact("out/big");
            assert_eq!((big.len(), &big[..11]), (700_000, &b"0123456789\n"[..]));
            let modes: Vec<_> =
                attempt.result["artifacts"].as_array().unwrap().iter().map(|a| &a["mode"]).collect();
            assert!(modes.contains(&&json!("0751")) && modes.contains(&&json!("0644")), "{modes:?}");
            let missed = [
                ("*.log", "not_found"),
                ("/nope/x", "not_found"),
                ("out/pipe", "not_a_file"),
                ("out/report.txt/x", "not_found"),
            ];
            assert_eq!(attempt.missed(), missed, "{kind}");

            let pool = format!("{kind}-ro");
            let attempt =
                run(site, &pool, "echo x > /tmp/x", json!({"artifacts": ["/tmp/*"]})).await.succeeded();
            assert_eq!(attempt.artifact("/tmp/x"), b"x\n", "{pool}");
            // A job that asks for none has no such field, and one that leaves nothing has an empty one.
            let attempt = run(site, &pool, "true", json!({})).await.succeeded();
            assert_eq!(attempt.result.get("artifacts"), None);
            let attempt = run(site, &pool, "true", json!({"artifacts": ["/tmp/*"]})).await.succeeded();
            assert_eq!(
                (attempt.artifacts().len(), attempt.missed()),
                (0, vec![("/tmp/*", "not_found")]),
                "{pool}"
            );
        }
        assert!(worker.stop().await.success());
    });
}

/// The host has this file, and the image's is another.
const SECRET: &str = "of the host alone";

#[test]
fn no_link_device_or_special_file_leads_out() {
    worker::run(async |site| {
        let outside = site.dir.join("outside");
        std::fs::write(&outside, SECRET).unwrap();
        let keys = "user = \"1234\"\nworkdir = \"/tmp\"\ntmpfs = { \"/tmp\" = \"mode=1777\" }\n\
                    artifacts = { size = \"1MiB\", max = 20 }";
        let worker = both(site.worker(), "", keys).ready().await;
        for kind in KINDS {
            let outside = outside.to_str().unwrap();
            let job = format!(
                "mkdir d e && echo in > d/f && ln -s {outside} d/host && ln -s /etc/passwd d/passwd && \
                 ln -s ../../../../../..{outside} d/up && ln -s /.prewarm/init d/init && ln -s . d/loop && \
                 ln -s /tmp/d byname && mkfifo d/fifo && truncate -s 10G d/sparse && echo no > e/no && chmod 0 e/no && \
                 mkdir e/locked && chmod 0 e/locked && touch \"d/new
line\""
            );
            let wanted = [
                "d/**",
                "byname/f",
                "byname/*",
                "e/*",
                "e/**",
                "/proc/1/environ",
                "/proc/self/environ",
                "/proc/1/fd/*",
                "/proc/self/fd/0",
                "/dev/null",
                "/dev/zero",
                "/dev/*",
                "/sys/kernel/*",
                "/etc/shadow",
                "/proc/1/root/etc/*",
                outside,
            ];
            let attempt = run(site, kind, &job, json!({"artifacts": wanted})).await.succeeded();
            let context = format!("{kind}: {:#}", attempt.result);
            assert!(!context.contains(SECRET) && !context.contains("/bin/"), "{context}");
            let came = attempt.artifacts();
            for path in ["d/f", "d/new\nline", "byname/f"] {
                assert!(came.contains(&path), "{path} {context}");
            }
            assert!(
                came.iter()
                    .all(|p| !p.starts_with("/proc") && !p.starts_with("/sys") && !p.starts_with("/dev")),
                "{context}"
            );
            let missed = attempt.missed();
            for pair in [
                ("d/host", "link"),
                ("d/passwd", "link"),
                ("d/up", "link"),
                ("d/init", "link"),
                ("d/loop", "link"),
                ("d/fifo", "not_a_file"),
                ("d/sparse", "too_large"),
                ("e/no", "not_readable"),
                ("e/locked", "not_readable"),
                ("/dev/null", "not_a_file"),
                ("/dev/zero", "not_a_file"),
                (outside, "not_found"),
            ] {
                assert!(missed.contains(&pair), "{pair:?} {context}");
            }
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_hundred_thousand_files_are_as_many_as_the_pool_says() {
    worker::run(async |site| {
        let worker = both(site.worker(), "", "artifacts = { max = 5 }\nmemory = \"512MiB\"").ready().await;
        for kind in KINDS {
            let job = "mkdir -p /many/a && cd /many/a && seq 100000 | xargs touch";
            let attempt =
                run(site, kind, job, json!({"artifacts": ["/many/**/*", "/etc/*"]})).await.succeeded();
            assert_eq!(attempt.artifacts().len(), 5, "{kind}");
            let [(_, reason)] = attempt.missed()[..] else { panic!("{kind}: {:#}", attempt.result) };
            assert_eq!(reason, "too_many");
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_file_that_becomes_a_link_is_a_file_or_missing() {
    worker::run(async |site| {
        let shared = site.dir.join("shared");
        std::fs::create_dir_all(shared.join("d")).unwrap();
        std::fs::write(shared.join("real"), "real").unwrap();
        std::fs::write(shared.join("d/x"), "file").unwrap();
        let mount = format!("mounts = [{{ source = {shared:?}, target = \"/mnt\", shared = true }}]");
        let worker = both(site.worker(), "", &mount).ready().await;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let flipping = std::thread::spawn({
            let shared = shared.clone();
            move || {
                let new = shared.join("new");
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    std::fs::write(&new, "file").unwrap();
                    std::fs::rename(&new, shared.join("d/x")).unwrap();
                    std::os::unix::fs::symlink("/etc/passwd", &new).unwrap();
                    std::fs::rename(&new, shared.join("d/x")).unwrap();
                }
            }
        });
        for kind in KINDS {
            for _ in 0..20 {
                let attempt = run(site, kind, "true", json!({"artifacts": ["/mnt/d/*"]})).await.succeeded();
                match (&attempt.artifacts()[..], &attempt.missed()[..]) {
                    (["/mnt/d/x"], []) => assert!(matches!(&attempt.artifact("/mnt/d/x")[..], b"file" | b"")),
                    ([], [("/mnt/d/x", "link" | "not_found")]) => {}
                    other => panic!("{kind}: {other:?}"),
                }
            }
        }
        stop.send(()).unwrap();
        flipping.join().unwrap();
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_job_that_was_stopped_leaves_artifacts_too_and_one_that_is_not_wanted_none() {
    worker::run(async |site| {
        let worker = both(site.worker(), "", "idle = { min = 1, max = 1 }\nconcurrency = 1").ready().await;
        for kind in KINDS {
            let late = json!({"artifacts": ["/x"], "timeout": "5s"});
            let attempt = run(site, kind, "echo part > /x; trap '' TERM; while :; do :; done", late).await;
            assert_eq!(
                (attempt.status(), &attempt.artifact("/x")[..]),
                ("timed_out", &b"part\n"[..]),
                "{kind}"
            );
            let job = site
                .broker
                .submit(kind, script("echo up; exec sleep 100", json!({"artifacts": ["/x"]})))
                .await;
            site.broker.printed(&job, "up").await;
            let mut cancel = worker::prewarm();
            cancel.arg("--config").arg(&worker.config).args(["cancel", &job.id]);
            assert!(cancel.output().unwrap().status.success());
            let attempt = site.broker.finished(&job).await;
            assert_eq!(attempt.status(), "cancelled", "{kind}");
            // Whoever is faster: collecting is cut short, or it has found already that there is nothing.
            assert!(
                matches!(attempt.missed()[..], [("/x", "interrupted" | "not_found")]),
                "{:#}",
                attempt.result
            );
        }
        // What one job left, the next one in the same container doesn't have.
        let first = run(site, "n", "echo 1 > /x", json!({"artifacts": ["/x"]})).await.succeeded();
        let next = run(site, "n", "true", json!({"artifacts": ["/x"]})).await.succeeded();
        assert_eq!(first.result["container"], next.result["container"], "it serves again");
        assert_eq!((first.artifact("/x"), next.missed()), (b"1\n".to_vec(), vec![("/x", "not_found")]));
        assert!(worker.stop().await.success());
    });
}

#[test]
fn collecting_has_an_end_and_the_job_s_outcome_does_not_depend_on_it() {
    worker::run(async |site| {
        let keys =
            "artifacts = { timeout = \"1s\", size = \"2GiB\", inline = 0 }\ntmpfs = { \"/tmp\" = \"\" }";
        let worker = both(site.worker(), "", keys).ready().await;
        for kind in KINDS {
            // More than can be sent in a second.
            let wanted = json!({"artifacts": ["/tmp/x", "/tmp/y"]});
            let job = script("echo out; head -c 20 /dev/zero > /tmp/y; truncate -s 2000M /tmp/x", wanted);
            let attempt = site.broker.run(kind, job).await;
            assert_eq!(
                (attempt.status(), text(&attempt.stdout)),
                ("succeeded", "out\n"),
                "{:#}",
                attempt.result
            );
            assert!(attempt.missed().contains(&("/tmp/x", "interrupted")), "{kind}: {:#}", attempt.result);
            run(site, kind, "true", json!({})).await.succeeded();
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn without_a_reply_queue_what_is_too_large_for_the_result_is_missing() {
    worker::run(async |site| {
        let worker = both(site.worker(), "", "artifacts = { inline = 10 }").ready().await;
        for kind in KINDS {
            let job: Job =
                script("echo small > /s; echo larger than ten > /l", json!({"artifacts": ["/s", "/l"]}));
            site.broker.publish(kind, &job).await;
            let reply: Reply = site.broker.take(&site.broker.results()).await;
            assert_eq!(reply.body["artifacts"][0]["path"], "/s", "{kind}: {reply:?}");
            assert_eq!(broker::data(&reply.body["artifacts"][0]), b"small\n");
            assert_eq!(reply.body["artifacts_missed"][0]["reason"], "no_reply_queue");
        }
        tokio::time::timeout(Duration::from_secs(30), worker.stop()).await.unwrap();
    });
}

/// A job may do to its working directory what it likes: artifacts are looked for where it began, by who it was.
#[test]
fn a_working_directory_that_the_job_replaced_leads_nowhere_else() {
    worker::run(async |site| {
        let image = Image::build(
            "FROM prewarm-test/busybox\nRUN mkdir -p /home/app/work /root/.config && echo of root alone >/root/.config/secret \
             && chmod 700 /root && chmod 755 /root/.config && chown -R 1234 /home/app\nUSER 1234\nWORKDIR /home/app/work\n",
        );
        let worker = both(site.worker(), "", &format!("image = {:?}", image.name())).ready().await;
        for kind in KINDS {
            // A directory of the image's is moved by a copy, on an overlay.
            let job = "! cat /root/.config/secret && echo mine >mine && mv /home/app/work /home/app/w && ln -s /root/.config /home/app/work";
            let wanted = ["**", "secret", "/home/app/w/*"];
            let attempt = run(site, kind, job, json!({"artifacts": wanted})).await.succeeded();
            assert_eq!(attempt.artifacts(), ["/home/app/w/mine"], "{kind}: {:#}", attempt.result);
            assert_eq!(attempt.missed(), [("**", "not_found"), ("secret", "not_found")], "{kind}");
            // Gone, it costs what was in it alone.
            let job = "echo out >/tmp/out && cd / && rm -r /home/app/work";
            let attempt = run(site, kind, job, json!({"artifacts": ["*", "/tmp/out"]})).await.succeeded();
            assert_eq!(attempt.artifacts(), ["/tmp/out"], "{kind}: {:#}", attempt.result);
            assert_eq!(attempt.missed(), [("*", "not_found")], "{kind}");
        }
        assert!(worker.stop().await.success());
        drop(image);
    });
}

/// A pattern that names a way through a link gets what an earlier one, which doesn't follow it, has not got.
#[test]
fn what_one_pattern_does_not_reach_another_does() {
    worker::run(async |site| {
        let worker = both(site.worker(), "", "workdir = \"/tmp\"").ready().await;
        for kind in KINDS {
            let job = "mkdir d && echo 1 >d/report.xml && ln -s d current";
            let wanted = ["**/*.xml", "current/report.xml", "d/report.xml"];
            let attempt = run(site, kind, job, json!({"artifacts": wanted})).await.succeeded();
            assert_eq!(attempt.artifacts(), ["current/report.xml", "d/report.xml"], "{kind}");
            assert_eq!(attempt.missed(), [], "{kind}");
        }
        assert!(worker.stop().await.success());
    });
}

/// Where a job begins may be closed to its user, as under `docker run`; what it leaves elsewhere is found all the same.
#[test]
fn a_working_directory_that_is_closed_to_the_user_hides_nothing_else() {
    worker::run(async |site| {
        let image =
            Image::build("FROM prewarm-test/busybox\nRUN mkdir -m 700 /closed\nUSER 1234\nWORKDIR /closed\n");
        let worker = both(site.worker(), "", &format!("image = {:?}", image.name())).ready().await;
        for kind in KINDS {
            let job = "pwd && ! ls . 2>/dev/null && echo out >/tmp/out";
            let attempt = run(site, kind, job, json!({"artifacts": ["/tmp/out", "x"]})).await.succeeded();
            assert_eq!(attempt.artifacts(), ["/tmp/out"], "{kind}: {:#}", attempt.result);
            assert_eq!(attempt.missed().len(), 1, "{kind}: {:#}", attempt.result);
        }
        assert!(worker.stop().await.success());
        drop(image);
    });
}
