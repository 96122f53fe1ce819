//! One row of the tables: what is run, by both, and what has to come of it.
//!
//! With isolation `namespace` a job is the first process, so there its counterpart is `docker run` without `--init`,
//! unless the row says why not.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use crate::docker::{self, BUSYBOX, Done, File, Image, PATIENCE, Written};

/// A job, run with `docker run --init` and with `prewarm run`. Unless it says otherwise, both have to exit with 0 and
/// to print the same bytes.
pub struct Row {
    name: &'static str,
    image: Source,
    /// Lines of the pool's section.
    pool: Vec<String>,
    /// Options of `docker run`.
    docker: Vec<String>,
    env: Vec<String>,
    /// Variables of both commands themselves.
    outer: Vec<(&'static str, String)>,
    args: Vec<String>,
    stdin: Option<Vec<u8>>,
    want: Want,
    /// What is wanted with isolation `namespace`, if that is something else.
    want_as_first: Option<Want>,
    prints: Option<String>,
    masks: Vec<(Isolations, Mask)>,
    differences: Vec<(Isolations, Difference)>,
    /// With this isolation alone, and why.
    only: Option<(Isolation, &'static str)>,
    /// Why the counterpart is `docker run --init` with either isolation.
    with_init: Option<&'static str>,
}

/// How the pool isolates its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    Container,
    Namespace,
}

/// One isolation, or `None`: either.
type Isolations = Option<Isolation>;

enum Source {
    Ready(String),
    /// A Dockerfile.
    Dockerfile(String),
    /// One program at `/program`, and nothing else.
    Program(&'static [u8]),
}

#[derive(Clone, Copy)]
enum Want {
    /// Both run it, and it exits with this code.
    Code(u8),
    /// Neither does. The texts differ, since Docker's are those of three other programs; ours says `names`.
    NotRun { docker: u8, ours: u8, names: &'static str },
}

/// Takes out what can't be the same in two containers.
pub type Mask = fn(&str) -> String;

/// A difference that is meant, with its reason at the place where it is written down. It must be there: a difference
/// that is gone is a failure too.
enum Difference {
    /// In stdout, where Docker's job prints the first, ours prints the second.
    Out(String, String),
    /// Docker's job prints lines of which ours prints none.
    Without(fn(&str) -> bool),
    /// On stderr, prewarm says this after the job's own output.
    Note(&'static str),
}

/// A row that runs the busybox image.
pub fn row(name: &'static str) -> Row {
    Row {
        name,
        image: Source::Ready(BUSYBOX.into()),
        pool: Vec::new(),
        docker: Vec::new(),
        env: Vec::new(),
        outer: Vec::new(),
        args: Vec::new(),
        stdin: None,
        want: Want::Code(0),
        want_as_first: None,
        prints: None,
        masks: Vec::new(),
        differences: Vec::new(),
        only: None,
        with_init: None,
    }
}

impl Row {
    pub fn image(mut self, name: impl Into<String>) -> Row {
        self.image = Source::Ready(name.into());
        self
    }

    /// An image that this Dockerfile builds; rows with the same text share it.
    pub fn dockerfile(mut self, text: impl Into<String>) -> Row {
        self.image = Source::Dockerfile(text.into());
        self
    }

    /// An image with nothing but this file, at `/program`, which may be executed.
    pub fn program(mut self, content: &'static [u8]) -> Row {
        self.image = Source::Program(content);
        self
    }

    /// The busybox image, with these lines of a Dockerfile.
    pub fn busybox(self, lines: &str) -> Row {
        self.dockerfile(format!("FROM {BUSYBOX}\n{lines}\n"))
    }

    /// The same option twice: a line of the pool's section, and what it is to `docker run`, in words.
    pub fn option(self, toml: &str, docker: &str) -> Row {
        self.option_as(toml, docker.split(' '))
    }

    /// The same, with words that may have blanks in them.
    pub fn option_as<'a>(mut self, toml: &str, docker: impl IntoIterator<Item = &'a str>) -> Row {
        self.pool.push(toml.into());
        self.docker.extend(docker.into_iter().map(str::to_owned));
        self
    }

    pub fn user(self, user: &str) -> Row {
        self.option_as(&format!("user = \"{user}\""), ["--user", user])
    }

    pub fn workdir(self, path: &str) -> Row {
        self.option_as(&format!("workdir = \"{path}\""), ["--workdir", path])
    }

    /// `-e` of both commands: `NAME=value`, or a name alone.
    pub fn env(mut self, entry: impl Into<String>) -> Row {
        self.env.push(entry.into());
        self
    }

