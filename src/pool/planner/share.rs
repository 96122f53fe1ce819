//! The host's budget, shared out.

use super::{Planner, Reason};

/// What one that is held already is worth more than one that would have to be made: sharing out is not to change its mind
/// with every small change of a rate.
const HELD: f64 = 1.5;

impl Planner {
    /// If the host can't hold all that is wanted: the least of each pool, then one after the other to where it is worth most.
    pub(super) fn share_out(&mut self) {
        let room = self.room();
        let wanted: Vec<usize> = self.pools.iter().map(|p| p.sizing.target).collect();
        let mut left = room;
        if wanted.iter().zip(&self.pools).all(|(n, p)| left.take(*n, p.limits.memory)) {
            return;
        }
        let mut left = room;
        let mut given = vec![0; wanted.len()];
        for (index, pool) in self.pools.iter().enumerate() {
            while given[index] < pool.limits.min.min(wanted[index]) && left.take(1, pool.limits.memory) {
                given[index] += 1;
            }
        }
        let mut open: Vec<usize> = (0..wanted.len()).collect();
        loop {
            open.retain(|i| given[*i] < wanted[*i]);
            let best = open.iter().copied().max_by(|a, b| {
                let need = |i: usize| {
                    let held = if given[i] < self.pools[i].target { HELD } else { 1.0 };
                    (self.worth(i, given[i]) * held, 1.0 - given[i] as f64 / wanted[i] as f64)
                };
                let (a, b) = (need(*a), need(*b));
                a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
            let Some(best) = best else { break };
            if left.take(1, self.pools[best].limits.memory) {
                given[best] += 1;
            } else {
                open.retain(|i| *i != best);
            }
        }
        for ((pool, given), wanted) in self.pools.iter_mut().zip(given).zip(wanted) {
            if given < wanted {
                pool.sizing.target = given;
                pool.sizing.reason = Reason::Budget;
            }
        }
    }

    /// What the containers that are not idle leave of the host.
    fn room(&self) -> Room {
        let mut room = Room {
            places: self.host.containers.unwrap_or(usize::MAX),
            bytes: self.host.memory.unwrap_or(u64::MAX),
        };
        for pool in &self.pools {
            let busy = pool.busy;
            room.places = room.places.saturating_sub(busy);
            room.bytes = room.bytes.saturating_sub(pool.limits.memory.saturating_mul(busy as u64));
        }
        room
    }
}

#[derive(Clone, Copy)]
struct Room {
    places: usize,
    bytes: u64,
}

impl Room {
    /// Takes places for `n` containers of this size, if there are as many.
    fn take(&mut self, n: usize, memory: u64) -> bool {
        let bytes = memory.checked_mul(n as u64).and_then(|taken| self.bytes.checked_sub(taken));
        let (Some(places), Some(bytes)) = (self.places.checked_sub(n), bytes) else { return false };
        *self = Room { places, bytes };
        true
    }
}
