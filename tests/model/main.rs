//! The pools' state machine under random operations and faults, against a [`reference`] that keeps its own books.
//! Whatever happens: no container is leased twice, unready or dead; no bound is exceeded; nothing is created for nobody;
//! whoever waits is served in order, or gives up; nothing that could be done is left out; and from wherever it got to,
//! it recovers once all goes well.

mod reference;

use std::time::{Duration, Instant};

use prewarm::pool::slots::{Action, Bounds, Budget, PoolIndex, Reason, Serves, SlotId, Slots, WaiterId};
use proptest::collection::vec;
use proptest::prelude::*;
use reference::{Checked, Life, Reference};

/// What may happen. A number picks one of those that it can happen to; if there is none, nothing happens.
#[derive(Clone, Debug)]
enum Op {
    Lease {
        pool: u8,
    },
    GiveUp(u8),
    Ready(u8),
    Failed(u8, Secs),
    Died(u8),
    DiedAtGrant(u8),
    Doubted(u8),
    Released(u8, Reason),
    Returned(u8),
    Gone(u8),
    /// What is said of a slot that isn't in the state for it. It may be on its way when the state changes.
    Late(u8, Word),
    /// Time passes, nobody says so.
    Pass(Secs),
    Tick(Secs),
    Target {
        pool: u8,
        target: u8,
        away: u8,
        worth: Vec<u8>,
    },
    Roll {
        pool: u8,
    },
    MaxAge {
        pool: u8,
        age: Option<Secs>,
    },
    Most {
        pool: u8,
        slots: u8,
    },
}

type Secs = u8;

#[derive(Clone, Copy, Debug)]
enum Word {
    Ready,
    Failed,
    Died,
    Doubted,
    Released,
    Returned,
    Gone,
}

fn op() -> impl Strategy<Value = Op> {
    let reason = prop_oneof![Just(Reason::Used), Just(Reason::Doubt), Just(Reason::Died)];
    let word = prop_oneof![
        Just(Word::Ready),
        Just(Word::Failed),
        Just(Word::Died),
        Just(Word::Doubted),
        Just(Word::Released),
        Just(Word::Returned),
        Just(Word::Gone),
    ];
    let n = any::<u8>;
    let pool = || 0..4u8;
    prop_oneof![
        // First, since a failure shrinks to it, and it does nothing.
        1 => (0..5u8).prop_map(Op::Pass),
        8 => pool().prop_map(|pool| Op::Lease { pool }),
        1 => n().prop_map(Op::GiveUp),
        10 => n().prop_map(Op::Ready),
        2 => (n(), 0..10u8).prop_map(|(n, s)| Op::Failed(n, s)),
        1 => n().prop_map(Op::Died),
        1 => n().prop_map(Op::DiedAtGrant),
        1 => n().prop_map(Op::Doubted),
        6 => (n(), reason).prop_map(|(n, r)| Op::Released(n, r)),
        6 => n().prop_map(Op::Returned),
        8 => n().prop_map(Op::Gone),
        1 => (n(), word).prop_map(|(n, w)| Op::Late(n, w)),
        4 => (0..10u8).prop_map(Op::Tick),
        6 => (pool(), 0..6u8, 0..4u8, vec(0..10u8, 0..6))
            .prop_map(|(pool, target, away, worth)| Op::Target { pool, target, away, worth }),
        2 => pool().prop_map(|pool| Op::Roll { pool }),
        1 => (pool(), proptest::option::of(1..20u8)).prop_map(|(pool, age)| Op::MaxAge { pool, age }),
        1 => (pool(), 1..8u8).prop_map(|(pool, slots)| Op::Most { pool, slots }),
    ]
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let age = proptest::option::of((2..20u64).prop_map(Duration::from_secs));
    let serves = prop_oneof![Just(Serves::One), Just(Serves::Many)];
    (1..8usize, 1..5u64, age, serves).prop_map(|(slots, memory, max_age, serves)| Bounds {
        slots,
        reserved: 0,
        memory,
        max_age,
        serves,
    })
}

