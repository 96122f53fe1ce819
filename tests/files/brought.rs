//! Stdin and files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{KINDS, both, message, run, script, text};
use crate::support::worker;

#[test]
fn files_are_there_before_the_job_begins_and_stdin_after_them() {
    worker::run(async |site| {
        let setup = both(site.worker(), "", "workdir = \"/work\"");
        let user = "workdir = \"/tmp\"\nuser = \"1234:2345\"\ntmpfs = { \"/tmp\" = \"mode=1777,exec\" }";
        let worker = both(setup, "-user", user).ready().await;
        let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7) as u8).collect();
        for kind in KINDS {
            for (name, owner) in [("", "0:0"), ("-user", "1234:2345")] {
                let pool = format!("{kind}{name}");
                let files = json!({
                    "in.txt": "hello",
                    "deep/er/run.sh": {"text": "#!/bin/sh\necho ran $0", "mode": "0755"},
                    "bytes": {"base64": "/wABgA==", "mode": "600"},
                    "./empty": "",
                    "big": {"base64": STANDARD.encode(&big)},
                });
                let job = "cat in.txt; echo; deep/er/run.sh; od -An -tx1 bytes; stat -c '%n %a %u:%g %s' * deep/er; \
                           sha256sum big; cat";
                let attempt =
                    run(site, &pool, job, json!({"files": files, "stdin": {"base64": "c3RkaW4="}})).await;
                let attempt = attempt.succeeded();
                let out = text(&attempt.stdout);
                for line in [
                    "hello",
                    "ran deep/er/run.sh",
                    " ff 00 01 80",
                    &format!("in.txt 644 {owner} 5"),
                    &format!("bytes 600 {owner} 4"),
                    &format!("empty 644 {owner} 0"),
                    &format!("big 644 {owner} 3000000"),
                    "stdin",
                ] {
                    assert!(out.lines().any(|l| l == line), "{pool}: {line:?} in {out}");
                }
                assert!(out.contains(&format!("deep 755 {owner}")), "{out}");
                let digest = prewarm_digest(&big);
                assert!(out.contains(&digest), "{out}");
                assert_eq!(text(&attempt.stderr), "");
                // Without a stdin of its own a job has /dev/null, files or not.
                let attempt =
                    run(site, &pool, "readlink /proc/self/fd/0; ls", json!({"files": {"a": "b"}})).await;
                assert_eq!(
                    text(&attempt.succeeded().stdout),
                    "/dev/null\na\n",
                    "{pool}: nothing of the job before"
                );
            }
        }
        assert!(worker.stop().await.success());
    });
}

