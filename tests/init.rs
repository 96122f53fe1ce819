//! Init as what it is in a container: the first process of a PID namespace, at the other end of two pipes.
//!
//! Needs Linux, util-linux (`unshare`, `setpriv`) and a static busybox, and root (some tests pass over what needs more than
//! they have, and say so). Every wait has a deadline: a watchdog kills an init that outlives its test.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use prewarm::init::BINARY;
use prewarm::init::wire::{self, End, Exited, Failed, Kind, StartHead, Step};

const DEADLINE: Duration = Duration::from_secs(60);
const BUSYBOX: &str = "/bin/busybox";
const ENOENT: i32 = 2;
const ENOEXEC: i32 = 8;
const EACCES: i32 = 13;

/// A directory of this test process, which holds init.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        assert!(Path::new(BUSYBOX).exists(), "these tests need {BUSYBOX} (Debian: busybox-static)");
        // Not Cargo's target directory, which may be out of other users' reach.
        let dir = std::env::temp_dir().join(format!("prewarm-init-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        executable(&dir.join("init"), BINARY, 0o755);
        // Nobody knows which test is the last, but the end of the process ends this pipe.
        let mut cleaner = Command::new("sh");
        cleaner.args(["-c", "cat >/dev/null; rm -rf \"$0\""]).arg(&dir).stdin(Stdio::piped());
        let mut cleaner = cleaner.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::mem::forget(cleaner.stdin.take());
        thread::spawn(move || cleaner.wait());
        dir
    })
}

/// Writes a program. Through another process, because a file that is open for writing while some other thread of
/// this one forks can't be executed until that child is gone (ETXTBSY).
fn executable(path: &Path, content: &[u8], mode: u32) {
    let script = "cat >\"$0.new\" && chmod \"$1\" \"$0.new\" && mv \"$0.new\" \"$0\"";
    let mut sh = Command::new("sh");
    sh.args(["-c", script]).arg(path).arg(format!("{mode:o}")).stdin(Stdio::piped());
    let mut sh = sh.spawn().unwrap();
    sh.stdin.take().unwrap().write_all(content).unwrap();
    assert!(sh.wait().unwrap().success());
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// What to run.
#[derive(Clone, Default)]
struct Job<'a> {
    argv: Vec<&'a str>,
    env: Vec<&'a str>,
    cwd: &'a str,
    stdin: bool,
}

/// A job that runs a busybox applet.
fn busybox<'a>(args: &[&'a str]) -> Job<'a> {
    Job { argv: [&[BUSYBOX], args].concat(), ..Job::default() }
}

/// A job that makes system calls. Debian's `perl-base` is on every machine of its kind.
fn perl(script: &str) -> Job<'_> {
    Job { argv: vec!["/usr/bin/perl", "-e", script], ..Job::default() }
}

fn shell(script: &str) -> Job<'_> {
    busybox(&["sh", "-c", script])
}

impl<'a> Job<'a> {
    fn with_stdin(self) -> Self {
        Job { stdin: true, ..self }
    }

    fn env(self, env: &[&'a str]) -> Self {
        Job { env: env.to_vec(), ..self }
    }

    fn frame(&self) -> Vec<u8> {
        let head = StartHead::plain(self.stdin, self.argv.len() as u32, self.env.len() as u32);
        let mut payload = head.encode().to_vec();
        for s in [self.cwd].iter().chain(&self.argv).chain(&self.env) {
            payload.extend_from_slice(s.as_bytes());
            payload.push(0);
        }
        frame(Kind::Start, &payload)
    }
}

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&wire::header(kind, payload.len())[..], payload].concat()
}

/// All that a job said.
#[derive(Debug)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exited: Exited,
}

impl Outcome {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// An init under test.
struct Init {
    unshare: Child,
    stdin: Option<ChildStdin>,
    frames: Receiver<(Kind, Vec<u8>)>,
    _watchdog: mpsc::Sender<()>,
}

impl Init {
    /// Boots one whose environment is `PATH=/bin`, and waits for READY.
    fn boot() -> Init {
        Init::boot_with(&["--mount-proc"], &[], &directory().join("init"), &["PATH=/bin"])
    }

    /// The same for a user that is not root.
    fn boot_as_user() -> Init {
        let setpriv = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
        Init::boot_with(&["--mount-proc"], &setpriv, &directory().join("init"), &["PATH=/bin"])
    }

