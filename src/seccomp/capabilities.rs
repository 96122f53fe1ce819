//! Sets of the kernel's capabilities.

/// What a container has that asks for nothing else (moby `oci/caps/defaults.go`).
const DOCKERS_DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// In `cap_add` and `cap_drop`: every capability.
const EVERY: &str = "ALL";

/// A set of capabilities; bit n is the one with number n, as in `/proc/PID/status` and `capset(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Every capability's name without `CAP_`, at the index that is its number (`linux/capability.h`, complete since 5.9).
    pub const NAMES: [&'static str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];
    /// No capability at all.
    pub const NONE: Self = Self(0);
    /// Every capability of the kernel's.
    pub const ALL: Self = Self((1 << Self::NAMES.len()) - 1);

    /// The one with this name: in upper case, without `CAP_`.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().position(|n| *n == name).map(|number| Self(1 << number))
    }

    /// What a container is given without any `cap_add` or `cap_drop`.
    pub fn dockers_default() -> Self {
        Self::among(&DOCKERS_DEFAULT)
    }

    /// What a container is given with these lists of names, each without `CAP_` or `ALL` (moby
    /// `oci/caps/utils.go`, `TweakCapabilities`): what is added wins over what is dropped, except that `ALL` is added
    /// without what is dropped by name. Names that are no capability's count for nothing: the configuration refuses
    /// them.
    ///
    /// With `ALL` engines differ in what they give: 20.10 stops at AUDIT_READ, and none gives what it lacks itself.
    pub fn of<S: AsRef<str>>(cap_add: &[S], cap_drop: &[S]) -> Self {
        let every = |list: &[S]| list.iter().any(|name| name.as_ref() == EVERY);
        let (add, drop) = (Self::among(cap_add), Self::among(cap_drop));
        if every(cap_add) {
            Self::ALL.without(drop)
        } else if every(cap_drop) {
            add
        } else {
            Self::dockers_default().without(drop).with(add)
        }
    }

    /// The mask.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The names, in the order of their numbers.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .enumerate()
            .filter(move |(number, _)| self.0 & (1 << number) != 0)
            .map(|(_, name)| name)
    }

    /// Both sets' capabilities.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set's capabilities that the other lacks.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether one is in both.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn among<S: AsRef<str>>(names: &[S]) -> Self {
        names.iter().filter_map(|name| Self::named(name.as_ref())).fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        Capabilities::of(add, drop).names().collect()
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (name, number) in
            [("CHOWN", 0), ("SETPCAP", 8), ("SYS_ADMIN", 21), ("AUDIT_READ", 37), ("CHECKPOINT_RESTORE", 40)]
        {
            assert_eq!(Capabilities::named(name).map(Capabilities::bits), Some(1 << number), "{name}");
        }
        assert_eq!(Capabilities::named("CAP_CHOWN"), None);
        // CapBnd in /proc/self/status, in a container without options.
        assert_eq!(Capabilities::dockers_default().bits(), 0xa804_25fb);
        assert_eq!(Capabilities::ALL.bits(), 0x1ff_ffff_ffff);
    }

    #[test]
    fn lists_mean_what_they_mean_to_docker() {
        let default: Vec<_> = Capabilities::dockers_default().names().collect();
        assert_eq!(of(&[], &[]), default);
        assert_eq!(of(&[], &["ALL"]), [""; 0]);
        assert_eq!(of(&["CHOWN", "SYS_TIME"], &["ALL"]), ["CHOWN", "SYS_TIME"]);
        assert_eq!(of(&["ALL"], &[]), Capabilities::NAMES);
        assert_eq!(of(&["ALL"], &["ALL"]), Capabilities::NAMES, "only names are taken from ALL");
        assert_eq!(of(&["ALL"], &["CHOWN"]), Capabilities::NAMES[1..]);
        assert_eq!(of(&["KILL"], &["KILL"]), default, "what is added wins");
        assert!(of(&["SYS_NICE"], &["KILL"]).contains(&"SYS_NICE"));
        assert!(!of(&["SYS_NICE"], &["KILL"]).contains(&"KILL"));
    }
}
