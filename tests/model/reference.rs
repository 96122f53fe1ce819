//! What must be true of the pools' state machine, kept by other means: one record for each slot and each waiter, moved
//! by the events and the actions alone. It decides nothing; it says of each action whether it was allowed, and after
//! each event whether something that had to be done was left out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use prewarm::pool::slots::{
    Action, Bounds, Budget, PoolIndex, Reason, Serves, SlotId, Slots, State, WaiterId,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// Where containers come back, jobs wait for one for so long before another is created.
const PATIENCE: Duration = Duration::from_millis(50);

pub type Checked = Result<(), TestCaseError>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Life {
    Starting,
    Idle,
    Leased,
    /// The event just now ended it: a removal for this reason must follow.
    Condemned(Reason),
    Removing,
    Gone,
}

#[derive(Debug)]
pub struct Slot {
    pub life: Life,
    /// When it became ready.
    since: Option<Instant>,
    /// Why it is to be replaced, if it is.
    old: Option<Reason>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trust {
    New,
    Proven,
    Failing(Instant),
}

#[derive(Debug)]
pub struct Pool {
    pub bounds: Bounds,
    pub target: usize,
    away: usize,
    worth: Vec<f64>,
    trust: Trust,
    pub waiting: VecDeque<WaiterId>,
    /// Most slots: more than the bound for as long as a lower one hasn't been reached.
    most: usize,
    /// What was under way when its last failure counted: those failures are no news.
    judged: BTreeSet<SlotId>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Waits,
    Granted(SlotId),
    GaveUp,
}

#[derive(Debug)]
pub struct Reference {
    budget: Budget,
    pub pools: Vec<Pool>,
    pub slots: BTreeMap<SlotId, Slot>,
    fates: BTreeMap<WaiterId, Fate>,
    /// Since when each that ever waited does.
    since: BTreeMap<WaiterId, Instant>,
    draining: bool,
    pub now: Instant,
    /// What the last event led to.
    pub granted: Vec<(SlotId, WaiterId)>,
    pub leases: usize,
    pub releases: usize,
}

impl Reference {
    pub fn new(bounds: &[Bounds], budget: Budget, now: Instant) -> Reference {
        let pool = |bounds: &Bounds| Pool {
            bounds: *bounds,
            target: 0,
            away: 0,
            worth: Vec::new(),
            trust: Trust::New,
            waiting: VecDeque::new(),
            most: bounds.slots,
            judged: BTreeSet::new(),
        };
        Reference {
            budget,
            pools: bounds.iter().map(pool).collect(),
            slots: BTreeMap::new(),
            fates: BTreeMap::new(),
            since: BTreeMap::new(),
            draining: false,
            now,
            granted: Vec::new(),
            leases: 0,
            releases: 0,
        }
    }

    // Events.

    pub fn lease(&mut self, pool: usize, waiter: WaiterId) {
        self.pools[pool].waiting.push_back(waiter);
        self.fates.insert(waiter, Fate::Waits);
        self.since.insert(waiter, self.now);
    }

    pub fn give_up(&mut self, pool: usize, waiter: WaiterId) {
        self.pools[pool].waiting.retain(|w| *w != waiter);
        self.fates.insert(waiter, Fate::GaveUp);
    }

    pub fn ready(&mut self, slot: SlotId) {
        self.pools[slot.pool.0].trust = Trust::Proven;
        let now = self.now;
        let record = self.record(slot);
        record.life = Life::Idle;
        record.since = Some(now);
        if self.draining {
            self.record(slot).life = Life::Condemned(Reason::Drained);
        }
    }

    /// Whether a failure of this slot is news.
    pub fn is_news(&self, slot: SlotId) -> bool {
        let p = &self.pools[slot.pool.0];
        !matches!(p.trust, Trust::Failing(_)) || !p.judged.contains(&slot)
    }

    pub fn failed(&mut self, slot: SlotId, until: Instant) {
        if self.is_news(slot) {
            let under_way = self.in_state(slot.pool, |l| l == Life::Starting).collect();
            let p = &mut self.pools[slot.pool.0];
            p.trust = Trust::Failing(until);
            p.judged = under_way;
        }
        self.record(slot).life = Life::Condemned(Reason::Failed);
    }

