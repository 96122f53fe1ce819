//! Jobs that wait until their test has looked.

use std::fs;
use std::path::PathBuf;

use super::worker::Site;

/// A folder of the host's that jobs see as `/gate`.
pub struct Gate(pub PathBuf);

impl Gate {
    /// What a job does until the gate is open.
    pub const WAIT: &str = "until [ -e /gate/open ]; do sleep 0.05; done";

    pub fn new(site: &Site) -> Gate {
        let dir = site.dir.join("gate");
        fs::create_dir(&dir).unwrap();
        Gate(dir)
    }

    /// For a pool's keys. Jobs may leave something there.
    pub fn mount(&self) -> String {
        format!("mounts = [{{ source = {:?}, target = \"/gate\" }}]", self.0)
    }

    /// The same, and they may not.
    pub fn mount_read_only(&self) -> String {
        format!("mounts = [{{ source = {:?}, target = \"/gate\", read_only = true }}]", self.0)
    }

    pub fn open(&self) {
        fs::write(self.0.join("open"), "").unwrap();
    }

    pub fn shut(&self) {
        fs::remove_file(self.0.join("open")).unwrap();
    }
}
