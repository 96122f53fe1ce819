//! One pool's slots, and the questions that the machine asks of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

use super::words::{Action, Reason, SlotId, State, WaiterId};

/// What one pool may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most slots in all states together.
    pub slots: usize,
    /// Idle ones that no other pool's job takes the place of.
    pub reserved: usize,
    /// What one container counts against the host's memory.
    pub memory: u64,
    /// Idle containers older than this are replaced.
    pub max_age: Option<Duration>,
}

/// What containers take of the host's budget.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub containers: usize,
    pub memory: u64,
}

impl Add for Load {
    type Output = Load;

    fn add(self, other: Load) -> Load {
        let memory = self.memory.saturating_add(other.memory);
        Load { containers: self.containers.saturating_add(other.containers), memory }
    }
}

impl Sub for Load {
    type Output = Load;

    fn sub(self, other: Load) -> Load {
        let memory = self.memory.saturating_sub(other.memory);
        Load { containers: self.containers.saturating_sub(other.containers), memory }
    }
}

impl std::iter::Sum for Load {
    fn sum<I: Iterator<Item = Load>>(all: I) -> Load {
        all.fold(Load::default(), Load::add)
    }
}

/// What is known of a pool's creations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// None has ended yet.
    New,
    /// The last one succeeded.
    Proven,
    /// The last one failed; no other before this.
    Failing(Instant),
}

/// A failing pool whose next try has been due for this long comes before others.
const OVERDUE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Pool {
    pub bounds: Bounds,
    pub target: usize,
    /// What one more idle container is worth, by how many there are.
    pub worth: Vec<f64>,
    pub starting: BTreeSet<SlotId>,
    /// Idle ones that are as they should be, and since when they are ready.
    pub fresh: BTreeMap<SlotId, Instant>,
    /// Idle ones that are to be replaced, and why. They serve until then.
    pub stale: BTreeMap<SlotId, Reason>,
    pub leased: BTreeSet<SlotId>,
    pub removing: BTreeSet<SlotId>,
    pub waiters: VecDeque<WaiterId>,
    pub trust: Trust,
    /// Slots with smaller serial numbers were begun before the last roll-over.
    pub current: u64,
    /// Slots with smaller serial numbers were begun before the last failure that was news.
    pub judged: u64,
    /// Whether the engine has what its containers are made from.
    pub prepared: bool,
    /// What each of the containers from before the last roll-over may take.
    pub former_memory: u64,
}

impl Pool {
    pub fn new(bounds: Bounds) -> Pool {
        Pool {
            bounds,
            target: 0,
            worth: Vec::new(),
            starting: BTreeSet::new(),
            fresh: BTreeMap::new(),
            stale: BTreeMap::new(),
            leased: BTreeSet::new(),
            removing: BTreeSet::new(),
            waiters: VecDeque::new(),
            trust: Trust::New,
            current: 0,
            judged: 0,
            prepared: true,
            former_memory: 0,
        }
    }

    pub fn count(&self, state: State) -> usize {
        match state {
            State::Starting => self.starting.len(),
            State::Idle => self.fresh.len() + self.stale.len(),
            State::Leased => self.leased.len(),
            State::Removing => self.removing.len(),
        }
    }

    pub fn state(&self, slot: SlotId) -> Option<State> {
        let is = |state: &State| match state {
            State::Starting => self.starting.contains(&slot),
            State::Idle => self.fresh.contains_key(&slot) || self.stale.contains_key(&slot),
            State::Leased => self.leased.contains(&slot),
            State::Removing => self.removing.contains(&slot),
        };
        State::ALL.into_iter().find(is)
    }

    pub fn total(&self) -> usize {
        State::ALL.into_iter().map(|state| self.count(state)).sum()
    }

    /// Containers that waiters wait for and that nobody is creating yet.
    pub fn owed(&self) -> usize {
        self.waiters.len().saturating_sub(self.starting.len())
    }

    /// What so many of its containers take. While some are left from before a change, each may be of the larger kind.
    pub fn load(&self, containers: usize) -> Load {
        Load { containers, memory: self.memory().saturating_mul(containers as u64) }
    }

    fn memory(&self) -> u64 {
        let former = |slot: Option<&SlotId>| slot.is_some_and(|slot| slot.serial < self.current);
        let sets = [self.starting.first(), self.leased.first(), self.removing.first()];
        let left = !self.stale.is_empty() || sets.into_iter().any(former);
        if left { self.bounds.memory.max(self.former_memory) } else { self.bounds.memory }
    }

