//! What is going on, on stderr: one line that changes on a terminal, and elsewhere a line for each thing that begins.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Least time between two changes of the line.
const EVERY: Duration = Duration::from_millis(100);

/// Tells it.
pub struct Progress {
    terminal: bool,
    begun: Instant,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    what: String,
    at: Option<Instant>,
}

impl Progress {
    /// To stderr.
    pub fn new() -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress { terminal, begun: Instant::now(), shown: Mutex::default() }
    }

    /// `what` is going on, and has come this far.
    pub fn say(&self, what: &str, far: &str) {
        let Ok(mut shown) = self.shown.lock() else { return };
        let new = shown.what != what;
        let due = shown.at.is_none_or(|at| at.elapsed() >= EVERY);
        if !(new || self.terminal && due) {
            return;
        }
        what.clone_into(&mut shown.what);
        shown.at = Some(Instant::now());
        let seconds = self.begun.elapsed().as_secs();
        let line = if self.terminal {
            format!("\r\x1b[K{seconds:>4} s  {what} {far}")
        } else {
            format!("{seconds:>4} s  {what}\n")
        };
        // Whoever closed stderr doesn't want to know.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// On a terminal, if nothing else is written there: stdout goes elsewhere, or is `quiet`.
    pub fn say_if_alone(&self, quiet: bool, far: impl FnOnce() -> String) {
        if self.terminal && (quiet || !std::io::stdout().is_terminal()) {
            self.say("", &far());
        }
    }

    /// Leaves the terminal's line empty for what comes next.
    pub fn end(&self) {
        if self.terminal {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
