//! Pure: the report as an SVG. Above, every job of each way as a dot on a logarithmic axis of time, with its
//! quantiles; below, jobs per second as bars.

use std::fmt::Write as _;

use super::report::{Latency, Report, StepTimes, Throughput};
use super::table::{figure, quoted};
use super::ways::Way;

const WIDTH: f64 = 1040.0;
/// Where names end and axes begin.
const LEFT: f64 = 244.0;
/// Where axes end; figures stand right of it.
const RIGHT: f64 = 856.0;
const HEAD: f64 = 84.0;
/// Height of one step's strip.
const STRIP: f64 = 22.0;
/// Space between two ways.
const GAP: f64 = 12.0;
const BARS: f64 = 230.0;
/// More dots than this say no more; they are taken evenly from all.
const DOTS: usize = 400;

const INK: &str = "#1f2933";
const SOFT: &str = "#66727f";
const GRID: &str = "#e3e7eb";

const fn colour(way: Way) -> &'static str {
    match way {
        Way::Run => "#c2410c",
        Way::Exec => "#b7791f",
        Way::Container => "#1d6fb8",
        Way::Namespace => "#0f8a6d",
        Way::Broker => "#7048b6",
        Way::Fork => "#5f6b76",
    }
}

/// The whole picture.
pub fn svg(report: &Report) -> String {
    let strips = strips_height(&report.latency);
    let bars = if report.throughput.is_empty() { 0.0 } else { BARS + 108.0 };
    let height = HEAD + strips + bars + 30.0 + 18.0 * report.hits.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"Inter, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fdfdfc\"/>\n"
    );
    text(&mut out, 24.0, 32.0, "font-size=\"18\" font-weight=\"600\"", &title(report));
    text(&mut out, 24.0, 53.0, &format!("fill=\"{SOFT}\""), &subtitle(report));
    if !report.latency.is_empty() {
        latency(&mut out, &report.latency, HEAD);
    }
    if !report.throughput.is_empty() {
        throughput(&mut out, &report.throughput, HEAD + strips + 36.0);
    }
    for (line, hits) in report.hits.iter().enumerate() {
        let said = format!(
            "{}: at {} jobs/s that come at random, {} of {} found a container ready ({:.1} %)",
            hits.way.name(),
            figure(hits.rate),
            hits.hits,
            hits.jobs,
            (hits.hit_rate * 1000.0).floor() / 10.0
        );
        text(&mut out, 24.0, HEAD + strips + bars + 14.0 + 18.0 * line as f64, "", &said);
    }
    out += "</svg>\n";
    out
}

fn title(report: &Report) -> String {
    let command: Vec<String> = report.command.iter().map(|word| quoted(word)).collect();
    let of = report.image.as_ref().or(report.pool.as_ref()).map(String::as_str).unwrap_or_default();
    let said = if command.is_empty() { of.to_owned() } else { format!("{of}: {}", command.join(" ")) };
    cut(&said, 90)
}

fn subtitle(report: &Report) -> String {
    let engine = report
        .engine
        .as_ref()
        .map_or_else(String::new, |engine| format!("engine {}, {} CPUs; ", engine.version, engine.cpus));
    format!("{engine}prewarm {}; {}", report.version, report.time)
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Without what XML gives a meaning to, and without what it doesn't allow at all.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn text(out: &mut String, x: f64, y: f64, how: &str, said: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {how}>{}</text>", escaped(said));
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), how: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(out, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {how}/>");
}

/// A logarithmic axis of whole decades.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    /// Exponents of ten.
    least: i32,
    most: i32,
}

impl Axis {
    /// Around these; at least one decade.
    fn around(values: impl Iterator<Item = f64>) -> Axis {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        if least > most {
            return Axis { least: 0, most: 1 };
        }
        let (least, most) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        Axis { least, most: most.max(least + 1) }
    }

    /// From 0 to 1 along it; what is beyond it is at its end.
    fn at(self, value: f64) -> f64 {
        let exponent = if value > 0.0 { value.log10() } else { f64::NEG_INFINITY };
        let share = (exponent - f64::from(self.least)) / f64::from(self.most - self.least);
        share.clamp(0.0, 1.0)
    }

    fn decades(self) -> impl Iterator<Item = f64> {
        (self.least..=self.most).map(|exponent| 10f64.powi(exponent))
    }
}

