//! The profile of a container that serves many jobs, for the engine: what its jobs may do, and init beyond that.

use serde_json::{Value, json};

use super::capabilities::Capabilities;
use super::table::{Check, NAMESPACES, PERSONALITIES, REFUSED_FAMILIES, Verdict, syscalls};

/// What init itself calls to make a job's namespaces and file systems and to give up what it has, and what the default
/// profile has for containers with CAP_SYS_ADMIN alone, or (`pivot_root`) for none. Those that every job may call as
/// well are here so that the list is whole.
pub const NEEDS_OF_INIT: [&str; 11] = [
    "capset",
    "clone",
    "mknodat",
    "mount",
    "pivot_root",
    "prctl",
    "seccomp",
    "setgroups",
    "sethostname",
    "setns",
    "umount2",
];

/// A profile in Docker's format, for `SecurityOpt: seccomp=…`.
///
/// Everything that [`job_filter`](super::job_filter) allows with these capabilities is allowed, on any
/// architecture: the kernel takes the stricter of two filters, so what is missing here would be missing there.
pub fn container_profile(caps: Capabilities) -> String {
    let mut allowed: Vec<&str> = NEEDS_OF_INIT.to_vec();
    let mut rules = Vec::new();
    for call in syscalls().filter(|call| !NEEDS_OF_INIT.contains(&call.name)) {
        match call.rule.verdict(caps) {
            None => {}
            Some(Verdict::Allow) => allowed.push(call.name),
            // Of two errors the job's wins, but this one init meets too: C libraries fall back on ENOSYS, not on EPERM.
            Some(Verdict::Fail(errno)) => {
                rules.push(json!({"names": [call.name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}));
            }
            Some(Verdict::Check(check)) => rules.extend(arguments(check).into_iter().map(
                |argument| json!({"names": [call.name], "action": "SCMP_ACT_ALLOW", "args": [argument]}),
            )),
        }
    }
    allowed.sort_unstable();
    rules.insert(0, json!({"names": allowed, "action": "SCMP_ACT_ALLOW"}));
    json!({
        // EPERM, wherever nothing else is said: `defaultErrnoRet` is unknown to 20.10.
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        ],
        "syscalls": rules,
    })
    .to_string()
}

/// The good values of a first argument, each a rule of its own: any may match.
fn arguments(check: Check) -> Vec<Value> {
    let argument = |op: &str, value: u32| json!({"index": 0, "op": op, "value": value});
    match check {
        Check::Personality => PERSONALITIES.map(|value| argument("SCMP_CMP_EQ", value)).to_vec(),
        // Masked with `value`, it must be `valueTwo`.
        Check::Namespaces => {
            vec![json!({"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": NAMESPACES, "valueTwo": 0})]
        }
        // libseccomp compares an argument once a rule: below the first, above the last, and each one between.
        Check::Family => {
            let [first, .., last] = REFUSED_FAMILIES;
            (first..last)
                .filter(|family| !REFUSED_FAMILIES.contains(family))
                .map(|family| argument("SCMP_CMP_EQ", family))
                .chain([argument("SCMP_CMP_LT", first), argument("SCMP_CMP_GT", last)])
                .collect()
        }
    }
}
