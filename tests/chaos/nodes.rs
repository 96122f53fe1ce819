//! RabbitMQ nodes of the test's own, alone or as a cluster: to be stopped, killed, starved and started again.
//!
//! All of it goes when the test does, however that ends: `nodes.sh` sees to it.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::support::docker::{eventually, run, unique, wait};
use crate::support::own_broker::free_ports;

const KEEPER: &str = include_str!("nodes.sh");

/// Several nodes at once on a machine that has other things to do.
const STARTING: Duration = Duration::from_secs(180);

/// Which RabbitMQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// This machine's.
    Installed,
    /// Of Debian 13: 4.0.
    Four,
}

pub struct Nodes {
    dir: PathBuf,
    keeper: Child,
    nodes: Vec<Node>,
    /// As the first node says.
    pub version: String,
}

struct Node {
    name: String,
    port: u16,
    server: Mutex<Option<Child>>,
}

impl Nodes {
    /// Starts so many nodes, as a cluster if they are several.
    pub fn start(release: Release, count: usize) -> Nodes {
        let dir = std::env::temp_dir().join(unique("nodes"));
        fs::create_dir(&dir).unwrap();
        let keeper = Command::new("setsid")
            .args(["sh", "-c", KEEPER, "sh", shown(&dir)])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ports = free_ports(2 + 2 * count + 6);
        let root = (release == Release::Four).then(root_of_four);
        // One cookie for all, and only for its owner, or else Erlang refuses.
        fs::write(dir.join(".erlang.cookie"), unique("cookie")).unwrap();
        fs::set_permissions(dir.join(".erlang.cookie"), fs::Permissions::from_mode(0o400)).unwrap();
        fs::write(dir.join("enabled_plugins"), "[].\n").unwrap();
        let name = |n: usize| format!("chaos{n}-{}@localhost", ports[0]);
        let mut nodes = Vec::new();
        for n in 0..count {
            let (port, dist) = (ports[2 + 2 * n], ports[3 + 2 * n]);
            let mut conf = format!(
                "listeners.tcp.local = 127.0.0.1:{port}\ndisk_free_limit.absolute = 50MB\n\
                 vm_memory_high_watermark.relative = 0.4\n"
            );
            if count > 1 {
                conf += "cluster_formation.peer_discovery_backend = classic_config\n";
                for peer in 0..count {
                    _ = writeln!(
                        conf,
                        "cluster_formation.classic_config.nodes.{} = {}",
                        peer + 1,
                        name(peer)
                    );
                }
            }
            let home = dir.join(n.to_string());
            fs::create_dir(&home).unwrap();
            fs::write(home.join("rabbitmq.conf"), conf).unwrap();
            fs::write(home.join("environment"), environment(&dir, &home, &name(n), port, dist, &ports))
                .unwrap();
            for program in ["rabbitmq-server", "rabbitmqctl"] {
                let within =
                    root.as_ref().map_or(String::new(), |(script, root)| format!("{script} run {root} "));
                let text = format!(
                    "#!/bin/sh\n. {}\nexec {within}/usr/lib/rabbitmq/bin/{program} \"$@\"\n",
                    shown(&home.join("environment"))
                );
                fs::write(home.join(program), text).unwrap();
                fs::set_permissions(home.join(program), fs::Permissions::from_mode(0o755)).unwrap();
            }
            nodes.push(Node { name: name(n), port, server: Mutex::default() });
        }
        let mut nodes = Nodes { dir, keeper, nodes, version: String::new() };
        // The first one founds the cluster; the others join it all at once. One of RabbitMQ 4 doesn't come up before it has heard
        // of the others.
        for n in 0..count {
            nodes.again(n);
            if n == 0 && release == Release::Installed {
                nodes.until_up(n);
            }
        }
        (0..count).for_each(|n| nodes.until_up(n));
        let version = run(&mut nodes.ctl_command(0, &["version"]), None, STARTING).ok("rabbitmqctl version");
        nodes.version = version.trim().to_owned();
        nodes
    }

