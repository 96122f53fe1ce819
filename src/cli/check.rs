//! `prewarm check`: configuration, broker, engine, images; everything is looked at, whatever fails before.

use std::process::ExitCode;

use super::{ConfigArgs, block_on, exit, load};
use crate::broker::amqp;
use crate::config::{Config, Loaded};
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
    let pools: Vec<_> = config.pools.keys().cloned().collect();
    match amqp::probe(&config.broker, &pools).await {
        Ok(report) => {
            let server = report.server.as_ref().map_or("", |s| s.version.as_str());
            let made = if report.missing.is_empty() {
                String::new()
            } else {
                format!("; the worker will declare {}", report.missing.join(", "))
            };
            if report.is_usable() {
                found.good("broker", format!("{}: RabbitMQ {server}{made}", report.address));
            } else if report.conflicts.is_empty() {
                let missing = report.missing.join(", ");
                found.bad(
                    exit::BROKER,
                    "broker",
                    format!(
                        "{}: missing {missing}; declare them, or set topology = \"declare\"",
                        report.address
                    ),
                );
            }
            for conflict in &report.conflicts {
                found.bad(exit::BROKER, "broker", conflict);
            }
        }
        Err(error) => found.bad(exit::BROKER, "broker", error),
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
