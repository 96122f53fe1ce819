//! Logs: what goes where, in which form, and what never does.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::prelude::*;

use crate::broker::amqp::may_log;

/// Libraries whose messages below `warn` are never shown, whatever the operator's filter says: they log
/// payloads, and a job's environment is one.
const QUIET: [&str; 7] = ["bollard", "hyper", "hyper_util", "lapin", "amq_protocol", "async_rs", "rustls"];

/// Starts logging to stderr: text if that is a terminal, JSON otherwise; `PREWARM_LOG_FORMAT` (`text`, `json`)
/// overrides. `PREWARM_LOG` filters, as `debug` or `prewarm::pool=debug`; without it, `default`.
///
/// # Errors
/// Says what is wrong with the variable.
pub fn init(default: LevelFilter) -> Result<(), String> {
    let wanted = std::env::var("PREWARM_LOG").unwrap_or_default();
    let filter = EnvFilter::builder()
        .with_default_directive(default.into())
        .parse(&wanted)
        .map_err(|e| format!("PREWARM_LOG: '{wanted}' is not a filter ({e}); write for example 'debug'"))?;
    let json = match std::env::var("PREWARM_LOG_FORMAT").as_deref() {
        Ok("json") => true,
        Ok("text") => false,
        Ok("") | Err(_) => !std::io::stderr().is_terminal(),
        Ok(other) => return Err(format!("PREWARM_LOG_FORMAT: '{other}' is neither 'text' nor 'json'")),
    };
    let quiet = filter_fn(|meta| {
        let library = meta.target().split("::").next().unwrap_or_default();
        may_log(meta) && (*meta.level() <= tracing::Level::WARN || !QUIET.contains(&library))
    });
    let registry = tracing_subscriber::registry().with(filter).with(quiet);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if json {
        registry.with(layer.json().flatten_event(true)).init();
    } else {
        registry.with(layer.with_ansi(std::io::stderr().is_terminal())).init();
    }
    Ok(())
}
