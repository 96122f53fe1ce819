//! Jobs as they came: a file with a line for each, or for each change of the rate.

use std::time::Duration;

use super::at_most;
use crate::fleet::{Arrivals, Random};

/// What lies further apart is not in seconds.
const LONGEST: f64 = 366.0 * 86400.0;

/// What such a file says. `time` ends it; rates without it end with the last line, which says from when on no more come.
pub(super) fn read(text: &str, burst: f64, time: Option<Duration>) -> Result<Arrivals, String> {
    let mut rows: Vec<(f64, Option<f64>)> = Vec::new();
    for (n, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let row = row(line).ok_or_else(|| {
            format!("line {}: write the seconds of a job, as 12.5, or seconds and a rate, as 60 2.5", n + 1)
        })?;
        if rows.last().is_some_and(|last| last.0 > row.0) {
            return Err(format!("line {}: earlier than the line before it", n + 1));
        }
        if rows.first().is_some_and(|first| row.0 - first.0 > LONGEST) {
            return Err(format!("line {}: more than a year after the first; write seconds", n + 1));
        }
        if rows.last().is_some_and(|last| last.1.is_none() != row.1.is_none()) {
            return Err(format!("line {}: some lines have a rate and others don't", n + 1));
        }
        rows.push(row);
    }
    let Some((first, _)) = rows.first().copied() else { return Err("there is nothing in it".into()) };
    // What comes first is the beginning.
    let time = time.map(|time| time.as_secs_f64());
    let rates: Option<Vec<(f64, f64)>> = rows.iter().map(|(at, rate)| Some((at - first, (*rate)?))).collect();
    match rates {
        Some(rates) => changing(rates, burst, time),
        None if burst != 1.0 => Err("it lists each job, and --burst is about rates: leave it out".into()),
        None => {
            at_most(rows.len() as f64)?;
            let times = rows.into_iter().map(|(at, _)| at - first);
            Ok(Arrivals::Listed(times.take_while(|at| time.is_none_or(|time| *at <= time)).collect()))
        }
    }
}

fn row(line: &str) -> Option<(f64, Option<f64>)> {
    let mut numbers = line.split([',', ' ', '\t']).filter(|part| !part.is_empty());
    let number = |text: &str| text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    let at = number(numbers.next()?)?;
    let rate = match numbers.next() {
        Some(rate) => Some(number(rate)?),
        None => None,
    };
    numbers.next().is_none().then_some((at, rate))
}

fn changing(rates: Vec<(f64, f64)>, burst: f64, time: Option<f64>) -> Result<Arrivals, String> {
    let (last, goes_on) = rates.last().map_or((0.0, false), |(at, rate)| (*at, *rate > 0.0));
    let end = match time {
        Some(time) if goes_on => time,
        Some(time) => time.min(last),
        None if goes_on => {
            return Err(
                "the last line has a rate: say for how long with --time, or end with a line SECONDS 0".into(),
            );
        }
        None => last,
    };
    let ends = rates.iter().skip(1).map(|(at, _)| *at).chain([f64::INFINITY]);
    let spans = || rates.iter().zip(ends.clone()).map(|((at, rate), until)| (until.min(end) - at, *rate));
    let counted = || spans().filter(|(length, _)| *length > 0.0);
    let jobs: f64 = counted().map(|(length, rate)| length * rate).sum();
    if jobs <= 0.0 {
        return Err("no job comes: the last line says from when on there are none".into());
    }
    at_most(jobs)?;
    // Of what counts: each arrival is drawn at this rate, and thinned.
    let peak = counted().map(|(_, rate)| rate).fold(0.0, f64::max);
    let rate = move |t: f64| rates[rates.partition_point(|(at, _)| *at <= t).saturating_sub(1)].1;
    Ok(Arrivals::Random(Random::new(burst, peak, rate).until(end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Chance;

    fn listed(text: &str, time: Option<Duration>) -> Vec<f64> {
        match read(text, 1.0, time).unwrap() {
            Arrivals::Listed(times) => times,
            Arrivals::Random(_) => panic!("rates"),
        }
    }

    #[test]
    fn a_line_for_each_job() {
        let text = "# seconds\n100.5\n101  # the second\n\n101\n110\n";
        assert_eq!(listed(text, None), [0.0, 0.5, 0.5, 9.5]);
        assert_eq!(listed(text, Some(Duration::from_secs(5))), [0.0, 0.5, 0.5]);
    }

    #[test]
    fn a_line_for_each_change_of_the_rate() {
        let arrivals = read("0 10\n60,0\n120\t20\n180 0", 1.0, None).unwrap();
        assert_eq!(arrivals.end(), 180.0);
        assert_eq!(read("0 10\n60 0", 1.0, Some(Duration::from_secs(30))).unwrap().end(), 30.0);
        // Windows' mark of UTF-8, and the last rate lasts.
        assert_eq!(read("\u{feff}0 5\n60 10", 1.0, Some(Duration::from_secs(600))).unwrap().end(), 600.0);
        assert_eq!(read("0 5\n60 0", 1.0, Some(Duration::from_secs(600))).unwrap().end(), 60.0);
    }

    #[test]
    fn a_rate_that_is_never_reached_costs_nothing() {
        let Arrivals::Random(random) = read("0 1\n60 1e300", 1.0, Some(Duration::from_secs(60))).unwrap()
        else {
            panic!("a list")
        };
        let mut chance = Chance::new(1);
        let (mut at, mut jobs) = (0.0, 0);
        while at <= 60.0 {
            (at, _) = random.next(at, &mut chance);
            jobs += 1;
        }
        assert!((20..150).contains(&jobs), "{jobs}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, why) in [
            ("", "there is nothing in it"),
            ("1\nx", "line 2: write"),
            ("1\n-1", "line 2: write"),
            ("1 2 3", "line 1: write"),
            ("2\n1", "line 2: earlier"),
            ("1\n2 3", "line 2: some lines"),
            ("0 5", "the last line has a rate"),
            ("0 0", "no job comes"),
            ("0\n1e12", "line 2: more than a year"),
            ("1e300\n1e301", "line 2: more than a year"),
            ("0 1e-300\n1e300 0", "line 2: more than a year"),
            ("0 1000000\n1000000 0", "more than are simulated"),
        ] {
            let said = read(text, 1.0, None).err().unwrap_or_default();
            assert!(said.contains(why), "{text:?}: {said}");
        }
        assert!(read("0 5\n60 0", 2.0, None).is_ok());
        assert!(read("0\n1", 2.0, None).err().unwrap_or_default().contains("--burst"), "each job is listed");
    }
}
