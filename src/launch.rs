//! Pure: what `docker run` would execute for an image, a pool's options and a job — argument vector and environment, in
//! Docker's order — and what its signals are called.

use std::collections::HashMap;

use std::time::Duration;

use bytes::Bytes;

use crate::attempt::Plan;
use crate::config::{Isolation, PoolConfig};
use crate::contract::PoolName;
use crate::contract::content::{Artifacts, File, Files};
use crate::contract::job::{Env, Rejection};
use crate::engine::Image;
use crate::engine::link::{self, Beside, Stdin};

/// What stops a container whose image names no STOPSIGNAL, as in Docker.
const SIGTERM: u8 = 15;

/// What a job brings beside its image and pool.
#[derive(Debug)]
pub struct Order<'a> {
    /// In place of the image's CMD.
    pub args: Option<&'a [String]>,
    /// Over the image's and the pool's environment.
    pub env: &'a Env,
    /// What the pool's `secrets_from` gives: over the image's and the pool's environment, under the job's.
    pub given: &'a Env,
    /// Without it, `/dev/null`.
    pub stdin: Option<Bytes>,
    /// To be put in place before.
    pub files: &'a [File],
    /// Which files are wanted when it is over.
    pub artifacts: &'a [String],
    /// The trace that it is part of.
    pub traceparent: Option<&'a str>,
    /// How long it may run.
    pub timeout: Duration,
    /// From the stop signal to SIGKILL.
    pub stop_grace: Duration,
}

/// Whether the pool takes so many and so large files, and returns any.
///
/// # Errors
/// A [`Rejection`] if not.
pub fn allowed(
    name: &PoolName,
    pool: &PoolConfig,
    files: &Files,
    artifacts: &Artifacts,
) -> Result<(), Rejection> {
    let limits = &pool.files;
    for (count, unit, max) in
        [(files.0.len() as u64, "files", limits.max as u64), (files.bytes(), "bytes", limits.size)]
    {
        if count > max {
            let message = format!("{count} {unit} are more than the most of pool {name}, {max}");
            return Err(Rejection::of("files", message));
        }
    }
    if pool.artifacts.max == 0 && !artifacts.0.is_empty() {
        return Err(Rejection::of("artifacts", format!("pool {name} returns none: its artifacts.max is 0")));
    }
    Ok(())
}

/// What to send to a container of this image and pool for a job, and the executable that it names.
///
/// # Errors
/// A [`Rejection`] if nothing names an executable, or if arguments and environment are longer than the kernel takes.
pub fn plan(image: &Image, pool: &PoolConfig, order: Order<'_>) -> Result<(Plan, String), Rejection> {
    let argv = argv(image, pool, order.args)?;
    let env = environment(image, pool, order.given, order.env, order.traceparent);
    let stdin = if order.stdin.is_some() { Stdin::Pipe } else { Stdin::Null };
    let beside = Beside {
        files: order.files.len(),
        wanted: order.artifacts,
        artifacts_max: pool.artifacts.max,
        bytes_max: pool.artifacts.size,
    };
    let start =
        link::start_frame(&argv, &env, stdin, &beside).map_err(|e| Rejection::of("env", e.to_string()))?;
    let plan = Plan {
        start,
        files: order.files.to_vec(),
        stdin: order.stdin,
        timeout: order.timeout,
        stop_signal: image.stop_signal.as_deref().and_then(signal_number).unwrap_or(SIGTERM),
        stop_grace: order.stop_grace,
        collect: pool.artifacts.timeout,
    };
    // argv is not empty: that was refused.
    Ok((plan, argv.into_iter().next().unwrap_or_default()))
}

/// The argument vector: the entrypoint, then the arguments.
///
/// As in Docker, an entrypoint of the pool's own makes the image's CMD void; a job's `args` stand in for the
/// arguments after the image in `docker run`, and never touch the entrypoint.
///
/// # Errors
/// A [`Rejection`] if nothing names an executable.
pub fn argv(image: &Image, pool: &PoolConfig, args: Option<&[String]>) -> Result<Vec<String>, Rejection> {
    let entrypoint = pool.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    let cmd: &[String] = match (args, &pool.args, &pool.entrypoint) {
        (Some(args), _, _) => args,
        (None, Some(args), _) => args,
        (None, None, Some(_)) => &[],
        (None, None, None) => &image.cmd,
    };
    let argv: Vec<String> = entrypoint.iter().chain(cmd).cloned().collect();
    if argv.is_empty() {
        return Err(Rejection::of(
            "args",
            format!(
                "nothing to execute: image {} has no ENTRYPOINT or CMD, and neither the pool nor the job names one",
                image.name
            ),
        ));
    }
    Ok(argv)
}

