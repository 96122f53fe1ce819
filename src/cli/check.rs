//! `prewarm check`: configuration, broker, engine, images; everything is looked at, whatever fails before.

use std::process::ExitCode;

use super::{ConfigArgs, block_on, exit, load};
use crate::broker::ack_timeout::{self, Held, Queue, Verdict};
use crate::broker::amqp::{self, ProbeReport};
use crate::config::{Config, Loaded, TopologyMode};
use crate::contract::topology::Names;
use crate::engine::docker::Docker;
use crate::engine::{Engine, EngineError, Fault};
use crate::launch;
use crate::metrics::Metrics;

pub fn main(args: &ConfigArgs) -> ExitCode {
    let loaded = match load(args) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match block_on(check(&loaded)) {
        Ok(code) => ExitCode::from(code),
        Err(code) => code,
    }
}

/// Prints a line for each thing looked at; the exit code is that of the first fault.
struct Findings {
    code: u8,
}

impl Findings {
    fn good(&self, what: &str, text: impl std::fmt::Display) {
        println!("ok      {what:<14} {text}");
    }

    fn bad(&mut self, code: u8, what: &str, text: impl std::fmt::Display) {
        println!("FAULT   {what:<14} {text}");
        if self.code == 0 {
            self.code = code;
        }
    }

    fn advice(&self, what: &str, text: impl std::fmt::Display) {
        println!("advice  {what:<14} {text}");
    }
}

async fn check(loaded: &Loaded) -> u8 {
    let config = &loaded.config;
    let mut found = Findings { code: 0 };
    let place = loaded.path.as_ref().map_or("environment variables".into(), |p| p.display().to_string());
    found.good("configuration", format!("{place}: {} pool(s)", config.pools.len()));
    for advice in &loaded.advice {
        found.advice("configuration", advice);
    }
    broker(config, &mut found).await;
    if let Some(docker) = engine(config, &mut found).await {
        images(config, &docker, &mut found).await;
    }
    found.code
}

async fn broker(config: &Config, found: &mut Findings) {
    let mut conflicts = Vec::new();
    for report in amqp::probe(&config.broker, config.pools.keys()).await {
        match report {
            Ok(report) => {
                address(&report, found);
                long_jobs(config, &report, found);
                conflicts.extend(report.conflicts);
            }
            Err(error) => found.bad(exit::BROKER, "broker", error),
        }
    }
    // Every node of a cluster says the same.
    conflicts.dedup();
    for conflict in conflicts {
        found.bad(exit::BROKER, "broker", conflict);
    }
}

fn address(report: &ProbeReport, found: &mut Findings) {
    let server = report.server.as_ref().map_or("", |s| s.version.as_str());
    let missing = report.missing.join(", ");
    let made =
        if missing.is_empty() { String::new() } else { format!("; the worker will declare {missing}") };
    if report.is_usable() {
        found.good("broker", format!("{}: RabbitMQ {server}{made}", report.address));
    } else if report.conflicts.is_empty() {
        found.bad(
            exit::BROKER,
            "broker",
            format!("{}: missing {missing}; declare them, or set topology = \"declare\"", report.address),
        );
    }
}

/// Whether the broker waits for as long as jobs may take.
fn long_jobs(config: &Config, report: &ProbeReport, found: &Findings) {
    let names = Names::new(&config.broker.prefix);
    let held = config.pools.iter().map(|(pool, settings)| {
        let missing = report.missing.contains(&format!("queue '{}'", names.pool_queue(pool)));
        let ours = missing && report.mode == TopologyMode::Declare;
        Held {
            pool,
            longest: ack_timeout::longest(settings, config.worker.lease_timeout),
            queue: if ours { Queue::Ours } else { Queue::Unseen },
        }
    });
    let held: Vec<Held<'_>> = held.collect();
    let version = report.server.as_ref().map(|server| server.version.as_str());
    match ack_timeout::judge(version, &names, &report.vhost, &held) {
        Verdict::Enough(text) => found.good("long jobs", text),
        Verdict::Advice(text) => found.advice("long jobs", text),
    }
}

async fn engine(config: &Config, found: &mut Findings) -> Option<Docker> {
    let asked = match Docker::new(&config.engine, &Metrics::new()) {
        Ok(docker) => docker.info().await.map(|info| (docker, info)),
        Err(error) => Err(error),
    };
    match asked {
        Ok((docker, info)) => {
            let gib = info.memory as f64 / f64::from(1 << 30);
            found.good(
                "engine",
                format!(
                    "{}: {}, {}, {} CPUs, {gib:.1} GiB",
                    docker.host(),
                    info.version,
                    info.architecture,
                    info.cpus
                ),
            );
            Some(docker)
        }
        Err(error) => {
            found.bad(exit::ENGINE, "engine", error);
            None
        }
    }
}

async fn images(config: &Config, docker: &Docker, found: &mut Findings) {
    for (name, pool) in &config.pools {
        let what = format!("pool {name}");
        match docker.image(&pool.image, pool.pull).await {
            Ok(image) => match launch::argv(&image, pool, None) {
                Ok(argv) => found.good(&what, format!("{} {}: {}", image.name, image.id, argv.join(" "))),
                Err(_) => found.advice(
                    &what,
                    format!("{} names nothing to execute: every job must bring `args`, or set the pool's `entrypoint`", image.name),
                ),
            },
            Err(error) => found.bad(exit::IMAGE, &what, image_hint(&error)),
        }
    }
}

fn image_hint(error: &EngineError) -> String {
    match error.fault {
        Fault::NotFound(_) => format!("{error}; build or pull it, or correct `image`"),
        _ => error.to_string(),
    }
}
