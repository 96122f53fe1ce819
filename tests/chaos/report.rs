//! One row for each fault, as Markdown: printed as it is made, and all together in `target/chaos.md`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::books::Tally;

const HEAD: &str = "| fault | broker | attempted | confirmed | completed | failed | dead | duplicated (attempts) | lost | unexpected | containers left | messages left | longest recovery | took | verdict |\n\
                    | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n";

/// By fault: what is known of it.
static ROWS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// One fault's row.
pub struct Row {
    pub fault: String,
    pub broker: String,
    pub tally: Tally,
    pub containers_left: usize,
    pub messages_left: usize,
    pub took: Duration,
}

impl Row {
    fn line(&self) -> String {
        let t = &self.tally;
        let mut kinds: Vec<String> = Vec::new();
        for (attempts, jobs) in &t.duplicated {
            let attempts = attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            kinds.push(format!("{attempts} ×{jobs}"));
        }
        if t.published_twice > 0 {
            kinds.push(format!("published twice ×{}", t.published_twice));
        }
        let duplicated = match t.duplicates() + t.published_twice {
            0 => "0".to_owned(),
            all => format!("{all} ({})", kinds.join("; ")),
        };
        let recovery = t.recovery.map_or("–".to_owned(), |d| format!("{:.1} s", d.as_secs_f64()));
        let mut line = format!("| {} | {} ", self.fault, self.broker);
        for number in [t.attempted, t.confirmed, t.completed, t.failed, t.dead] {
            _ = write!(line, "| {number} ");
        }
        _ = write!(line, "| {duplicated} ");
        for number in [t.lost.len(), t.unexpected.len(), self.containers_left, self.messages_left] {
            _ = write!(line, "| {number} ");
        }
        _ = write!(line, "| {recovery} | {:.0} s |", self.took.as_secs_f64());
        line
    }

    /// Puts the row into the table; its verdict is not known yet.
    pub fn enter(&self) {
        rows().push((self.fault.clone(), self.line()));
    }
}

/// Judges a fault whose run is over, and shows its row.
pub fn verdict(fault: &str, held: Result<(), &str>) {
    let mut rows = rows();
    let verdict = held.map_or_else(
        |why| format!("**failed**: {:.120}", why.lines().next().unwrap_or_default().replace('|', "/")),
        |()| "held".to_owned(),
    );
    if !rows.iter().any(|(name, _)| name == fault) {
        // It came to no books at all.
        rows.push((fault.to_owned(), format!("| {fault} {}", "| ".repeat(13) + "|")));
    }
    if let Some((_, line)) = rows.iter_mut().find(|(name, _)| name == fault) {
        *line += &format!(" {verdict} |");
        show(&format!("{line}\n"));
    }
    // Lanes end in any order.
    let number =
        |name: &str| name.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    rows.sort_by_key(|(name, _)| (number(name), name.clone()));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    std::fs::write(target.join("chaos.md"), table(&rows)).unwrap();
}

fn rows() -> MutexGuard<'static, Vec<(String, String)>> {
    ROWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The whole table when the last of so many lanes has ended, past the test runner's capture of what tests print: it is what
/// the run is for.
pub fn lane_ended(lanes: usize) {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    if ENDED.fetch_add(1, Ordering::Relaxed) + 1 == lanes {
        show(&format!("\n{}\n", table(&rows())));
    }
}

fn table(rows: &[(String, String)]) -> String {
    rows.iter().fold(HEAD.to_owned(), |table, (_, line)| table + line + "\n")
}

fn show(text: &str) {
    _ = std::io::stdout().lock().write_all(text.as_bytes());
}