fn prewarm_digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_there_is_replaced_and_links_are_not_written_through() {
    worker::run(async |site| {
        let shared = site.dir.join("shared");
        std::fs::create_dir_all(&shared).unwrap();
        std::fs::write(shared.join("outside"), "untouched").unwrap();
        std::fs::create_dir(shared.join("d")).unwrap();
        for (link, to) in [("link", "outside"), ("absolute", "/etc/passwd"), ("up", "../../../../../../etc")]
        {
            std::os::unix::fs::symlink(to, shared.join(link)).unwrap();
        }
        let mount = format!("mounts = [{{ source = {shared:?}, target = \"/mnt\", shared = true }}]");
        let worker = both(site.worker(), "", &mount).ready().await;
        let host = std::fs::read("/etc/passwd").unwrap();
        for kind in KINDS {
            let files = json!({
                "/mnt/link": "replaced", "/mnt/absolute": "replaced", "/mnt/up/file": "inside",
                "/bin/busybox-too": "new", "/dev/stdin": "a file now",
            });
            let job = "cat /mnt/link /mnt/absolute /etc/file /dev/stdin; ls -l /mnt/link | cut -c1; cat /mnt/outside";
            let attempt = run(site, kind, job, json!({"files": files})).await.succeeded();
            assert_eq!(text(&attempt.stdout), "replacedreplacedinsidea file now-\nuntouched", "{kind}");
            assert!(
                !std::path::Path::new("/etc/file").exists(),
                "an absolute way out is the container's own"
            );
            for link in ["link", "absolute"] {
                std::fs::remove_file(shared.join(link)).unwrap();
            }
            std::os::unix::fs::symlink("outside", shared.join("link")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", shared.join("absolute")).unwrap();
        }
        assert_eq!(std::fs::read("/etc/passwd").unwrap(), host);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn what_has_no_place_is_rejected_with_its_path_and_why() {
    worker::run(async |site| {
        let limits = "files = { max = 3, size = \"2MiB\" }\n";
        let setup = both(site.worker(), "", limits);
        let read_only = format!("{limits}read_only = true\ntmpfs = {{ \"/tmp\" = \"size=64k\" }}");
        let setup = both(setup, "-ro", &read_only);
        let worker = both(setup, "-user", &format!("{limits}user = \"1234\"")).ready().await;
        for kind in KINDS {
            for (name, path, content, words) in [
                ("-ro", "/etc/x", "x", vec!["'/etc/x'", "it can't be made there", "Read-only file system"]),
                (
                    "-ro",
                    "/new/x",
                    "x",
                    vec!["'/new/x'", "its directory can't be entered or made", "Read-only"],
                ),
                ("-ro", "/tmp/x", &"x".repeat(100_000), vec!["'/tmp/x'", "No space left"]),
                ("-user", "/etc/x", "x", vec!["'/etc/x'", "Permission denied"]),
                ("", "/bin/busybox/x", "x", vec!["'/bin/busybox/x'", "Not a directory"]),
                ("", "/etc", "x", vec!["'/etc'", "Is a directory"]),
                ("", "/proc/self/fd/1/x", "x", vec!["/proc/self/fd/1/x", "Not a directory"]),
                ("", "/proc/x", "x", vec!["'/proc/x'"]),
                ("", "/a/../../etc/x", "x", vec!["'..'"]),
                ("", "/.prewarm/init", "x", vec!["prewarm's own"]),
                ("", "/x", &"x".repeat(3 << 20), vec!["3145729 bytes", "2097152"]),
            ] {
                let pool = format!("{kind}{name}");
                let attempt =
                    run(site, &pool, "echo never", json!({"files": {"/tmp/fine": "x", path: content}})).await;
                assert_eq!(attempt.status(), "rejected", "{pool} {path}: {:#}", attempt.result);
                assert_eq!(attempt.stdout, b"", "{pool} {path}");
                let said = message(&attempt);
                assert!(said.starts_with("files"), "{said}");
                for words in words {
                    assert!(said.contains(words), "{pool} {path}: {said}");
                }
                let dead = site.broker.take(&site.broker.dead()).await;
                assert!(dead.header("x-prewarm-reason").unwrap().starts_with("files"));
            }
            let many = json!({"files": {"a": "", "b": "", "c": "", "d": ""}});
            let attempt = run(site, kind, "true", many).await;
            assert!(
                message(&attempt).contains("4 files are more than the most of pool"),
                "{}",
                message(&attempt)
            );
            site.broker.take(&site.broker.dead()).await;
            // And the next one finds a sound container.
            run(site, kind, "true", json!({"files": {"a": ""}})).await.succeeded();
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_job_that_is_cancelled_or_not_read_from_is_over_all_the_same() {
    worker::run(async |site| {
        let worker = both(site.worker(), "", "").ready().await;
        for kind in KINDS {
            let files =
                json!({"files": {"/a": "x".repeat(1 << 20)}, "stdin": "y".repeat(1 << 20), "timeout": "5s"});
            let attempt = run(site, kind, "wc -c < /a; exec sleep 100", files).await;
            assert_eq!((attempt.status(), text(&attempt.stdout)), ("timed_out", "1048576\n"), "{kind}");
            let closed = json!({"files": {"/a": "x"}, "stdin": "y".repeat(1 << 20)});
            let attempt = run(site, kind, "exec <&-; cat /a", closed).await.succeeded();
            assert_eq!(text(&attempt.stdout), "x");
            let missing = script("true", json!({"files": {"/a": "x"}, "stdin": "z", "args": ["/nope"]}));
            let attempt = site.broker.run(kind, missing).await;
            assert_eq!(attempt.result["exit_code"], 127, "{:#}", attempt.result);
        }
        assert!(worker.stop().await.success());
    });
}
