//! `[pool.NAME]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::fault::quoted;
use super::field::Field;
use super::image;
use super::isolation;
use super::reader::{Outcome, Section};
use super::security::{capability, security_option};
use super::storage::{Targets, is_docker_name, mounts, tmpfs};
use super::suggest::{did_you_mean, nearest};
use super::values::{
    LONGEST, any_text, choice, duration, flag, fraction, list, number, size, text, text_such_that, within,
};
use super::{
    ArtifactsConfig, FilesConfig, IdleConfig, Isolation, PoolConfig, Pull, Security, TimeoutConfig, Ulimit,
};
use crate::contract::content::FILES_MAX;
use crate::secrets;

const HOUR: Duration = Duration::from_secs(3600);
/// A job that may run for no time at all can't succeed.
const SHORTEST: Duration = Duration::from_millis(1);
const MIB: u64 = 1 << 20;

/// The names that the engine knows, as in `docker run --ulimit`.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// One pool.
pub(super) fn pool(section: &mut Section<'_, '_>) -> Outcome<PoolConfig> {
    let image = section.required("image", "\"acme/build:7\"", image);
    let pull = section.or(
        "pull",
        Pull::Missing,
        choice(&[("missing", Pull::Missing), ("always", Pull::Always), ("never", Pull::Never)]),
    );
    let idle = section.shorthand("idle", number(1..=10_000), idle);
    let concurrency = section.or("concurrency", 4, number(1..=1000));
    let timeout = section.shorthand("timeout", timeout, timeouts);
    let stop_grace = section.or(
        "stop_grace",
        Duration::from_secs(10),
        within(duration, Duration::ZERO..=HOUR, "0s to 1h"),
    );
    let logs_limit = section.or("logs_limit", 10 * MIB, size);
    let secrets_from = section.optional("secrets_from", secrets_from);
    let files = section.section("files", files);
    let artifacts = section.section("artifacts", artifacts);
    let entrypoint = section.optional("entrypoint", entrypoint);
    let args = section.optional("args", list(any_text));
    let env = section.or("env", Vec::new(), env);
    let user =
        section.optional("user", text_such_that(is_user, "a user: write \"NAME\", \"UID\" or \"UID:GID\""));
    let workdir = section.optional(
        "workdir",
        text_such_that(|path| path.starts_with('/'), "an absolute path: write one such as \"/work\""),
    );
    // The engine refuses to start a container with less.
    let memory = section.optional("memory", within(size, 6 * MIB..=u64::MAX, "at least 6MiB"));
    let cpus_milli = section.optional("cpus", cpus);
    let cpu_shares = section.optional("cpu_shares", number(2..=262_144));
    let pids = section.optional("pids", number(1..=4_194_304));
    let network = section.optional("network", network);
    let security = section.or(
        "security",
        Security::Docker,
        choice(&[("docker", Security::Docker), ("hardened", Security::Hardened)]),
    );
    let cap_add = section.or("cap_add", Vec::new(), list(capability));
    let cap_drop = section.or("cap_drop", Vec::new(), list(capability));
    let security_opt = section.or("security_opt", Vec::new(), list(security_option));
    let runtime = section.optional("runtime", text);
    let read_only = section.or("read_only", false, flag);
    let mut targets = Targets::default();
    let tmpfs = section.or("tmpfs", BTreeMap::new(), |field| tmpfs(field, &mut targets));
    let mounts = section.or("mounts", Vec::new(), |field| mounts(field, &mut targets));
    let ulimits = section.or("ulimits", BTreeMap::new(), ulimits);
    let shm_size = section.optional("shm_size", within(size, 1..=u64::MAX, "at least one byte"));
    let isolation = section.or(
        "isolation",
        Isolation::Container,
        choice(&[("container", Isolation::Container), ("namespace", Isolation::Namespace)]),
    );
    let scratch = section.optional("scratch", within(size, MIB..=u64::MAX, "at least 1MiB"));
    let max_jobs = section.optional("max_jobs", number(1..=u64::MAX));

    if security == Ok(Security::Docker) {
        section.advise(
            "is not hardened: write security = \"hardened\" if its image can do with no capabilities",
        );
    }
    if network.as_ref().is_ok_and(|network| network.as_deref() == Some("host")) {
        section.advise("shares the host's network, and with it every service that listens on localhost");
    }
    let written: Vec<&'static str> =
        [("scratch", scratch.is_ok_and(|s| s.is_some())), ("max_jobs", max_jobs.is_ok_and(|n| n.is_some()))]
            .into_iter()
            .filter_map(|(key, written)| written.then_some(key))
            .collect();
    let pool = PoolConfig {
        image: image?,
        pull: pull?,
        idle: idle?,
        concurrency: concurrency?,
        timeout: timeout?,
        stop_grace: stop_grace?,
        logs_limit: logs_limit?,
        secrets_from: secrets_from?,
        files: files?,
        artifacts: artifacts?,
        entrypoint: entrypoint?,
        args: args?,
        env: env?,
        user: user?,
        workdir: workdir?,
        memory: memory?,
        cpus_milli: cpus_milli?,
        cpu_shares: cpu_shares?,
        pids: pids?,
        network: network?,
        security: security?,
        cap_add: cap_add?,
        cap_drop: cap_drop?,
        security_opt: security_opt?,
        runtime: runtime?,
        read_only: read_only?,
        tmpfs: tmpfs?,
        mounts: mounts?,
        ulimits: ulimits?,
        shm_size: shm_size?,
        isolation: isolation?,
        scratch: scratch?.unwrap_or(1 << 30),
        max_jobs: max_jobs?.unwrap_or(10_000),
    };
    isolation::check(section, &pool, &written)?;
    Ok(pool)
}

