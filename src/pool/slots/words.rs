//! The words of the state machine: who, in which state, why, and what is to be done.

/// A pool, by its place in the list that the machine was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolIndex(pub usize);

/// One container's place. Serial numbers only grow, so the smallest idle one is the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId {
    /// The pool that it belongs to.
    pub pool: PoolIndex,
    pub(super) serial: u64,
}

impl SlotId {
    /// Its number: no two slots of a machine have the same.
    pub fn serial(self) -> u64 {
        self.serial
    }
}

/// Somebody who waits for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// How many jobs a container serves, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// One: it is used up then.
    One,
    /// Many: it comes back.
    Many,
}

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being created, started, waited for.
    Starting,
    /// Ready, nobody's.
    Idle,
    /// Running a job, or about to.
    Leased,
    /// Being removed.
    Removing,
}

impl State {
    /// All, for metrics that must exist from the start.
    pub const ALL: [State; 4] = [State::Starting, State::Idle, State::Leased, State::Removing];

    /// As in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Idle => "idle",
            State::Leased => "leased",
            State::Removing => "removing",
        }
    }
}

/// Why a container is retired: the `reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It served its job.
    Used,
    /// It ended by itself while idle.
    Died,
    /// It never became ready.
    Failed,
    /// It was leased and given back without having served: nobody knows what state it is in.
    Doubt,
    /// More were idle than wanted.
    Shrunk,
    /// It was idle for longer than `idle.max_age`.
    Age,
    /// Its image or configuration is no longer the pool's.
    Rolled,
    /// Idle, when a job of another pool waited and the host had no room for one more.
    Budget,
    /// The worker is shutting down.
    Drained,
}

impl Reason {
    /// All, for metrics that must exist from the start.
    pub const ALL: [Reason; 9] = [
        Reason::Used,
        Reason::Died,
        Reason::Failed,
        Reason::Doubt,
        Reason::Shrunk,
        Reason::Age,
        Reason::Rolled,
        Reason::Budget,
        Reason::Drained,
    ];

    /// As in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Used => "used",
            Reason::Died => "died",
            Reason::Failed => "failed",
            Reason::Doubt => "doubt",
            Reason::Shrunk => "shrunk",
            Reason::Age => "age",
            Reason::Rolled => "rolled",
            Reason::Budget => "budget",
            Reason::Drained => "drained",
        }
    }
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create a container for this slot; answer with `ready` or `failed`.
    Start(SlotId),
    /// Hand this idle slot to this waiter; answer with `died` if it turns out to be dead.
    Grant(SlotId, WaiterId),
    /// Remove this slot's container; answer with `gone`.
    Remove(SlotId, Reason),
}