    fn boot_with(namespaces: &[&str], through: &[&str], program: &Path, env: &[&str]) -> Init {
        let mut command = Command::new("unshare");
        if !is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--pid", "--fork", "--kill-child"]).args(namespaces);
        // `env -i` comes last, so that what runs before it is found by this process's own PATH.
        command.args(through);
        if !namespaces.iter().any(|n| n.starts_with("--root")) {
            command.args(["env", "-i"]).args(env);
        }
        command.arg(program).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut unshare = command.spawn().unwrap();
        let stdin = unshare.stdin.take();
        let mut stdout = unshare.stdout.take().unwrap();

        // No capacity: while the test doesn't take frames, init's stream is read by at most one frame.
        let (sender, frames) = mpsc::sync_channel(0);
        thread::spawn(move || {
            let mut header = [0; wire::HEADER];
            while stdout.read_exact(&mut header).is_ok() {
                let (kind, len) = wire::parse_header(header).expect("a frame");
                let mut payload = vec![0; len];
                if stdout.read_exact(&mut payload).is_err() || sender.send((kind, payload)).is_err() {
                    return;
                }
            }
        });
        let (watchdog, over) = mpsc::channel::<()>();
        let pid = unshare.id().to_string();
        thread::spawn(move || {
            if over.recv_timeout(2 * DEADLINE) == Err(RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-9", &pid]).status();
            }
        });
        let init = Init { unshare, stdin, frames, _watchdog: watchdog };
        assert_eq!(init.next(), (Kind::Ready, wire::VERSION.to_le_bytes().to_vec()));
        init
    }

    /// Init's process id as seen from here.
    fn pid(&self) -> u32 {
        children(self.unshare.id())[0]
    }

    /// The entrypoint's.
    fn job_pid(&self) -> u32 {
        children(self.pid())[0]
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn next(&self) -> (Kind, Vec<u8>) {
        self.frames.recv_timeout(DEADLINE).expect("a frame from init")
    }

    /// Starts a job and waits for STARTED.
    fn start(&mut self, job: &Job<'_>) {
        self.send(&job.frame());
        assert_eq!(self.next(), (Kind::Started, vec![]));
    }

    fn signal(&mut self, n: u32) {
        self.send(&frame(Kind::Signal, &n.to_le_bytes()));
    }

    /// Collects what a started job says until its end.
    fn finish(&self) -> Outcome {
        let (mut stdout, mut stderr) = (vec![], vec![]);
        loop {
            match self.next() {
                (Kind::Stdout, bytes) => stdout.extend(bytes),
                (Kind::Stderr, bytes) => stderr.extend(bytes),
                (Kind::StdinTaken, _) => {}
                (Kind::Exited, payload) => {
                    return Outcome { stdout, stderr, exited: Exited::decode(&payload).unwrap() };
                }
                other => panic!("{other:?} has no place here"),
            }
        }
    }

    fn run(&mut self, job: &Job<'_>) -> Outcome {
        self.start(job);
        self.finish()
    }

    /// How a job failed to start.
    fn fail(&mut self, job: &Job<'_>) -> (Step, i32) {
        self.send(&job.frame());
        let (kind, payload) = self.next();
        assert_eq!(kind, Kind::Failed, "{payload:?}");
        let failed = Failed::decode(&payload).unwrap();
        (failed.step, failed.errno)
    }

    /// Waits for the end of init, which its parent passes on.
    fn end(&mut self) -> ExitStatus {
        until("init ends", || self.unshare.try_wait().unwrap())
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// Tries until there is an answer, or the deadline.
fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The children of a process, oldest first.
fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

/// Whether any process of the machine has this argument.
fn is_running(argument: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|a| a == argument.as_bytes())
    })
}

/// A duration for `sleep` that no other process has.
fn unique_sleep() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("{}", 1_000_000_000 + u64::from(std::process::id()) * 100 + u64::from(n))
}

/// A field of /proc/PID/status.
fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{field} in {text}")).trim().to_owned()
}

/// The sum of some fields of a memory map, in KiB.
fn memory(pid: u32, fields: &[&str]) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |f: &&str| {
        text.lines().find_map(|l| l.strip_prefix(*f)?.split_whitespace().next()?.parse::<u64>().ok())
    };
    fields.iter().map(|f| of(f).unwrap()).sum()
}

// ---- A job's life -----------------------------------------------------------------------------------

#[test]
fn every_exit_code_comes_back_and_one_init_runs_many_jobs() {
    let mut init = Init::boot();
    let descriptors = |init: &Init| fs::read_dir(format!("/proc/{}/fd", init.pid())).unwrap().count();
    let before = descriptors(&init);
    for code in 0..=255 {
        let outcome = init.run(&shell(&format!("echo out {code}; echo err {code} >&2; exit {code}")));
        assert_eq!(outcome.exited.end, End::Code(code));
        assert_eq!(outcome.text(), format!("out {code}\n"));
        assert_eq!(outcome.stderr, format!("err {code}\n").as_bytes());
        assert!(!outcome.exited.left_behind);
    }
    assert_eq!(descriptors(&init), before, "nothing stays open");
}