    /// A variable of both commands' own environment.
    pub fn outer(mut self, name: &'static str, value: impl Into<String>) -> Row {
        self.outer.push((name, value.into()));
        self
    }

    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Row {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn sh(self, script: &str) -> Row {
        self.args(["sh", "-c", script])
    }

    pub fn probe(self, words: &str) -> Row {
        self.args(["probe"]).args(words.split(' '))
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Row {
        self.stdin = Some(bytes.into());
        self
    }

    pub fn code(mut self, code: u8) -> Row {
        self.want = Want::Code(code);
        self
    }

    /// What both have to print, for where two equal outputs could be equally wrong.
    pub fn prints(mut self, stdout: impl Into<String>) -> Row {
        self.prints = Some(stdout.into());
        self
    }

    pub fn mask(mut self, mask: Mask) -> Row {
        self.masks.push((None, mask));
        self
    }

    /// With one isolation alone.
    pub fn mask_in(mut self, isolation: Isolation, mask: Mask) -> Row {
        self.masks.push((Some(isolation), mask));
        self
    }

    /// How many `-e` the command of Docker's has.
    pub fn variables(&self) -> usize {
        self.env.len() + self.docker.iter().filter(|word| *word == "-e").count()
    }

    /// Neither runs it, with the same exit code; our message contains `names`.
    pub fn not_run(self, code: u8, names: &'static str) -> Row {
        self.not_run_but(code, code, names)
    }

    /// Neither runs it, with two codes; the reason is to be said where this is called.
    pub fn not_run_but(mut self, docker: u8, ours: u8, names: &'static str) -> Row {
        self.want = Want::NotRun { docker, ours, names };
        self
    }

    /// Where Docker's job prints `docker`, ours prints `ours`; the reason is to be said where this is called.
    pub fn but(mut self, docker: impl Into<String>, ours: impl Into<String>) -> Row {
        self.differences.push((None, Difference::Out(docker.into(), ours.into())));
        self
    }

    /// The same with one isolation alone.
    pub fn but_in(mut self, isolation: Isolation, docker: impl Into<String>, ours: impl Into<String>) -> Row {
        self.differences.push((Some(isolation), Difference::Out(docker.into(), ours.into())));
        self
    }

    /// With one isolation, Docker's job prints such lines and ours doesn't; the reason is to be said where this is called.
    pub fn without_in(mut self, isolation: Isolation, lines: fn(&str) -> bool) -> Row {
        self.differences.push((Some(isolation), Difference::Without(lines)));
        self
    }

    /// With isolation `namespace` both exit with this code, since the job is the first process.
    pub fn code_as_first(mut self, code: u8) -> Row {
        self.want_as_first = Some(Want::Code(code));
        self
    }

    /// Compared with `docker run --init` with either isolation, for this reason.
    pub fn with_init(mut self, why: &'static str) -> Row {
        self.with_init = Some(why);
        self
    }

    /// On stderr, prewarm adds this; the reason is to be said where this is called.
    pub fn note(mut self, line: &'static str) -> Row {
        self.differences.push((None, Difference::Note(line)));
        self
    }

    /// Not with isolation `namespace`, for this reason.
    pub fn in_container(mut self, why: &'static str) -> Row {
        self.only = Some((Isolation::Container, why));
        self
    }

    /// With isolation `namespace` alone, for this reason.
    pub fn in_namespace(mut self, why: &'static str) -> Row {
        self.only = Some((Isolation::Namespace, why));
        self
    }

    pub fn is_for(&self, isolation: Isolation) -> bool {
        self.only.is_none_or(|(only, _)| only == isolation)
    }

    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// What rows share.
pub struct Bench<'a> {
    /// For configurations.
    pub directory: &'a Path,
    pub isolation: Isolation,
    images: Mutex<HashMap<String, Arc<OnceLock<Image>>>>,
    /// Every stdout of prewarm's, in which ids of volumes may be.
    pub seen: Mutex<Vec<String>>,
}

impl<'a> Bench<'a> {
    pub fn new(directory: &'a Path, isolation: Isolation) -> Bench<'a> {
        Bench { directory, isolation, images: Mutex::default(), seen: Mutex::default() }
    }

    /// The name of the image, which is made for the first row that wants it.
    fn image(&self, source: &Source) -> String {
        let (key, make): (_, &dyn Fn() -> Image) = match source {
            Source::Ready(name) => return name.clone(),
            Source::Dockerfile(text) => (text.clone(), &|| Image::build(text)),
            Source::Program(content) => (format!("{content:?}"), &|| {
                Image::import(&[File { path: "program", mode: 0o755, content }], &["CMD [\"/program\"]"])
            }),
        };
        let cell = Arc::clone(self.images.lock().unwrap().entry(key).or_default());
        cell.get_or_init(make).name().to_owned()
    }

    /// Runs the row both ways; an error is what is wrong, for people.
    pub fn judge(&self, row: &Row) -> Result<(), String> {
        let image = self.image(&row.image);
        let docker = docker::run(&mut self.docker_run(row, &image), row.stdin.as_deref(), PATIENCE);
        let ours = docker::run(&mut self.prewarm_run(row, &image), row.stdin.as_deref(), PATIENCE);
        self.seen.lock().unwrap().push(ours.stdout.to_string());
        compare(row, self.isolation, docker, ours)
    }

    pub fn prewarm_run(&self, row: &Row, image: &str) -> Command {
        let worker = docker::unique("worker");
        let config = self.directory.join(format!("{worker}.toml"));
        let mut text =
            format!("[worker]\nname = \"{worker}\"\n\n[pool.p]\nimage = \"{image}\"\npull = \"never\"\n");
        if self.isolation == Isolation::Namespace {
            text += "isolation = \"namespace\"\n";
        }
        for line in &row.pool {
            writeln!(text, "{line}").unwrap();
        }
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_prewarm"));
        command.arg("-c").arg(config).args(["run", "p"]);
        command.args(row.env.iter().flat_map(|entry| ["-e", entry]));
        command.args(row.stdin.iter().map(|_| "-i"));
        if !row.args.is_empty() {
            command.arg("--").args(&row.args);
        }
        command.envs(row.outer.iter().map(|(name, value)| (name, value)));
        command
    }

    fn docker_run(&self, row: &Row, image: &str) -> Command {
        // Without a log driver, since prewarm's containers have none and the daemon shall not keep 100 MiB.
        let mut command = docker::docker(["run", "--rm", "--log-driver", "none", "--label", &label()]);
        if self.isolation == Isolation::Container || row.with_init.is_some() {
            command.arg("--init");
        }
        command.args(&row.docker);
        command.args(row.env.iter().flat_map(|entry| ["-e", entry]));
        command.args(row.stdin.iter().map(|_| "-i"));
        command.arg(image).args(&row.args);
        command.envs(row.outer.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// The label of our `docker run` containers.
pub fn label() -> String {
    format!("prewarm-test.parity={}", docker::prefix())
}

fn compare(row: &Row, isolation: Isolation, docker: Done, ours: Done) -> Result<(), String> {
    let mut wrong = String::new();
    let here = |isolations: Isolations| isolations.is_none_or(|only| only == isolation);
    let want = row.want_as_first.filter(|_| isolation == Isolation::Namespace).unwrap_or(row.want);
    let codes = match want {
        Want::Code(code) => (code, code),
        Want::NotRun { docker, ours, .. } => (docker, ours),
    };
    for (who, wanted, done) in [("docker", codes.0, &docker), ("prewarm", codes.1, &ours)] {
        if done.code != Some(wanted.into()) {
            let code = done.code.map_or_else(|| "a signal".into(), |code| code.to_string());
            writeln!(wrong, "{who} exits with {code}, not with {wanted}").unwrap();
            if done.stderr.len > 0 {
                writeln!(wrong, "{who}'s stderr: {}", done.stderr.to_string().trim_end()).unwrap();
            }
        }
    }
    if let Want::NotRun { names, .. } = want {
        let said = ours.stderr.to_string();
        // The pool may have logged a warning before.
        let last = said.lines().last().unwrap_or_default();
        if !last.starts_with("prewarm: ") || !last.contains(names) {
            writeln!(wrong, "prewarm's last line doesn't say '{names}': {said}").unwrap();
        }
        compare_stream(&mut wrong, "stdout", docker.stdout, ours.stdout);
    } else {
        let mask = |written| {
            let masks = row.masks.iter().filter(|(isolations, _)| here(*isolations));
            masks.fold(written, |written, (_, mask)| replaced(written, mask))
        };
        let (mut expected, mut docker_err, out, err) =
            (mask(docker.stdout), docker.stderr, mask(ours.stdout), ours.stderr);
        for (_, difference) in row.differences.iter().filter(|(isolations, _)| here(*isolations)) {
            match difference {
                Difference::Out(theirs, ours) => {
                    if !expected.to_string().contains(theirs) {
                        writeln!(wrong, "docker's job doesn't print {theirs:?} as it is said to").unwrap();
                    }
                    expected = replaced(expected, |text| text.replace(theirs, ours));
                }
                Difference::Without(is_one) => {
                    let before = expected.len;
                    let kept = |line: &str| (!is_one(line)).then(|| line.into());
                    expected = replaced(expected, |text| edit_lines(text, kept));
                    if expected.len == before {
                        writeln!(wrong, "docker's job doesn't print lines that ours is said not to").unwrap();
                    }
                }
                Difference::Note(line) => docker_err = replaced(docker_err, |text| format!("{text}{line}\n")),
            }
        }
        if let Some(prints) = &row.prints
            && out.bytes != prints.as_bytes()
        {
            writeln!(wrong, "it should print {prints:?}").unwrap();
        }
        compare_stream(&mut wrong, "stdout", expected, out);
        compare_stream(&mut wrong, "stderr", docker_err, err);
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn replaced(written: Written, edit: impl FnOnce(&str) -> String) -> Written {
    assert!(written.is_all_here(), "too much to be edited");
    Written::from(edit(&written.to_string()).into_bytes())
}

fn compare_stream(wrong: &mut String, name: &str, docker: Written, ours: Written) {
    if docker == ours {
        return;
    }
    writeln!(wrong, "{name} (- docker, {} bytes; + prewarm, {} bytes)", docker.len, ours.len).unwrap();
    let (docker, ours) = (docker.to_string(), ours.to_string());
    let (mut theirs, mut mine): (Vec<_>, Vec<_>) = (docker.split('\n').collect(), ours.split('\n').collect());
    let same = theirs.iter().zip(&mine).take_while(|(a, b)| a == b).count();
    theirs.drain(..same);
    mine.drain(..same);
    while theirs.last().is_some_and(|last| mine.last() == Some(last)) {
        theirs.pop();
        mine.pop();
    }
    if theirs.is_empty() && mine.is_empty() {
        writeln!(wrong, "  (in what is beyond the first {} bytes, or not UTF-8)", Written::KEPT).unwrap();
    }
    for (sign, lines) in [('-', theirs), ('+', mine)] {
        for line in lines.iter().take(30) {
            writeln!(wrong, "  {sign} {}", line.escape_debug().take(300).collect::<String>()).unwrap();
        }
    }
}

// ---- Masks ----------------------------------------------------------------------------------------------

/// The container's own name, which the engine makes up.
pub fn hostname(text: &str) -> String {
    edit_lines(text, |line| match line.strip_prefix("HOSTNAME=") {
        Some(id) if id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Some("HOSTNAME=(id)".into())
        }
        _ => Some(line.into()),
    })
}

/// The order of lines. Docker's command line, since one of the versions after 20.10, passes what it is given by
/// several `-e` on in random order. (Ours stays: launch.rs has a test of it.)
pub fn order(text: &str) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    lines.sort_unstable();
    lines.concat()
}

/// Of `/proc/self/status`: process ids, and usage. A session that isn't that of process 1 is the job's own.
pub fn process_ids_and_usage(text: &str) -> String {
    const IDS: [&str; 6] = ["Tgid", "Pid", "PPid", "NStgid", "NSpid", "NSpgid"];
    edit_lines(&usage(text), |line| {
        let (name, value) = line.split_once(':')?;
        if name == "NSsid" && value != "\t1" {
            return Some("NSsid:\t(own)".into());
        }
        (!IDS.contains(&name)).then(|| line.into())
    })
}

/// Of `/proc/self/status`: memory, how often it was interrupted, and how many signals are queued for this user on the
/// whole host.
pub fn usage(text: &str) -> String {
    edit_lines(text, |line| {
        let (name, _) = line.split_once(':')?;
        let usage = name.starts_with("Vm")
            || name.starts_with("Rss")
            || name.ends_with("_ctxt_switches")
            || name == "SigQ";
        (!usage).then(|| line.into())
    })
}

/// Of `/proc/mounts`: the directories of the container's root, and the one mount that brings either engine's init.
pub fn roots_and_inits(text: &str) -> String {
    edit_lines(text, |line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        match (at, kind) {
            ("/sbin/docker-init" | "/.prewarm", _) => None,
            ("/", _) => Some(format!("(root) {}", words.next()?.split(',').next()?)),
            _ => Some(line.into()),
        }
    })
}

/// Ids of containers, volumes, pipes: 64 hexadecimal digits, or a number in brackets.
pub fn ids(text: &str) -> String {
    let mut masked = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let end = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len();
        let (id, rest) = word.split_at(end);
        let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())
            || rest.starts_with(']') && !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
        masked.push_str(if is_id { "(id)" } else { id });
        masked.push_str(rest);
    }
    masked
}

/// Each line as `edit` has it, without those for which it has none.
pub fn edit_lines(text: &str, edit: impl Fn(&str) -> Option<String>) -> String {
    text.split_inclusive('\n')
        .filter_map(|line| match line.strip_suffix('\n') {
            Some(line) => edit(line).map(|line| line + "\n"),
            None => edit(line),
        })
        .collect()
}