fn budget() -> impl Strategy<Value = Budget> {
    let containers = prop_oneof![2..12usize, Just(usize::MAX)];
    // The least is less than the most that one container may count.
    let memory = prop_oneof![3..20u64, Just(u64::MAX)];
    (1..5usize, containers, memory).prop_map(|(creations, containers, memory)| Budget {
        creations,
        containers,
        memory,
    })
}

struct Rig {
    machine: Slots,
    reference: Reference,
    waiters: u64,
}

impl Rig {
    fn new(bounds: &[Bounds], budget: Budget) -> Rig {
        let machine = Slots::new(bounds, budget);
        Rig { machine, reference: Reference::new(bounds, budget, Instant::now()), waiters: 0 }
    }

    /// One call of the machine, and whether what it did was right.
    fn act(&mut self, f: impl FnOnce(&mut Slots, Instant, &mut Vec<Action>)) -> Checked {
        self.quietly(f)?;
        self.reference.conserved()
    }

    /// As `act`, for calls that leave it to the next one to start anything.
    fn quietly(&mut self, f: impl FnOnce(&mut Slots, Instant, &mut Vec<Action>)) -> Checked {
        let mut out = Vec::new();
        f(&mut self.machine, self.reference.now, &mut out);
        self.reference.follow(&out)?;
        self.reference.compare(&self.machine)
    }

    fn pick(&self, n: u8, life: Life) -> Option<SlotId> {
        nth(&self.reference.all(|l| l == life), n)
    }

    fn pool(&self, n: u8) -> usize {
        usize::from(n) % self.reference.pools.len()
    }

    fn apply(&mut self, op: &Op) -> Checked {
        match op {
            Op::Lease { pool } => self.lease(*pool),
            Op::GiveUp(n) => self.give_up(*n),
            Op::Ready(n) => self.pick(*n, Life::Starting).map_or(Ok(()), |slot| self.ready(slot)),
            Op::Failed(n, secs) => {
                self.pick(*n, Life::Starting).map_or(Ok(()), |slot| self.failed(slot, *secs))
            }
            Op::Died(n) => {
                let Some(slot) = self.pick(*n, Life::Idle) else { return Ok(()) };
                self.reference.ended(slot, Reason::Died);
                self.act(|s, t, o| s.died(slot, None, t, o))
            }
            Op::DiedAtGrant(n) => {
                let Some((slot, waiter)) = nth(&self.reference.granted, *n) else { return Ok(()) };
                self.reference.ended(slot, Reason::Died);
                self.reference.waits_again(slot, waiter);
                self.act(|s, t, o| s.died(slot, Some(waiter), t, o))
            }
            Op::Doubted(n) => {
                let Some(slot) = self.pick(*n, Life::Idle) else { return Ok(()) };
                self.reference.ended(slot, Reason::Doubt);
                self.act(|s, t, o| s.doubted(slot, t, o))
            }
            Op::Released(n, reason) => {
                self.pick(*n, Life::Leased).map_or(Ok(()), |slot| self.released(slot, *reason))
            }
            Op::Returned(n) => {
                let serves = |slot: &SlotId| self.reference.pools[slot.pool.0].bounds.serves;
                let slot = self.pick(*n, Life::Leased).filter(|slot| serves(slot) == Serves::Many);
                slot.map_or(Ok(()), |slot| self.returned(slot))
            }
            Op::Gone(n) => self.pick(*n, Life::Removing).map_or(Ok(()), |slot| self.gone(slot)),
            Op::Late(n, word) => self.late(*n, *word),
            Op::Pass(secs) => {
                self.reference.now += Duration::from_secs((*secs).into());
                Ok(())
            }
            Op::Tick(secs) => self.tick(*secs),
            Op::Target { pool, target, away, worth } => {
                let (pool, target, away) = (self.pool(*pool), usize::from(*target), usize::from(*away));
                // Each more is worth less.
                let mut worth: Vec<f64> = worth.iter().map(|w| f64::from(*w)).collect();
                worth.sort_by(|a, b| b.total_cmp(a));
                self.reference.set_target(pool, target, away, worth.clone());
                self.act(|s, t, o| s.set_target(PoolIndex(pool), target, away, worth, t, o))
            }
            Op::Roll { pool } => {
                let pool = self.pool(*pool);
                self.reference.roll(pool);
                self.act(|s, t, o| s.roll(PoolIndex(pool), t, o))
            }
            Op::MaxAge { pool, age } => {
                let pool = self.pool(*pool);
                let max_age = age.map(|secs| Duration::from_secs(secs.into()));
                self.set_bounds(pool, Bounds { max_age, ..self.reference.pools[pool].bounds })
            }
            Op::Most { pool, slots } => {
                let pool = self.pool(*pool);
                let slots = usize::from(*slots);
                self.set_bounds(pool, Bounds { slots, ..self.reference.pools[pool].bounds })
            }
        }
    }

