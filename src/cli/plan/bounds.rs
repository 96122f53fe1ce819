//! What can be planned for, from flags and from a worker alike: beyond, an answer would take too long or mean nothing.

/// From and to, both included.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Bounds {
    pub(super) fn hold(self, n: f64) -> bool {
        (self.least..=self.most).contains(&n)
    }
}

/// Jobs per second; 0 is for pools without jobs only.
pub(super) const RATE: Bounds = Bounds { least: f64::MIN_POSITIVE, most: 1e6 };
/// Seconds that a container takes.
pub(super) const WARM: Bounds = Bounds { least: 1e-3, most: 3600.0 };
/// The same where it is the only one; that may take a tenth of the other.
pub(super) const ALONE: Bounds = Bounds { least: 1e-6, most: 3600.0 };
/// Variance over squared mean; more than 1 is taken for 1.
pub(super) const VARIATION: Bounds = Bounds { least: 0.0, most: 1e4 };
/// Variance over mean.
pub(super) const BURST: Bounds = Bounds { least: 1.0, most: 1e4 };
/// Creations at once.
pub(super) const CREATORS: Bounds = Bounds { least: 1.0, most: 1e6 };
/// Creations at once that a load asks for.
const OFFERED: f64 = 1e5;

/// What a hit target is to be.
pub(super) const HIT_TARGET: &str = "a share above 0 and below 1, as 0.99";

pub(super) fn is_hit_target(n: f64) -> bool {
    n > 0.0 && n < 1.0
}

/// What is wrong with so many jobs per second for containers that take so many seconds.
pub(super) fn too_many(rate: f64, warm: f64) -> Option<String> {
    let offered = rate * warm;
    (offered > OFFERED).then(|| {
        format!(
            "{offered:.0} creations at once is beyond what is planned for: {OFFERED:.0} at most; plan for a part of the load"
        )
    })
}