    pub fn ended(&mut self, slot: SlotId, reason: Reason) {
        if self.slots[&slot].life == Life::Leased {
            self.releases += 1;
        }
        self.record(slot).life = Life::Condemned(reason);
    }

    pub fn returned(&mut self, slot: SlotId) {
        self.releases += 1;
        self.record(slot).life = if self.draining { Life::Condemned(Reason::Drained) } else { Life::Idle };
    }

    pub fn waits_again(&mut self, slot: SlotId, waiter: WaiterId) {
        self.fates.insert(waiter, Fate::Waits);
        self.since.insert(waiter, self.now);
        self.pools[slot.pool.0].waiting.push_front(waiter);
    }

    pub fn gone(&mut self, slot: SlotId) {
        self.record(slot).life = Life::Gone;
    }

    pub fn set_target(&mut self, pool: usize, target: usize, away: usize, worth: Vec<f64>) {
        if !self.draining {
            self.pools[pool].target = target;
            self.pools[pool].away = away;
            self.pools[pool].worth = worth;
        }
    }

    pub fn set_bounds(&mut self, pool: usize, bounds: Bounds) {
        let total = self.total(pool);
        let p = &mut self.pools[pool];
        p.bounds = bounds;
        p.most = total.max(bounds.slots);
    }

    pub fn roll(&mut self, pool: usize) {
        for (_, slot) in self.slots.iter_mut().filter(|(id, _)| id.pool.0 == pool) {
            if matches!(slot.life, Life::Starting | Life::Idle | Life::Leased) && slot.old.is_none() {
                slot.old = Some(Reason::Rolled);
            }
        }
        let p = &mut self.pools[pool];
        if let Trust::Failing(_) = p.trust {
            p.trust = Trust::Failing(self.now);
        }
    }

    /// Everything that says what time it is ages the idle ones.
    pub fn age(&mut self) {
        for (id, slot) in self.slots.iter_mut().filter(|(_, s)| s.life == Life::Idle && s.old.is_none()) {
            if let Some((since, age)) = slot.since.zip(self.pools[id.pool.0].bounds.max_age)
                && since + age <= self.now
            {
                slot.old = Some(Reason::Age);
            }
        }
    }

    pub fn drain(&mut self) {
        self.draining = true;
        for p in &mut self.pools {
            p.target = 0;
            for waiter in p.waiting.drain(..) {
                self.fates.insert(waiter, Fate::GaveUp);
            }
        }
    }

    // Actions.

    /// Checks and applies what the machine decided at one event.
    pub fn follow(&mut self, actions: &[Action]) -> Checked {
        self.granted.clear();
        for action in actions {
            match *action {
                Action::Start(slot) => self.start(slot)?,
                Action::Grant(slot, waiter) => self.grant(slot, waiter)?,
                Action::Remove(slot, reason) => self.remove(slot, reason)?,
            }
        }
        let condemned = self.slots.iter().find(|(_, s)| matches!(s.life, Life::Condemned(_)));
        prop_assert!(condemned.is_none(), "not removed: {condemned:?}");
        Ok(())
    }

    /// Every creation has, at its moment, a waiter or a place in the target that it is for, and a place in every bound.
    fn start(&mut self, slot: SlotId) -> Checked {
        let pool = slot.pool.0;
        prop_assert!(!self.draining, "{slot:?} started while draining");
        prop_assert!(!self.slots.contains_key(&slot), "{slot:?} started twice");
        prop_assert!(self.deficit(pool) > 0, "{slot:?} is for nobody");
        prop_assert!(self.trusted(pool), "{slot:?}: its pool is to wait, {:?}", self.pools[pool].trust);
        prop_assert!(self.probe_allowed(pool), "{slot:?}: probes hold every creator");
        prop_assert!(self.total(pool) < self.pools[pool].bounds.slots, "{slot:?}: its pool is full");
        prop_assert!(self.has_room(pool), "{slot:?}: the host is full");
        prop_assert!(self.starting() < self.budget.creations, "{slot:?}: no creator is free");
        let before = |other: &usize| *other != pool && self.startable(*other) && self.before(*other, pool);
        let before = (0..self.pools.len()).find(before);
        prop_assert_eq!(before, None, "{:?} was started, pool {:?} needs it more", slot, before);
        self.slots.insert(slot, Slot { life: Life::Starting, since: None, old: None });
        Ok(())
    }