    fn lease(&mut self, pool: u8) -> Checked {
        let pool = self.pool(pool);
        self.waiters += 1;
        let waiter = WaiterId(self.waiters);
        self.reference.lease(pool, waiter);
        let mut hit = false;
        self.act(|s, t, o| hit = s.lease(PoolIndex(pool), waiter, t, o))?;
        prop_assert_eq!(hit, self.reference.granted.iter().any(|(_, w)| *w == waiter), "{:?} a hit", waiter);
        Ok(())
    }

    fn give_up(&mut self, n: u8) -> Checked {
        let pools = self.reference.pools.iter().enumerate();
        let waiting: Vec<(usize, WaiterId)> =
            pools.flat_map(|(i, p)| p.waiting.iter().map(move |w| (i, *w))).collect();
        let Some((pool, waiter)) = nth(&waiting, n) else { return Ok(()) };
        self.reference.give_up(pool, waiter);
        self.quietly(|s, _, _| s.give_up(PoolIndex(pool), waiter))
    }

    fn ready(&mut self, slot: SlotId) -> Checked {
        self.reference.ready(slot);
        self.act(|s, t, o| s.ready(slot, t, o))
    }

    fn failed(&mut self, slot: SlotId, secs: Secs) -> Checked {
        let until = self.reference.now + Duration::from_secs(secs.into());
        let news = self.reference.is_news(slot);
        self.reference.failed(slot, until);
        let mut asked = false;
        let hold = || {
            asked = true;
            until
        };
        self.act(|s, t, o| s.failed(slot, hold, t, o))?;
        prop_assert_eq!(asked, news, "{:?}: its failure is news", slot);
        Ok(())
    }

    fn released(&mut self, slot: SlotId, reason: Reason) -> Checked {
        self.reference.ended(slot, reason);
        self.act(|s, t, o| s.released(slot, reason, t, o))
    }

    fn returned(&mut self, slot: SlotId) -> Checked {
        self.reference.returned(slot);
        self.act(|s, t, o| s.returned(slot, t, o))
    }

    fn gone(&mut self, slot: SlotId) -> Checked {
        self.reference.gone(slot);
        self.act(|s, t, o| s.gone(slot, t, o))
    }

    fn late(&mut self, n: u8, word: Word) -> Checked {
        let fits = |life: Life| match word {
            Word::Ready | Word::Failed => life == Life::Starting,
            Word::Died => matches!(life, Life::Idle | Life::Leased),
            Word::Doubted => life == Life::Idle,
            Word::Released | Word::Returned => life == Life::Leased,
            Word::Gone => life == Life::Removing,
        };
        let Some(slot) = nth(&self.reference.all(|l| !fits(l)), n) else { return Ok(()) };
        self.quietly(|s, t, o| match word {
            Word::Ready => s.ready(slot, t, o),
            Word::Failed => s.failed(slot, || unreachable!("nothing failed"), t, o),
            Word::Died => s.died(slot, None, t, o),
            Word::Doubted => s.doubted(slot, t, o),
            Word::Released => s.released(slot, Reason::Used, t, o),
            Word::Returned => s.returned(slot, t, o),
            Word::Gone => s.gone(slot, t, o),
        })
    }

