//! A job of a container that serves many gets no further out of it than one that `docker run` has started with the same
//! options.

use std::process::Command;

use serde_json::json;

use crate::support::docker::{self, docker_ok};
use crate::support::worker::{self, Site, prewarm};
use crate::{Ground, IMAGE, kinds, one_container, text};

/// What is refused here though this engine allows it to a job of `docker run`, and why.
const STRICTER: [(&str, &str); 9] = [
    ("io_uring_setup", "newer releases of Docker refuse it to everybody"),
    ("a socket of family 38", "AF_ALG: the newest releases refuse it"),
    ("a socket of family 40", "AF_VSOCK: newer releases refuse it"),
    ("a control group of its own", "the directory of version 1, which all jobs of the container see"),
    ("a file among the control groups", "the same directory"),
    ("the mode of /sys/fs/cgroup", "the same directory"),
    ("the mode of /proc/keys", "it is masked by a file that all jobs of the container see"),
    ("the owner of /proc/timer_list", "the same"),
    ("the time of /proc/keys", "the same"),
];

#[test]
fn no_attempt_gets_further_than_under_docker_run() {
    worker::run(async |site: &Site| {
        let mut worker = site.worker();
        for (name, keys, _) in kinds() {
            worker = worker.pool(name, &one_container(&keys));
        }
        let ground = Ground { site, worker: worker.full().await };
        for (name, _, options) in kinds() {
            let first = ground.inventory(name).await;
            let mut args = vec!["run", "--rm", "--log-driver", "none"];
            args.extend(options.iter().map(String::as_str));
            if name != "bridge" {
                args.extend(["--network", "none"]);
            }
            let theirs = docker_ok(args.into_iter().chain([IMAGE, "escape"]));
            let ours = text(&ground.program(name, &["escape"]).await);
            assert!(ours.lines().count() > 250, "{name}: {ours}");
            compare(name, &theirs, &ours);
            ground.inventory(name).await.must_be(&first, name);

            let alive = text(&ground.program(name, &["escape", "kill-all"]).await);
            // Nobody is left to be killed, or the one who asked is not killed by itself.
            assert!(alive.starts_with("alive: "), "{name}: {alive}");
            ground.inventory(name).await.must_be(&first, name);
        }
        ground.stop().await;
    });
}

fn compare(name: &str, theirs: &str, ours: &str) {
    assert_eq!(theirs.lines().count(), ours.lines().count(), "{name}");
    let mut wrong = Vec::new();
    for (docker, prewarm) in theirs.lines().zip(ours.lines()) {
        let (what, outcome) = prewarm.rsplit_once(": ").unwrap();
        let refused = outcome.starts_with('E');
        let stricter = refused && STRICTER.iter().any(|(listed, _)| *listed == what);
        if docker != prewarm && !stricter {
            wrong.push(format!("docker: {docker}\nours:   {prewarm}"));
        }
    }
    assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
}

/// CVE-2019-5736 and its kind: `/proc/self/exe` as the program is, before execve, whoever calls it.
#[test]
fn init_s_own_program_is_of_no_use_to_a_job() {
    worker::run(async |site: &Site| {
        let worker = site.worker().pool("box", &one_container("")).full().await;
        let ground = Ground { site, worker };
        let first = ground.inventory("box").await;
        for args in [
            json!(["/proc/self/exe"]),
            json!(["/proc/self/exe", "namespace"]),
            json!(["/proc/1/exe", "namespace"]),
            json!(["sh", "-c", "printf '#!/proc/self/exe\\n' >/tmp/x; chmod 755 /tmp/x; exec /tmp/x"]),
            json!(["sh", "-c", "ln -s /proc/self/exe /tmp/x; exec /tmp/x sh -c 'readlink /proc/self/exe'"]),
        ] {
            for stdin in ["", "\u{1}\0\0\0\u{5}xxxx"] {
                let job = json!({"args": args, "stdin": stdin, "timeout": "5s"});
                let attempt = ground.run("box", job).await;
                assert_ne!(attempt.status(), "error", "{:#}", attempt.result);
                ground.inventory("box").await.must_be(&first, &args.to_string());
            }
        }
        ground.stop().await;
    });
}

/// CVE-2024-21626 began with a descriptor of the host's and a working directory in it.
#[test]
fn a_working_directory_is_never_outside() {
    worker::run(async |site: &Site| {
        for fd in 3..12 {
            let name = format!("{}-fd{fd}", site.name);
            let config = site.dir.join(format!("{name}.toml"));
            let keys = one_container(&format!("workdir = \"/proc/self/fd/{fd}\"\nnetwork = \"none\""));
            std::fs::write(&config, format!("[worker]\nname = \"{name}\"\n[pool.p]\n{keys}\n")).unwrap();
            // Where it is, by two ways; then up as far as there is.
            let script = "cd -P . && stat -L -c '%d %i' /proc/self/cwd \"$(pwd -P)\" && cd ../../../../../../.. && \
                          stat -L -c '%d %i' . /";
            let mut command: Command = prewarm();
            command.arg("-c").arg(&config).args(["run", "p", "--", "sh", "-c", script]);
            let done = docker::run(&mut command, None, docker::PATIENCE);
            if done.code == Some(0) {
                let said = done.stdout.to_string();
                let places: Vec<&str> = said.lines().collect();
                assert_eq!((places[0], places[2]), (places[1], places[3]), "descriptor {fd}: {said}");
            }
        }
    });
}
