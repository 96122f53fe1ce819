//! What is answered: sizes, the limit, advice.

use serde::Serialize;

use super::status::Host;
use crate::cli::figures::{percent, short};
use crate::pool::sizing::Load;

/// No larger size is looked for.
const MOST: usize = 1_000_000;
/// The first sizes looked at; twice as many as long as those aren't enough.
const FIRST: usize = 1024;
/// No pool may be configured larger.
const POOL_MOST: usize = 10_000;
/// Creators that are free for less than this share of the time are as good as always busy, and what is computed of them is
/// mostly rounding.
const FREE: f64 = 1e-9;

/// One pool to be planned.
pub(super) struct Question {
    pub(super) pool: Option<String>,
    pub(super) load: Load,
    pub(super) hit_target: f64,
    pub(super) memory: Option<u64>,
    pub(super) idle_max: Option<usize>,
    pub(super) host: Host,
}

/// What is found; the JSON output is a list of these.
#[derive(Serialize)]
pub(super) struct Plan {
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    rate: f64,
    burst: f64,
    warm_seconds: f64,
    /// None: unlimited.
    creators: Option<f64>,
    /// What they sustain; none: any rate.
    highest_rate: Option<f64>,
    pub(super) sustainable: bool,
    sizes: Vec<Size>,
    advice: Vec<String>,
}

#[derive(Serialize)]
struct Size {
    hit_target: f64,
    /// None: more than are looked for; the other figures are of as many as are.
    size: Option<usize>,
    expected_hit_rate: f64,
    idle: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
}

/// The share of jobs that miss, for sizes from 0 to one that reaches the goal, or to [`MOST`].
fn misses(load: &Load, goal: f64) -> Vec<f64> {
    let mut most = FIRST;
    loop {
        let misses = load.misses(most);
        if most == MOST || misses.last().is_some_and(|miss| *miss <= 1.0 - goal) {
            return misses;
        }
        most = (most * 2).min(MOST);
    }
}

impl Question {
    /// What load it is, what sizes it needs, what would help.
    pub(super) fn plan(&self) -> Plan {
        let load = self.load;
        let sustainable = self.sustainable();
        let mut goals = vec![0.95, 0.99, 0.999, self.hit_target];
        goals.sort_by(f64::total_cmp);
        goals.dedup();
        let wanted = load.rate > 0.0 && sustainable;
        let misses =
            if wanted { misses(&load, goals.iter().copied().fold(0.0, f64::max)) } else { Vec::new() };
        let size = |goal: f64| {
            let size = misses.iter().position(|miss| *miss <= 1.0 - goal);
            let counted = size.unwrap_or(MOST);
            Size {
                hit_target: goal,
                size,
                expected_hit_rate: 1.0 - misses[counted],
                // As `Load::idle`.
                idle: misses[1..=counted].iter().map(|miss| 1.0 - miss).sum(),
                memory: self.memory.map(|memory| memory.saturating_mul(counted as u64)),
            }
        };
        let sizes: Vec<Size> = if wanted { goals.into_iter().map(size).collect() } else { Vec::new() };
        let limited = load.creators.is_finite();
        Plan {
            pool: self.pool.clone(),
            rate: load.rate,
            burst: load.dispersion.max(1.0),
            warm_seconds: load.warm,
            creators: limited.then_some(load.creators),
            highest_rate: (limited && load.warm > 0.0).then_some(load.creators / load.warm),
            sustainable,
            advice: self.advice(&sizes),
            sizes,
        }
    }

    /// A pool without jobs asks for nothing.
    fn sustainable(&self) -> bool {
        self.load.rate == 0.0 || self.load.offered() < self.load.creators * (1.0 - FREE)
    }

    /// What keeps the goal from being reached, and what would help.
    fn advice(&self, sizes: &[Size]) -> Vec<String> {
        let load = self.load;
        let mut advice = Vec::new();
        if !self.sustainable() {
            // One that is always busy doesn't keep up.
            let creators = (load.offered() * (1.0 + 2.0 * FREE)).floor() + 1.0;
            let workers = (load.offered() * (1.0 + 2.0 * FREE) / load.creators).floor() + 1.0;
            // Rounded down.
            let ms = load.creators / load.rate * 1000.0;
            let (ms, unit) = if ms >= 1.0 { (ms.floor(), "ms") } else { (ms * 1000.0, "µs") };
            advice.push(format!(
                "no size helps: jobs come as fast as containers can be made, or faster. What would help: at least {creators} \
                 creations at once (engine.creations) if the host has idle cores for them; containers that are made in less \
                 than {} {unit} (network = \"none\" or \"host\" takes about half the time); {workers} workers on hosts of \
                 their own",
                short(ms),
            ));
            return advice;
        }
        let Some(asked) = sizes.iter().find(|size| size.hit_target == self.hit_target) else { return advice };
        let goal = percent(self.hit_target);
        let more = if load.creators.is_finite() { "more creations at once, or " } else { "" };
        let relief = format!("have {more}more workers on hosts of their own");
        let Some(size) = asked.size else {
            advice.push(format!(
                "{goal} % need more than {MOST} containers, and no more are looked for: {relief}"
            ));
            return advice;
        };
        if size > POOL_MOST {
            advice.push(format!(
                "{goal} % need {size} containers, and idle.max is at most {POOL_MOST}: {relief}"
            ));
            return advice;
        }
        if self.idle_max.is_some_and(|max| max < size) {
            advice.push(format!(
                "{goal} % need idle.max = {size}; it is {}",
                self.idle_max.unwrap_or_default()
            ));
        }
        if self.host.containers.is_some_and(|most| most < size) {
            advice.push(format!("{goal} % need more containers than engine.containers allows"));
        }
        if self.host.memory.zip(asked.memory).is_some_and(|(most, needed)| most < needed) {
            advice.push(format!("{goal} % need more memory than engine.memory allows"));
        }
        advice
    }
}

impl Plan {
    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text =
            self.pool.as_ref().map(|pool| format!("pool {}\n", pool.escape_debug())).unwrap_or_default();
        let bursts = if self.burst > 1.0 { format!("bursts {:.1}", self.burst) } else { "no bursts".into() };
        let creators = match self.creators {
            Some(n) => format!("{} at once", short(n)),
            None => "without limit".into(),
        };
        let (rate, ms) = (short(self.rate), short(self.warm_seconds * 1000.0));
        text += &format!("{rate} jobs/s, {bursts}; a container is made in {ms} ms, {creators}\n");
        if self.rate == 0.0 {
            text += "no job has come for a while: there is nothing to size for\n";
        }
        if !self.sizes.is_empty() {
            text += "\n    goal    size    hits expected    idle on average    memory\n";
        }
        for size in &self.sizes {
            let memory = size.memory.map_or("-".into(), gib);
            let n = size.size.map_or(">1e6".into(), |n| n.to_string());
            let (goal, hits) = (percent(size.hit_target), percent(size.expected_hit_rate));
            text += &format!("{goal:>6} %{n:>8}{hits:>15} %{:>19.1}{memory:>10}\n", size.idle);
        }
        if self.sizes.iter().any(|size| size.size.is_none()) {
            text += &format!(">1e6: more than {MOST}; what stands beside it is of {MOST}\n");
        }
        if let Some(highest) = self.highest_rate {
            let share = self.rate / highest * 100.0;
            let highest = short(highest);
            text += &format!(
                "\nAt most {highest} containers/s can be made; this load takes {share:.0} % of that.\n"
            );
        }
        for advice in &self.advice {
            text += &format!("{}\n", sentence(advice));
        }
        text
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1}GiB", bytes as f64 / f64::from(1 << 30))
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}
