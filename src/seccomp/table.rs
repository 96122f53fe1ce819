//! Docker's default profile as a table: which system call is allowed when, and its number in each ABI.

use super::capabilities::Capabilities;

/// Written on the kernel's side of the table: 400 lines that are data, not code.
const FACTS: &str = include_str!("syscalls.csv");

/// What isn't allowed fails with this.
pub(super) const EPERM: u16 = 1;
/// What the profile doesn't know yet fails with this, so that programs fall back as on an older kernel.
pub(super) const ENOSYS: u16 = 38;

/// Address families that `socket` refuses. AF_VSOCK (40) reaches the hypervisor, past network namespaces: refused since
/// 23.0. AF_ALG (38), the kernel's cryptography, since 29.4.2 (moby/profiles seccomp 0.2.1, for CVEs in it).
pub(super) const REFUSED_FAMILIES: [u32; 2] = [38, 40];

/// What may be given to `personality`: PER_LINUX, PER_LINUX32, each also with UNAME26, and the question which it is.
pub(super) const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: none may be given to `clone` without SYS_ADMIN.
pub(super) const NAMESPACES: u32 = 0x7e02_0000;

/// A way to call the kernel: its numbers are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    I386,
    Aarch64,
    Arm,
}

impl Abi {
    /// What a kernel of this architecture offers: its own, then the 32-bit one, which Docker's profile permits as well.
    pub(super) fn of(architecture: &str) -> Option<[Self; 2]> {
        match architecture {
            "x86_64" => Some([Self::X86_64, Self::I386]),
            "aarch64" => Some([Self::Aarch64, Self::Arm]),
            _ => None,
        }
    }

    /// `AUDIT_ARCH_…` of `linux/audit.h`: what the kernel tells a filter.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }
}

/// When a system call is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// `always`.
    Always,
    /// `SYS_ADMIN|SYSLOG`: with one of these.
    With(Capabilities),
    /// `socket`: unless the family is refused.
    Socket,
    /// `personality`: some arguments.
    Personality,
    /// `clone`: with SYS_ADMIN; otherwise without new namespaces.
    Clone,
    /// `clone3`: with SYS_ADMIN; otherwise unknown, since a filter can't see its flags. C libraries then use `clone`.
    Clone3,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    Allow,
    Fail(u16),
    /// Allowed or not by its first argument.
    Check(Check),
}

/// Which arguments are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Check {
    Family,
    Personality,
    Namespaces,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syscall {
    pub(super) name: &'static str,
    pub(super) rule: Rule,
    numbers: [Option<u32>; 4],
}

impl Syscall {
    /// Its number, if the ABI has it.
    pub(super) fn number(&self, abi: Abi) -> Option<u32> {
        self.numbers[abi as usize]
    }

    fn parse(line: &'static str) -> Option<Self> {
        let [name, rule, x86_64, i386, aarch64, arm] = line.split(',').collect::<Vec<_>>().try_into().ok()?;
        let numbers = [x86_64, i386, aarch64, arm].map(|n| n.parse().ok());
        Some(Self { name, rule: Rule::parse(rule)?, numbers })
    }
}

impl Rule {
    /// What the profile says of the call, if it names it for a container with these capabilities.
    pub(super) fn verdict(self, caps: Capabilities) -> Option<Verdict> {
        let admin = Capabilities::named("SYS_ADMIN").is_some_and(|admin| caps.intersects(admin));
        match self {
            Self::With(any) => caps.intersects(any).then_some(Verdict::Allow),
            Self::Always => Some(Verdict::Allow),
            Self::Clone | Self::Clone3 if admin => Some(Verdict::Allow),
            Self::Clone => Some(Verdict::Check(Check::Namespaces)),
            Self::Clone3 => Some(Verdict::Fail(ENOSYS)),
            Self::Socket => Some(Verdict::Check(Check::Family)),
            Self::Personality => Some(Verdict::Check(Check::Personality)),
        }
    }

    fn parse(word: &str) -> Option<Self> {
        match word {
            "always" => Some(Self::Always),
            "socket" => Some(Self::Socket),
            "personality" => Some(Self::Personality),
            "clone" => Some(Self::Clone),
            "clone3" => Some(Self::Clone3),
            _ => word
                .split('|')
                .try_fold(Capabilities::NONE, |any, name| Some(any.with(Capabilities::named(name)?)))
                .map(Self::With),
        }
    }
}

/// The table.
pub(super) fn syscalls() -> impl Iterator<Item = Syscall> {
    lines().filter_map(Syscall::parse)
}

fn lines() -> impl Iterator<Item = &'static str> {
    FACTS.lines().filter(|line| !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_line_is_read_and_nothing_is_there_twice() {
        let table: Vec<_> = syscalls().collect();
        assert_eq!(table.len(), lines().count());
        assert!(table.is_sorted_by(|a, b| a.name < b.name));
        for (column, abi) in [Abi::X86_64, Abi::I386, Abi::Aarch64, Abi::Arm].into_iter().enumerate() {
            let numbers: Vec<_> = table.iter().filter_map(|s| s.number(abi)).collect();
            assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), numbers.len(), "{abi:?}");
            // A word that is no number would have become 'not in this ABI'.
            let written = lines().filter(|l| l.split(',').nth(2 + column).is_some_and(|n| !n.is_empty()));
            assert_eq!(numbers.len(), written.count(), "{abi:?}");
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        let of = |name: &str| syscalls().find(|s| s.name == name).unwrap().numbers;
        assert_eq!(of("write"), [Some(1), Some(4), Some(64), Some(4)]);
        assert_eq!(of("openat2"), [Some(437); 4]);
        assert_eq!(of("fork"), [Some(57), Some(2), None, Some(2)]);
        assert_eq!(of("set_tls"), [None, None, None, Some(0x0f_0005)]);
    }
}
