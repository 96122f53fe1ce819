//! Pure: the page's charts, as SVG. The time runs to the right; the last column is the one that is still growing.

use std::fmt::Write;

use super::history::{KEPT, Tally};
use super::words::{count, seconds};

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 112.0;
/// The field where columns are drawn; beside and below it is text.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 398.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 94.0;
const MINUTES: [usize; 4] = [15, 10, 5, 0];

/// Hits with misses on top of them, for each column.
pub(super) fn leases(columns: &[Tally]) -> String {
    let most = columns.iter().map(Tally::leases).max().unwrap_or(0).max(2);
    let top = round_up(most);
    let height = |count: u64| share(count, top) * (BOTTOM - TOP);
    let mut svg = begin("leases", &leases_in_words(columns));
    for level in [0, top / 2, top] {
        grid(&mut svg, BOTTOM - height(level), &count(level));
    }
    for (x, width, tally) in placed(columns) {
        let (hits, misses) = (height(tally.hits), height(tally.misses));
        // Two strokes of the pen at least: a miss among a thousand hits is what is being looked for.
        let misses = if tally.misses > 0 { misses.max(2.5) } else { 0.0 };
        let hits = if tally.hits > 0 { hits.max(1.0) } else { 0.0 };
        bar(&mut svg, "hit", x, BOTTOM - hits, width, hits);
        bar(&mut svg, "miss", x, (BOTTOM - hits - misses).max(0.0), width, misses);
    }
    end(svg)
}

/// From the median to the 99th percentile of the time to start, for each column; a logarithmic scale.
pub(super) fn startup(columns: &[Tally]) -> String {
    let points = || placed(columns).filter_map(|(x, w, t)| Some((x, w, t.startup(0.5)?, t.startup(0.99)?)));
    let lowest = points().map(|(.., p50, _)| p50.log10().floor()).reduce(f64::min).unwrap_or(-3.0);
    let highest = points().map(|(.., p99)| p99.log10().ceil()).reduce(f64::max).unwrap_or(-1.0);
    let highest = highest.max(lowest + 2.0);
    let y = |seconds: f64| BOTTOM - (seconds.log10() - lowest) / (highest - lowest) * (BOTTOM - TOP);
    let mut svg = begin("startup", &startup_in_words(columns));
    let mut decade = lowest;
    while decade <= highest {
        let at = 10f64.powf(decade);
        grid(&mut svg, y(at), &seconds(at));
        decade += 1.0;
    }
    for (x, width, p50, p99) in points() {
        bar(&mut svg, "range", x, y(p99), width, (y(p50) - y(p99)).max(1.0));
        bar(&mut svg, "median", x, y(p50) - 1.5, width, 3.0);
    }
    end(svg)
}

/// What the chart of leases says, for who doesn't see it.
fn leases_in_words(columns: &[Tally]) -> String {
    let all: Tally = columns.iter().copied().sum();
    format!("Leases over the last minutes: hits {}, misses {}", all.hits, all.misses)
}

fn startup_in_words(columns: &[Tally]) -> String {
    let all: Tally = columns.iter().copied().sum();
    match (all.startup(0.5), all.startup(0.99)) {
        (Some(p50), Some(p99)) => {
            format!(
                "Time to start over the last minutes: median {}, 99th percentile {}",
                seconds(p50),
                seconds(p99)
            )
        }
        _ => "Time to start over the last minutes: no job was started".into(),
    }
}

/// Each column with its left edge and width; the last one ends at the right, whatever there is before it.
fn placed(columns: &[Tally]) -> impl Iterator<Item = (f64, f64, &Tally)> {
    let step = (RIGHT - LEFT) / KEPT as f64;
    let place = move |(back, tally)| (RIGHT - step * (back + 1) as f64, step - 0.7, tally);
    columns.iter().rev().enumerate().map(place)
}

