//! What the service manager hears: systemd's side of `NOTIFY_SOCKET`.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::support::broker::Job;
use crate::support::worker::{DEADLINE, Site, run, signal};

struct Manager(UnixDatagram);

impl Manager {
    /// The next message that has this line in it; others may come before.
    fn hears(&self, line: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let n = self.0.recv(&mut buffer).unwrap_or_else(|e| panic!("'{line}' was not said: {e}"));
            let said = String::from_utf8_lossy(&buffer[..n]).into_owned();
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
        let manager = Manager(UnixDatagram::bind(&path).unwrap());
        manager.0.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut worker = site
            .worker()
            .env("NOTIFY_SOCKET", path.to_str().unwrap())
            .env("WATCHDOG_USEC", "300000")
            .pool("box", "idle = 1\nconcurrency = 1")
            .ready()
            .await;
        manager.hears("READY=1");
        manager.hears("WATCHDOG=1");
        manager.hears("WATCHDOG=1");
        signal("HUP", worker.pid());
        assert!(manager.hears("RELOADING=1").contains("MONOTONIC_USEC="));
        manager.hears("READY=1");
        let job = site.broker.submit("box", Job::shell("echo up; sleep 1; echo done")).await;
        site.broker.printed(&job, "up").await;
        signal("TERM", worker.pid());
        manager.hears("STOPPING=1");
        // The unit's own TimeoutStopSec need not know how long jobs take.
        manager.hears(&format!("EXTEND_TIMEOUT_USEC={}", Duration::from_secs(30).as_micros()));
        // Nor does the watchdog strike meanwhile.
        manager.hears("WATCHDOG=1");
        site.broker.finished(&job).await.succeeded();
        // A second signal would force it.
        assert!(worker.ended().await.success());
    });
}