fn image(field: &mut Field<'_, '_>) -> Outcome<String> {
    let image = any_text(field)?;
    image::check(&image).map_err(|message| field.is_not(&format!("an image's name: {message}")))?;
    Ok(image)
}

/// It is read here to find what is wrong with it.
fn secrets_from(field: &mut Field<'_, '_>) -> Outcome<PathBuf> {
    let directory = text(field).map(|path| field.resolve(&path))?;
    match secrets::read(&directory) {
        Ok(_) => Ok(directory),
        Err(fault) => Err(field.wrong(fault.to_string())),
    }
}

/// `files = { max, size }`
fn files(section: &mut Section<'_, '_>) -> Outcome<FilesConfig> {
    let plain = FilesConfig::default();
    let max = section.or("max", plain.max, number(0..=FILES_MAX));
    let size = section.or("size", plain.size, size);
    Ok(FilesConfig { max: max?, size: size? })
}

/// `artifacts = { max, size, inline, timeout }`
fn artifacts(section: &mut Section<'_, '_>) -> Outcome<ArtifactsConfig> {
    let plain = ArtifactsConfig::default();
    let max = section.or("max", plain.max, number(0..=10_000));
    let size_max = section.or("size", plain.size, size);
    let inline = section.or("inline", plain.inline, within(size, 0..=8 * MIB, "at most 8MiB"));
    let while_collecting = within(duration, Duration::from_secs(1)..=HOUR, "1s to 1h");
    let timeout = section.or("timeout", plain.timeout, while_collecting);
    Ok(ArtifactsConfig { max: max?, size: size_max?, inline: inline?, timeout: timeout? })
}

/// `idle = 4`, or `idle = { min, max, hit_target, ttl, max_age }`.
fn idle(section: &mut Section<'_, '_>, plain: Option<usize>) -> Outcome<IdleConfig> {
    let min = section.optional("min", number(0..=10_000));
    let max = section.optional("max", number(1..=10_000));
    let hit_target = section.or("hit_target", 0.99, hit_target);
    let while_idle = || within(duration, Duration::from_secs(1)..=LONGEST, "1s to 365d");
    let ttl = section.optional("ttl", while_idle());
    let max_age = section.optional("max_age", while_idle());
    let (min, max) = bounds(plain, (1, 4), min?, max?);
    if min > max {
        return Err(section.wrong("min", format!("'{min}' is above max: write at most {max}")));
    }
    Ok(IdleConfig { min, max, hit_target: hit_target?, ttl: ttl?, max_age: max_age? })
}

/// Two bounds of which either, both or none may be written. The plain value stands for both; what is left to
/// the default gives way to what is written, so that writing one alone is never a fault.
fn bounds<T: Ord + Copy>(plain: Option<T>, defaults: (T, T), low: Option<T>, high: Option<T>) -> (T, T) {
    let (low, high) = (low.or(plain), high.or(plain));
    match (low, high) {
        (Some(low), Some(high)) => (low, high),
        (Some(low), None) => (low, defaults.1.max(low)),
        (None, Some(high)) => (defaults.0.min(high), high),
        (None, None) => defaults,
    }
}

/// A target of 1 would take endlessly many containers.
fn hit_target(field: &mut Field<'_, '_>) -> Outcome<f64> {
    let target = fraction(field)?;
    if target > 0.0 && target < 1.0 {
        Ok(target)
    } else {
        Err(field.is_not("in range: write a share between 0 and 1, such as 0.99"))
    }
}

fn timeout(field: &mut Field<'_, '_>) -> Outcome<Duration> {
    within(duration, SHORTEST..=LONGEST, "1ms to 365d")(field)
}

