//! The engine as its own command line shows it, so that tests don't judge prewarm by prewarm's code; and
//! images and volumes that are gone when a test is over.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// The images that `deploy/lib/images.sh` makes.
pub const BUSYBOX: &str = "prewarm-test/busybox";
/// Nothing but `/probe`, its entrypoint.
pub const SCRATCH: &str = "prewarm-test/scratch";
/// Debian 12.
pub const DEBIAN: &str = "prewarm-test/debian";

/// The longest that anything here may take. A loaded machine needs a tenth of it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The value of a variable that the tests' environment must have.
pub fn variable(name: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| {
        panic!("{name} is not set: run deploy/test.sh, or source the variables of deploy/test.sh --servers")
    })
}

/// A name that no other test, process or run has.
pub fn unique(what: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("{}-{what}-{}", prefix(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// How the [`unique`] names of this process begin.
pub fn prefix() -> String {
    format!("prewarm-test-{}", std::process::id())
}

// ---- Commands -----------------------------------------------------------------------------------------

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: Written,
    pub stderr: Written,
}

impl Done {
    /// The command's stdout, if it succeeded.
    pub fn ok(self, what: &str) -> String {
        assert!(self.code == Some(0), "{what}: {:?}: {}", self.code, self.stderr);
        self.stdout.to_string()
    }
}

/// All that came from a stream: the first [`Written::KEPT`] bytes, and the digest of all.
#[derive(Clone, PartialEq, Eq)]
pub struct Written {
    pub bytes: Vec<u8>,
    pub len: u64,
    digest: [u8; 32],
}

impl Written {
    /// So much is kept to be looked at.
    pub const KEPT: usize = 8 << 20;

    fn by(mut source: impl Read) -> Written {
        let mut written = Written { bytes: Vec::new(), len: 0, digest: [0; 32] };
        let mut digest = Sha256::new();
        let mut piece = vec![0; 64 << 10];
        while let Ok(n @ 1..) = source.read(&mut piece) {
            digest.update(&piece[..n]);
            written.len += n as u64;
            let room = Self::KEPT - written.bytes.len();
            written.bytes.extend_from_slice(&piece[..n.min(room)]);
        }
        written.digest = digest.finalize().into();
        written
    }

    /// These bytes, as if they had been read.
    pub fn from(bytes: Vec<u8>) -> Written {
        Written::by(&bytes[..])
    }

    /// Whether `bytes` is all that came.
    pub fn is_all_here(&self) -> bool {
        self.len == self.bytes.len() as u64
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes))
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes: {:?}",
            self.len,
            String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(400)])
        )
    }
}

/// Runs a command to its end, and kills it if that doesn't come within `limit`. Without `stdin` it gets
/// `/dev/null`.
pub fn run(command: &mut Command, stdin: Option<&[u8]>, limit: Duration) -> Done {
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", command.get_program()));
    let (out, err, input) = (child.stdout.take(), child.stderr.take(), child.stdin.take());
    thread::scope(|scope| {
        let out = scope.spawn(|| out.map_or_else(|| Written::by(&[][..]), Written::by));
        let err = scope.spawn(|| err.map_or_else(|| Written::by(&[][..]), Written::by));
        scope.spawn(move || {
            if let (Some(mut input), Some(bytes)) = (input, stdin) {
                // Whoever doesn't read to the end closes the pipe.
                let _ = input.write_all(bytes);
            }
        });
        let status = wait(&mut child, limit);
        let done = Done {
            code: status.and_then(|s| s.code()),
            stdout: out.join().unwrap(),
            stderr: err.join().unwrap(),
        };
        assert!(status.is_some(), "{command:?} took more than {limit:?}: {done:?}");
        done
    })
}

/// The child's status; `None` if it had to be killed.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        thread::sleep(Duration::from_millis(3));
    }
}

/// `docker` with these arguments, not yet run.
pub fn docker<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    variable("DOCKER_HOST");
    let mut command = Command::new("docker");
    command.args(args);
    command
}

/// Its stdout. Panics if it fails.
pub fn docker_ok<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let mut command = docker(args);
    run(&mut command, None, PATIENCE).ok(&format!("{command:?}"))
}

/// Names of the containers, in whatever state, with a label (`NAME` or `NAME=VALUE`).
pub fn containers(label: &str) -> Vec<String> {
    let filter = format!("label={label}");
    lines(&docker_ok(["ps", "-a", "--format", "{{.Names}}", "--filter", &filter]))
}

/// Names of all volumes.
pub fn volumes() -> HashSet<String> {
    lines(&docker_ok(["volume", "ls", "-q"])).into_iter().collect()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// Waits until `is_so`, at most `limit`. Whether it came to be.
pub fn eventually(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

// ---- Things that are removed when they are dropped --------------------------------------------------------

/// An image of a test's own.
pub struct Image {
    name: String,
}

impl Image {
    /// From a Dockerfile without context.
    pub fn build(dockerfile: &str) -> Image {
        let image = Image { name: unique("image") };
        let mut build = docker(["build", "--quiet", "--force-rm", "--tag", &image.name, "-"]);
        // The classic builder is part of every docker; BuildKit is not.
        build.env("DOCKER_BUILDKIT", "0");
        run(&mut build, Some(dockerfile.as_bytes()), PATIENCE).ok(&format!("building\n{dockerfile}\n"));
        image
    }

    /// From files, with lines of a Dockerfile such as `ENTRYPOINT ["/x"]`.
    pub fn import(files: &[File<'_>], changes: &[&str]) -> Image {
        let image = Image { name: unique("image") };
        let mut archive = tar::Builder::new(Vec::new());
        for file in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(file.mode);
            header.set_size(file.content.len() as u64);
            archive.append_data(&mut header, file.path, file.content).unwrap();
        }
        let changes = changes.iter().flat_map(|change| ["--change", change]);
        let args = ["import"].into_iter().chain(changes).chain(["-", &image.name]);
        run(&mut docker(args), Some(&archive.into_inner().unwrap()), PATIENCE).ok("docker import");
        image
    }

    /// The same under another name, which can be made another image's.
    pub fn tagged(&self) -> Image {
        let image = Image { name: unique("image") };
        docker_ok(["tag", &self.name, &image.name]);
        image
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        remove(&["image", "rm"], &self.name);
    }
}

/// A file of an image that is imported.
pub struct File<'a> {
    pub path: &'a str,
    pub mode: u32,
    pub content: &'a [u8],
}

/// A named volume of a test's own.
pub struct Volume {
    name: String,
}

impl Volume {
    pub fn create() -> Volume {
        let volume = Volume { name: unique("volume") };
        docker_ok(["volume", "create", &volume.name]);
        volume
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        remove(&["volume", "rm"], &self.name);
    }
}

fn remove(verb: &[&str], name: &str) {
    let mut command = docker(verb.iter().chain([&name]));
    let mut refusal = String::new();
    // A container that used it may still be on its way out.
    let gone = eventually(PATIENCE, || {
        let done = run(&mut command, None, PATIENCE);
        refusal = done.stderr.to_string();
        done.code == Some(0) || refusal.to_lowercase().contains("no such")
    });
    assert!(gone || thread::panicking(), "can't remove {name}: {refusal}");
}