fn power(value: f64) -> String {
    let decimals = if value < 1.0 { (-value.log10()).round() as usize } else { 0 };
    format!("{value:.decimals$}")
}

fn strips_height(all: &[Latency]) -> f64 {
    if all.is_empty() {
        return 0.0;
    }
    all.iter().map(|one| one.steps.len() as f64 * STRIP + GAP).sum::<f64>() + 64.0
}

fn latency(out: &mut String, all: &[Latency], top: f64) {
    let heading = "Latency, one job at a time (logarithmic); each dot is a job, the thick mark p50, the thin ones p95 and p99";
    text(out, 24.0, top + 6.0, "font-weight=\"600\"", heading);
    let (first, bottom) = (top + 24.0, top + strips_height(all) - 40.0);
    let axis =
        Axis::around(all.iter().flat_map(|one| &one.steps).flat_map(|times| times.all.iter().copied()));
    let x = |ms: f64| LEFT + axis.at(ms) * (RIGHT - LEFT);
    for decade in axis.decades() {
        line(out, (x(decade), first), (x(decade), bottom), &format!("stroke=\"{GRID}\""));
        let how = format!("fill=\"{SOFT}\" text-anchor=\"middle\"");
        text(out, x(decade), bottom + 17.0, &how, &format!("{} ms", power(decade)));
    }
    text(out, RIGHT + 16.0, first + 2.0, &format!("fill=\"{SOFT}\" font-size=\"11\""), "p50 · p95 · p99");
    let mut y = first + GAP;
    for one in all {
        let fill = colour(one.way);
        text(out, 24.0, y + 15.0, &format!("font-weight=\"600\" fill=\"{fill}\""), one.name);
        for times in &one.steps {
            strip(out, times, fill, y, x);
            y += STRIP;
        }
        y += GAP;
    }
}

fn strip(out: &mut String, times: &StepTimes, fill: &str, y: f64, x: impl Fn(f64) -> f64) {
    let middle = y + STRIP / 2.0;
    let how = format!("text-anchor=\"end\" font-size=\"11\" fill=\"{SOFT}\"");
    text(out, LEFT - 12.0, middle + 4.0, &how, times.step.name());
    let _ = writeln!(out, "<g fill=\"{fill}\" fill-opacity=\"0.35\">");
    let each = times.all.len().div_ceil(DOTS).max(1);
    for (n, ms) in times.all.iter().enumerate().step_by(each) {
        // Multiples of the golden ratio: never two of the same height next to each other, and the same picture each time.
        let spread = (n as f64 * 0.618_034).fract() - 0.5;
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.4\"/>",
            x(*ms),
            middle + spread * (STRIP - 8.0)
        );
    }
    *out += "</g>\n";
    let solid = format!("stroke=\"{fill}\"");
    let half = STRIP / 2.0 - 3.0;
    let at = times.ms;
    line(out, (x(at.p50), middle), (x(at.p99), middle), &format!("{solid} stroke-width=\"1.2\""));
    line(out, (x(at.p50), middle - half), (x(at.p50), middle + half), &format!("{solid} stroke-width=\"3\""));
    for tail in [at.p95, at.p99] {
        let how = format!("{solid} stroke-width=\"1.6\"");
        line(out, (x(tail), middle - half + 3.0), (x(tail), middle + half - 3.0), &how);
    }
    let figures = format!("{} · {} · {}", figure(at.p50), figure(at.p95), figure(at.p99));
    text(out, RIGHT + 16.0, middle + 4.0, "", &figures);
}

