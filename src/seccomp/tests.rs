//! Filters, run by an interpreter, against what the table's lines say one by one; and against Docker's own, as its
//! engine gave it to runc.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::table::{Abi, ENOSYS, EPERM, Rule, Syscall, syscalls};
use super::{Capabilities, container_profile, job_filter};

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

fn errno(errno: u16) -> u32 {
    0x0005_0000 | u32::from(errno)
}

/// As the kernel runs it: the return value, and how many instructions it took.
fn run(filter: &[u8], number: u32, arch: u32, arguments: [u64; 6]) -> (u32, usize) {
    let mut data = [number.to_le_bytes(), arch.to_le_bytes()].concat();
    data.extend([0; 8]);
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut word, mut at) = (0, 0);
    for steps in 1.. {
        let instruction: [u8; 8] = filter[at * 8..at * 8 + 8].try_into().unwrap();
        let [c0, c1, yes, no, k @ ..] = instruction;
        let k = u32::from_le_bytes(k);
        at += 1;
        let holds = match u16::from_le_bytes([c0, c1]) {
            0x06 => return (k, steps),
            0x20 => {
                let from = k as usize;
                word = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                continue;
            }
            0x05 => {
                at += k as usize;
                continue;
            }
            0x15 => word == k,
            0x35 => word >= k,
            0x45 => word & k != 0,
            code => panic!("code {code:#x}"),
        };
        at += usize::from(if holds { yes } else { no });
    }
    unreachable!()
}

/// What a call must come to, from the table's line alone.
fn expected(call: Option<&Syscall>, caps: Capabilities, first: u64, newest: bool) -> u32 {
    let has = |name| caps.intersects(Capabilities::named(name).unwrap());
    let allowed = match call.map(|call| call.rule) {
        None if newest => return errno(ENOSYS),
        None => false,
        Some(Rule::Always) => true,
        Some(Rule::With(any)) => any.names().any(has),
        Some(Rule::Clone3) if has("SYS_ADMIN") => true,
        Some(Rule::Clone3) => return errno(ENOSYS),
        Some(Rule::Clone) => has("SYS_ADMIN") || first & 0x7e02_0000 == 0,
        Some(Rule::Socket) => ![38, 40].contains(&(first & 0xffff_ffff)),
        Some(Rule::Personality) => [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff].contains(&first),
    };
    if allowed { ALLOW } else { errno(EPERM) }
}

/// The default capabilities and these.
fn with(names: &[&str]) -> Capabilities {
    Capabilities::of(names, &[])
}

fn sets() -> Vec<Capabilities> {
    let single = Capabilities::NAMES.into_iter().map(|name| with(&[name]));
    single.chain([Capabilities::NONE, Capabilities::ALL, with(&["SYS_PTRACE", "SYS_TIME", "BPF"])]).collect()
}

#[test]
fn every_number_comes_to_what_its_line_says() {
    for architecture in ["x86_64", "aarch64"] {
        for caps in sets() {
            let filter = job_filter(architecture, caps).unwrap();
            for abi in Abi::of(architecture).unwrap() {
                let known: Vec<_> = syscalls().filter(|call| call.number(abi).is_some()).collect();
                let last = if abi == Abi::Arm { 0x0f_0005 } else { 449 };
                for number in (0..600).chain(0x0e_fffe..0x0f_0008).chain([0x3fff_ffff, 0x4000_0000, u32::MAX])
                {
                    let call = known.iter().find(|call| call.number(abi) == Some(number));
                    for first in [0, 8, 38, 40, 0x0002_0000, 0x7e02_0000] {
                        let (action, steps) = run(&filter, number, abi.audit(), [first, 0, 0, 0, 0, 0]);
                        let wanted = expected(call, caps, first, number > last);
                        assert_eq!(action, wanted, "{abi:?} {number} ({first:#x}) {caps:?}");
                        // What makes it quick to install.
                        assert!(steps <= 20, "{abi:?} {number}: {steps} instructions");
                    }
                }
            }
            assert!(filter.len() <= 8 * 400, "{} instructions", filter.len() / 8);
        }
    }
}

#[test]
fn another_architecture_has_no_filter_and_its_calls_kill() {
    assert_eq!(job_filter("riscv64", Capabilities::NONE), None);
    let filter = job_filter("x86_64", Capabilities::NONE).unwrap();
    assert_eq!(run(&filter, 0, Abi::Aarch64.audit(), [0; 6]).0, KILL_PROCESS);
}