    fn grant(&mut self, slot: SlotId, waiter: WaiterId) -> Checked {
        let life = self.slots.get(&slot).map(|s| s.life);
        prop_assert_eq!(life, Some(Life::Idle), "{:?} granted to {:?}", slot, waiter);
        prop_assert_eq!(self.fates.get(&waiter), Some(&Fate::Waits), "{:?} granted {:?}", waiter, slot);
        let first = self.pools[slot.pool.0].waiting.pop_front();
        prop_assert_eq!(first, Some(waiter), "out of order");
        let old = self.slots[&slot].old.is_some();
        let better = self.idle(slot.pool.0).find(|s| {
            let its_old = self.slots[s].old.is_some();
            (its_old, *s) < (old, slot)
        });
        prop_assert_eq!(better, None, "{:?} granted before {:?}", slot, better);
        self.record(slot).life = Life::Leased;
        self.fates.insert(waiter, Fate::Granted(slot));
        self.granted.push((slot, waiter));
        self.leases += 1;
        Ok(())
    }

    fn remove(&mut self, slot: SlotId, reason: Reason) -> Checked {
        let pool = slot.pool.0;
        let Some(record) = self.slots.get(&slot) else {
            return Err(TestCaseError::fail(format!("{slot:?} never began")));
        };
        match record.life {
            Life::Condemned(why) => prop_assert_eq!(why, reason, "{:?}", slot),
            Life::Idle => {
                let too_many = self.idle(pool).count() > self.pools[pool].target + self.expected_back(pool);
                let stale_first = record.old.is_some() || self.fresh(pool) == self.idle(pool).count();
                prop_assert!(self.draining || stale_first, "{slot:?}: a stale one should have gone");
                prop_assert!(self.draining || self.pools[pool].waiting.is_empty(), "{slot:?} is waited for");
                match (reason, record.old) {
                    (Reason::Drained, _) => prop_assert!(self.draining, "{slot:?}"),
                    (Reason::Shrunk, None) => prop_assert!(too_many, "{slot:?} was not too many"),
                    (Reason::Budget, None) => self.evicted(slot)?,
                    (_, Some(why)) if why == reason => {
                        let cramped =
                            self.total(pool) >= self.pools[pool].bounds.slots || !self.has_room(pool);
                        prop_assert!(
                            too_many || cramped || self.evicted(slot).is_ok(),
                            "{slot:?} still served"
                        );
                    }
                    other => prop_assert!(false, "{slot:?} is removed, {other:?}"),
                }
            }
            life => prop_assert!(false, "{slot:?} is removed, but is {life:?}"),
        }
        self.record(slot).life = Life::Removing;
        Ok(())
    }

    /// An idle one may go for a job of another pool: if that has no room, if its going helps, and if there is no idle
    /// one whose pool would miss it less.
    fn evicted(&self, slot: SlotId) -> Checked {
        let pool = slot.pool.0;
        let helped = (0..self.pools.len()).find(|p| {
            let room = self.pools[*p].bounds.slots.saturating_sub(self.total(*p));
            let more = !self.room_for(*p, 0, self.coming());
            *p != pool && self.owed(*p) > 0 && room > 0 && more && !self.comfortable(*p) && self.could_fit(*p)
        });
        prop_assert!(helped.is_some(), "{slot:?} had to make room for nobody");
        let least = |p: &usize| {
            *p != pool && self.idle(*p).next().is_some() && self.last_worth(*p) < self.last_worth(pool)
        };
        let least = (0..self.pools.len()).find(least);
        prop_assert_eq!(least, None, "{:?} had to go, pool {:?} would miss one less", slot, least);
        Ok(())
    }

    // After each event.

