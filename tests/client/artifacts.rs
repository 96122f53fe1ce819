//! `prewarm submit` with files and artifacts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use serde_json::Value;

use crate::support::broker::{ARTIFACT, RESULT, data};
use crate::support::docker;
use crate::support::worker::{Site, Worker, eventually, run, signal};
use crate::{LIMIT, call, command};

/// Artifacts of more than a few bytes come as events.
const KEYS: &str = "idle = 1\nconcurrency = 1\nworkdir = \"/work\"\nartifacts = { inline = \"1KiB\" }";

/// Leaves small and large files, text and bytes, and things that can't be returned.
const SCRIPT: &str = "stat -c %a bin/tool /data/bytes given && bin/tool && mkdir -p out/sub && cp /data/bytes out/sub/ && \
    cp given out/given && chmod 751 out/given && yes 0123456789 | head -c 3000000 >out/big && : >out/empty && ln -s big out/link";

async fn worker(site: &Site) -> Worker {
    site.worker().pool("box", KEYS).ready().await
}

#[test]
fn files_go_in_and_artifacts_come_out() {
    run(async |site: &Site| {
        let worker = worker(site).await;
        let local = |name: &str| site.dir.join(name).display().to_string();
        fs::write(local("tool"), "#!/bin/sh\necho from a tool\n").unwrap();
        fs::set_permissions(local("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let bytes: Vec<u8> = (0..5000_u32).map(|n| (n * 7) as u8).collect();
        fs::write(local("bytes"), &bytes).unwrap();
        fs::set_permissions(local("bytes"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::create_dir_all(local("saved/out")).unwrap();
        fs::write(local("saved/out/given"), "old").unwrap();
        let args = [
            &[
                "submit",
                "box",
                "-f",
                "--file",
                "tool:bin/tool",
                "--file",
                "bytes:/data/bytes",
                "--file",
                "-:given",
            ][..],
            &["--artifact", "out", "--artifact", "/data/*", "--artifact", "*.log", "--artifacts-to", "saved"],
            &["--", "sh", "-c", SCRIPT],
        ];
        let mut command = command(&worker, &args.concat());
        let done = docker::run(command.current_dir(&site.dir), Some("höre".as_bytes()), LIMIT);
        let (out, err) = (done.stdout.to_string(), done.stderr.to_string());
        assert_eq!((done.code, out.as_str()), (Some(0), "755\n640\n644\nfrom a tool\n"), "{err}");
        let lines: Vec<&str> = err.lines().collect();
        assert_eq!(lines.len(), 2, "{err}");
        assert!(err.contains("artifact \"*.log\" is missing: not_found: nothing matches"), "{err}");
        assert!(err.contains("artifact \"out/link\" is missing: link: "), "{err}");
        let read = |name: &str| fs::read(local(&format!("saved/{name}"))).unwrap();
        assert_eq!(read("out/given"), "höre".as_bytes());
        assert!(
            read("out/sub/bytes") == bytes && read("data/bytes") == bytes && read("out/empty").is_empty()
        );
        let big = read("out/big");
        assert!(
            big.len() == 3_000_000 && big.starts_with(b"0123456789\n") && big.ends_with(b"\n0123456789\n012"),
            "{}",
            big.len()
        );
        let mode =
            |name: &str| fs::metadata(local(&format!("saved/{name}"))).unwrap().permissions().mode() & 0o700;
        assert_eq!((mode("out/given"), mode("out/big")), (0o700, 0o600));
        let mut all: Vec<_> =
            fs::read_dir(local("saved/out")).unwrap().map(|e| e.unwrap().file_name()).collect();
        all.sort_unstable();
        assert_eq!(all, ["big", "empty", "given", "sub"]);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn artifacts_go_where_it_is_said_and_nowhere_else() {
    run(async |site: &Site| {
        let worker = worker(site).await;
        let from = site.dir.join("from");
        fs::create_dir(&from).unwrap();
        let script = "mkdir /out && echo small >/out/small && head -c 2000 /dev/zero >/out/large";
        let submit = |args: &[&str]| {
            let all =
                [&["submit", "box", "--artifact", "/out/*"], args, &["--", "sh", "-c", script]].concat();
            docker::run(command(&worker, &all).current_dir(&from), None, LIMIT)
        };
        // Without a directory, below the current one.
        submit(&["-f"]).ok("submit --artifact");
        assert_eq!(fs::read(from.join("out/small")).unwrap(), b"small\n");
        assert_eq!(fs::read(from.join("out/large")).unwrap(), [0; 2000]);
        // For machines they are in the lines, and nowhere else.
        fs::remove_dir_all(from.join("out")).unwrap();
        let lines: Vec<Value> = submit(&["-f", "--json"])
            .ok("submit --json")
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
        let (pieces, results) = (of(ARTIFACT), of(RESULT));
        assert_eq!(pieces.iter().map(|piece| data(piece).len()).sum::<usize>(), 2000, "{lines:?}");
        assert_eq!(results[0]["artifacts"].as_array().unwrap().len(), 2, "{lines:?}");
        assert_eq!(fs::read_dir(&from).unwrap().count(), 0);
        // A detached job's go with its result.
        submit(&["-d"]).ok("submit --detach");
        let result = site.broker.take(&site.broker.results()).await.body;
        assert_eq!(data(&result["artifacts"][0]), b"small\n", "{result}");
        assert_eq!(result["artifacts_missed"][0]["reason"], "no_reply_queue", "{result}");
        // A link in the way isn't followed; the job's own success isn't this command's.
        fs::create_dir(site.dir.join("elsewhere")).unwrap();
        symlink(site.dir.join("elsewhere"), from.join("out")).unwrap();
        let done = submit(&["-f"]);
        let err = done.stderr.to_string();
        assert_eq!(
            (done.code, err.matches("is not saved: \"out\" on its way is a link").count()),
            (Some(125), 2),
            "{err}"
        );
        assert_eq!(fs::read_dir(site.dir.join("elsewhere")).unwrap().count(), 0);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn a_second_ctrl_c_leaves_nothing_half_saved() {
    run(async |site: &Site| {
        let keys = "idle = 1\nconcurrency = 1\nartifacts = { size = \"1GiB\" }";
        let worker = site.worker().pool("box", keys).ready().await;
        let saved = site.dir.join("saved");
        let args = ["submit", "box", "-f", "--artifact", "/big", "--artifacts-to", saved.to_str().unwrap()];
        let job = ["--", "sh", "-c", "head -c 268435456 /dev/zero >/big"];
        let mut command = command(&worker, &[&args[..], &job].concat());
        let said = site.dir.join("stderr");
        let mut child =
            command.stdout(Stdio::null()).stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
        let names = || -> Vec<_> {
            fs::read_dir(&saved).into_iter().flatten().flatten().map(|e| e.file_name()).collect()
        };
        eventually("some of it is there", async || (!names().is_empty()).then_some(())).await;
        // Nothing more of it comes.
        signal("STOP", worker.pid());
        assert!(names().iter().all(|name| name.to_string_lossy().ends_with(".part")), "{:?}", names());
        signal("INT", child.id());
        let told =
            async || fs::read_to_string(&said).unwrap().contains("Ctrl-C again leaves it").then_some(());
        eventually("the first one is heard of", told).await;
        signal("INT", child.id());
        let ended = eventually("it ends", async || child.try_wait().unwrap()).await;
        assert_eq!(ended.code(), Some(130), "{}", fs::read_to_string(&said).unwrap());
        assert_eq!(names(), Vec::<std::ffi::OsString>::new());
        signal("CONT", worker.pid());
        assert!(worker.stop().await.success());
    });
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    run(async |site: &Site| {
        let worker = worker(site).await;
        let missing = site.dir.join("missing").display().to_string();
        let source = format!("{missing}:x");
        let taken = site.dir.join("taken").display().to_string();
        fs::write(&taken, "").unwrap();
        for (args, code, words) in [
            (&["--artifact", "x"][..], 2, &["--follow", "--detach"][..]),
            (&["--artifact", "x", "--count", "2"], 2, &["--follow", "--detach"]),
            (&["-f", "--artifacts-to", "x"], 2, &["--artifact"]),
            (&["-d", "--artifact", "x", "--artifacts-to", "x"], 2, &["--detach", "--artifacts-to"]),
            (&["-f", "--json", "--artifact", "x", "--artifacts-to", "x"], 2, &["--json", "--artifacts-to"]),
            (&["-f", "--artifact", "../x"], 2, &["'..'"]),
            (&["--file", "x"], 2, &["SOURCE:PATH"]),
            (&["--file", "x:"], 2, &["names no file"]),
            (&["--file", "x:../y"], 2, &["'..'"]),
            (&["--file", &source], 1, &["--file", &missing, "No such file"]),
            (&["--file", "/etc:x"], 1, &["--file", "directory"]),
            (&["--file", "/etc/passwd:x", "--file", "/etc/group:./x"], 1, &["another file"]),
            (&["-i", "--file", "-:x"], 1, &["standard input"]),
            (&["--file", "-:x", "--file", "-:y"], 1, &["standard input"]),
            (&["--env-file", "-", "--file", "-:x"], 1, &["standard input"]),
            (&["--env-file", "-", "-i"], 1, &["--env-file", "standard input"]),
            (&["-f", "--artifact", "x", "--artifacts-to", &taken], 1, &["--artifacts-to", &taken]),
        ] {
            let done = call(&worker, &[&["submit", "box"], args].concat());
            let err = done.stderr.to_string();
            assert_eq!(done.code, Some(code), "{args:?}: {err}");
            assert!(words.iter().all(|word| err.contains(word)), "{args:?}: {err}");
        }
        assert_eq!(
            worker.metrics().await.get("prewarm_pool_leases_total", &[("pool", "box"), ("result", "hit")]),
            0.0
        );
        assert!(worker.stop().await.success());
    });
}
