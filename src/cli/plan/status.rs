//! What of a worker's `/status` is planned for.

use serde::Deserialize;

use super::answer::Question;
use super::bounds::{self, Bounds};
use crate::pool::sizing::Load;

/// What of a worker's `/status` is needed.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    host: Host,
    pools: Vec<Pool>,
}

/// What all pools of a host share.
#[derive(Clone, Copy, Default, Deserialize)]
pub(super) struct Host {
    pub(super) containers: Option<usize>,
    pub(super) memory: Option<u64>,
}

#[derive(Deserialize)]
struct Pool {
    pool: String,
    memory: Option<u64>,
    idle_max: Option<usize>,
    sizing: Sizing,
}

#[derive(Deserialize)]
struct Sizing {
    rate: f64,
    burst: f64,
    warm_seconds: f64,
    warm_seconds_alone: Option<f64>,
    #[serde(default = "exponential")]
    warm_variation: f64,
    creators: f64,
    hit_target: f64,
}

fn exponential() -> f64 {
    1.0
}

impl Sizing {
    /// The first that can't be, and what it would have to be. Where no job comes, what a container takes need not be known.
    fn fault(&self) -> Option<String> {
        let alone = self.warm_seconds_alone.unwrap_or(self.warm_seconds);
        let idle = self.rate == 0.0;
        let or_none = |bounds: Bounds| if idle { Bounds { least: 0.0, ..bounds } } else { bounds };
        // Pools share creators: one may have less than one for itself.
        let share = Bounds { least: 1e-3, ..bounds::CREATORS };
        let fields = [
            ("rate", self.rate, Bounds { least: 0.0, ..bounds::RATE }),
            // Below 1 is taken for 1.
            ("burst", self.burst, Bounds { least: 0.0, ..bounds::BURST }),
            ("warm_seconds", self.warm_seconds, or_none(bounds::WARM)),
            // What is rounded away is no fault.
            (
                "warm_seconds_alone",
                alone,
                Bounds { most: self.warm_seconds * 1.001, ..or_none(bounds::ALONE) },
            ),
            ("warm_variation", self.warm_variation, bounds::VARIATION),
            ("creators", self.creators, or_none(share)),
        ];
        let wrong = fields.into_iter().find(|(_, n, bounds)| !bounds.hold(*n));
        if let Some((field, n, Bounds { least, most })) = wrong {
            return Some(format!("{field} is {n:?}, not from {least} to {most}"));
        }
        if !bounds::is_hit_target(self.hit_target) {
            return Some(format!("hit_target is {:?}, not {}", self.hit_target, bounds::HIT_TARGET));
        }
        bounds::too_many(self.rate, self.warm_seconds).map(|why| format!("rate × warm_seconds: {why}"))
    }
}

/// One question for each of the status's pools.
pub(super) fn questions(text: &str, hit_target: Option<f64>) -> Result<Vec<Question>, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let status: Status = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| format!("not the /status of a worker that can be planned for: {error}"))?;
    if status.pools.is_empty() {
        return Err("the worker has no pools".into());
    }
    let question = |pool: Pool| {
        if let Some(fault) = pool.sizing.fault() {
            return Err(format!("pool {}: sizing.{fault}", pool.pool.escape_debug()));
        }
        let Sizing { rate, burst, warm_seconds: warm, warm_variation, creators, .. } = pool.sizing;
        Ok(Question {
            load: Load {
                rate,
                warm,
                alone: pool.sizing.warm_seconds_alone.map_or(warm, |alone| alone.min(warm)),
                variation: warm_variation,
                dispersion: burst,
                creators,
            },
            hit_target: hit_target.unwrap_or(pool.sizing.hit_target),
            memory: pool.memory,
            idle_max: pool.idle_max,
            host: status.host,
            pool: Some(pool.pool),
        })
    };
    status.pools.into_iter().map(question).collect()
}