fn throughput(out: &mut String, all: &[Throughput], top: f64) {
    text(out, 24.0, top + 6.0, "font-weight=\"600\"", "Throughput, jobs per second (logarithmic)");
    let mut ways: Vec<Way> = all.iter().map(|one| one.way).collect();
    ways.sort_unstable();
    ways.dedup();
    let mut levels: Vec<usize> = all.iter().map(|one| one.at_once).collect();
    levels.sort_unstable();
    levels.dedup();
    let (left, right) = (64.0, WIDTH - 24.0);
    let (first, bottom) = (top + 46.0, top + 46.0 + BARS - 30.0);
    // The least bar has a height too.
    let axis = Axis::around(all.iter().flat_map(|one| [one.jobs_per_second, one.jobs_per_second / 2.0]));
    let y = |rate: f64| bottom - axis.at(rate) * (bottom - first);
    for decade in axis.decades() {
        line(out, (left, y(decade)), (right, y(decade)), &format!("stroke=\"{GRID}\""));
        let how = format!("fill=\"{SOFT}\" text-anchor=\"end\"");
        text(out, left - 8.0, y(decade) + 4.0, &how, &power(decade));
    }
    let group = (right - left) / levels.len() as f64;
    let width = (group * 0.82 / ways.len() as f64).min(64.0);
    for (place, level) in levels.iter().enumerate() {
        let middle = left + group * (place as f64 + 0.5);
        let start = middle - width * ways.len() as f64 / 2.0;
        for (n, way) in ways.iter().enumerate() {
            let Some(one) = all.iter().find(|one| one.way == *way && one.at_once == *level) else { continue };
            let (x, top) = (start + width * n as f64, y(one.jobs_per_second));
            let _ = writeln!(
                out,
                "<rect class=\"bar\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{}\"/>",
                x + 1.5,
                width - 3.0,
                bottom - top,
                colour(*way)
            );
            let how = "text-anchor=\"middle\" font-size=\"11\"";
            text(out, x + width / 2.0, top - 4.0, how, &figure(one.jobs_per_second));
        }
        let how = format!("text-anchor=\"middle\" fill=\"{SOFT}\"");
        text(out, middle, bottom + 18.0, &how, &format!("{level} at once"));
    }
    line(out, (left, bottom), (right, bottom), &format!("stroke=\"{SOFT}\""));
    for (n, way) in ways.iter().enumerate() {
        let x = left + 160.0 * n as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{}\"/>",
            bottom + 32.0,
            colour(*way)
        );
        text(out, x + 17.0, bottom + 42.0, "", way.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::tests::example;

    /// Whether every element that is opened is closed in its order, and text has no character that would open another.
    fn is_well_formed(svg: &str) -> bool {
        let mut open: Vec<&str> = Vec::new();
        for piece in svg.split('<').skip(1) {
            let Some((tag, text)) = piece.split_once('>') else { return false };
            if text.contains('>')
                || text
                    .replace("&amp;", "")
                    .replace("&lt;", "")
                    .replace("&gt;", "")
                    .replace("&quot;", "")
                    .contains('&')
            {
                return false;
            }
            if tag.matches('"').count() % 2 != 0 {
                return false;
            }
            if let Some(name) = tag.strip_prefix('/') {
                if open.pop() != Some(name) {
                    return false;
                }
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap_or_default());
            }
        }
        open.is_empty() && svg.starts_with("<svg ")
    }

    #[test]
    fn the_picture_is_well_formed_and_has_all_there_is() {
        let report = example();
        let picture = svg(&report);
        assert!(is_well_formed(&picture), "{picture}");
        assert!(!is_well_formed(&picture.replacen("</g>", "", 1)));
        assert_eq!(picture.matches("class=\"bar\"").count(), report.throughput.len());
        let dots: usize = report.latency.iter().flat_map(|one| &one.steps).map(|times| times.all.len()).sum();
        assert_eq!(picture.matches("<circle ").count(), dots);
        assert!(picture.contains("&lt;b&gt;") && !picture.contains("NaN") && !picture.contains("inf"));
        let bare = Report { latency: Vec::new(), throughput: Vec::new(), hits: Vec::new(), ..report };
        assert!(is_well_formed(&svg(&bare)));
    }

    #[test]
    fn axes_are_whole_decades() {
        assert_eq!(Axis::around([0.3, 250.0].into_iter()), Axis { least: -1, most: 3 });
        assert_eq!(Axis::around([10.0].into_iter()), Axis { least: 1, most: 2 });
        assert_eq!(Axis::around([0.0].into_iter()), Axis { least: 0, most: 1 });
        let axis = Axis { least: -1, most: 1 };
        assert_eq!([0.1, 1.0, 10.0, 99.0, 0.0].map(|n| axis.at(n)), [0.0, 0.5, 1.0, 1.0, 0.0]);
        assert_eq!([0.01, 1.0, 100.0].map(power), ["0.01", "1", "100"]);
    }

    #[test]
    fn many_jobs_don_t_make_a_large_picture() {
        let mut report = example();
        report.latency[0].steps[0].all = vec![1.0; 100_000];
        assert!(svg(&report).len() < 100_000);
    }
}