#[test]
fn every_fatal_signal_comes_back() {
    // CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH: ignored, or a stop.
    let harmless = [17, 18, 19, 20, 21, 22, 23, 28];
    let mut init = Init::boot();
    for n in (1..=64).filter(|n| !harmless.contains(n)) {
        init.start(&busybox(&["sleep", "1000"]));
        init.signal(n);
        assert_eq!(init.finish().exited.end, End::Signal(n as u8));
        // Stale, as from a worker that did not know yet.
        init.signal(n);
    }
}

#[test]
fn a_signal_right_behind_start_finds_the_job() {
    let mut init = Init::boot();
    for _ in 0..100 {
        let both = [busybox(&["sleep", "1000"]).frame(), frame(Kind::Signal, &15_u32.to_le_bytes())].concat();
        init.send(&both);
        assert_eq!(init.next(), (Kind::Started, vec![]));
        assert_eq!(init.finish().exited.end, End::Signal(15));
    }
}

#[test]
fn signals_to_init_go_to_the_entrypoint_or_end_an_idle_init() {
    let mut init = Init::boot();
    let script = "trap 'echo hup' HUP; trap 'echo term; exit 9' TERM; echo set; while :; do read x; done";
    init.start(&shell(script).with_stdin());
    assert_eq!(init.next(), (Kind::Stdout, b"set\n".to_vec()));
    let kill = |n: &str, pid: u32| {
        assert!(Command::new("kill").args([n, &pid.to_string()]).status().unwrap().success());
    };
    kill("-TSTP", init.pid());
    kill("-HUP", init.pid());
    assert_eq!(init.next(), (Kind::Stdout, b"hup\n".to_vec()));
    kill("-TERM", init.pid());
    let outcome = init.finish();
    assert_eq!((outcome.text(), outcome.exited.end), ("term\n", End::Code(9)));
    assert!(outcome.exited.interfered);
    kill("-WINCH", init.pid());
    kill("-TERM", init.pid());
    assert_eq!(init.end().code(), Some(0));
}

#[test]
fn a_job_cannot_pretend_that_somebody_outside_signalled_it() {
    let mut init = Init::boot();
    assert!(!init.run(&shell("kill -CONT 1; exit 3")).exited.interfered);
    // As process 0, which is how those outside look. The kernel believes it of signals that are queued (SI_QUEUE, -1).
    let call = if cfg!(target_arch = "x86_64") { 129 } else { 138 };
    let script = format!(
        "my $i = pack('i6x104', 18, 0, -1, 0, 0, 0); syscall({call}, 1, 18, $i) == 0 or die $!; exit 3"
    );
    let outcome = init.run(&perl(&script));
    assert_eq!((outcome.exited.end, outcome.exited.interfered), (End::Code(3), false), "{outcome:?}");
}

#[test]
fn a_flood_of_signals_does_not_keep_init_from_the_end_of_its_stream() {
    let mut init = Init::boot();
    // Signals of this kind queue up. What reaches init is passed on to the entrypoint.
    let script = "$SIG{NUM40} = 'IGNORE'; fork; fork; fork; $| = 1; print 'up'; kill 40, 1 while 1";
    init.start(&perl(script));
    while init.frames.recv_timeout(DEADLINE).expect("output").0 != Kind::Stdout {}
    init.stdin = None;
    assert_eq!(init.end().code(), Some(0));
}

