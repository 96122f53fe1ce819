//! Pure: the report for people.

use super::measure::Quantiles;
use super::report::{Hits, JOBS_PER_SECOND, Latency, Ratio, Report, Throughput};
use super::ways::Way;

/// All of it.
pub fn text(report: &Report) -> String {
    let mut parts = vec![head(report)];
    if !report.latency.is_empty() {
        parts.push(latency(&report.latency));
    }
    if !report.throughput.is_empty() {
        parts.push(throughput(&report.throughput));
    }
    parts.extend(report.hits.iter().map(hits));
    if !report.ratios.is_empty() {
        parts.push(ratios(&report.ratios));
    }
    if !report.latency.is_empty() {
        parts.push(legend(&report.latency));
    }
    parts.extend(report.notes.iter().map(|note| format!("Note: {note}.\n")));
    parts.join("\n")
}

fn head(report: &Report) -> String {
    let of = match (&report.pool, &report.image) {
        (Some(pool), Some(image)) => format!("pool {pool}, image {image}"),
        (Some(one), None) => format!("pool {one}"),
        (None, image) => format!("image {}", image.as_deref().unwrap_or_default()),
    };
    let command = report.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let engine = report.engine.as_ref().map_or_else(String::new, |engine| {
        format!(
            "; engine {}, {} CPUs, {:.1} GiB",
            engine.version.escape_debug(),
            engine.cpus,
            gib(engine.memory)
        )
    });
    let command = if command.is_empty() { "the pool's own".into() } else { command };
    format!("{}; command: {command}{engine}; took {:.0} s\n", of.escape_debug(), report.seconds)
}

/// As one would write it in a shell, without anything that does something to a terminal.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.escape_debug().to_string().replace("\\\"", "\""))
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn latency(all: &[Latency]) -> String {
    let mut text = format!(
        "{:<20}{:<14}{:>10}{:>10}{:>10}{:>10}{:>7}\n",
        "One at a time, ms", "to", "p50", "p95", "p99", "max", "jobs"
    );
    for one in all {
        for (line, times) in one.steps.iter().enumerate() {
            let (name, jobs) = if line == 0 { (one.name, one.jobs.to_string()) } else { ("", String::new()) };
            let Quantiles { p50, p95, p99, max } = times.ms;
            let [p50, p95, p99, max] = [p50, p95, p99, max].map(figure);
            text += &format!(
                "{name:<20}{:<14}{p50:>10}{p95:>10}{p99:>10}{max:>10}{jobs:>7}\n",
                times.step.name()
            );
        }
        if one.failed > 0 {
            text += &format!("{:<20}{} of {} did not exit with 0\n", "", one.failed, one.jobs);
        }
    }
    text
}

fn throughput(all: &[Throughput]) -> String {
    let mut levels: Vec<usize> = all.iter().map(|one| one.at_once).collect();
    levels.sort_unstable();
    levels.dedup();
    let mut text = format!("{:<20}", "Jobs/s, at once");
    levels.iter().for_each(|level| text += &format!("{level:>10}"));
    text.push('\n');
    for way in Way::ALL {
        let cell = |level: &usize| all.iter().find(|one| one.way == way && one.at_once == *level);
        if all.iter().any(|one| one.way == way) {
            text += &format!("{:<20}", way.name());
            for level in &levels {
                text += &format!(
                    "{:>10}",
                    cell(level).map_or_else(|| "-".into(), |one| figure(one.jobs_per_second))
                );
            }
            text.push('\n');
        }
    }
    text
}

fn hits(hits: &Hits) -> String {
    let waited = hits.miss_waited_ms.map_or_else(String::new, |ms| {
        format!("; a miss waited {} ms (p50), {} at most", figure(ms.p50), figure(ms.max))
    });
    let idle = hits.idle.map_or_else(String::new, |idle| format!("; {idle:.1} idle on average"));
    format!(
        "{}: {} jobs/s at random, {} of {} hit ({:.1} %){waited}{idle}; {} before that while it learned\n",
        hits.way.name(),
        figure(hits.rate),
        hits.hits,
        hits.jobs,
        // Never rounded up to what isn't so.
        (hits.hit_rate * 1000.0).floor() / 10.0,
        hits.learning,
    )
}

fn ratios(all: &[Ratio]) -> String {
    let mut text = String::from("Times as fast, by medians\n");
    for ratio in all {
        let of = match ratio.of {
            JOBS_PER_SECOND => "jobs/s".into(),
            step => format!("to {}", step.replace('_', " ")),
        };
        let (way, than) = (ratio.way.name(), ratio.than.name());
        text += &format!("{way:<20}{:>8} × {than:<12} {of}\n", figure(ratio.times));
    }
    text
}

fn legend(all: &[Latency]) -> String {
    let mut text = String::from("What is measured\n");
    for one in all {
        text += &format!("{:<20}from: {}\n", one.name, one.from);
        for times in &one.steps {
            text += &format!("{:<20}{}: {}\n", "", times.step.name(), times.to);
        }
        if let Some(lease) = one.lease_ms {
            let waited = figure(lease.p50);
            text += &format!("{:<20}before that, the idle container was got in {waited} ms (p50)\n", "");
        }
    }
    text
}

/// Three digits.
pub fn figure(n: f64) -> String {
    let decimals = match n {
        n if n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        n if n >= 0.9995 => 2,
        _ => 3,
    };
    format!("{n:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::tests::example;

    #[test]
    fn every_way_step_and_part_is_shown() {
        let shown = text(&example());
        for part in [
            "image busybox; command: echo 'a <b> & \"c\"'; engine Docker 20, 2 CPUs, 4.0 GiB; took 61 s",
            "docker run          first output",
            "removed",
            "prewarm container   executing",
            "Jobs/s, at once              1         4",
            "prewarm container: 2.50 jobs/s at random, 49 of 50 hit (98.0 %); a miss waited 120 ms",
            "× docker run   to first output",
            "× docker exec  jobs/s",
            "from: START is sent to an idle container\n                    executing: STARTED frame received",
            "Note: a note.",
        ] {
            assert!(shown.contains(part), "'{part}' is not in:\n{shown}");
        }
        assert!(!shown.contains("namespace"), "{shown}");
    }

    #[test]
    fn figures_have_three_digits() {
        let shown = [0.0123, 0.9999, 1.234, 9.999, 12.34, 99.99, 1234.5].map(figure);
        assert_eq!(shown, ["0.012", "1.00", "1.23", "10.0", "12.3", "100", "1234"]);
    }

    #[test]
    fn nothing_of_a_command_does_something_to_the_terminal() {
        assert_eq!(quoted("a\u{1b}[2J"), "'a\\u{1b}[2J'");
        assert_eq!(quoted("--fast=1"), "--fast=1");
        assert_eq!(quoted(""), "''");
    }
}
