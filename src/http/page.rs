//! Pure: the page at `/`, which shows the worker to people. One document with all that it needs, rendered here alone; its
//! script asks for it again and takes over what has changed.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;
use std::time::SystemTime;

use axum::http::{HeaderName, HeaderValue, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::chart;
use super::history::{EVERY, KEPT, Tally};
use super::words::{Text, percent, seconds, so_many, span, why};
use crate::contract::event::timestamp;
use crate::failures::Failure;
use crate::pool::PoolStatus;
use crate::running::RunningJob;
use crate::status::Status;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// Most rows of a table, and most containers that are drawn of one state; the counts are of all.
const SHOWN: usize = 100;
/// Characters of a container's id, as `docker ps` shows it.
const SHORT_ID: usize = 12;

/// What each pool's leases and starts were, the oldest first.
type Past = BTreeMap<String, Vec<Tally>>;

/// Nothing but the page's own style and script, nothing from elsewhere, and in nobody's frame.
pub(super) fn headers() -> [(HeaderName, HeaderValue); 5] {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let hash = |text| BASE64_STANDARD.encode(Sha256::digest(text));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        // ASCII: there is no way to fail. And if there were, nothing would be allowed.
        HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
    });
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ]
}

/// The page.
pub(super) fn render(status: &Status, past: &Past, now: SystemTime) -> String {
    let (state, state_words) = if status.ready { ("good", "ready") } else { ("bad", "not ready") };
    let clock = OffsetDateTime::from(now).format(format_description!("[hour]:[minute]:[second]"));
    format!(
        include_str!("page/page.html"),
        title = Text(&format!("{}: {state_words} · prewarm", status.worker)),
        style = STYLE,
        script = SCRIPT,
        worker = Text(&status.worker),
        state = state,
        state_words = state_words,
        version = Text(status.version),
        uptime = span(status.uptime_seconds),
        broker = if status.broker_connected { "connected" } else { "not connected" },
        able = status.pools.iter().filter(|pool| pool.able).count(),
        all = status.pools.len(),
        time = timestamp(now),
        clock = clock.unwrap_or_default(),
        obstacles = obstacles(&status.not_ready_because),
        figures = figures(status, past),
        pools = pools(status, past),
        job_count = status.jobs.len(),
        jobs = jobs(&status.jobs),
        failure_count = status.failures.len(),
        failures = failures(&status.failures, now),
    )
}