#[test]
fn usage_is_counted_per_job() {
    let mut init = Init::boot();
    let busy = init.run(&shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")).exited;
    let children =
        init.run(&shell("busybox sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done' & wait")).exited;
    let big = init.run(&busybox(&["dd", "if=/dev/zero", "of=/dev/null", "bs=32M", "count=1"])).exited;
    let small = init.run(&busybox(&["true"])).exited;
    assert!(busy.cpu_us > 20_000 && children.cpu_us > 20_000, "{busy:?} {children:?}");
    assert!(small.cpu_us < busy.cpu_us, "{small:?} {busy:?}");
    assert!(big.max_rss > 32 << 20, "{big:?}");
    assert!((100 << 10..8 << 20).contains(&small.max_rss), "{small:?}");
}

#[test]
fn out_of_memory_kills_are_counted_per_job() {
    // A group of our own, seen by init where a container sees its own.
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let (parent, limit) =
        if v1.exists() { (v1, "memory.limit_in_bytes") } else { (Path::new("/sys/fs/cgroup"), "memory.max") };
    let group = parent.join(format!("prewarm-init-{}", std::process::id()));
    if fs::create_dir(&group).and_then(|()| fs::write(group.join(limit), "16M")).is_err() {
        let _ = fs::remove_dir(&group);
        return eprintln!("passed over: needs a memory control group");
    }
    let enter = "echo $$ >\"$0/cgroup.procs\" && mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
    let (group_path, parent_path) = (group.display().to_string(), parent.display().to_string());
    let through = ["sh", "-c", enter, &group_path, &parent_path];
    let mut init = Init::boot_with(&["--mount-proc"], &through, &directory().join("init"), &["PATH=/bin"]);
    for expected in [1, 0, 2] {
        let hungry = "busybox dd if=/dev/zero of=/dev/null bs=64M count=1;";
        let outcome = init.run(&shell(&format!("{} exit 4", hungry.repeat(expected))));
        assert_eq!(
            (outcome.exited.oom_kills, outcome.exited.end),
            (expected as u32, End::Code(4)),
            "{outcome:?}"
        );
    }
    drop(init);
    until("the group is empty", || fs::remove_dir(&group).ok());
}

// ---- What a job is given ----------------------------------------------------------------------------

#[test]
fn a_job_starts_clean() {
    let mut init = Init::boot();
    for job in [busybox(&["sleep", "1000"]), busybox(&["sleep", "1000"]).with_stdin()] {
        init.start(&job);
        let pid = init.job_pid();
        let link = |n: &str| fs::read_link(format!("/proc/{pid}/fd/{n}")).unwrap().display().to_string();
        let mut open: Vec<_> =
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|e| e.unwrap().file_name()).collect();
        open.sort();
        assert_eq!(open, ["0", "1", "2"]);
        assert_eq!(link("0") == "/dev/null", !job.stdin);
        for pipe in ["1", "2"] {
            assert!(link(pipe).starts_with("pipe:"));
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{pipe}")).unwrap();
            assert!(info.contains("flags:\t01\n"), "write-only, blocking: {info}");
        }
        let pid_inside = status(pid, "NSpid").split_whitespace().last().unwrap().to_owned();
        assert_eq!(
            status(pid, "NSsid").split_whitespace().last(),
            Some(&*pid_inside),
            "a session of its own"
        );
        assert_eq!(status(pid, "NSpgid").split_whitespace().last(), Some(&*pid_inside));
        for signals in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
            assert_eq!(status(pid, signals), "0000000000000000", "{signals}");
        }
        assert_eq!(status(pid, "Umask"), "0022");
        init.signal(9);
        init.finish();
    }
}

#[test]
fn stdin_is_empty_by_default_and_streams_can_be_reopened() {
    let mut init = Init::boot();
    assert_eq!(init.run(&busybox(&["cat"])).text(), "");
    let outcome = init.run(&shell("echo a >/dev/stdout; echo b >/proc/self/fd/1; echo c >/dev/stderr"));
    assert_eq!((outcome.text(), &*outcome.stderr), ("a\nb\n", &b"c\n"[..]));
}

#[test]
fn the_environment_is_merged_by_the_rules_of_start() {
    let given = ["PATH=/bin", "HOSTNAME=box", "HOME=/root", "EMPTY=", "LAST=1"];
    let mut init = Init::boot_with(&["--mount-proc"], &[], &directory().join("init"), &given);
    let entries = ["HOME", "A=1", "ABSENT", "HOSTNAME=other", "B=x=y", "EMPTY"];
    let outcome = init.run(&busybox(&["env"]).env(&entries));
    assert_eq!(outcome.text(), "HOME=/root\nA=1\nHOSTNAME=other\nB=x=y\nEMPTY=\nPATH=/bin\nLAST=1\n");
    assert_eq!(init.run(&busybox(&["env"])).text(), given.join("\n") + "\n");
}

#[test]
fn the_working_directory_is_the_jobs() {
    let mut init = Init::boot();
    assert_eq!(init.run(&Job { cwd: "/usr", ..busybox(&["pwd"]) }).text(), "/usr\n");
    assert_eq!(init.fail(&Job { cwd: "/nowhere", ..busybox(&["pwd"]) }), (Step::Chdir, ENOENT));
    assert_ne!(init.run(&busybox(&["pwd"])).text(), "/usr\n", "the next job starts where init is");
}