    fn tick(&mut self, secs: Secs) -> Checked {
        self.reference.now += Duration::from_secs(secs.into());
        self.reference.age();
        self.act(|s, t, o| s.tick(t, o))?;
        prop_assert_eq!(self.machine.next_tick(self.reference.now), self.reference.next_tick(), "next tick");
        Ok(())
    }

    fn set_bounds(&mut self, pool: usize, bounds: Bounds) -> Checked {
        self.reference.set_bounds(pool, bounds);
        self.quietly(|s, _, _| s.set_bounds(PoolIndex(pool), bounds))
    }

    /// One round in which all that is under way ends well. Says whether there was anything.
    fn round(&mut self) -> Result<bool, TestCaseError> {
        let starting = self.reference.all(|l| l == Life::Starting);
        let leased = self.reference.all(|l| l == Life::Leased);
        let removing = self.reference.all(|l| l == Life::Removing);
        starting.iter().try_for_each(|slot| self.ready(*slot))?;
        leased.iter().try_for_each(|slot| self.released(*slot, Reason::Used))?;
        removing.iter().try_for_each(|slot| self.gone(*slot))?;
        Ok(!(starting.is_empty() && leased.is_empty() && removing.is_empty()))
    }

    /// From now on all goes well. The longest delay passes; then every round serves somebody, makes something that is
    /// missing, or replaces something stale, and none takes more than a few.
    fn settle(&mut self) -> Checked {
        self.tick(30)?;
        let waiting: usize = self.reference.pools.iter().map(|p| p.waiting.len()).sum();
        let wanted: usize = self.reference.pools.iter().map(|p| p.target + p.bounds.slots).sum();
        for _ in 0..20 + 5 * (waiting + wanted) {
            if !self.round()? {
                self.tick(0)?;
                return self.reference.settled();
            }
        }
        prop_assert!(false, "it never settles");
        Ok(())
    }

    /// Everything goes, and nothing comes.
    fn drain(&mut self) -> Checked {
        self.reference.drain();
        self.act(|s, _, o| s.drain(o))?;
        while self.round()? {}
        prop_assert!(self.machine.is_empty());
        let Reference { leases, releases, .. } = self.reference;
        prop_assert_eq!(leases, releases, "leases and releases");
        Ok(())
    }
}

fn nth<T: Copy>(of: &[T], n: u8) -> Option<T> {
    of.get(usize::from(n) % of.len().max(1)).copied()
}

/// One history. As text, one line for each of its events.
struct Case {
    bounds: Vec<Bounds>,
    budget: Budget,
    ops: Vec<Op>,
    settles: bool,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { bounds, budget, ops, settles } = self;
        writeln!(f, "\n  {budget:?}")?;
        bounds.iter().try_for_each(|bounds| writeln!(f, "  {bounds:?}"))?;
        ops.iter().try_for_each(|op| writeln!(f, "    {op:?}"))?;
        write!(f, "  then {}", if *settles { "all goes well" } else { "drained" })
    }
}

fn case() -> impl Strategy<Value = Case> {
    // No least length, or a failure could not shrink to less.
    let parts = (vec(bounds(), 1..=4), budget(), vec(op(), 0..200), any::<bool>());
    parts.prop_map(|(bounds, budget, ops, settles)| Case { bounds, budget, ops, settles })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(4_000),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_rule_holds_whatever_happens(case in case()) {
        let mut rig = Rig::new(&case.bounds, case.budget);
        for op in &case.ops {
            rig.apply(op)?;
        }
        // Else it is drained in the middle of everything.
        if case.settles {
            rig.settle()?;
        }
        rig.drain()?;
    }
}