fn obstacles(found: &[String]) -> String {
    if found.is_empty() {
        return String::new();
    }
    let items: String = found.iter().map(|why| format!("<li>{}</li>", Text(why))).collect();
    format!(r#"<div class="obstacles"><h2>Not ready because</h2><ul>{items}</ul></div>"#)
}

/// The first things to look at, of all pools together.
fn figures(status: &Status, past: &Past) -> String {
    let all: Tally = past.values().flatten().copied().sum();
    let sum = |of: fn(&PoolStatus) -> usize| status.pools.iter().map(of).sum::<usize>();
    let waiting = sum(|pool| pool.waiting);
    let containers = sum(|pool| pool.starting + pool.idle + pool.leased + pool.removing);
    let figure = |name: &str, value: String, note: String| {
        format!("<div><dt>{name}</dt><dd>{value}</dd><dd>{note}</dd></div>\n")
    };
    [
        figure("Hit rate", hit_rate(&all), format!("{}, {}", hits_of(&all), since(past))),
        figure(
            "Time to start, median",
            quantile(&all, 0.5),
            format!("p99 {}, {}", quantile(&all, 0.99), since(past)),
        ),
        figure(
            "Running jobs",
            status.jobs.len().to_string(),
            match waiting {
                0 => "none waits for a container".into(),
                1 => "1 of them waits for a container".into(),
                n => format!("{n} of them wait for a container"),
            },
        ),
        figure(
            "Idle containers",
            format!("{} of {}", sum(|pool| pool.idle), sum(|pool| pool.target)),
            format!("{} in all states", so_many(containers as u64, "container")),
        ),
    ]
    .concat()
}

/// Which time the figures are of.
fn since(past: &Past) -> String {
    if past.values().all(|columns| columns.len() < KEPT) {
        return "since the start".into();
    }
    format!("last {} min", EVERY.as_secs() * KEPT as u64 / 60)
}

fn hit_rate(tally: &Tally) -> String {
    tally.hit_rate().map_or_else(|| "–".into(), percent)
}

fn hits_of(tally: &Tally) -> String {
    if tally.leases() == 0 { "no leases".into() } else { format!("{} of {}", tally.hits, tally.leases()) }
}

fn quantile(tally: &Tally, share: f64) -> String {
    tally.startup(share).map_or_else(|| "–".into(), seconds)
}

fn pools(status: &Status, past: &Past) -> String {
    let none = Vec::new();
    let one = |one: &PoolStatus| pool(one, status.draining, past.get(one.pool.as_str()).unwrap_or(&none));
    let all: String = status.pools.iter().map(one).collect();
    if all.is_empty() { r#"<p class="nothing">The pools are closed.</p>"#.into() } else { all }
}

fn pool(pool: &PoolStatus, draining: bool, columns: &[Tally]) -> String {
    let (class, able) = match pool.able {
        _ if draining => ("", "draining: takes no more jobs"),
        true => ("good", "able"),
        false => ("bad", "not able: takes no jobs"),
    };
    let (why, sizing) = if draining { ("", String::new()) } else { (why(pool.sizing.reason), sizing(pool)) };
    let all: Tally = columns.iter().copied().sum();
    let failure = pool
        .last_failure
        .as_deref()
        .map(|why| format!(r#"<p class="failure">The last container couldn’t be made: {}</p>"#, Text(why)));
    let counts = counts(pool);
    let drawn = counts.map(|(state, count)| format!("{count} {state}")).join(", ");
    format!(
        include_str!("page/pool.html"),
        name = Text(pool.pool.as_str()),
        class = class,
        able = able,
        image = Text(&pool.image),
        failure = failure.unwrap_or_default(),
        drawn = drawn,
        boxes = counts.map(|(state, count)| boxes(pool, state, count)).concat(),
        key = key(pool, &counts),
        target = pool.target,
        why = why,
        sizing = sizing,
        hit_rate = hit_rate(&all),
        hits_of = hits_of(&all),
        leases = chart::leases(columns),
        p50 = quantile(&all, 0.5),
        p99 = quantile(&all, 0.99),
        startup = chart::startup(columns),
    )
}

/// The states in the order that a container has them.
fn counts(pool: &PoolStatus) -> [(&'static str, usize); 4] {
    [("starting", pool.starting), ("idle", pool.idle), ("leased", pool.leased), ("removing", pool.removing)]
}

/// One box for each container, with its id where it has one by now.
fn boxes(pool: &PoolStatus, state: &str, count: usize) -> String {
    let known = pool.containers.iter().filter(|container| container.state == state);
    let mut ids = known.map(|container| short(&container.id));
    let mut html = String::new();
    for _ in 0..count.min(SHOWN) {
        let id = ids.next().unwrap_or_else(|| "no id yet".into());
        _ = write!(html, r#"<i class="box {state}" title="{}: {state}"></i>"#, Text(&id));
    }
    if count > SHOWN {
        _ = write!(html, r#"<span class="quiet">and {} more {state}</span>"#, count - SHOWN);
    }
    html
}

fn key(pool: &PoolStatus, counts: &[(&'static str, usize); 4]) -> String {
    let mut html = String::new();
    for (state, count) in counts {
        let none = if *count == 0 { r#" class="none""# } else { "" };
        let stale = match pool.stale {
            stale @ 1.. if *state == "idle" => format!(" ({stale} to be replaced)"),
            _ => String::new(),
        };
        _ = write!(
            html,
            r#"<li{none}><i class="box {state}" aria-hidden="true"></i>{count} {state}{stale}</li>"#
        );
    }
    if pool.waiting > 0 {
        _ = write!(html, "<li><strong>{} waiting</strong></li>", so_many(pool.waiting as u64, "job"));
    }
    html
}

/// From what the target follows.
fn sizing(pool: &PoolStatus) -> String {
    let sizing = &pool.sizing;
    let bounds = match (pool.idle_min, pool.idle_max) {
        (min, max) if min == max => String::new(),
        (min, max) => format!("{min} to {max} idle; "),
    };
    let mut text = format!(
        "{bounds}goal {} hits, expected {}; {:.1} jobs/s",
        percent(sizing.hit_target),
        percent(sizing.expected_hit_rate),
        sizing.rate
    );
    if sizing.warm_seconds > 0.0 {
        _ = write!(text, "; replacing one takes {}", seconds(sizing.warm_seconds));
    }
    text
}

fn jobs(jobs: &[RunningJob]) -> String {
    let row = |job: &RunningJob| {
        let container = job.container.as_deref().map_or_else(|| "waits for one".into(), short);
        format!(
            r#"<tr><td class="id"><bdi>{}</bdi></td><td>{}</td><td class="number">{}</td><td class="number">{}</td><td class="id wide"><bdi>{}</bdi></td></tr>"#,
            Text(&job.job_id),
            Text(job.pool.as_str()),
            job.attempt,
            span(job.seconds),
            Text(&container)
        )
    };
    let head = r#"<th scope="col">Job</th><th scope="col">Pool</th><th scope="col" class="number">Attempt</th><th scope="col" class="number">Age</th><th scope="col" class="wide">Container</th>"#;
    table("jobs", head, jobs, row, "No job is running.")
}

fn failures(failures: &[Failure], now: SystemTime) -> String {
    let row = |failure: &Failure| {
        let retried = if failure.retried { "; another attempt follows" } else { "" };
        let age = humantime::parse_rfc3339(&failure.time).ok().and_then(|at| now.duration_since(at).ok());
        format!(
            r#"<tr><td class="ended bad">{}</td><td class="message"><bdi>{}</bdi>{retried}</td><td class="id"><bdi>{}</bdi></td><td>{}</td><td class="number wide">{}</td><td class="number"><time datetime="{}">{} ago</time></td></tr>"#,
            failure.status.as_str().replace('_', " "),
            Text(&failure.message),
            Text(&failure.job_id),
            Text(failure.pool.as_str()),
            failure.attempt,
            Text(&failure.time),
            span(age.unwrap_or_default().as_secs())
        )
    };
    let head = r#"<th scope="col">Ended</th><th scope="col">Why</th><th scope="col">Job</th><th scope="col">Pool</th><th scope="col" class="number wide">Attempt</th><th scope="col" class="number">When</th>"#;
    table("failures", head, failures, row, "No attempt has ended badly since the worker started.")
}

/// A table that can be scrolled sideways with the keyboard too, or why there is none.
fn table<T>(section: &str, head: &str, all: &[T], row: impl Fn(&T) -> String, nothing: &str) -> String {
    if all.is_empty() {
        return format!(r#"<p class="nothing">{nothing}</p>"#);
    }
    let rows: String = all.iter().take(SHOWN).map(row).collect();
    let mut html = format!(
        r#"<div class="table" role="region" aria-labelledby="{section}" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"#
    );
    if all.len() > SHOWN {
        _ = write!(html, r#"<p class="more">and {} more; /status has them all</p>"#, all.len() - SHOWN);
    }
    html
}

fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}
