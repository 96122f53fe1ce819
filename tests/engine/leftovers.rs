//! A worker that was killed comes back beside another one on the same engine.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use prewarm::config::{EngineConfig, Pull};
use prewarm::engine::docker::Docker;
use prewarm::engine::{Engine, INSTANCE_LABEL};
use prewarm::metrics::Metrics;

use crate::flow::{TWO_LIVES, all_succeeded, docker_aside, flow, mark, nothing_leaked, pace};
use crate::support::broker::Job;
use crate::support::docker::{BUSYBOX, docker_ok};
use crate::support::engine::{Container, containers};
use crate::support::worker::{Site, Worker, eventually, run};

/// The sweep that a worker does when it starts. The next one would come two minutes later.
const AT_ONCE: Duration = Duration::from_secs(100);

const REASONS: [&str; 9] =
    ["used", "died", "failed", "doubt", "shrunk", "age", "rolled", "budget", "drained"];

/// The instance of a living worker, from its presence file.
fn instance(site: &Site, worker: &Worker) -> String {
    let files = fs::read_dir(site.dir.join("run")).unwrap().map(|entry| entry.unwrap().path());
    let mine = |text: String| text.starts_with(&format!("worker {},", worker.name));
    let mut files = files.filter(|path| path.extension().is_some_and(|e| e == "alive"));
    let file = files.find(|path| mine(fs::read_to_string(path).unwrap())).expect("a presence file");
    file.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// A container as a worker makes them, for what it can't be brought to leave behind on demand.
fn stand_in(verb: &[&str], worker: &str, instance: &str, command: &[&str]) -> String {
    let labels = [format!("prewarm.worker={worker}"), format!("prewarm.instance={instance}")];
    let options = ["--label", &labels[0], "--label", &labels[1], "--network", "none", BUSYBOX];
    docker_ok(verb.iter().chain(&options).chain(command)).trim().to_owned()
}

fn ids(containers: &[Container]) -> BTreeSet<&str> {
    containers.iter().map(|c| c.id.as_str()).collect()
}

#[test]
fn a_worker_removes_what_it_left_and_nothing_of_another_one() {
    run(async |site: &Site| {
        let keys = "idle = 3\nconcurrency = 2\nnetwork = \"host\"";
        let other = site.worker().pool("other", keys).full().await;
        let marked = format!("{keys}\n{}", mark(site));
        let mut worker = site.worker().pool("box", &marked).full().await;
        let name = worker.name.clone();
        let (dead, alive) = (instance(site, &worker), instance(site, &other));
        // Of a worker on another host, whose presence nobody here can see.
        let far = site.worker().name;
        let fars = stand_in(&["create"], &far, &uuid::Uuid::now_v7().to_string(), &["true"]);
        // One that the other worker is just creating.
        let others_new = stand_in(&["create"], &other.name, &alive, &["true"]);
        let others = containers(&other.name);
        assert_eq!(others.len(), 4);
        let series = async || {
            let metrics = other.metrics().await;
            REASONS.map(|reason| {
                metrics.get("prewarm_containers_retired_total", &[("pool", "other"), ("reason", reason)])
            })
        };
        let before = series().await;

        let every = pace(&worker).await;
        let (jobs, (worker, long)) = flow(site, every, async {
            let long = site.broker.submit("box", Job::shell(TWO_LIVES)).await;
            site.broker.printed(&long, "up").await;
            worker
                .until_one(async |p| p["idle"].as_u64() >= Some(1) && p["starting"].as_u64() >= Some(1))
                .await;
            worker.kill();
            let ended = stand_in(&["run", "-d"], &name, &dead, &["true"]);
            let paused = stand_in(&["run", "-d"], &name, &dead, &["sleep", "1000"]);
            docker_aside(&["pause", &paused]).await;
            let left = [
                stand_in(&["create"], &name, &dead, &["true"]),
                stand_in(&["run", "-d"], &name, &dead, &["sleep", "1000"]),
                paused,
                ended,
            ];
            let is_there = |c: &Container| left.contains(&c.id);
            assert_eq!(containers(&name).iter().filter(|c| is_there(c)).count(), left.len());

            let begun = Instant::now();
            let worker = site.worker().named(&name).pool("box", &marked).start().await;
            eventually("all that the dead one left is gone", async || {
                let label = format!("label=prewarm.instance={dead}");
                docker_aside(&["ps", "-aq", "--filter", &label]).await.is_empty().then_some(())
            })
            .await;
            println!("gone {:?} after the worker was started again", begun.elapsed());
            assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
            worker.until_ready().await;
            (worker, long)
        })
        .await;
        all_succeeded(site, &jobs).await;
        // More than one later: the broker may have given it to the dead worker's other seat before it saw that end, too.
        let long = all_succeeded(site, &[long]).await;
        assert!(long[0]["attempt"].as_u64() >= Some(2), "{:#}", long[0]);
        nothing_leaked(&worker, || containers(&name)).await;

        assert_eq!(ids(&containers(&other.name)), ids(&others), "the other worker's are as they were");
        assert_eq!(series().await, before);
        assert_eq!(other.pool("other").await["idle"], 3);
        assert_eq!(ids(&containers(&far)), BTreeSet::from([fars.as_str()]), "and what nobody here can judge");
        docker_ok(["rm", &fars, &others_new]);
        assert!(worker.stop().await.success());
        assert!(other.stop().await.success());
    });
}

/// An engine that goes away while the volume of init is being filled keeps the container that was to fill it, whose name
/// is the lock. The worker that made it is not to wait for itself.
#[test]
fn what_was_to_fill_the_volume_of_init_does_not_hold_its_own_worker_up() {
    run(async |_: &Site| {
        let engine = Docker::new(&EngineConfig::default(), &Metrics::new()).unwrap();
        let image = engine.image(BUSYBOX, Pull::Never).await.unwrap();
        let instance = uuid::Uuid::now_v7().to_string();
        let labels = [(INSTANCE_LABEL.to_owned(), instance.clone())].into();
        let volume = engine.install_init(&image, &labels).await.unwrap();

        let left = format!("{volume}-fill");
        let labelled = [format!("prewarm.init={volume}"), format!("{INSTANCE_LABEL}={instance}")];
        eventually("no other worker is at it", async || {
            let mut create = std::process::Command::new("docker");
            create.args(["create", "--name", &left, "--label", &labelled[0], "--label", &labelled[1]]);
            create.args([BUSYBOX, "true"]).output().unwrap().status.success().then_some(())
        })
        .await;

        // Of another worker's it would wait 10 s for it to end.
        let begun = Instant::now();
        assert_eq!(engine.install_init(&image, &labels).await.unwrap(), volume);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let label = format!("label={}", labelled[1]);
        assert_eq!(docker_aside(&["ps", "-aq", "--filter", &label]).await, "", "nothing is left");
    });
}
