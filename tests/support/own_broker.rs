//! A RabbitMQ node of the test's own, to be configured, stopped, killed and started again.
//!
//! All of it goes when the test does, however that ends: `own_broker.sh` sees to it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::docker::{PATIENCE, eventually, run, unique, wait};

const KEEPER: &str = include_str!("own_broker.sh");

/// A node needs seconds to start, and much longer on a busy machine.
const STARTING: Duration = Duration::from_secs(120);

pub struct OwnBroker {
    /// Files of the node; the test may put its own there before the node needs them.
    pub dir: PathBuf,
    /// For AMQP without TLS.
    pub port: u16,
    /// For AMQP over TLS, if the configuration has `ssl_options`.
    pub tls_port: u16,
    node: String,
    /// Lines of `rabbitmq.conf` that are the test's.
    config: String,
    keeper: Child,
    server: Option<Child>,
}

impl OwnBroker {
    /// Prepares a node, with these lines in its `rabbitmq.conf`, and starts it.
    pub fn start(config: &str) -> OwnBroker {
        let mut broker = OwnBroker::prepare(None, |_| config.to_owned());
        broker.up();
        broker
    }

    /// Prepares a node without starting it: this machine's RabbitMQ, or that of a root made by `rabbitmq4.sh`. The lines of
    /// its `rabbitmq.conf` may name files in its folder. Its ports are for sure when it is up.
    pub fn prepare(root: Option<&Path>, config: impl FnOnce(&Path) -> String) -> OwnBroker {
        let name = unique("broker");
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir).unwrap();
        let mut keeper = Command::new("setsid");
        keeper.args(["sh", "-c", KEEPER, "sh"]).arg(&dir);
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let config = config(&dir);
        fs::write(dir.join("enabled_plugins"), "[].\n").unwrap();
        let inside = match root {
            Some(root) => format!("{} run {}", path(&script()), path(root)),
            None => String::new(),
        };
        for program in ["rabbitmq-server", "rabbitmqctl"] {
            // Debian's wrappers insist on root or the user rabbitmq; what they wrap runs as anybody.
            let text = format!(
                "#!/bin/sh\n. {}/environment\nexec {inside} /usr/lib/rabbitmq/bin/{program} \"$@\"\n",
                path(&dir)
            );
            let file = dir.join(program);
            fs::write(&file, text).unwrap();
            run(Command::new("chmod").arg("755").arg(&file), None, PATIENCE).ok("chmod");
        }
        let node = format!("{name}@localhost");
        let mut broker = OwnBroker { dir, port: 0, tls_port: 0, node, config, keeper, server: None };
        broker.give_ports();
        broker
    }

    fn give_ports(&mut self) {
        let [port, tls_port, dist, epmd] = free_ports(4).try_into().unwrap();
        (self.port, self.tls_port) = (port, tls_port);
        let OwnBroker { dir, node, config, .. } = self;
        let shown = path(dir);
        let conf = format!(
            "listeners.tcp.local = 127.0.0.1:{port}\ndisk_free_limit.absolute = 50MB\n\
             vm_memory_high_watermark.absolute = 1GB\n{}{config}\n",
            if config.contains("ssl_options") {
                format!("listeners.ssl.local = 127.0.0.1:{tls_port}\n")
            } else {
                String::new()
            }
        );
        fs::write(dir.join("rabbitmq.conf"), conf).unwrap();
        // Nothing is read from /etc/rabbitmq, and everything is only to be reached from this machine.
        let environment = format!(
            "export PREWARM_TEST_BROKER={shown} HOME={shown} LANG=C.UTF-8\n\
             export RABBITMQ_CONF_ENV_FILE={shown}/none RABBITMQ_NODENAME={node}\n\
             export RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT={port} RABBITMQ_DIST_PORT={dist}\n\
             export RABBITMQ_CONFIG_FILE={shown}/rabbitmq.conf RABBITMQ_CONFIG_FILES={shown}/none\n\
             export RABBITMQ_ADVANCED_CONFIG_FILE={shown}/advanced.config\n\
             export RABBITMQ_ENABLED_PLUGINS_FILE={shown}/enabled_plugins\n\
             export RABBITMQ_MNESIA_BASE={shown}/mnesia RABBITMQ_LOG_BASE={shown}/log\n\
             export RABBITMQ_PID_FILE={shown}/server.pid ERL_CRASH_DUMP={shown}/erl_crash.dump\n\
             export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {{127,0,0,1}}'\n\
             export ERL_EPMD_PORT={epmd} ERL_EPMD_ADDRESS=127.0.0.1\n"
        );
        fs::write(dir.join("environment"), environment).unwrap();
    }

    /// Starts the server, or starts it again, and waits until it serves.
    pub fn up(&mut self) {
        let (begun, mut tries) = (self.startups(), 3);
        while !self.comes_up(begun) {
            tries -= 1;
            // Somebody else took a port in between, which is rare; anything else is not going to get better.
            let said = self.said();
            let taken = ["eaddrinuse", "dist_port_already_used"].iter().any(|reason| said.contains(reason));
            assert!(
                taken && begun == 0 && tries > 0,
                "no RabbitMQ (Debian: apt-get install rabbitmq-server): {}",
                self.log()
            );
            self.give_ports();
        }
    }

    /// Starts the server; false if it ends instead.
    fn comes_up(&mut self, begun: usize) -> bool {
        let log = fs::File::create(self.dir.join("console")).unwrap();
        let mut server = Command::new("setsid");
        server.arg(self.dir.join("rabbitmq-server")).stdin(Stdio::null());
        server.stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = server.spawn().unwrap();
        eventually(STARTING, || self.startups() > begun || server.try_wait().unwrap().is_some());
        self.server = Some(server);
        self.startups() > begun
    }

    /// Ends the server at once, as a power cut does; its files stay.
    pub fn kill(&mut self) {
        let pid = fs::read_to_string(self.dir.join("server.pid")).unwrap();
        run(Command::new("kill").args(["-KILL", pid.trim()]), None, PATIENCE).ok("kill");
        if let Some(mut server) = self.server.take() {
            assert!(wait(&mut server, PATIENCE).is_some(), "the broker doesn't end");
        }
    }

    /// The administrator's user, at the port without TLS.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Runs `rabbitmqctl`, and returns what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        run(Command::new(self.dir.join("rabbitmqctl")).arg("-q").args(args), None, STARTING).ok("rabbitmqctl")
    }

    fn startups(&self) -> usize {
        let log = self.dir.join("log").join(format!("{}.log", self.node));
        fs::read_to_string(log).unwrap_or_default().matches("Server startup complete").count()
    }

    /// All that it has printed since it was started last, and all that it has ever logged.
    fn said(&self) -> String {
        let text = fs::read_to_string(self.dir.join("console")).unwrap_or_default();
        let log = self.dir.join("log").join(format!("{}.log", self.node));
        text + &fs::read_to_string(log).unwrap_or_default()
    }

    fn log(&self) -> String {
        let text = self.said();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- the broker: {}", self.log());
        }
        drop(self.keeper.stdin.take());
        let gone = wait(&mut self.keeper, PATIENCE).is_some_and(|status| status.success());
        if let Some(mut server) = self.server.take() {
            let _ = server.wait();
        }
        assert!(gone || thread::panicking(), "something of the broker is left behind");
    }
}

/// The root of the RabbitMQ of another Debian release; made if there is none, which takes a minute or two.
pub fn root(suite: &str) -> PathBuf {
    let mut command = Command::new(script());
    run(command.args(["root", suite]), None, Duration::from_secs(600)).ok("rabbitmq4.sh").trim().into()
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/lib/rabbitmq4.sh")
}

/// So many ports in a row that nobody has: below those that the system gives out itself, and not given out here before,
/// since a node takes its own only seconds later.
pub fn free_ports(count: usize) -> Vec<u16> {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap();
    for _ in 0..100 {
        let first = rand::random_range(27_000..32_000);
        let ports: Vec<u16> = (first..).take(count).collect();
        let free = |port: &u16| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
        if ports.iter().all(free) {
            given.extend(&ports);
            return ports;
        }
    }
    panic!("no {count} free ports in a row");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
