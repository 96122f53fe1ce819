//! Arguments and environment that the kernel doesn't take. No command line can pass them on, so the jobs are run as
//! `prewarm run` runs them, from inside; Docker is asked by an image that has such an environment itself.

use std::collections::BTreeMap;
use std::path::Path;

use prewarm::attempt::{self, Controls};
use prewarm::config;
use prewarm::contract::PoolName;
use prewarm::contract::job::Env;
use prewarm::engine::docker::Docker;
use prewarm::init::wire::End;
use prewarm::launch::{self, Order};
use prewarm::metrics::Metrics;
use prewarm::outcome::Outcome;
use prewarm::pool::planner::Host;
use prewarm::pool::{Owner, Pools};
use tokio::sync::mpsc;

use crate::docker::{self, BUSYBOX, Image, PATIENCE};

const KIB: usize = 1024;

/// The kernel's limits (execve(2)): 128 KiB for one string with its NUL; for all strings and their pointers a
/// quarter of the stack's limit, which Docker leaves at 8 MiB, and at most 6 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_does_not_take_is_said_with_the_program_s_name() {
    docker::variable("DOCKER_HOST");
    let variables = |count: usize, size: usize| -> Env {
        Env((0..count).map(|n| (format!("V{n:02}"), "v".repeat(size - "V00=\0".len()))).collect())
    };
    let fits = "";
    let too_long = "exec: \"true\": arguments and environment are too long";
    let far_too_long = "arguments and environment are";
    for (env, stack, wanted) in [
        (variables(1, 128 * KIB), "8MiB", fits),
        (variables(1, 128 * KIB + 1), "8MiB", too_long),
        (variables(15, 128 * KIB), "8MiB", fits),
        (variables(17, 128 * KIB), "8MiB", too_long),
        (variables(46, 128 * KIB), "64MiB", fits),
        (variables(50, 128 * KIB), "64MiB", too_long),
        (variables(70, 128 * KIB), "64MiB", far_too_long),
    ] {
        let what = format!("{} variables with a stack of {stack}", env.0.len());
        match (run(env, stack).await, wanted) {
            (Ok((0, said)), "") => assert_eq!(said, "", "{what}"),
            (Ok((126, said)), wanted) if !wanted.is_empty() => assert_eq!(said, wanted, "{what}"),
            (Err(refused), wanted) if wanted == far_too_long => {
                assert!(refused.starts_with(wanted), "{refused}")
            }
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}

/// Runs `true` with this environment: its code, and what is said of it; or why it was not tried.
async fn run(env: Env, stack: &str) -> Result<(u8, String), String> {
    let worker = docker::unique("worker");
    let text = format!(
        "[worker]\nname = \"{worker}\"\n[pool.p]\nimage = \"{BUSYBOX}\"\nidle = {{ min = 0, max = 1 }}\n"
    );
    let mut config = config::parse(Path::new("parity.toml"), &text, []).unwrap().config;
    let name: PoolName = "p".parse().unwrap();
    let pool = config.pools.get_mut(&name).unwrap();
    let bytes = if stack == "8MiB" { 8 << 20 } else { 64 << 20 };
    pool.ulimits = BTreeMap::from([("stack".into(), config::Ulimit { soft: bytes, hard: bytes })]);
    let pool = pool.clone();

    let metrics = Metrics::new();
    let engine = std::sync::Arc::new(Docker::new(&config.engine, &metrics).unwrap());
    let host = Host { creators: 1, containers: None, memory: None };
    let pools = Pools::start(engine, &Owner::new(&worker), &config.pools, host, PATIENCE, &metrics);
    let lease = pools.lease(&name, PATIENCE).await.unwrap();
    let args = ["true".to_owned()];
    let order = Order {
        args: Some(&args),
        env: &env,
        given: &Env::default(),
        stdin: None,
        files: &[],
        artifacts: &[],
        traceparent: None,
        timeout: PATIENCE,
        stop_grace: PATIENCE,
    };
    let outcome = match launch::plan(&lease.image, &pool, order) {
        Err(refused) => {
            // The pools close when nobody has one of their containers.
            drop(lease);
            Err(refused.message)
        }
        Ok((plan, executable)) => {
            let (happen, mut happenings) = mpsc::channel(attempt::CHANNEL);
            let controls = Controls::default();
            let (ended, ()) = tokio::join!(attempt::run(lease, plan, &controls, happen), async {
                while happenings.recv().await.is_some() {}
            });
            match Outcome::of(ended, &executable, PATIENCE) {
                Outcome::Ran(verdict) => match verdict.end {
                    Some(End::Code(code)) => Ok((code, verdict.error.map(|e| e.message).unwrap_or_default())),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        }
    };
    pools.close().await;
    outcome
}

/// Not even the container's first process can be started then.
#[test]
fn an_image_whose_own_environment_is_too_large_runs_nowhere() {
    let third = format!("{}\\\n", "v".repeat(50 * KIB));
    let image =
        Image::build(&format!("FROM {BUSYBOX}\nENV V={}\n", third.repeat(3).trim_end_matches("\\\n")));
    let args = ["run", "--rm", "--init", "--label", &crate::row::label(), image.name(), "true"];
    let theirs = docker::run(&mut docker::docker(args), None, PATIENCE);
    assert_ne!(theirs.code, Some(0), "{theirs:?}");

    let directory = crate::Directory::new();
    let bench = crate::Bench::new(&directory.0, crate::Isolation::Container);
    let row = crate::row::row("").image(image.name()).args(["true"]);
    let ours = docker::run(&mut bench.prewarm_run(&row, image.name()), None, PATIENCE);
    assert_eq!(ours.code, Some(125), "{ours:?}");
}
