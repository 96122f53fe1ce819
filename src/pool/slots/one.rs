//! One pool's slots, and the questions that the machine asks of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

use super::words::{Action, Reason, Serves, SlotId, State, WaiterId};

/// How long a job waits for a container to come back before one is created for it. Creating one takes hundreds of
/// milliseconds, and as much of the engine as some hundred jobs.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a container is as an idle one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Standing {
    /// As it should be; ready since then.
    Fresh(Instant),
    /// To be replaced, for this reason.
    Stale(Reason),
}

/// Somebody who waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub id: WaiterId,
    pub since: Instant,
}

impl Waiter {
    fn is_calling(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= PATIENCE
    }
}

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
    /// Whether leased ones come back.
    pub serves: Serves,
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
    /// Idle ones that are wanted.
    pub target: usize,
    /// Where leased ones come back: how many are usually away.
    pub away: usize,
    /// What one more idle container is worth, by how many there are.
    pub worth: Vec<f64>,
    pub starting: BTreeSet<SlotId>,
    /// Idle ones that are as they should be, and since when they are ready.
    pub fresh: BTreeMap<SlotId, Instant>,
    /// Idle ones that are to be replaced, and why. They serve until then.
    pub stale: BTreeMap<SlotId, Reason>,
    /// Leased ones, as what they were idle.
    pub leased: BTreeMap<SlotId, Standing>,
    pub removing: BTreeSet<SlotId>,
    pub waiters: VecDeque<Waiter>,
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
            away: 0,
            worth: Vec::new(),
            starting: BTreeSet::new(),
            fresh: BTreeMap::new(),
            stale: BTreeMap::new(),
            leased: BTreeMap::new(),
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
            State::Leased => self.leased.contains_key(&slot),
            State::Removing => self.removing.contains(&slot),
        };
        State::ALL.into_iter().find(is)
    }

    pub fn total(&self) -> usize {
        State::ALL.into_iter().map(|state| self.count(state)).sum()
    }

    /// Waiters that containers are to be created for: where those that are away come back in a moment, only who has waited
    /// for longer than that.
    pub fn calling(&self, now: Instant) -> usize {
        match self.bounds.serves {
            Serves::One => self.waiters.len(),
            Serves::Many => self.waiters.iter().filter(|w| w.is_calling(now)).count(),
        }
    }

    /// When the next waiter will have waited for so long.
    pub fn next_call(&self, now: Instant) -> Option<Instant> {
        let patient = self.waiters.iter().filter(|w| !w.is_calling(now));
        let next = patient.map(|w| w.since + PATIENCE).min();
        next.filter(|_| self.bounds.serves == Serves::Many)
    }

    /// Who waits longest.
    pub fn first_waiter(&self) -> Option<WaiterId> {
        self.waiters.front().map(|waiter| waiter.id)
    }

    /// Containers that waiters wait for and that nobody is creating yet.
    pub fn owed(&self, now: Instant) -> usize {
        self.calling(now).saturating_sub(self.starting.len())
    }

    /// What so many of its containers take. While some are left from before a change, each may be of the larger kind.
    pub fn load(&self, containers: usize) -> Load {
        Load { containers, memory: self.memory().saturating_mul(containers as u64) }
    }

    fn memory(&self) -> u64 {
        let former = |slot: Option<&SlotId>| slot.is_some_and(|slot| slot.serial < self.current);
        let leased = self.leased.first_key_value().map(|(slot, _)| slot);
        let sets = [self.starting.first(), leased, self.removing.first()];
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
        self.owed(now).min(most).min(self.bounds.slots.saturating_sub(self.total()))
    }

    /// Containers wanted beside those that will not come back: one for each waiter, and the target. A pool that wants none, and of
    /// which it isn't known whether it can have any, tries one: otherwise nobody would ask it for any either.
    fn wanted(&self, now: Instant) -> usize {
        let wanted = match self.bounds.serves {
            Serves::One => self.target + self.calling(now),
            Serves::Many => (self.target + self.away).max(self.leased.len() + self.calling(now)),
        };
        if self.trust == Trust::Proven { wanted } else { wanted.max(1) }
    }

    /// Containers to create.
    pub fn deficit(&self, now: Instant) -> usize {
        self.wanted(now).saturating_sub(self.fresh.len() + self.starting.len() + self.coming_back())
    }

    /// Leased ones that will be idle again and needn't be replaced then.
    fn coming_back(&self) -> usize {
        let good = |(slot, standing): &(&SlotId, &Standing)| {
            slot.serial >= self.current && matches!(standing, Standing::Fresh(_))
        };
        match self.bounds.serves {
            Serves::One => 0,
            Serves::Many => self.leased.iter().filter(good).count(),
        }
    }

    /// Whether more are idle than wanted.
    pub fn has_surplus(&self) -> bool {
        let idle = self.count(State::Idle);
        let coming = match self.bounds.serves {
            Serves::One => 0,
            // Of those that are usually away more are here now.
            Serves::Many => self.away.saturating_sub(self.leased.len()),
        };
        idle > self.target + coming
    }

    /// Whether it wants a creation that neither its own failures nor the clock forbid.
    pub fn wants(&self, now: Instant) -> bool {
        let may = match self.trust {
            Trust::Proven => true,
            // One shows whether any works.
            Trust::New => self.starting.is_empty(),
            Trust::Failing(until) => until <= now && self.starting.is_empty(),
        };
        may && self.prepared && self.deficit(now) > 0
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
    pub fn missing(&self, now: Instant) -> f64 {
        self.deficit(now) as f64 / self.wanted(now).max(1) as f64
    }

    /// Takes an idle slot for a lease: one that is as it should be, the oldest first; else one that is to be replaced.
    pub fn pop_idle(&mut self) -> Option<(SlotId, Standing)> {
        let fresh = self.fresh.pop_first().map(|(slot, since)| (slot, Standing::Fresh(since)));
        fresh.or_else(|| self.stale.pop_first().map(|(slot, reason)| (slot, Standing::Stale(reason))))
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
    pub fn idle(&mut self, slot: SlotId, standing: Standing) {
        match standing {
            Standing::Stale(reason) => _ = self.stale.insert(slot, reason),
            Standing::Fresh(_) if slot.serial < self.current => {
                _ = self.stale.insert(slot, Reason::Rolled);
            }
            Standing::Fresh(since) => _ = self.fresh.insert(slot, since),
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