    pub fn compare(&mut self, machine: &Slots) -> Checked {
        for pool in 0..self.pools.len() {
            let index = PoolIndex(pool);
            for state in State::ALL {
                let expected = self.in_state(index, |l| is(l, state)).count();
                prop_assert_eq!(machine.count(index, state), expected, "pool {} {:?}", pool, state);
            }
            let stale = self.idle(pool).count() - self.fresh(pool);
            let p = &self.pools[pool];
            prop_assert_eq!(machine.stale(index), stale, "pool {} stale", pool);
            prop_assert_eq!(machine.waiting(index), p.waiting.len(), "pool {} waiting", pool);
            prop_assert_eq!(machine.target(index), p.target, "pool {} target", pool);
            prop_assert_eq!(machine.failing(index), matches!(p.trust, Trust::Failing(_)), "pool {}", pool);
            let able = !self.draining && (p.trust == Trust::Proven || self.idle(pool).next().is_some());
            prop_assert_eq!(machine.able(index), able, "pool {} able", pool);
            let idle = self.idle(pool).next();
            prop_assert!(p.waiting.is_empty() || idle.is_none(), "pool {pool}: {idle:?} is idle, jobs wait");
            let total = self.total(pool);
            prop_assert!(total <= p.most, "pool {pool} has {total}");
            self.pools[pool].most = total.max(self.pools[pool].bounds.slots);
        }
        for (slot, record) in &self.slots {
            let state = State::ALL.into_iter().find(|s| is(record.life, *s));
            prop_assert_eq!(machine.state(*slot), state, "{:?}", slot);
        }
        let (containers, memory) = self.used();
        prop_assert!(containers <= self.budget.containers, "{containers} containers");
        prop_assert!(memory <= self.budget.memory, "{memory} bytes");
        prop_assert!(self.starting() <= self.budget.creations, "{} starting", self.starting());
        Ok(())
    }

    /// Nothing that could be done is left out. Holds after each event that lets the machine start something.
    pub fn conserved(&self) -> Checked {
        let idle_creator = self.starting() < self.budget.creations && !self.draining;
        for pool in 0..self.pools.len() {
            let startable = idle_creator && self.startable(pool);
            prop_assert!(!startable, "pool {pool} could start one");
            let quiet = self.starting() == 0 && self.removing() == 0;
            if self.draining || !quiet || !self.trusted(pool) {
                continue;
            }
            let p = &self.pools[pool];
            let full = self.total(pool) >= p.bounds.slots;
            let stuck = self.calling(pool) > 0 && !full && self.could_fit(pool);
            prop_assert!(!stuck, "pool {pool}: jobs wait, nothing comes");
            let stale = self.idle(pool).count() - self.fresh(pool);
            let nobody_waits = self.total_owed() == 0;
            let stuck = nobody_waits && self.deficit(pool) > 0 && stale > 0;
            prop_assert!(!stuck, "pool {pool}: stale ones stay, nothing comes");
        }
        Ok(())
    }

    pub fn next_tick(&self) -> Option<Instant> {
        let held = (0..self.pools.len()).filter_map(|p| match self.pools[p].trust {
            Trust::Failing(until) if self.deficit(p) > 0 => Some(until),
            _ => None,
        });
        let old = self.slots.iter().filter(|(_, s)| s.life == Life::Idle && s.old.is_none());
        let old = old.filter_map(|(id, s)| Some(s.since? + self.pools[id.pool.0].bounds.max_age?));
        let call = (0..self.pools.len()).filter(|p| self.pools[*p].bounds.serves == Serves::Many);
        let call = call.flat_map(|p| self.pools[p].waiting.iter().map(|w| self.since[w] + PATIENCE));
        held.chain(old).chain(call).filter(|t| *t > self.now).min()
    }

    /// Once all went well for long enough: nobody waits who can be served, nothing is missing that there is room for,
    /// nothing is stale.
    pub fn settled(&self) -> Checked {
        for (pool, p) in self.pools.iter().enumerate() {
            let never = p.bounds.memory > self.budget.memory;
            prop_assert!(p.waiting.is_empty() || never, "pool {pool}: {:?} wait for ever", p.waiting);
            let full = self.total(pool) >= p.bounds.slots;
            let met = self.fresh(pool) >= p.target || full || !self.has_room(pool);
            prop_assert!(met, "pool {pool}: {} idle, {} wanted", self.fresh(pool), p.target);
            prop_assert_eq!(self.idle(pool).count(), self.fresh(pool), "pool {}: stale ones are left", pool);
        }
        Ok(())
    }

