//! What was found; `--json` prints it as it is.

use serde::{Serialize, Serializer};

use super::measure::{Quantiles, Sample, times};
use super::ways::{Step, Way};

/// All of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Our own version.
    pub version: &'static str,
    /// When it was begun, RFC 3339.
    pub time: String,
    /// The image; none if all was published to a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The configured pool, if it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Entrypoint and arguments; with a worker's pool alone, the arguments that were given.
    pub command: Vec<String>,
    /// The engine; none if none was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// How long all of it took.
    pub seconds: f64,
    /// One job at a time.
    pub latency: Vec<Latency>,
    /// As many as possible.
    pub throughput: Vec<Throughput>,
    /// Jobs that come at random.
    pub hits: Vec<Hits>,
    /// How many times as fast.
    pub ratios: Vec<Ratio>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// Where containers were run.
#[derive(Clone, Debug, Serialize)]
pub struct Engine {
    /// For example `20.10.24`.
    pub version: String,
    /// Logical CPUs.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
}

/// A way's jobs, one at a time.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// The way.
    pub way: Way,
    /// Its name.
    pub name: &'static str,
    /// What all its times start from.
    pub from: &'static str,
    /// How many jobs.
    pub jobs: usize,
    /// Of these, with another exit code than 0.
    pub failed: usize,
    /// In milliseconds.
    #[serde(rename = "steps_ms", serialize_with = "by_step")]
    pub steps: Vec<StepTimes>,
    /// What had to be waited for an idle container before the clock started, where there is such a thing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<Quantiles>,
}

/// How long it took to a step.
#[derive(Clone, Debug, Serialize)]
pub struct StepTimes {
    /// The step.
    #[serde(skip)]
    pub step: Step,
    /// What it is.
    pub to: &'static str,
    /// Quantiles.
    #[serde(flatten)]
    pub ms: Quantiles,
    /// All, in order of size.
    #[serde(skip)]
    pub all: Vec<f64>,
}

fn by_step<S: Serializer>(steps: &[StepTimes], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(steps.iter().map(|times| (times.step, times)))
}

impl Latency {
    /// Of jobs that were measured.
    pub fn of(way: Way, samples: &[Sample]) -> Latency {
        let step = |step: Step| {
            let mut all = times(samples, step);
            Quantiles::of(&mut all).map(|ms| StepTimes {
                step,
                to: way.to(step).unwrap_or_default(),
                ms,
                all,
            })
        };
        let mut waited: Vec<f64> = samples
            .iter()
            .filter_map(|sample| sample.lease)
            .map(|lease| super::measure::ms(lease.waited))
            .collect();
        Latency {
            way,
            name: way.name(),
            from: way.from(),
            jobs: samples.len(),
            failed: samples.iter().filter(|sample| !sample.succeeded).count(),
            steps: Step::ALL.into_iter().filter_map(step).collect(),
            lease_ms: Quantiles::of(&mut waited),
        }
    }

    /// The times to a step.
    pub fn step(&self, step: Step) -> Option<&StepTimes> {
        self.steps.iter().find(|times| times.step == step)
    }
}

/// A way with so many jobs at once.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// The way.
    pub way: Way,
    /// Jobs at once.
    pub at_once: usize,
    /// How many were done.
    pub jobs: usize,
    /// In this time, until all is as it was before.
    pub seconds: f64,
    /// Their quotient.
    pub jobs_per_second: f64,
}

/// A pool under jobs that come at random.
#[derive(Clone, Debug, Serialize)]
pub struct Hits {
    /// The way.
    pub way: Way,
    /// Jobs a second, on average.
    pub rate: f64,
    /// How many came while the pool was still learning; they count no further.
    pub learning: usize,
    /// How many came after that.
    pub jobs: usize,
    /// Of these, how many found a container.
    pub hits: usize,
    /// Their share.
    pub hit_rate: f64,
    /// What the others waited, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miss_waited_ms: Option<Quantiles>,
    /// Containers that were idle on average, as far as could be seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<f64>,
}

/// How many times as fast one way is as another.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// What is compared: the median to a step, or `jobs_per_second`.
    pub of: &'static str,
    /// The faster one, it is hoped.
    pub way: Way,
    /// The other.
    pub than: Way,
    /// How many times.
    pub times: f64,
}

/// The key of throughput among [`Ratio::of`].
pub const JOBS_PER_SECOND: &str = "jobs_per_second";

