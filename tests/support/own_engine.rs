//! An engine of the test's own, to be stopped, killed and started again. With the container runtime of its own, so that the
//! machine's, if there is one, has no part in it.
//!
//! All of it goes when the test does, however that ends: `own_engine.sh` sees to it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use super::docker::{PATIENCE, docker, eventually, run, unique, wait};
use super::engine::{Container, listed};

const KEEPER: &str = include_str!("own_engine.sh");

pub struct OwnEngine {
    dir: PathBuf,
    cgroup: String,
    keeper: Child,
    containerd: Child,
    dockerd: Child,
}

impl OwnEngine {
    /// Starts it, with these images of the shared one.
    pub fn start(images: &[&str]) -> OwnEngine {
        OwnEngine::with(images, |_| {})
    }

    /// Starts it with a small disk of its own for all that it keeps, of so many MiB.
    pub fn with_disk(mib: u32, images: &[&str]) -> OwnEngine {
        OwnEngine::with(images, |dir| {
            let data = dir.join("data");
            fs::create_dir(&data).unwrap();
            let size = format!("size={mib}m");
            let mut mount = as_root(["mount", "-t", "tmpfs", "-o", &size, "tmpfs", path(&data)]);
            run(&mut mount, None, PATIENCE).ok("mount");
        })
    }

    fn with(images: &[&str], prepare: impl FnOnce(&Path)) -> OwnEngine {
        let cgroup = unique("engine");
        let dir = std::env::temp_dir().join(&cgroup);
        fs::create_dir(&dir).unwrap();
        let mut keeper = as_root(["setsid", "sh", "-c", KEEPER, "sh", path(&dir), &cgroup]);
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        prepare(&dir);
        // CRI is Kubernetes' business, and would listen on a port.
        fs::write(
            dir.join("containerd.toml"),
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\noom_score = 0\n",
        )
        .unwrap();
        let containerd = daemon(
            &dir,
            "containerd",
            &[
                "--config",
                path(&dir.join("containerd.toml")),
                "--address",
                path(&dir.join("containerd.sock")),
                "--root",
                path(&dir.join("containerd")),
                "--state",
                path(&dir.join("state")),
            ],
        );
        let up = eventually(PATIENCE, || dir.join("containerd.sock").exists());
        assert!(up, "no containerd: {}", log(&dir, "containerd"));
        let dockerd = dockerd(&dir, &cgroup);
        let engine = OwnEngine { dir, cgroup, keeper, containerd, dockerd };
        engine.until_up();
        for image in images {
            let saved = run(&mut docker(["save", image]), None, PATIENCE).stdout;
            assert!(saved.is_all_here(), "an image for tests is small");
            let mut load = docker(["--host", &engine.host(), "load", "--quiet"]);
            run(&mut load, Some(&saved.bytes), PATIENCE).ok("docker load");
        }
        engine
    }

    /// As in `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", path(&self.dir.join("docker.sock")))
    }

    /// All containers, in every state.
    pub fn containers(&self) -> Vec<Container> {
        listed(&["--host", &self.host()], &[])
    }

    /// Sends its process a signal.
    pub fn signal(&self, name: &str) {
        let pid = fs::read_to_string(self.dir.join("dockerd.started")).unwrap();
        let mut kill = as_root(["kill", "-s", name, pid.trim()]);
        run(&mut kill, None, PATIENCE).ok("kill");
    }

    /// Waits for the end of its process.
    pub fn ended(&mut self) {
        assert!(wait(&mut self.dockerd, PATIENCE).is_some(), "the engine doesn't end");
    }

    /// Starts it again after it has ended; doesn't wait until it answers.
    pub fn again(&mut self) {
        self.dockerd = dockerd(&self.dir, &self.cgroup);
    }

    /// Waits until it answers.
    pub fn until_up(&self) {
        let host = self.host();
        let answers = || run(&mut docker(["--host", &host, "version"]), None, PATIENCE).code == Some(0);
        assert!(eventually(PATIENCE, answers), "no engine: {}", log(&self.dir, "dockerd"));
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- the engine: {}", log(&self.dir, "dockerd"));
        }
        drop(self.keeper.stdin.take());
        let gone = wait(&mut self.keeper, PATIENCE).is_some_and(|status| status.success());
        let _ = self.dockerd.wait();
        let _ = self.containerd.wait();
        assert!(gone || thread::panicking(), "something of the engine is left behind");
    }
}

fn dockerd(dir: &Path, cgroup: &str) -> Child {
    let file = |name: &str| path(&dir.join(name)).to_owned();
    // 20.10 writes a key into /etc unless told where else; newer versions refuse the setting.
    let version = run(&mut at("dockerd", ["--version"]), None, PATIENCE).ok("dockerd --version");
    let key = serde_json::json!({"deprecated-key-path": file("key.json")}).to_string();
    let settings = if version.contains("version 20.10.") { key } else { "{}".into() };
    fs::write(dir.join("daemon.json"), settings).unwrap();
    let args = [
        ["--config-file", &file("daemon.json")],
        ["--host", &format!("unix://{}", file("docker.sock"))],
        ["--data-root", &file("data")],
        ["--exec-root", &file("exec")],
        ["--pidfile", &file("dockerd.pid")],
        ["--containerd", &file("containerd.sock")],
        ["--exec-opt", "native.cgroupdriver=cgroupfs"],
        ["--cgroup-parent", &format!("/{cgroup}")],
        // Nothing of the machine's network is its business.
        ["--bridge", "none"],
        ["--iptables=false", "--ip-forward=false"],
        ["--group", &fs::metadata("/proc/self").unwrap().gid().to_string()],
    ];
    daemon(dir, "dockerd", args.as_flattened())
}

/// Starts a server, apart from the terminal's Ctrl-C; what it prints goes to a file.
fn daemon(dir: &Path, name: &str, args: &[&str]) -> Child {
    let there = run(&mut at("sh", ["-c", &format!("command -v {name}")]), None, PATIENCE).code == Some(0);
    assert!(there, "no {name} on this machine: install Docker's engine (Debian: apt-get install docker.io)");
    let (mark, started) = (format!("PREWARM_TEST_ENGINE={}", path(dir)), dir.join(format!("{name}.started")));
    let shell = ["setsid", "env", &mark, "sh", "-c", "echo $$ >\"$0\"; exec \"$@\"", path(&started), name];
    let log = fs::File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap();
    let mut command = as_root(shell.iter().chain(args));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn as_root<S: AsRef<OsStr>>(command: impl IntoIterator<Item = S>) -> Command {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if root { at("env", command) } else { at("sudo", command) }
}

/// A command where Debian keeps those for root.
fn at<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(args).env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command
}

fn log(dir: &Path, name: &str) -> String {
    let text = fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