    /// Takes other bounds.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.former_memory = self.memory();
        self.bounds = bounds;
    }

    /// For how many jobs that wait it would start one at once, if the host had room.
    pub fn claim(&self, creations: usize, now: Instant) -> usize {
        if !self.wants(now) {
            return 0;
        }
        let most = if self.trust == Trust::Proven { creations } else { 1 };
        self.owed().min(most).min(self.bounds.slots.saturating_sub(self.total()))
    }

    /// Containers to create: one for each waiter, and what the target lacks. A pool that wants none, and of which it isn't
    /// known whether it can have any, tries one: otherwise nobody would ask it for any either.
    pub fn deficit(&self) -> usize {
        let wanted = self.target + self.waiters.len();
        let wanted = if self.trust == Trust::Proven { wanted } else { wanted.max(1) };
        wanted.saturating_sub(self.fresh.len() + self.starting.len())
    }

    /// Whether it wants a creation that neither its own failures nor the clock forbid.
    pub fn wants(&self, now: Instant) -> bool {
        let may = match self.trust {
            Trust::Proven => true,
            // One shows whether any works.
            Trust::New => self.starting.is_empty(),
            Trust::Failing(until) => until <= now && self.starting.is_empty(),
        };
        may && self.prepared && self.deficit() > 0
    }

    /// Idle ones that may go for other pools' jobs.
    pub fn dispensable(&self) -> usize {
        self.count(State::Idle).saturating_sub(self.bounds.reserved)
    }

    /// Whether its last creation failed.
    pub fn fails(&self) -> bool {
        matches!(self.trust, Trust::Failing(_))
    }

    /// Whether its next try has been due for so long that it is not to wait for others any more.
    pub fn overdue(&self, now: Instant) -> bool {
        matches!(self.trust, Trust::Failing(until) if now.saturating_duration_since(until) >= OVERDUE)
    }

    pub fn is_full(&self) -> bool {
        self.total() >= self.bounds.slots
    }

    /// What the next idle container would be worth.
    pub fn next_worth(&self) -> f64 {
        self.worth.get(self.count(State::Idle) + self.starting.len()).copied().unwrap_or(0.0)
    }

    /// What the last idle container is worth.
    pub fn last_worth(&self) -> f64 {
        let last = self.count(State::Idle).checked_sub(1);
        last.and_then(|last| self.worth.get(last)).copied().unwrap_or(0.0)
    }

    /// The share of what is wanted that is missing.
    pub fn missing(&self) -> f64 {
        self.deficit() as f64 / (self.target + self.waiters.len()).max(1) as f64
    }

    /// Takes an idle slot for a lease: one that is as it should be, the oldest first; else one that is to be replaced.
    pub fn pop_idle(&mut self) -> Option<SlotId> {
        self.fresh.pop_first().map(|(slot, _)| slot).or_else(|| self.stale.pop_first().map(|(slot, _)| slot))
    }

    /// Takes the idle slot that is missed least, and the reason to retire it if there is none better than `reason`.
    pub fn pop_dispensable(&mut self, reason: Reason) -> Option<(SlotId, Reason)> {
        self.stale.pop_first().or_else(|| self.fresh.pop_first().map(|(slot, _)| (slot, reason)))
    }

    /// Takes this slot, if it is idle.
    pub fn take_idle(&mut self, slot: SlotId) -> bool {
        self.fresh.remove(&slot).is_some() || self.stale.remove(&slot).is_some()
    }

    /// A slot that was taken from its state is to be removed.
    pub fn retire(&mut self, slot: SlotId, reason: Reason, out: &mut Vec<Action>) {
        self.removing.insert(slot);
        out.push(Action::Remove(slot, reason));
    }

    /// A failure that is news: nothing begun so far is, if it fails too.
    pub fn fail(&mut self, until: Instant, next_serial: u64) {
        self.trust = Trust::Failing(until);
        self.judged = next_serial;
    }

    /// What it failed for may be over.
    pub fn retry(&mut self, now: Instant) {
        if self.fails() {
            self.trust = Trust::Failing(now);
        }
    }

    /// A slot became idle.
    pub fn idle(&mut self, slot: SlotId, now: Instant) {
        if slot.serial < self.current {
            self.stale.insert(slot, Reason::Rolled);
        } else {
            self.fresh.insert(slot, now);
        }
    }

    /// When the oldest fresh one becomes too old.
    pub fn next_expiry(&self) -> Option<Instant> {
        let age = self.bounds.max_age?;
        self.fresh.values().min()?.checked_add(age)
    }

    /// What is too old is to be replaced.
    pub fn expire(&mut self, now: Instant) {
        let Some(age) = self.bounds.max_age else { return };
        let stale = &mut self.stale;
        self.fresh.retain(|slot, since| {
            let young = now.duration_since(*since) < age;
            if !young {
                stale.insert(*slot, Reason::Age);
            }
            young
        });
    }
}
