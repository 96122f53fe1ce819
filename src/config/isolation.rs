//! Isolation `namespace`: what a pool must not ask for, since the next job in the same container would see something of it.

use super::reader::{Outcome, Section};
use super::{Isolation, MountConfig, PoolConfig};
use crate::seccomp::Capabilities;

/// Capabilities beside Docker's default ones that reach nothing outside a job's own namespaces.
const HARMLESS: [&str; 7] =
    ["IPC_LOCK", "IPC_OWNER", "LEASE", "NET_BROADCAST", "SYS_NICE", "SYS_PTRACE", "SYS_RESOURCE"];

/// Refuses what can't be kept clean, and keys that would do nothing.
pub(super) fn check(
    section: &mut Section<'_, '_>,
    pool: &PoolConfig,
    written: &[&'static str],
) -> Outcome<()> {
    match pool.isolation {
        Isolation::Container => {
            let mut outcome = Ok(());
            for key in written {
                outcome = Err(section.wrong(
                    key,
                    "has a meaning with isolation = \"namespace\" alone: write that too, or leave this out",
                ));
            }
            outcome
        }
        Isolation::Namespace => keeps_clean(section, pool),
    }
}

fn keeps_clean(section: &mut Section<'_, '_>, pool: &PoolConfig) -> Outcome<()> {
    let mut outcome = Ok(());
    for (key, why) in not_clean(pool) {
        outcome = Err(section.wrong(key, format!("{why}; or write isolation = \"container\"")));
    }
    outcome
}

/// What of a pool's options the next job in the same container would see something of: the key, and why.
pub(super) fn not_clean(pool: &PoolConfig) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut refuse = |key, why: String| found.push((key, why));
    let default = Capabilities::dockers_default();
    let harmless = |name: &String| {
        let is_default = || default.names().any(|one| one == name);
        HARMLESS.contains(&name.as_str()) || is_default()
    };
    for capability in pool.cap_add.iter().filter(|name| !harmless(name)) {
        refuse(
            "cap_add",
            format!(
                "'{capability}' reaches what jobs in one container share, or the host: with isolation = \"namespace\" \
                 leave it out"
            ),
        );
    }
    for option in pool.security_opt.iter().filter(|option| !option.starts_with("no-new-privileges")) {
        let name = option.split('=').next().unwrap_or_default();
        if option != "seccomp=builtin" {
            refuse(
                "security_opt",
                format!(
                    "'{name}' can't be chosen with isolation = \"namespace\", where every job gets the engine's default: \
                     leave it out"
                ),
            );
        }
    }
    if pool.ulimits.contains_key("cpu") {
        refuse(
            "ulimits",
            "'cpu' would count what init uses for all jobs of the container: with isolation = \"namespace\" leave it out, and \
             write timeout or cpus"
                .into(),
        );
    }
    if pool.network.as_deref() == Some("host") {
        refuse(
            "network",
            "'host' is shared with the host, and what one job leaves there the next one meets: write \"none\", \
             \"bridge\" or a network's name"
                .into(),
        );
    }
    let writable = |mount: &&MountConfig| !mount.read_only && !mount.shared;
    for mount in pool.mounts.iter().filter(writable) {
        refuse(
            "mounts",
            format!(
                "what one job writes to '{}' the next one sees: write read_only = true, or shared = true if that is \
                 meant",
                mount.target
            ),
        );
    }
    found
}
