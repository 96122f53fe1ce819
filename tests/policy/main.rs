//! The sizing policy against theory, in simulated time: do pools of a computed size miss as seldom as computed, does the
//! target follow the jobs, and what does that cost? The state machine and the planner are the real ones.

mod adaptive;
mod fixed;
mod machine;
mod shared;
mod sim;
mod traces;