/// The entries of a START frame's environment; see [`StartHead`](crate::init::wire::StartHead) for what a bare name means.
///
/// Docker's order is: PATH and HOSTNAME, which it sets itself; then what `--env` added; then the image's, where not
/// overridden; at last HOME, which the runtime adds if nobody did. The values of those that
/// the job doesn't set are in init's environment already, since the engine put them there.
pub fn environment(
    image: &Image,
    pool: &PoolConfig,
    given: &Env,
    job: &Env,
    traceparent: Option<&str>,
) -> Vec<String> {
    let mut env = Entries::default();
    env.inherit("PATH");
    env.inherit("HOSTNAME");
    for (name, _) in &pool.env {
        env.inherit(name);
    }
    for (name, value) in given.0.iter().chain(&job.0) {
        env.set(name, value);
    }
    if let Some(trace) = traceparent.filter(|_| !job.0.iter().any(|(name, _)| name == "TRACEPARENT")) {
        env.set("TRACEPARENT", trace);
    }
    for entry in &image.env {
        env.inherit(entry.split_once('=').map_or(entry, |(name, _)| name));
    }
    // Where init's user is another than the job's, what the runtime gave it as HOME is another's.
    if pool.isolation == Isolation::Namespace && !env.places.contains_key("HOME") {
        env.set("HOME", "");
    }
    env.list
}

/// Entries in the order in which their names first came; a later value takes the place of an earlier one.
#[derive(Default)]
struct Entries {
    list: Vec<String>,
    places: HashMap<String, usize>,
}

impl Entries {
    fn inherit(&mut self, name: &str) {
        if !self.places.contains_key(name) {
            self.places.insert(name.to_owned(), self.list.len());
            self.list.push(name.to_owned());
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.inherit(name);
        self.list[self.places[name]] = format!("{name}={value}");
    }
}

/// The number of a signal as STOPSIGNAL names it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. The numbers are
/// those of x86-64 and AArch64, which agree.
pub fn signal_number(name: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(n) = name.parse::<u8>() {
        return (1..=64).contains(&n).then_some(n);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    // glibc keeps the first two real-time signals for itself, and Docker counts from there.
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        _ => rest.strip_prefix(sign)?.parse::<u8>().ok().filter(|n| *n <= 30),
    };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return offset(rest, '+').map(|n| 34 + n);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return offset(rest, '-').map(|n| 64 - n);
    }
    NAMES.iter().position(|n| *n == bare).and_then(|at| u8::try_from(at + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(v: &[&str]) -> Vec<String> {
        v.iter().map(|s| (*s).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str], env: &[&str]) -> Image {
        Image {
            name: "i".into(),
            entrypoint: strings(entrypoint),
            cmd: strings(cmd),
            env: strings(env),
            ..Image::default()
        }
    }

    #[test]
    fn argv_is_dockers() {
        let i = image(&["e"], &["c"], &[]);
        let mut pool = PoolConfig::of_image("i");
        let job = strings(&["j"]);
        assert_eq!(argv(&i, &pool, None).unwrap(), ["e", "c"]);
        assert_eq!(argv(&i, &pool, Some(&job)).unwrap(), ["e", "j"]);
        assert_eq!(argv(&i, &pool, Some(&[])).unwrap(), ["e"]);
        pool.args = Some(strings(&["p"]));
        assert_eq!(argv(&i, &pool, None).unwrap(), ["e", "p"]);
        assert_eq!(argv(&i, &pool, Some(&job)).unwrap(), ["e", "j"]);
        pool.args = None;
        pool.entrypoint = Some(strings(&["pe"]));
        assert_eq!(argv(&i, &pool, None).unwrap(), ["pe"], "the image's CMD is void");
        pool.entrypoint = None;
        let nothing = image(&[], &[], &[]);
        assert!(argv(&nothing, &pool, None).unwrap_err().message.contains("no ENTRYPOINT or CMD"));
        assert_eq!(argv(&nothing, &pool, Some(&job)).unwrap(), ["j"]);
    }

    #[test]
    fn environment_is_in_dockers_order() {
        let i = image(&[], &[], &["PATH=/bin", "A=image", "B=image", "HOME=/h"]);
        let mut pool = PoolConfig::of_image("i");
        pool.env =
            vec![("P".into(), "pool".into()), ("A".into(), "pool".into()), ("PATH".into(), "/p".into())];
        let job = Env(vec![
            ("J".into(), "1=2".into()),
            ("P".into(), "job".into()),
            ("HOSTNAME".into(), "h".into()),
        ]);
        let given = Env(vec![("B".into(), "given".into()), ("J".into(), "given".into())]);
        assert_eq!(
            environment(&i, &pool, &given, &job, Some("00-1-2-01")),
            ["PATH", "HOSTNAME=h", "P=job", "A", "B=given", "J=1=2", "TRACEPARENT=00-1-2-01", "HOME"],
            "what the pool gives is over the image's and under the job's"
        );
    }

    #[test]
    fn a_job_can_set_path_home_and_traceparent() {
        let i = image(&[], &[], &["HOME=/h"]);
        let job = Env(vec![
            ("PATH".into(), "/x".into()),
            ("HOME".into(), String::new()),
            ("TRACEPARENT".into(), "own".into()),
            ("EMPTY".into(), String::new()),
        ]);
        assert_eq!(
            environment(&i, &PoolConfig::of_image("i"), &Env::default(), &job, Some("00-…")),
            ["PATH=/x", "HOSTNAME", "HOME=", "TRACEPARENT=own", "EMPTY="]
        );
    }

    #[test]
    fn signals_by_every_name_docker_takes() {
        for (name, n) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGKILL", 9),
            ("QUIT", 3),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("SIGRTMAX-14", 50),
            ("SIGSYS", 31),
            ("WINCH", 28),
        ] {
            assert_eq!(signal_number(name), Some(n), "{name}");
        }
        for bad in ["", "SIG", "0", "65", "SIGNOPE", "SIGRTMIN+99", "RTMIN3"] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
    }
}