fn begin(class: &str, label: &str) -> String {
    let mut svg = format!(
        r#"<svg class="chart {class}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">"#
    );
    for (n, minutes) in (0u32..).zip(MINUTES) {
        let x = LEFT + (RIGHT - LEFT) * f64::from(n) / 3.0;
        let anchor = ["start", "middle", "middle", "end"][n as usize];
        let text = if minutes == 0 { "now".into() } else { format!("{minutes} min ago") };
        _ = write!(svg, r#"<text x="{x:.0}" y="109" text-anchor="{anchor}">{text}</text>"#);
    }
    svg
}

fn grid(svg: &mut String, y: f64, label: &str) {
    _ = write!(
        svg,
        r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/><text x="{:.0}" y="{:.1}" text-anchor="end">{label}</text>"#,
        LEFT - 6.0,
        y + 3.5
    );
}

fn bar(svg: &mut String, class: &str, x: f64, y: f64, width: f64, height: f64) {
    if height > 0.0 {
        _ = write!(
            svg,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
        );
    }
}

fn end(svg: String) -> String {
    svg + "</svg>"
}

/// The next number that halves to a round one: 2, 4, 10, 20, 40, 100, …
fn round_up(most: u64) -> u64 {
    let mut decade = 1;
    loop {
        for step in [2, 4, 10] {
            if most <= step * decade {
                return step * decade;
            }
        }
        decade *= 10;
    }
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attribute values of all elements of a class.
    fn values(svg: &str, class: &str, attribute: &str) -> Vec<f64> {
        let mark = format!(r#"<rect class="{class}""#);
        let value = |rest: &str| {
            let (_, rest) = rest.split_once(&format!(r#" {attribute}=""#)).unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        svg.split(&mark).skip(1).map(value).collect()
    }

    #[test]
    fn misses_stand_on_hits_and_are_seen_however_few() {
        let svg = leases(&[Tally::of(400, 0, &[]), Tally::default(), Tally::of(399, 1, &[])]);
        assert!(svg.contains(r#"aria-label="Leases over the last minutes: hits 799, misses 1""#), "{svg}");
        assert!(svg.contains(">400</text>") && svg.contains(">200</text>"), "{svg}");
        let (hits, misses) = (values(&svg, "hit", "x"), values(&svg, "miss", "x"));
        assert_eq!((hits.len(), misses.len()), (2, 1), "nothing is drawn where nothing was");
        assert!(
            (hits[0] - misses[0]).abs() < 0.01 && hits[0] > hits[1],
            "the latest is at the right: {hits:?}"
        );
        assert!(values(&svg, "miss", "height")[0] >= 2.5);
        let top = values(&svg, "hit", "y")[0];
        let bottom = values(&svg, "miss", "y")[0] + values(&svg, "miss", "height")[0];
        assert!((top - bottom).abs() < 0.2);
    }

    #[test]
    fn a_decade_is_as_high_as_the_next() {
        let svg = startup(&[Tally::of(2, 0, &[0.001; 2]), Tally::default(), Tally::of(1, 1, &[0.001, 0.25])]);
        for label in ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s"] {
            assert!(svg.contains(&format!(">{label}</text>")), "{label}: {svg}");
        }
        assert_eq!(values(&svg, "median", "y").len(), 2);
        let heights = values(&svg, "range", "height");
        assert!(heights[0] > heights[1] && heights[1] >= 1.0, "{heights:?}");
    }

    #[test]
    fn without_jobs_there_are_axes_and_words() {
        for columns in [&[][..], &[Tally::default()]] {
            assert!(startup(columns).contains("no job was started"));
            assert!(leases(columns).contains("hits 0, misses 0"));
            assert!(!leases(columns).contains("<rect") && leases(columns).contains("15 min ago"));
        }
    }

    #[test]
    fn the_axis_ends_at_a_number_that_can_be_halved() {
        let axis = [1, 2, 3, 5, 11, 21, 41, 101, 1001].map(round_up);
        assert_eq!(axis, [2, 2, 4, 10, 20, 40, 100, 200, 2000]);
    }
}
