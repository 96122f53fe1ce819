//! Nothing is lost, whatever happens: real workers under load, real brokers and engines, and one fault after another.
//!
//! Each fault has its own run with its own books (`books.rs`): every job that a broker has confirmed ends as a result or as a
//! dead letter; what ran twice shows it; every result is that of a run that the job itself has written down; no container and no
//! message is left. One row for each is printed, past the test runner's capture, and all are in `target/chaos.md`.
//!
//! `PREWARM_TEST_CHAOS=long` takes hours rather than minutes; `PREWARM_TEST_CHAOS_SEED=7` has other random moments;
//! `PREWARM_TEST_CHAOS_ONLY=1,7,13b` only some faults; `PREWARM_TEST_CHAOS_LOGS=DIR` keeps there what the workers say in all
//! detail. Faults that share servers are one test, a lane.

mod books;
mod faults;
mod ground;
mod nodes;
mod proxy;
mod publisher;
mod reader;
mod report;
mod run;
mod scale;
#[path = "../support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use faults::{broker, cluster, container, engine, size, worker};
use futures_util::FutureExt;
use ground::Ground;
use nodes::{Nodes, Release};
use run::{Run, ending};
use support::docker::BUSYBOX;
use support::own_engine::OwnEngine;
use support::worker::Site;

/// So many lanes there are.
const LANES: usize = 6;

/// Faults that share servers.
#[derive(Default)]
struct Lane {
    failed: Vec<String>,
}

impl Lane {
    /// One fault, as often as there are seeds. What fails is remembered, so that one run shows all that is wrong.
    fn fault<T>(&mut self, name: &str, ground: &Ground<'_>, fault: impl AsyncFn(Run<'_>) -> T) {
        for scale in scale::scales().into_iter().filter(|_| scale::wanted(name)) {
            let shown = if scale.long { format!("{name} (seed {})", scale.seed) } else { name.to_owned() };
            let run = || {
                support::worker::run(async |site: &Site| {
                    let run = Run::new(site, ground, &shown, scale).await;
                    let held = AssertUnwindSafe(fault(run)).catch_unwind().await;
                    ending::delete_queues(ground, &site.name).await;
                    if let Err(panic) = held {
                        std::panic::resume_unwind(panic);
                    }
                });
            };
            let held = catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
                let text = panic.downcast_ref::<&str>().map(|why| (*why).to_owned());
                panic.downcast_ref::<String>().cloned().or(text).unwrap_or_default()
            });
            report::verdict(&shown, held.as_ref().copied().map_err(String::as_str));
            self.failed.extend(held.err().map(|why| format!("{shown}: {why}")));
        }
    }

    fn end(self) {
        report::lane_ended(LANES);
        assert!(self.failed.is_empty(), "{} faults:\n{}", self.failed.len(), self.failed.join("\n\n"));
    }
}

#[test]
fn of_workers_and_containers() {
    let (mut lane, ground) = (Lane::default(), Ground::shared());
    lane.fault("1 worker killed mid-job", &ground, worker::killed_mid_job);
    lane.fault("2 worker killed between result and ack", &ground, worker::killed_between_result_and_ack);
    lane.fault(
        "3 worker killed while starting containers",
        &ground,
        worker::killed_while_starting_containers,
    );
    lane.fault("4 one of two workers killed", &ground, worker::one_of_two_killed);
    lane.fault("16 jobs out of memory", &ground, container::out_of_memory);
    lane.fault("17 containers killed and stopped from outside", &ground, container::killed_from_outside);
    lane.fault("18 init killed", &ground, container::init_killed);
    lane.fault("21 messages of 15 MiB", &ground, size::large_messages);
    lane.fault("22 a long queue", &ground, size::long_queue);
    lane.fault("23a SIGTERM under load", &ground, worker::told_to_stop);
    lane.fault("23b SIGTERM twice under load", &ground, worker::told_twice_to_stop);
    lane.end();
}

