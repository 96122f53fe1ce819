//! What the service manager hears: systemd's side of `NOTIFY_SOCKET`.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::support::broker::Job;
use crate::support::marks::Marks;
use crate::support::worker::{DEADLINE, Site, run, signal};

struct Manager(Receiver<String>);

impl Manager {
    /// Takes messages as they come: a socket holds ten of them, and whoever sends one more waits.
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        let (heard, messages) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = socket.recv(&mut buffer) {
                if heard.send(String::from_utf8_lossy(&buffer[..n]).into_owned()).is_err() {
                    break;
                }
            }
        });
        Manager(messages)
    }

    /// The next message that has this line in it; others may come before.
    fn hears(&self, line: &str) -> String {
        loop {
            let said = self.0.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("'{line}' was not said: {e}"));
            if said.lines().any(|l| l == line) {
                return said;
            }
        }
    }
}

#[test]
fn the_service_manager_is_told_of_start_reload_life_and_drain() {
    run(async |site: &Site| {
        let path = site.dir.join("notify");
        let manager = Manager::at(&path);
        let marks = Marks::new(site);
        let mut worker = site
            .worker()
            .env("NOTIFY_SOCKET", path.to_str().unwrap())
            .env("WATCHDOG_USEC", "300000")
            .pool("box", &format!("idle = 1\nconcurrency = 1\n{}", marks.mount()))
            .ready()
            .await;
        manager.hears("READY=1");
        manager.hears("WATCHDOG=1");
        manager.hears("WATCHDOG=1");
        signal("HUP", worker.pid());
        assert!(manager.hears("RELOADING=1").contains("MONOTONIC_USEC="));
        manager.hears("READY=1");
        let script = format!("echo up; {}", Marks::WAIT);
        let job = site.broker.submit("box", Job::shell(&script)).await;
        site.broker.printed(&job, "up").await;
        signal("TERM", worker.pid());
        manager.hears("STOPPING=1");
        // The unit's own TimeoutStopSec need not know how long jobs take.
        manager.hears(&format!("EXTEND_TIMEOUT_USEC={}", Duration::from_secs(30).as_micros()));
        // Nor does the watchdog strike meanwhile.
        manager.hears("WATCHDOG=1");
        marks.let_go();
        site.broker.finished(&job).await.succeeded();
        // A second signal would force it.
        assert!(worker.ended().await.success());
    });
}