    // Questions.

    fn record(&mut self, slot: SlotId) -> &mut Slot {
        self.slots.get_mut(&slot).unwrap()
    }

    pub fn all(&self, which: impl Fn(Life) -> bool) -> Vec<SlotId> {
        self.slots.iter().filter(|(_, s)| which(s.life)).map(|(id, _)| *id).collect()
    }

    fn in_state(&self, pool: PoolIndex, which: impl Fn(Life) -> bool) -> impl Iterator<Item = SlotId> {
        let of_pool = self.slots.iter().filter(move |(id, _)| id.pool == pool);
        of_pool.filter(move |(_, s)| which(s.life)).map(|(id, _)| *id)
    }

    fn idle(&self, pool: usize) -> impl Iterator<Item = SlotId> {
        self.in_state(PoolIndex(pool), |l| l == Life::Idle)
    }

    fn fresh(&self, pool: usize) -> usize {
        self.idle(pool).filter(|s| self.slots[s].old.is_none()).count()
    }

    fn under_way(&self, pool: usize) -> usize {
        self.in_state(PoolIndex(pool), |l| l == Life::Starting).count()
    }

    fn total(&self, pool: usize) -> usize {
        self.in_state(PoolIndex(pool), |l| l != Life::Gone).count()
    }

    fn starting(&self) -> usize {
        self.all(|l| l == Life::Starting).len()
    }

    fn removing(&self) -> usize {
        self.all(|l| matches!(l, Life::Removing | Life::Condemned(_))).len()
    }

    fn used(&self) -> (usize, u64) {
        let present = self.all(|l| l != Life::Gone);
        (present.len(), present.iter().map(|s| self.pools[s.pool.0].bounds.memory).sum())
    }

    /// What there will be once all that is being removed is gone and every job that waits has a container.
    fn coming(&self) -> (usize, u64) {
        let mut present = self.all(|l| matches!(l, Life::Starting | Life::Idle | Life::Leased));
        let owed = (0..self.pools.len()).flat_map(|p| (0..self.owed(p)).map(move |_| p));
        let pools: Vec<usize> = present.drain(..).map(|s| s.pool.0).chain(owed).collect();
        (pools.len(), pools.iter().map(|p| self.pools[*p].bounds.memory).sum())
    }

    fn deficit(&self, pool: usize) -> usize {
        let p = &self.pools[pool];
        // One that isn't proven tries one, though nobody wants it.
        let least = usize::from(p.trust != Trust::Proven);
        let (wanted, back) = match p.bounds.serves {
            Serves::One => (p.target + p.waiting.len(), 0),
            Serves::Many => {
                let away = |s: &SlotId| self.slots[s].old.is_none();
                let back = self.leased(pool).filter(away).count();
                ((p.target + p.away).max(self.leased(pool).count() + self.calling(pool)), back)
            }
        };
        wanted.max(least).saturating_sub(self.fresh(pool) + self.under_way(pool) + back)
    }

    fn leased(&self, pool: usize) -> impl Iterator<Item = SlotId> {
        self.in_state(PoolIndex(pool), |l| l == Life::Leased)
    }

    /// Waiters that one is to be created for.
    fn calling(&self, pool: usize) -> usize {
        let p = &self.pools[pool];
        let long = |w: &&WaiterId| self.since[w] + PATIENCE <= self.now;
        match p.bounds.serves {
            Serves::One => p.waiting.len(),
            Serves::Many => p.waiting.iter().filter(long).count(),
        }
    }

    /// Those that are idle only because fewer are away than usually.
    fn expected_back(&self, pool: usize) -> usize {
        match self.pools[pool].bounds.serves {
            Serves::One => 0,
            Serves::Many => self.pools[pool].away.saturating_sub(self.leased(pool).count()),
        }
    }

    fn owed(&self, pool: usize) -> usize {
        self.calling(pool).saturating_sub(self.under_way(pool))
    }

    fn total_owed(&self) -> usize {
        (0..self.pools.len()).map(|p| self.owed(p)).sum()
    }

