//! Jobs that tell their test that they ran.

use std::fs;
use std::path::PathBuf;

use super::worker::Site;

/// A folder of the host's that jobs see as `/marks`, and leave a mark in each time they run: an account that no broker keeps.
pub struct Marks(PathBuf);

impl Marks {
    /// What a job does until it is let go.
    pub const WAIT: &str = "until [ -e /marks/go ]; do sleep 0.05; done";

    pub fn new(site: &Site) -> Marks {
        let dir = site.dir.join("marks");
        fs::create_dir(&dir).unwrap();
        Marks(dir)
    }

    /// For a pool's keys.
    pub fn mount(&self) -> String {
        format!("mounts = [{{ source = {:?}, target = \"/marks\" }}]", self.0)
    }

    /// How often the job ran whose script says `echo run >>/marks/NAME`.
    pub fn runs(&self, name: &str) -> usize {
        self.lines(name).len()
    }

    /// What jobs have written there.
    pub fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.0.join(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Whoever waits goes on.
    pub fn let_go(&self) {
        fs::write(self.0.join("go"), "").unwrap();
    }
}
