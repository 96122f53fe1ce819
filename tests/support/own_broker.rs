//! A RabbitMQ node of the test's own, to be configured, stopped, killed and started again.
//!
//! All of it goes when the test does, however that ends: `own_broker.sh` sees to it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
    /// its `rabbitmq.conf` may name files in its folder.
    pub fn prepare(root: Option<&Path>, config: impl FnOnce(&Path) -> String) -> OwnBroker {
        let name = unique("broker");
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir).unwrap();
        let mut keeper = Command::new("setsid");
        keeper.args(["sh", "-c", KEEPER, "sh"]).arg(&dir);
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let config = config(&dir);
        let [port, tls_port, dist, epmd] = free_ports();
        let node = format!("{name}@localhost");
        let shown = dir.to_str().unwrap();
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
        fs::write(dir.join("enabled_plugins"), "[].\n").unwrap();
        // Nothing is read from /etc/rabbitmq, and everything is only to be reached from this machine.
        let environment = format!(
            "export PREWARM_TEST_BROKER={shown} HOME={shown} LANG=C.UTF-8\n\
             export RABBITMQ_CONF_ENV_FILE={shown}/none RABBITMQ_NODENAME={node}\n\
             export RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT={port} RABBITMQ_DIST_PORT={dist}\n\
             export RABBITMQ_CONFIG_FILE={shown}/rabbitmq.conf RABBITMQ_CONFIG_FILES={shown}/none\n\
             export RABBITMQ_ADVANCED_CONFIG_FILE={shown}/advanced.config\n\
             export RABBITMQ_ENABLED_PLUGINS_FILE={shown}/enabled_plugins\n\
             export RABBITMQ_MNESIA_BASE={shown}/mnesia RABBITMQ_LOG_BASE={shown}/log\n\
             export RABBITMQ_PID_FILE={shown}/server.pid\n\
             export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {{127,0,0,1}}'\n\
             export ERL_EPMD_PORT={epmd} ERL_EPMD_ADDRESS=127.0.0.1\n"
        );
        fs::write(dir.join("environment"), environment).unwrap();
        let inside = match root {
            Some(root) => format!("{} run {}", path(&script()), path(root)),
            None => String::new(),
        };
        for program in ["rabbitmq-server", "rabbitmqctl"] {
            // Debian's wrappers insist on root or the user rabbitmq; what they wrap runs as anybody.
            let text = format!(
                "#!/bin/sh\n. {shown}/environment\nexec {inside} /usr/lib/rabbitmq/bin/{program} \"$@\"\n"
            );
            let file = dir.join(program);
            fs::write(&file, text).unwrap();
            run(Command::new("chmod").arg("755").arg(&file), None, PATIENCE).ok("chmod");
        }
        OwnBroker { dir, port, tls_port, node, keeper, server: None }
    }

    /// Starts the server, or starts it again, and waits until it serves.
    pub fn up(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("console")).unwrap();
        let mut server = Command::new("setsid");
        server.arg(self.dir.join("rabbitmq-server")).stdin(Stdio::null());
        server.stdout(log.try_clone().unwrap()).stderr(log);
        let begun = self.startups();
        self.server = Some(server.spawn().unwrap());
        let up = eventually(STARTING, || self.startups() > begun);
        assert!(up, "no RabbitMQ (Debian: apt-get install rabbitmq-server): {}", self.log());
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

    fn log(&self) -> String {
        let mut text = fs::read_to_string(self.dir.join("console")).unwrap_or_default();
        let log = self.dir.join("log").join(format!("{}.log", self.node));
        text += &fs::read_to_string(log).unwrap_or_default();
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

/// All held at once, so that they differ. Another program may take one before the node does; then the test fails,
/// and says so.
fn free_ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