/// Each of ours compared with each of Docker's: medians to each step that both have, and the most jobs per second.
pub fn ratios(latency: &[Latency], throughput: &[Throughput]) -> Vec<Ratio> {
    let most = |way: Way| {
        throughput.iter().filter(|t| t.way == way).map(|t| t.jobs_per_second).max_by(f64::total_cmp)
    };
    let mut ratios = Vec::new();
    for way in Way::ALL.into_iter().filter(|way| way.is_prewarm()) {
        for than in [Way::Run, Way::Exec] {
            let of = |way: Way| latency.iter().find(|found| found.way == way);
            for (step, key) in [(Step::FirstOutput, "first_output"), (Step::Exit, "exit")] {
                let p50 = |way: Way| of(way).and_then(|found| found.step(step)).map(|times| times.ms.p50);
                if let (Some(ours), Some(theirs)) = (p50(way).filter(|ms| *ms > 0.0), p50(than)) {
                    ratios.push(Ratio { of: key, way, than, times: theirs / ours });
                }
            }
            if let (Some(ours), Some(theirs)) = (most(way), most(than).filter(|rate| *rate > 0.0)) {
                ratios.push(Ratio { of: JOBS_PER_SECOND, way, than, times: ours / theirs });
            }
        }
    }
    ratios
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::bench::measure::Lease;

    /// A run with figures that are easy to recognise.
    pub fn example() -> Report {
        let sample = |way: Way, us: u64| {
            let time = |step: Step, times: u64| way.to(step).map(|_| Duration::from_micros(us * times));
            Sample {
                executing: time(Step::Executing, 1),
                first_output: time(Step::FirstOutput, 2),
                exit: time(Step::Exit, 3),
                removed: time(Step::Removed, 4),
                succeeded: true,
                lease: (way == Way::Container)
                    .then_some(Lease { hit: true, waited: Duration::from_micros(20) }),
            }
        };
        let ways = [(Way::Run, 100_000), (Way::Exec, 20_000), (Way::Container, 500), (Way::Fork, 300)];
        let latency: Vec<Latency> = ways
            .into_iter()
            .map(|(way, us)| {
                let samples: Vec<Sample> = (0..20).map(|n| sample(way, us + us * n / 20)).collect();
                Latency::of(way, &samples)
            })
            .collect();
        let throughput: Vec<Throughput> = ways
            .into_iter()
            .flat_map(|(way, us)| {
                let rate = 1e6 / us as f64;
                [1, 4].map(|at_once| Throughput {
                    way,
                    at_once,
                    jobs: 10,
                    seconds: 10.0 / rate,
                    jobs_per_second: rate,
                })
            })
            .collect();
        let hits = Hits {
            way: Way::Container,
            rate: 2.5,
            learning: 10,
            jobs: 50,
            hits: 49,
            hit_rate: 0.98,
            miss_waited_ms: Quantiles::of(&mut [120.0]),
            idle: Some(2.5),
        };
        Report {
            version: "0",
            time: "2026-01-01T00:00:00Z".into(),
            image: Some("busybox".into()),
            pool: None,
            command: vec!["echo".into(), "a <b> & \"c\"".into()],
            engine: Some(Engine { version: "Docker 20".into(), cpus: 2, memory: 4 << 30 }),
            seconds: 61.4,
            ratios: ratios(&latency, &throughput),
            latency,
            throughput,
            hits: vec![hits],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn ratios_are_of_medians_and_of_the_most_jobs() {
        let found = example().ratios;
        let times = |of: &str, than: Way| {
            found.iter().find(|r| r.of == of && r.way == Way::Container && r.than == than).unwrap().times
        };
        assert!((times("exit", Way::Run) - 200.0).abs() < 0.5);
        assert!((times("first_output", Way::Exec) - 40.0).abs() < 0.1);
        assert!((times(JOBS_PER_SECOND, Way::Run) - 200.0).abs() < 0.5);
        assert!(!found.iter().any(|ratio| ratio.way == Way::Namespace));
    }

    #[test]
    fn json_has_each_way_s_steps_by_name() {
        let json = serde_json::to_value(example()).unwrap();
        let run = &json["latency"][0];
        assert_eq!((&run["way"], &run["jobs"]), (&"run".into(), &20.into()));
        assert!(run["steps_ms"].get("executing").is_none());
        let exit = &run["steps_ms"]["exit"];
        assert!(exit["p50"].as_f64() <= exit["p99"].as_f64() && exit["to"].is_string(), "{exit}");
        assert!(json["latency"][2]["steps_ms"]["executing"]["p50"].as_f64() < Some(1.0));
    }
}