/// `timeout = "10m"`, or `timeout = { default, max }`.
fn timeouts(section: &mut Section<'_, '_>, plain: Option<Duration>) -> Outcome<TimeoutConfig> {
    let default = section.optional("default", timeout);
    let max = section.optional("max", timeout);
    let (default, max) = bounds(plain, (HOUR, 24 * HOUR), default?, max?);
    if default > max {
        let (default, max) = (humantime::format_duration(default), humantime::format_duration(max));
        return Err(section.wrong("default", format!("'{default}' is above max: write at most {max}")));
    }
    Ok(TimeoutConfig { default, max })
}

/// Docker's own files have a second form, a string for a shell. Which shell would that be, in an image that
/// has none?
fn entrypoint(field: &mut Field<'_, '_>) -> Outcome<Vec<String>> {
    if field.text().is_some() && !field.value().is_array() {
        return Err(field.is_not(
            "an array: write [\"/bin/program\", \"--option\"]; there is no shell that would split it",
        ));
    }
    let entrypoint = list(any_text)(field)?;
    match entrypoint.first().map(String::as_str) {
        None | Some("") => {
            Err(field.wrong("names no program: write one, or leave the key out for the image's own"))
        }
        Some(_) => Ok(entrypoint),
    }
}

/// Values may be secret: no message shows one.
fn env(field: &mut Field<'_, '_>) -> Outcome<Vec<(String, String)>> {
    let wanted = "not a table: write { NAME = \"value\" }";
    if !field.value().is_table() {
        return Err(field.wrong(wanted));
    }
    field.entries(wanted, |name, field| {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(field.wrong("a variable's name must not be empty, nor contain '=' or NUL"));
        }
        match field.value().as_str() {
            Some(value) if value.contains('\0') => Err(field.wrong("contains a NUL byte: take it out")),
            Some(value) => Ok((name.to_owned(), value.to_owned())),
            None => {
                let kind = field.value().type_str();
                Err(field.wrong(format!("a value of type {kind} is not text: put it in quotes")))
            }
        }
    })
}

fn is_user(text: &str) -> bool {
    let mut parts = text.split(':');
    let is_name = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'$'))
    };
    parts.by_ref().take(2).all(is_name) && parts.next().is_none()
}

/// Thousandths of a CPU. The engine takes no less than ten of them.
fn cpus(field: &mut Field<'_, '_>) -> Outcome<u64> {
    let cpus = fraction(field)?;
    if !(0.01..=10_000.0).contains(&cpus) {
        return Err(field.is_not("in range: write a number of CPUs from 0.01 to 10000"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range has been checked")]
    Ok((cpus * 1000.0).round() as u64)
}

fn network(field: &mut Field<'_, '_>) -> Outcome<String> {
    let network = any_text(field)?;
    if network.starts_with("container:") {
        return Err(field.wrong(
            "another container's network is refused: it ends with that container, which is not prewarm's; \
             write \"bridge\", \"none\", \"host\" or a network's name",
        ));
    }
    if is_docker_name(&network) {
        Ok(network)
    } else {
        Err(field.is_not("a network: write \"bridge\", \"none\", \"host\" or a network's name"))
    }
}

fn ulimits(field: &mut Field<'_, '_>) -> Outcome<BTreeMap<String, Ulimit>> {
    let limits = field.entries("a table: write { nofile = 1024 }", |name, field| {
        if !ULIMITS.contains(&name) {
            let hint = nearest(name, ULIMITS)
                .map_or_else(|| format!("; known are {}", ULIMITS.join(", ")), did_you_mean);
            return Err(field.wrong(format!("unknown limit {}{hint}", quoted(name))));
        }
        Ok((name.to_owned(), ulimit(field)?))
    })?;
    Ok(limits.into_iter().collect())
}

/// `1024`, or `{ soft, hard }`.
fn ulimit(field: &mut Field<'_, '_>) -> Outcome<Ulimit> {
    if field.value().is_integer() {
        let both = number(-1..=i64::MAX)(field)?;
        return Ok(Ulimit { soft: both, hard: both });
    }
    field.section("a limit: write 1024, -1 for none, or { soft = 1024, hard = 4096 }", |section| {
        let soft = section.required("soft", "1024", number(-1..=i64::MAX));
        let hard = section.optional("hard", number(-1..=i64::MAX));
        let (soft, hard) = (soft?, hard?);
        let hard = hard.unwrap_or(soft);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(section.wrong("soft", format!("'{soft}' is above hard: write at most {hard}")));
        }
        Ok(Ulimit { soft, hard })
    })
}