proptest! {
    #[test]
    fn arguments_decide_as_their_rules_say(
        raw in any::<u64>(),
        bit in 0u32..64,
        near in prop::sample::select(vec![0u64, 8, 38, 39, 40, 0x2_0000, 0x2_0008, 0xffff_ffff, 17, 0x7e02_0000]),
        abi in prop::sample::select(vec![Abi::X86_64, Abi::I386, Abi::Aarch64, Abi::Arm]),
        caps in prop::sample::select(sets()),
    ) {
        let architecture = if matches!(abi, Abi::X86_64 | Abi::I386) { "x86_64" } else { "aarch64" };
        let filter = job_filter(architecture, caps).unwrap();
        for name in ["clone", "personality", "socket"] {
            let call = syscalls().find(|call| call.name == name).unwrap();
            // Anything; one bit; a value that matters, and all but it.
            for first in [raw, 1 << bit, near, near ^ (1 << bit), raw << 32 | near] {
                let arguments = [first, raw, raw, raw, raw, raw];
                let (action, _) = run(&filter, call.number(abi).unwrap(), abi.audit(), arguments);
                prop_assert_eq!(action, expected(Some(&call), caps, first, false), "{} {:#x}", name, first);
            }
        }
    }
}

/// The names that a profile or a bundle allows whatever the arguments, and those that it allows with some.
fn allowed(profile: &Value) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut always, mut sometimes) = (BTreeSet::new(), BTreeSet::new());
    for rule in profile["syscalls"].as_array().unwrap() {
        if rule["action"] == "SCMP_ACT_ALLOW" {
            let to = if rule["args"].is_array() { &mut sometimes } else { &mut always };
            to.extend(rule["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        }
    }
    (always, sometimes)
}

fn ours(caps: Capabilities) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut always, mut sometimes) = (BTreeSet::new(), BTreeSet::new());
    for call in syscalls() {
        match call.rule.verdict(caps) {
            Some(super::Verdict::Allow) => always.insert(call.name.to_owned()),
            Some(super::Verdict::Check(_)) => sometimes.insert(call.name.to_owned()),
            _ => false,
        };
    }
    (always, sometimes)
}

#[test]
fn a_container_may_do_what_its_jobs_may_and_what_init_needs() {
    for caps in sets() {
        let profile: Value = serde_json::from_str(&container_profile(caps)).unwrap();
        let (always, sometimes) = allowed(&profile);
        let (job_always, job_sometimes) = ours(caps);
        let needs: BTreeSet<String> = super::NEEDS_OF_INIT.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(always, &job_always | &needs);
        assert_eq!(sometimes, &job_sometimes - &needs);
        // And those by the same arguments: an OR of rules with one condition each.
        for (name, values) in [("socket", 0..70), ("personality", 0..70)] {
            for value in values.chain([0x2_0000, 0x2_0008, 0x2_0009, 0xffff_ffff]) {
                let by_rules = profile["syscalls"].as_array().unwrap().iter().any(|rule| {
                    let arg = &rule["args"][0];
                    let than = arg["value"].as_u64().unwrap_or_default();
                    rule["names"][0] == name
                        && match arg["op"].as_str() {
                            Some("SCMP_CMP_EQ") => value == than,
                            Some("SCMP_CMP_LT") => value < than,
                            Some("SCMP_CMP_GT") => value > than,
                            _ => false,
                        }
                });
                let call = syscalls().find(|call| call.name == name).unwrap();
                assert_eq!(by_rules, expected(Some(&call), caps, value, false) == ALLOW, "{name} {value:#x}");
            }
        }
    }
}

/// The numbers on the lines of a recorded filter that begin with these two words.
fn recorded(capability: &str, abi: &str) -> BTreeSet<u32> {
    let lines = include_str!("docker-20.10.24.txt").lines();
    let ranges = lines.filter_map(|line| line.strip_prefix(capability)?.strip_prefix(' ')?.strip_prefix(abi));
    ranges
        .flat_map(str::split_whitespace)
        .flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            first.parse::<u32>().unwrap()..=last.parse().unwrap()
        })
        .collect()
}

#[test]
fn filters_allow_what_dockers_own_did() {
    let io_uring = (425..=427).collect();
    for (abi, name) in [(Abi::X86_64, "x86_64"), (Abi::I386, "i386")] {
        let without = &recorded("none", name) - &io_uring;
        assert!(without.len() > 250);
        for capability in Capabilities::NAMES {
            let caps = Capabilities::of(&[capability], &["ALL"]);
            // 20.10 can't give these two.
            let newer: &[u32] = match (capability, abi) {
                ("BPF", Abi::X86_64) => &[321],
                ("BPF", _) => &[357],
                ("PERFMON", Abi::X86_64) => &[298],
                ("PERFMON", _) => &[336],
                _ => &[],
            };
            let wanted = &(&without | &recorded(capability, name)) | &newer.iter().copied().collect();
            let filter = job_filter("x86_64", caps).unwrap();
            let allowed: BTreeSet<u32> =
                (0..1024).filter(|&number| run(&filter, number, abi.audit(), [0; 6]).0 == ALLOW).collect();
            assert_eq!(allowed, wanted, "{capability} {name}");
        }
    }
}