    pub fn address(&self, n: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[n].port)
    }

    pub fn url(&self, n: usize) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address(n))
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|n| self.url(n)).collect()
    }

    /// Runs `rabbitmqctl` on a node, while all else goes on; gives what it prints.
    pub async fn ctl(&self, n: usize, args: &[&str]) -> String {
        let mut ctl = self.ctl_command(n, args);
        let run = move || run(&mut ctl, None, STARTING).ok("rabbitmqctl");
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    fn ctl_command(&self, n: usize, args: &[&str]) -> Command {
        let mut ctl = Command::new(self.home(n).join("rabbitmqctl"));
        ctl.arg("-q").args(args);
        ctl
    }

    /// Starts a node that isn't running; doesn't wait until it answers.
    pub fn again(&self, n: usize) {
        let log = self.home(n).join("console");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut server = Command::new("setsid");
        server.arg(self.home(n).join("rabbitmq-server"));
        server.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.nodes[n].server.lock().unwrap() = Some(server.spawn().unwrap());
    }

    /// Waits until a node takes connections. One that gives up is started again, as any service manager does: of two that start at the same
    /// moment one may find that the other doesn't run yet, and end (seen with 4.0: `node_not_running`).
    pub fn until_up(&self, n: usize) {
        let address: SocketAddr = self.address(n).parse().unwrap();
        let up = eventually(STARTING, || {
            let mut server = self.nodes[n].server.lock().unwrap();
            let ended = server.as_mut().is_some_and(|server| server.try_wait().unwrap().is_some());
            drop(server);
            if ended {
                self.again(n);
            }
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        });
        assert!(up, "{} doesn't come up: {}", self.nodes[n].name, self.log(n));
    }

    /// Ends a node, at once (`KILL`) or as it wants to end (`TERM`), and waits for its end.
    pub fn end(&self, n: usize, signal: &str) {
        let pid = fs::read_to_string(self.home(n).join("server.pid")).unwrap();
        run(Command::new("kill").args(["-s", signal, pid.trim()]), None, STARTING).ok("kill");
        let mut server = self.nodes[n].server.lock().unwrap().take().expect("it runs");
        assert!(wait(&mut server, STARTING).is_some(), "{} doesn't end", self.nodes[n].name);
        let gone = || !Path::new("/proc").join(pid.trim()).exists();
        assert!(eventually(STARTING, gone), "{} doesn't end", self.nodes[n].name);
    }

    fn home(&self, n: usize) -> PathBuf {
        self.dir.join(n.to_string())
    }

    fn log(&self, n: usize) -> String {
        let text = fs::read_to_string(self.home(n).join("console")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let gone = wait(&mut self.keeper, STARTING).is_some_and(|status| status.success());
        for server in self.nodes.iter_mut().filter_map(|node| node.server.get_mut().ok()?.take()) {
            let _ = { server }.wait();
        }
        assert!(gone || thread::panicking(), "something of the nodes is left behind");
    }
}

/// Nothing is read from /etc/rabbitmq, and everything is only to be reached from this machine.
fn environment(dir: &Path, home: &Path, name: &str, port: u16, dist: u16, ports: &[u16]) -> String {
    let (mark, home) = (shown(dir), shown(home));
    let (ctl_first, ctl_last) = (ports[ports.len() - 6], ports[ports.len() - 1]);
    format!(
        "export PREWARM_TEST_NODES={mark} HOME={mark} LANG=C.UTF-8\n\
         export RABBITMQ_CONF_ENV_FILE={home}/none RABBITMQ_NODENAME={name}\n\
         export RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT={port} RABBITMQ_DIST_PORT={dist}\n\
         export RABBITMQ_CTL_DIST_PORT_MIN={ctl_first} RABBITMQ_CTL_DIST_PORT_MAX={ctl_last}\n\
         export RABBITMQ_CONFIG_FILE={home}/rabbitmq.conf RABBITMQ_CONFIG_FILES={home}/none\n\
         export RABBITMQ_ADVANCED_CONFIG_FILE={home}/advanced.config\n\
         export RABBITMQ_ENABLED_PLUGINS_FILE={mark}/enabled_plugins\n\
         export RABBITMQ_MNESIA_BASE={home}/mnesia RABBITMQ_LOG_BASE={home}/log\n\
         export RABBITMQ_PID_FILE={home}/server.pid\n\
         export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {{127,0,0,1}}'\n\
         export ERL_EPMD_PORT={} ERL_EPMD_ADDRESS=127.0.0.1\n",
        ports[1]
    )
}

/// The root of RabbitMQ 4, made if there is none (a minute or two), and the script that runs what is in it.
fn root_of_four() -> (String, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/lib/rabbitmq4.sh");
    let root = run(Command::new(&script).arg("root"), None, Duration::from_secs(600)).ok("rabbitmq4.sh root");
    (shown(&script).to_owned(), root.trim().to_owned())
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}