    fn trusted(&self, pool: usize) -> bool {
        match self.pools[pool].trust {
            Trust::Proven => true,
            Trust::New => self.under_way(pool) == 0,
            Trust::Failing(until) => until <= self.now && self.under_way(pool) == 0,
        }
    }

    fn probe_allowed(&self, pool: usize) -> bool {
        let unproven = |p: &usize| self.pools[*p].trust != Trust::Proven;
        let probes: usize = (0..self.pools.len()).filter(unproven).map(|p| self.under_way(p)).sum();
        !unproven(&pool) || probes < self.budget.creations.saturating_sub(1).max(1)
    }

    fn room_for(&self, pool: usize, n: usize, besides: (usize, u64)) -> bool {
        let memory = besides.1 + n as u64 * self.pools[pool].bounds.memory;
        besides.0 + n <= self.budget.containers && memory <= self.budget.memory
    }

    fn has_room(&self, pool: usize) -> bool {
        self.room_for(pool, 1, self.used())
    }

    /// Whether there is room for all of its jobs that wait.
    fn comfortable(&self, pool: usize) -> bool {
        self.room_for(pool, self.owed(pool), self.used())
    }

    /// Whether there would be room for one more if every other pool gave its idle ones.
    fn could_fit(&self, pool: usize) -> bool {
        let kept = self.all(|l| matches!(l, Life::Starting | Life::Leased));
        let memory = kept.iter().map(|s| self.pools[s.pool.0].bounds.memory).sum();
        self.room_for(pool, 1, (kept.len(), memory))
    }

    /// Whether nothing forbids that a pool starts one. What is only missing in a target may have to leave its room to
    /// jobs that wait.
    fn startable(&self, pool: usize) -> bool {
        let free = self.total(pool) < self.pools[pool].bounds.slots && self.has_room(pool);
        let may = free && self.deficit(pool) > 0 && self.trusted(pool) && self.probe_allowed(pool);
        may && (self.owed(pool) > 0 || self.total_owed() == 0)
    }

    /// Whether one pool comes strictly before another.
    fn before(&self, a: usize, b: usize) -> bool {
        let contenders = (0..self.pools.len())
            .filter(|p| self.under_way(*p) > 0 || (self.deficit(*p) > 0 && self.trusted(*p)))
            .count();
        let share = self.budget.creations.div_ceil(contenders.max(1));
        let over = |p| self.under_way(p) >= share;
        let failing = |p: usize| matches!(self.pools[p].trust, Trust::Failing(_));
        let job = |p: usize| self.owed(p) > 0 && !failing(p);
        if self.overdue(a) || self.overdue(b) {
            return self.overdue(a) && (a < b || !self.overdue(b));
        }
        if job(a) != job(b) {
            // All creators but one are for jobs first.
            let for_jobs = |p| self.under_way(p).min(self.pools[p].waiting.len());
            let for_jobs: usize = (0..self.pools.len()).map(for_jobs).sum();
            return job(a) == (for_jobs < self.budget.creations.saturating_sub(1).max(1));
        }
        match (over(a).cmp(&over(b)), failing(a).cmp(&failing(b))) {
            (order, _) if order.is_ne() => order.is_lt(),
            (_, order) if order.is_ne() => order.is_lt(),
            _ if job(a) => self.pools[a].waiting.front() < self.pools[b].waiting.front(),
            _ => self.next_worth(a) > self.next_worth(b),
        }
    }

    fn overdue(&self, pool: usize) -> bool {
        matches!(self.pools[pool].trust, Trust::Failing(until) if self.now >= until + Duration::from_secs(60))
    }

    fn next_worth(&self, pool: usize) -> f64 {
        let there = self.idle(pool).count() + self.under_way(pool);
        self.pools[pool].worth.get(there).copied().unwrap_or(0.0)
    }

    fn last_worth(&self, pool: usize) -> f64 {
        self.pools[pool].worth.get(self.idle(pool).count() - 1).copied().unwrap_or(0.0)
    }
}

fn is(life: Life, state: State) -> bool {
    match state {
        State::Starting => life == Life::Starting,
        State::Idle => life == Life::Idle,
        State::Leased => life == Life::Leased,
        State::Removing => matches!(life, Life::Removing | Life::Condemned(_)),
    }
}
