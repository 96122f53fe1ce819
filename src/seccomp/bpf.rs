//! Classic BPF for seccomp: of each ABI, a binary search over intervals of numbers.
//!
//! When a filter is installed the kernel runs it for every number of both ABIs, to learn which it always allows
//! (`seccomp_cache_prepare`), and compiles it: what is short and cheap to run is cheap to install. It looks through loads
//! of number and architecture, comparisons and jumps alone; anything else in the way of a call takes it out of the cache.
//!
//! Jumps only go forward, so a program is built from its end: whatever an instruction leads to is there already.

use std::collections::HashMap;

use super::table::{Abi, Check, EPERM, NAMESPACES, PERSONALITIES, REFUSED_FAMILIES, Verdict};

// `linux/bpf_common.h`.
const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;

// `linux/seccomp.h`: actions, and where `struct seccomp_data` has its fields. Both architectures are little-endian.
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const FIRST_ARGUMENT_HIGH: u32 = 20;

/// How a branch compares the word that was loaded: the instruction's code.
#[derive(Clone, Copy)]
#[repr(u16)]
enum Test {
    Equal = 0x15,
    AtLeast = 0x35,
    AnyBit = 0x45,
}

/// An instruction that is there: how many come after it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place(usize);

/// From this number up to the next interval's.
#[derive(Clone, Copy)]
pub(super) struct Interval {
    pub(super) start: u32,
    pub(super) verdict: Verdict,
}

/// `struct sock_filter`.
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

/// The last instruction first.
#[derive(Default)]
struct Program {
    instructions: Vec<Instruction>,
    /// Where each verdict is given, for all that come to it.
    leaves: HashMap<Verdict, Place>,
}

/// The bytes of a filter: each ABI's intervals are in order, and the first starts at 0.
pub(super) fn assemble(abis: &[(Abi, Vec<Interval>)]) -> Vec<u8> {
    let mut program = Program::default();
    // No other is offered by a kernel of the architecture.
    let mut otherwise = program.leave(KILL_PROCESS);
    for (abi, intervals) in abis.iter().rev() {
        let search = program.search(intervals);
        let search = program.load(NUMBER, search);
        otherwise = program.branch(Test::Equal, abi.audit(), search, otherwise);
    }
    program.load(ARCH, otherwise);
    program.instructions.iter().rev().flat_map(Instruction::bytes).collect()
}

impl Program {
    fn search(&mut self, intervals: &[Interval]) -> Place {
        match intervals {
            [] => self.leaf(Verdict::Fail(EPERM)),
            [only] => self.leaf(only.verdict),
            _ => {
                let (low, high) = intervals.split_at(intervals.len() / 2);
                let start = high[0].start;
                let (high, low) = (self.search(high), self.search(low));
                self.branch(Test::AtLeast, start, high, low)
            }
        }
    }

    fn leaf(&mut self, verdict: Verdict) -> Place {
        if let Some(place) = self.leaves.get(&verdict) {
            return *place;
        }
        let place = match verdict {
            Verdict::Allow => self.leave(ALLOW),
            Verdict::Fail(errno) => self.leave(ERRNO | u32::from(errno)),
            Verdict::Check(check) => self.check(check),
        };
        self.leaves.insert(verdict, place);
        place
    }

    fn check(&mut self, check: Check) -> Place {
        let allow = self.leaf(Verdict::Allow);
        let refuse = self.leaf(Verdict::Fail(EPERM));
        match check {
            // The kernel takes an int: the upper half counts for nothing, and must not hide a family.
            Check::Family => {
                let tests = self.among(&REFUSED_FAMILIES, refuse, allow);
                self.load(FIRST_ARGUMENT, tests)
            }
            Check::Namespaces => {
                let test = self.branch(Test::AnyBit, NAMESPACES, refuse, allow);
                self.load(FIRST_ARGUMENT, test)
            }
            // libseccomp compares all 64 bits.
            Check::Personality => {
                let tests = self.among(&PERSONALITIES, allow, refuse);
                let low = self.load(FIRST_ARGUMENT, tests);
                let high = self.branch(Test::Equal, 0, low, refuse);
                self.load(FIRST_ARGUMENT_HIGH, high)
            }
        }
    }

    fn among(&mut self, values: &[u32], yes: Place, no: Place) -> Place {
        values.iter().fold(no, |no, value| self.branch(Test::Equal, *value, yes, no))
    }

    fn push(&mut self, code: u16, if_true: u8, if_false: u8, k: u32) -> Place {
        self.instructions.push(Instruction { code, if_true, if_false, k });
        Place(self.instructions.len() - 1)
    }

    fn leave(&mut self, action: u32) -> Place {
        self.push(RETURN, 0, 0, action)
    }

    fn load(&mut self, field: u32, next: Place) -> Place {
        if self.skipped(next) > 0 {
            self.jump(next);
        }
        self.push(LOAD_WORD, 0, 0, field)
    }

    fn branch(&mut self, test: Test, value: u32, yes: Place, no: Place) -> Place {
        let (yes, no) = (self.near(yes), self.near(no));
        match (u8::try_from(self.skipped(yes)), u8::try_from(self.skipped(no))) {
            (Ok(yes), Ok(no)) => self.push(test as u16, yes, no, value),
            // `no` came on top of `yes` and moved it out of reach.
            _ => {
                let yes = self.jump(yes);
                self.branch(test, value, yes, no)
            }
        }
    }

    /// A place within reach of a conditional jump that leads there: its distance is one byte.
    fn near(&mut self, place: Place) -> Place {
        if self.skipped(place) <= u32::from(u8::MAX) { place } else { self.jump(place) }
    }

    fn jump(&mut self, place: Place) -> Place {
        self.push(JUMP, 0, 0, self.skipped(place))
    }

    /// How many instructions the next one would jump over. Programs are far below the kernel's limit of 4096.
    fn skipped(&self, place: Place) -> u32 {
        u32::try_from(self.instructions.len() - place.0 - 1).unwrap_or(u32::MAX)
    }
}

impl Instruction {
    fn bytes(&self) -> [u8; 8] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_le_bytes(), self.k.to_le_bytes());
        [c0, c1, self.if_true, self.if_false, k0, k1, k2, k3]
    }
}