#[test]
fn executables_are_found_as_docker_finds_them() {
    let dir = directory().join("lookup");
    for sub in ["a/prog", "b", "c"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    executable(&dir.join("b/prog"), b"#!/bin/busybox sh\necho b \"$0\" \"$@\"", 0o644);
    executable(&dir.join("c/prog"), b"#!/bin/busybox sh\necho c \"$0\" \"$@\"", 0o755);
    executable(&dir.join("c/plain"), b"echo plain \"$0\" \"$@\"", 0o755);
    executable(&dir.join("c/orphan"), b"#!/nowhere/sh\n", 0o755);
    let (d, mut init) = (dir.display(), Init::boot());
    let job = |argv: &[&'static str]| Job { argv: argv.to_vec(), ..Job::default() };

    // Past what is no file, or not executable, to what is.
    let path = format!("PATH=/nowhere:{d}/a:{d}/b:{d}/c");
    let out = init.run(&job(&["prog", "x", "", "y"]).env(&[&path]));
    assert_eq!(out.text(), format!("c {d}/c/prog x  y\n"));
    // Nothing but what can't be executed.
    let path = format!("PATH={d}/a:{d}/b");
    assert_eq!(init.fail(&job(&["prog"]).env(&[&path])), (Step::Lookup, EACCES));
    // An empty element is the working directory, which is the job's own.
    let here = dir.join("c").display().to_string();
    for path in ["PATH=/nowhere:", "PATH="] {
        let out = init.run(&Job { cwd: &here, ..job(&["prog"]) }.env(&[path]));
        assert_eq!(out.text(), "c prog\n");
    }
    let out = init.run(&Job { cwd: &here, ..job(&["./prog"]) });
    assert_eq!(out.text(), "c ./prog\n");
    // A text without #!: the shell reads it.
    let path = format!("PATH={here}");
    let out = init.run(&job(&["plain", "1"]).env(&[&path]));
    assert_eq!(out.text(), format!("plain {here}/plain 1\n"));

    for (name, path, expected) in [
        ("nothing", "PATH=/bin", (Step::Lookup, ENOENT)),
        ("", "PATH=/bin", (Step::Lookup, ENOENT)),
        ("busybox", "PATH=", (Step::Lookup, ENOENT)),
        ("/nowhere/prog", "X=", (Step::Lookup, ENOENT)),
        ("/etc/passwd/prog", "X=", (Step::Lookup, ENOENT)),
        ("/etc", "X=", (Step::Lookup, EACCES)),
        ("/etc/passwd", "X=", (Step::Lookup, EACCES)),
    ] {
        assert_eq!(init.fail(&job(&[name]).env(&[path])), expected, "{name} in {path}");
    }
    let orphan = dir.join("c/orphan").display().to_string();
    assert_eq!(init.fail(&Job { argv: vec![&orphan], ..Job::default() }), (Step::Exec, ENOENT));
    let too_big = "x".repeat(1 << 20);
    assert_eq!(init.fail(&busybox(&["true", &too_big])), (Step::Exec, 7));
    assert_eq!(init.run(&busybox(&["true"])).exited.end, End::Code(0));
}

#[test]
fn an_image_may_hold_nothing_but_its_program() {
    if !is_root() {
        return eprintln!("passed over: needs root for mknod");
    }
    let root = directory().join("scratch");
    fs::create_dir_all(root.join("dev")).unwrap();
    let null = root.join("dev/null");
    assert!(
        Command::new("mknod").args(["-m", "666"]).arg(null).args(["c", "1", "3"]).status().unwrap().success()
    );
    executable(&root.join("init"), BINARY, 0o755);
    executable(&root.join("busybox"), &fs::read(BUSYBOX).unwrap(), 0o755);
    executable(&root.join("text"), b"echo no", 0o755);
    let at = format!("--root={}", root.display());
    let mut init = Init::boot_with(&[&at], &[], Path::new("/init"), &[]);
    let out = init.run(&Job { argv: vec!["/busybox", "echo", "hi"], ..Job::default() });
    assert_eq!(out.text(), "hi\n");
    assert_eq!(init.fail(&Job { argv: vec!["/text"], ..Job::default() }), (Step::Exec, ENOEXEC));
    fs::remove_file(root.join("dev/null")).unwrap();
    let out = Job { argv: vec!["/busybox", "true"], ..Job::default() };
    assert_eq!(init.fail(&out), (Step::Pipe, ENOENT));
    assert_eq!(init.run(&out.with_stdin()).exited.end, End::Code(0));
}

// ---- stdin ------------------------------------------------------------------------------------------

#[test]
fn stdin_is_carried_one_chunk_at_a_time() {
    let mut init = Init::boot();
    let data: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    init.start(&busybox(&["cat"]).with_stdin());
    let mut chunks = data.chunks(60_000);
    let mut back = vec![];
    init.send(&frame(Kind::Stdin, chunks.next().unwrap()));
    let exited = loop {
        match init.next() {
            (Kind::StdinTaken, _) => match chunks.next() {
                Some(chunk) => init.send(&frame(Kind::Stdin, chunk)),
                None => init.send(&frame(Kind::StdinEof, &[])),
            },
            (Kind::Stdout, bytes) => back.extend(bytes),
            (Kind::Exited, payload) => break Exited::decode(&payload).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(exited.end, End::Code(0));
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
}

#[test]
fn frames_may_come_all_at_once_or_byte_by_byte() {
    let mut init = Init::boot();
    let job = busybox(&["cat"]).with_stdin().frame();
    let all = [job, frame(Kind::Stdin, b"hello"), frame(Kind::StdinEof, &[])].concat();
    for piece in [all.len(), 1, 3] {
        for bytes in all.chunks(piece) {
            init.send(bytes);
        }
        // STDIN may be taken by the pipe before the program is executed.
        let (mut started, mut taken, mut out) = (0, 0, vec![]);
        let end = loop {
            match init.next() {
                (Kind::Started, _) => started += 1,
                (Kind::StdinTaken, _) => taken += 1,
                (Kind::Stdout, b) => out.extend(b),
                (Kind::Exited, p) => break Exited::decode(&p).unwrap().end,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((started, taken, &*out, end), (1, 1, &b"hello"[..], End::Code(0)));
    }
}

#[test]
fn a_job_that_does_not_read_its_stdin_can_be_signalled() {
    let mut init = Init::boot();
    init.start(&busybox(&["sleep", "1000"]).with_stdin());
    let chunk = frame(Kind::Stdin, &vec![7; wire::CHUNK_MAX]);
    init.send(&chunk);
    assert_eq!(init.next(), (Kind::StdinTaken, vec![]), "the pipe holds one chunk");
    init.send(&chunk);
    init.send(&frame(Kind::StdinEof, &[]));
    init.signal(15);
    let outcome = init.finish();
    assert_eq!(outcome.exited.end, End::Signal(15));
    assert_eq!(init.run(&busybox(&["cat"])).text(), "", "nothing of it reaches the next job");
}

#[test]
fn stdin_that_the_job_closed_is_dropped() {
    let mut init = Init::boot();
    init.start(&shell("exec <&-; echo closed; busybox sleep 1000").with_stdin());
    assert_eq!(init.next(), (Kind::Stdout, b"closed\n".to_vec()));
    for _ in 0..3 {
        init.send(&frame(Kind::Stdin, &vec![7; wire::CHUNK_MAX]));
        assert_eq!(init.next(), (Kind::StdinTaken, vec![]));
    }
    init.send(&frame(Kind::StdinEof, &[]));
    init.signal(9);
    init.finish();
    // Stale frames, of a worker that had them in flight.
    init.send(&frame(Kind::Stdin, b"late"));
    init.send(&frame(Kind::Stdin, b"later"));
    init.send(&frame(Kind::StdinEof, &[]));
    assert_eq!(init.run(&busybox(&["true"])).exited.end, End::Code(0));
}

// ---- What a job leaves ------------------------------------------------------------------------------

#[test]
fn what_a_job_leaves_is_killed_and_its_output_drained() {
    let mut init = Init::boot();
    let sleep = unique_sleep();
    let script = format!(
        "(busybox echo from the background; exec busybox sleep {sleep}) &
         ( (busybox setsid busybox sleep {sleep}) & ) &
         (trap '' TERM INT HUP; while :; do busybox sleep {sleep}; done) &
         busybox yes >&2 &
         read x; exit 7"
    );
    for _ in 0..20 {
        init.start(&shell(&script).with_stdin());
        while init.next().0 != Kind::Stdout {}
        init.send(&frame(Kind::Stdin, b"go\n"));
        let outcome = init.finish();
        assert_eq!(outcome.exited.end, End::Code(7));
        assert!(!outcome.exited.left_behind);
        assert!(!is_running(&sleep));
        assert!(children(init.pid()).is_empty());
    }
}

#[test]
fn a_fork_bomb_ends_with_its_entrypoint() {
    let mut init = Init::boot();
    // Generations of short lives, a few at a time.
    let script = "f() { busybox true; f & exit; }; f & f & f & f & busybox usleep 200000; exit 5";
    for _ in 0..5 {
        let outcome = init.run(&shell(script));
        assert_eq!(outcome.exited.end, End::Code(5));
        assert!(!outcome.exited.left_behind);
        assert!(children(init.pid()).is_empty());
    }
}

#[test]
fn orphans_are_reaped_while_the_job_runs() {
    let mut init = Init::boot();
    init.start(
        &shell("for i in 1 2 3 4 5 6 7 8 9; do (busybox true &) ; done; echo done; read x").with_stdin(),
    );
    assert_eq!(init.next(), (Kind::Stdout, b"done\n".to_vec()));
    until("orphans are reaped", || (children(init.pid()).len() == 1).then_some(()));
    init.send(&frame(Kind::StdinEof, &[]));
    assert_eq!(init.finish().exited.end, End::Code(1));
}

#[test]
fn a_job_may_close_its_streams_early_and_costs_nothing_then() {
    let mut init = Init::boot();
    init.start(&shell("echo last; exec >&- 2>&-; read x; exit 3").with_stdin());
    assert_eq!(init.next(), (Kind::Stdout, b"last\n".to_vec()));
    rests(&init);
    init.send(&frame(Kind::Stdin, b"go\n"));
    let outcome = init.finish();
    assert_eq!((outcome.text(), outcome.exited.end), ("", End::Code(3)));
}

/// Init comes to rest: for a while it isn't scheduled once.
fn rests(init: &Init) {
    let switches = || {
        let of = |f| status(init.pid(), f).parse::<u64>().unwrap();
        of("voluntary_ctxt_switches") + of("nonvoluntary_ctxt_switches")
    };
    until("init rests", || {
        let before = switches();
        thread::sleep(Duration::from_millis(200));
        (switches() == before).then_some(())
    });
}

#[test]
fn what_cannot_be_killed_is_reported_and_not_waited_for() {
    if !is_root() {
        return eprintln!("passed over: needs root for a set-user-id program");
    }
    let sudo = directory().join("sudo");
    executable(&sudo, &fs::read("/usr/bin/setpriv").unwrap(), 0o4755);
    let mut init = Init::boot_as_user();
    let sleep = unique_sleep();
    let become_root = format!("{} --reuid=0 --regid=0 --clear-groups", sudo.display());
    let script =
        format!("echo kept; {become_root} busybox sh -c 'echo root; exec busybox sleep {sleep}' & read x");
    init.start(&shell(&script).with_stdin());
    let mut said = vec![];
    while !said.ends_with(b"root\n") {
        said.extend(init.next().1);
    }
    let asked = Instant::now();
    init.send(&frame(Kind::StdinEof, &[]));
    let exited = init.finish().exited;
    assert!(
        exited.left_behind && asked.elapsed() < Duration::from_secs(5),
        "{exited:?}, {:?}",
        asked.elapsed()
    );
    assert!(is_running(&sleep));
    rests(&init);
    init.stdin = None;
    init.end();
    assert!(!is_running(&sleep), "the end of init is everybody's end");
}

#[test]
fn another_user_than_root_gets_the_same() {
    if !is_root() {
        return eprintln!("passed over: needs root to become another user");
    }
    let mut init = Init::boot_as_user();
    let outcome = init.run(&shell("echo a >/dev/stdout; echo b >/proc/self/fd/2; busybox id -u"));
    assert_eq!((outcome.text(), &*outcome.stderr), ("a\n1000\n", &b"b\n"[..]));
    // A job can't forge frames: init's descriptors are out of its reach, though it is the same user.
    let outcome = init.run(&shell("echo x 2>/dev/null >/proc/1/fd/1 || echo refused"));
    assert!(outcome.text() == "refused\n", "{outcome:?}");
}

// ---- Output and back-pressure -----------------------------------------------------------------------

#[test]
fn a_slow_reader_gets_everything_in_order_from_bounded_memory() {
    let mut init = Init::boot();
    let last = 13_000_000_u32;
    init.start(&busybox(&["seq", "1", &last.to_string()]));
    // Nobody reads: it all comes to a stop, and costs nothing.
    rests(&init);
    let (mut expected, mut total, mut line) = (1_u32, 0_usize, vec![]);
    let exited = loop {
        match init.next() {
            (Kind::Stdout, bytes) => {
                total += bytes.len();
                for b in bytes {
                    if b == b'\n' {
                        assert_eq!(std::str::from_utf8(&line).unwrap(), expected.to_string());
                        expected += 1;
                        line.clear();
                    } else {
                        line.push(b);
                    }
                }
            }
            (Kind::Exited, payload) => break Exited::decode(&payload).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((exited.end, expected), (End::Code(0), last + 1));
    assert!(total > 100 << 20);
    let rss = memory(init.pid(), &["Rss:"]);
    assert!(rss < 512, "{rss} KiB");
}

/// A job that ends with more in its pipe than init has room for: when the worker takes the rest just between draining and
/// waiting, nothing else happens that would end the wait. It takes many tries to meet that moment.
#[test]
fn a_job_that_ends_while_init_is_full_is_never_waited_for() {
    let mut init = Init::boot();
    for size in [2 * wire::CHUNK_MAX + 100, 2 * wire::CHUNK_MAX + 4096] {
        for _ in 0..600 {
            let outcome = init.run(&busybox(&["head", "-c", &size.to_string(), "/dev/zero"]));
            assert_eq!(outcome.stdout.len(), size);
        }
    }
}

#[test]
fn a_stalled_stream_does_not_stop_commands() {
    let mut init = Init::boot();
    let sleep = unique_sleep();
    init.start(&shell(&format!("busybox sleep {sleep} & busybox yes >&2 & exec busybox yes")).with_stdin());
    rests(&init);
    init.send(&frame(Kind::Stdin, b"x"));
    init.signal(15);
    until("the job is killed", || (!is_running(&sleep)).then_some(()));
    let outcome = init.finish();
    assert_eq!(outcome.exited.end, End::Signal(15));
    assert!(!outcome.stdout.is_empty() && !outcome.stderr.is_empty());
    assert!(outcome.stdout.chunks(2).all(|y| y == b"y\n" || y == b"y"));
    rests(&init);
}

// ---- The dead man's switch, and broken peers --------------------------------------------------------

#[test]
fn the_end_of_the_stream_is_the_end() {
    let sleep = unique_sleep();
    let script =
        format!("trap '' TERM HUP; (busybox setsid busybox sleep {sleep} &); busybox sleep {sleep}; echo no");
    let start = shell(&script).with_stdin();
    // Idle; in the middle of a frame; a job runs; it runs and nobody reads its output.
    let mut init = Init::boot();
    init.stdin = None;
    assert_eq!(init.end().code(), Some(0));
    let mut init = Init::boot();
    init.send(&start.frame()[..20]);
    init.stdin = None;
    assert_eq!(init.end().code(), Some(0));
    let mut init = Init::boot();
    init.start(&start);
    init.send(&frame(Kind::Stdin, &vec![0; wire::CHUNK_MAX]));
    until("the job runs", || is_running(&sleep).then_some(()));
    init.stdin = None;
    assert_eq!(init.end().code(), Some(0));
    assert!(!is_running(&sleep));
    let mut init = Init::boot();
    init.start(&shell(&format!("busybox sleep {sleep} & exec busybox yes")));
    rests(&init);
    init.stdin = None;
    assert_eq!(init.end().code(), Some(0));
    assert!(!is_running(&sleep));
}

#[test]
fn a_reader_that_is_gone_is_the_end_too() {
    for job in [busybox(&["yes"]), shell("echo x; busybox sleep 1000")] {
        let mut init = Init::boot();
        // The reading thread closes its end when a frame finds nobody to take it.
        init.frames = mpsc::sync_channel(0).1;
        init.send(&job.frame());
        assert_eq!(init.end().code(), Some(0));
    }
}

#[test]
fn whatever_is_no_frame_ends_init() {
    let oversize = |kind: Kind| wire::header(kind, kind.max_len() + 1).to_vec();
    let bad_start = frame(Kind::Start, b"\0\x01\0\0\0\0\0\0\0\0no end");
    let idle: Vec<Vec<u8>> = vec![
        vec![0, 0, 0, 0, 0],
        vec![0, 0, 0, 0, 255],
        vec![255, 255, 255, 255, 1],
        oversize(Kind::Start),
        oversize(Kind::Stdin),
        oversize(Kind::StdinEof),
        oversize(Kind::Signal),
        frame(Kind::Start, b""),
        frame(Kind::Start, &[0; 9]),
        bad_start,
        frame(Kind::Signal, &[15]),
        frame(Kind::Signal, &0_u32.to_le_bytes()),
        frame(Kind::Signal, &65_u32.to_le_bytes()),
        frame(Kind::Ready, &1_u32.to_le_bytes()),
        frame(Kind::Stdout, b"x"),
        frame(Kind::Exited, &[0; Exited::LEN]),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    let refused = |init: &mut Init, what: &[u8]| {
        let gone = init.frames.iter().find(|(kind, _)| *kind == Kind::Failed);
        let failed = gone.map(|(_, payload)| Failed::decode(&payload).unwrap());
        assert_eq!(failed, Some(Failed::at(Step::Protocol, 0)), "{what:?}");
        assert_eq!(init.end().code(), Some(125), "{what:?}");
    };
    for bytes in idle {
        let mut init = Init::boot();
        init.send(&bytes);
        refused(&mut init, &bytes);
    }
    let sleep = unique_sleep();
    let full = frame(Kind::Stdin, &vec![0; wire::CHUNK_MAX]);
    let (job, fed) = (busybox(&["sleep", &sleep]), busybox(&["sleep", &sleep]).with_stdin());
    let eof = frame(Kind::StdinEof, &[]);
    for (job, bytes) in [
        (&job, job.frame()),
        (&job, frame(Kind::Stdin, b"for nobody")),
        (&job, eof.clone()),
        (&fed, [full.clone(), full.clone(), full].concat()),
        (&fed, [eof.clone(), eof].concat()),
    ] {
        let mut init = Init::boot();
        init.start(job);
        // It may end before it has read all of this.
        let _ = init.stdin.as_mut().unwrap().write_all(&bytes);
        refused(&mut init, &bytes[..5]);
        assert!(!is_running(&sleep));
    }
}

// ---- What it costs ----------------------------------------------------------------------------------

#[test]
fn an_idle_init_costs_next_to_nothing() {
    // Either isolation is in it, files and artifacts.
    assert!(BINARY.len() < 72 << 10, "{} bytes", BINARY.len());
    let init = Init::boot();
    rests(&init);
    let private = memory(init.pid(), &["Private_Clean:", "Private_Dirty:"]);
    // Most of it is the program itself, which all inits of a host share. What is each one's own comes to a few pages.
    assert!(private <= 96, "{private} KiB");
    // Not what is private and dirty: the program's own pages are, until the file that this wrote is on disk.
    let own = memory(init.pid(), &["Anonymous:"]);
    assert!(own <= 16, "{own} KiB");
}

#[test]
fn the_program_tells_nothing_of_the_machine_that_built_it() {
    for path in [env!("CARGO_MANIFEST_DIR"), &std::env::var("HOME").unwrap_or_default()] {
        let found = path.len() > 1 && BINARY.windows(path.len()).any(|w| w == path.as_bytes());
        assert!(!found, "{path}");
    }
}