/// Faults of one broker: each leaves it as it was, so they share one of the test's own.
#[test]
fn of_the_broker() {
    let faults = ["5", "6", "7", "8", "9", "10", "11", "20"];
    if !faults.iter().any(|fault| scale::wanted(fault)) {
        return;
    }
    let mut lane = Lane::default();
    let nodes = Nodes::start(Release::Installed, 1);
    let ground = Ground::on_nodes(&nodes);
    lane.fault("7 all connections closed by the broker", &ground, async |run| {
        broker::connections_closed(run, &nodes).await
    });
    lane.fault("8 silent peer", &ground, broker::silent_peer);
    lane.fault("10 queue deleted and declared again", &ground, broker::queue_deleted);
    lane.fault("11 memory alarm", &ground, async |run| broker::memory_alarm(run, &nodes).await);
    lane.fault("5 broker stopped and started", &ground, async |run| {
        broker::stopped_and_started(run, &nodes).await
    });
    lane.fault("6 broker away", &ground, async |run| broker::away(run, &nodes).await);
    lane.fault("20 much output that nobody reads", &ground, size::output_that_nobody_reads);
    // The last, since it changes the node's settings.
    lane.fault("9 acknowledgement timeout", &ground, async |run| {
        broker::acknowledgement_timeout(run, &nodes).await
    });
    lane.end();
}

#[test]
fn of_the_engine() {
    if !["13a", "13b", "14", "15"].iter().any(|fault| scale::wanted(fault)) {
        return;
    }
    let mut lane = Lane::default();
    let own = RefCell::new(OwnEngine::start(&[BUSYBOX]));
    let ground = Ground::on_engine(&own);
    let ended = async |run: Run<'_>, signal, short, long| {
        let away = run.scale.lasting(short, long);
        engine::ended(run, &own, signal, away).await
    };
    lane.fault("13a engine terminated and started", &ground, async |run| ended(run, "TERM", 0, 0).await);
    lane.fault("13b engine killed and started", &ground, async |run| ended(run, "KILL", 0, 0).await);
    lane.fault("14 engine away", &ground, async |run| ended(run, "TERM", 8, 30).await);
    lane.fault("15 engine frozen", &ground, async |run| engine::frozen(run, &own).await);
    lane.end();
}

#[test]
fn of_the_engines_disk() {
    if !scale::wanted("19") {
        return;
    }
    let mut lane = Lane::default();
    let own = RefCell::new(OwnEngine::with_disk(96, &[BUSYBOX]));
    let ground = Ground::on_engine(&own);
    lane.fault("19 engine's disk full", &ground, async |run| engine::disk_full(run, &own).await);
    lane.end();
}

#[test]
fn of_a_cluster() {
    if !scale::wanted("12") {
        return;
    }
    let mut lane = Lane::default();
    let nodes = Nodes::start(Release::Installed, 3);
    let ground = Ground::on_nodes(&nodes);
    lane.fault("12 nodes of a cluster lost", &ground, async |run| cluster::nodes_lost(run, &nodes).await);
    lane.end();
}

/// The same on the next generation of the broker: in the short form the one fault that tells most.
#[test]
fn of_rabbitmq_4() {
    let long = scale::scales().iter().any(|scale| scale.long);
    if !["24a", "24b", "24c", "24d"].iter().any(|fault| scale::wanted(fault)) {
        return;
    }
    let mut lane = Lane::default();
    let nodes = Nodes::start(Release::Four, 1);
    let ground = Ground::on_nodes(&nodes);
    lane.fault("24a broker stopped and started", &ground, async |run| {
        broker::stopped_and_started(run, &nodes).await
    });
    if long {
        lane.fault("24b worker killed mid-job", &ground, worker::killed_mid_job);
        lane.fault("24c all connections closed by the broker", &ground, async |run| {
            broker::connections_closed(run, &nodes).await
        });
        drop(nodes);
        let nodes = Nodes::start(Release::Four, 3);
        let ground = Ground::on_nodes(&nodes);
        lane.fault("24d nodes of a cluster lost", &ground, async |run| {
            cluster::nodes_lost(run, &nodes).await
        });
    }
    lane.end();
}
