//! Pure translation: a [`ContainerSpec`] to the body of `POST /containers/create`, the engine's answers to our
//! types.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, HealthConfig, HostConfig,
    HostConfigLogConfig, ImageInspect, Mount, MountType, MountVolumeOptions, ResourcesUlimits,
};

use super::{ContainerId, ContainerSpec, ContainerState, INIT_DIR, INIT_PATH, Image, Listed, SHORTCUT_PATH};
use crate::config::{Isolation, PoolConfig, Security};
use crate::seccomp::{self, Capabilities};

/// Init's argument; see [`crate::init::wire::NAMESPACE`].
const NAMESPACE: &str = "namespace";
/// Process limit of `security = "hardened"` where the pool sets none.
const HARDENED_PIDS: u64 = 512;

/// The body of a create request.
pub fn create_body(spec: &ContainerSpec) -> ContainerCreateBody {
    let pool = &*spec.pool;
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        // An entrypoint of our own also stops the engine from appending the image's CMD.
        entrypoint: Some(match pool.isolation {
            Isolation::Container => vec![INIT_PATH.into()],
            Isolation::Namespace => vec![INIT_PATH.into(), NAMESPACE.into()],
        }),
        cmd: None,
        env: (!pool.env.is_empty()).then(|| pool.env.iter().map(|(k, v)| format!("{k}={v}")).collect()),
        user: match pool.isolation {
            Isolation::Container => pool.user.clone(),
            // Init is root there, whoever jobs are.
            Isolation::Namespace => Some("0:0".into()),
        },
        working_dir: pool.workdir.clone(),
        labels: Some(spec.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect()),
        // The attached stream is the container's lease on life, unless the worker's socket is: stdin is opened once, and when its one
        // holder is gone it ends, which init takes as its own end.
        open_stdin: Some(true),
        stdin_once: Some(true),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        // A health check would run a second program beside the job, with an interval of its own.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
        host_config: Some(host_config(spec)),
        ..Default::default()
    }
}

/// The capabilities that a pool's jobs have, as the engine would give them.
pub fn capabilities(pool: &PoolConfig) -> Capabilities {
    Capabilities::of(&pool.cap_add, &cap_drop(pool))
}

fn cap_drop(pool: &PoolConfig) -> Vec<String> {
    let mut dropped = pool.cap_drop.clone();
    if pool.security == Security::Hardened && !dropped.iter().any(|c| c == "ALL") {
        dropped.insert(0, "ALL".into());
    }
    dropped
}

/// What init needs for itself with isolation `namespace`: to make namespaces and mounts, to enter those of a
/// job that is over (which setns(2) wants CAP_SYS_CHROOT for as well), device nodes, to become another
/// user, to give up what the pool's jobs don't have, and to stop them.
const INIT_NEEDS: [&str; 9] =
    ["SYS_ADMIN", "SYS_CHROOT", "MKNOD", "SETUID", "SETGID", "SETPCAP", "CHOWN", "DAC_OVERRIDE", "KILL"];

/// Init's own process counts against the limit too.
const INIT_PIDS: u64 = 1;

fn host_config(spec: &ContainerSpec) -> HostConfig {
    let pool = &*spec.pool;
    let hardened = pool.security == Security::Hardened;
    let namespace = pool.isolation == Isolation::Namespace;
    let (mut cap_add, mut cap_drop) = (pool.cap_add.clone(), cap_drop(pool));
    let mut security_opt = pool.security_opt.clone();
    if hardened && !security_opt.iter().any(|o| o.starts_with("no-new-privileges")) {
        security_opt.push("no-new-privileges".into());
    }
    let mut pids = pool.pids.or(hardened.then_some(HARDENED_PIDS));
    if namespace {
        // Exactly what jobs may have, and what init needs to make their worlds.
        let jobs = capabilities(pool);
        cap_drop = vec!["ALL".into()];
        let all = jobs.with(Capabilities::of(&INIT_NEEDS, &["ALL"]));
        cap_add = all.names().map(str::to_owned).collect();
        security_opt.retain(|option| !option.starts_with("seccomp="));
        security_opt.push(format!("seccomp={}", seccomp::container_profile(jobs)));
        // The engine's own profile denies mounts; jobs go under it again. Where there is no AppArmor this says nothing.
        security_opt.push("apparmor=unconfined".into());
        pids = pids.map(|pids| pids.saturating_add(INIT_PIDS));
    }
    HostConfig {
        // Nothing else removes a container whose worker was killed; anonymous volumes go with it.
        auto_remove: Some(true),
        // Output goes to the worker only: the daemon writes no copy of it to its disk.
        log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
        memory: pool.memory.map(to_i64),
        nano_cpus: pool.cpus_milli.map(|m| to_i64(m.saturating_mul(1_000_000))),
        cpu_shares: pool.cpu_shares.map(to_i64),
        pids_limit: pids.map(to_i64),
        network_mode: pool.network.clone().or(hardened.then(|| "none".into())),
        cap_add: some(cap_add),
        cap_drop: some(cap_drop),
        security_opt: some(security_opt),
        runtime: pool.runtime.clone(),
        readonly_rootfs: pool.read_only.then_some(true),
        tmpfs: (!pool.tmpfs.is_empty()).then(|| pool.tmpfs.clone().into_iter().collect::<HashMap<_, _>>()),
        mounts: Some(mounts(spec)),
        ulimits: some(
            pool.ulimits
                .iter()
                .map(|(name, l)| ResourcesUlimits {
                    name: Some(name.clone()),
                    soft: Some(l.soft),
                    hard: Some(l.hard),
                })
                .collect(),
        ),
        shm_size: pool.shm_size.map(to_i64),
        ..Default::default()
    }
}

fn mounts(spec: &ContainerSpec) -> Vec<Mount> {
    let init = Mount {
        typ: Some(MountType::VOLUME),
        source: Some(spec.init_volume.clone()),
        target: Some(INIT_DIR.into()),
        read_only: Some(true),
        // Nothing of the image is to be copied into the volume, should it have such a directory.
        volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
        ..Default::default()
    };
    let socket = spec.socket.as_ref().map(|path| Mount {
        typ: Some(MountType::BIND),
        source: Some(path.display().to_string()),
        target: Some(SHORTCUT_PATH.into()),
        ..Default::default()
    });
    let configured = spec.pool.mounts.iter().map(|m| Mount {
        typ: Some(if m.source.starts_with('/') { MountType::BIND } else { MountType::VOLUME }),
        source: Some(m.source.clone()),
        target: Some(m.target.clone()),
        read_only: Some(m.read_only),
        ..Default::default()
    });
    std::iter::once(init).chain(socket).chain(configured).collect()
}

fn some<T>(v: Vec<T>) -> Option<Vec<T>> {
    (!v.is_empty()).then_some(v)
}

fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What an image says of itself.
pub fn image(name: &str, inspect: ImageInspect) -> Image {
    let config = inspect.config.unwrap_or_default();
    Image {
        name: name.into(),
        id: inspect.id.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        stop_signal: config.stop_signal.filter(|s| !s.is_empty()),
        architecture: inspect.architecture.unwrap_or_default(),
    }
}

/// A line of a container list; `None` if it has no id.
pub fn listed(summary: ContainerSummary) -> Option<Listed> {
    use ContainerSummaryStateEnum as S;
    Some(Listed {
        id: ContainerId::new(&summary.id?),
        // The API puts a slash before each; other names are links that others made.
        name: summary
            .names
            .unwrap_or_default()
            .iter()
            .find_map(|n| n.strip_prefix('/'))
            .unwrap_or_default()
            .into(),
        labels: summary.labels.unwrap_or_default().into_iter().collect(),
        state: match summary.state {
            Some(S::CREATED) => ContainerState::Created,
            Some(S::RUNNING | S::RESTARTING) => ContainerState::Running,
            Some(S::PAUSED) => ContainerState::Paused,
            _ => ContainerState::Ended,
        },
        created: summary.created.unwrap_or(0),
    })
}

/// The name that Rust has for an architecture that an engine (`uname -m`) or an image (Go) names.
pub fn architecture(name: &str) -> &str {
    match name {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::config::{MountConfig, Ulimit};
    use crate::init::wire;

    fn body(edit: impl FnOnce(&mut PoolConfig)) -> ContainerCreateBody {
        create_body(&spec(edit))
    }

    fn spec(edit: impl FnOnce(&mut PoolConfig)) -> ContainerSpec {
        let mut pool = PoolConfig::of_image("busybox");
        edit(&mut pool);
        ContainerSpec {
            name: "n".into(),
            image: "sha256:1".into(),
            init_volume: "prewarm-init-x".into(),
            labels: BTreeMap::from([("a".into(), "b".into())]),
            pool: Arc::new(pool),
            socket: None,
        }
    }

    #[test]
    fn the_workers_socket_is_mounted_beside_init() {
        let spec = ContainerSpec { socket: Some("/run/prewarm/x.socket".into()), ..spec(|_| ()) };
        let mounts = create_body(&spec).host_config.unwrap().mounts.unwrap();
        let [init, socket] = &mounts[..] else { panic!("{mounts:?}") };
        assert_eq!((init.typ, init.target.as_deref()), (Some(MountType::VOLUME), Some(INIT_DIR)));
        // As a mount that must be there: the other kind makes a directory of what isn't.
        assert_eq!(socket.typ, Some(MountType::BIND));
        assert_eq!(socket.source.as_deref(), Some("/run/prewarm/x.socket"));
        assert_eq!(socket.target.as_deref(), Some(SHORTCUT_PATH));
        assert_eq!(SHORTCUT_PATH.as_bytes(), wire::SHORTCUT.to_bytes(), "where init looks for it");
    }

    #[test]
    fn a_plain_pool_leaves_everything_to_the_image_and_the_engine() {
        let b = body(|_| ());
        assert_eq!(b.entrypoint.as_deref(), Some(&["/.prewarm/init".to_string()][..]));
        assert_eq!((b.cmd, b.env, b.user, b.working_dir), (None, None, None, None));
        assert_eq!((b.open_stdin, b.stdin_once, b.tty), (Some(true), Some(true), Some(false)));
        let h = b.host_config.unwrap();
        assert_eq!(h.auto_remove, Some(true));
        assert_eq!(h.log_config.unwrap().typ.as_deref(), Some("none"));
        assert_eq!(
            (h.cap_add, h.cap_drop, h.security_opt, h.pids_limit, h.network_mode),
            (None, None, None, None, None)
        );
        let m = &h.mounts.unwrap()[0];
        assert_eq!((m.target.as_deref(), m.read_only), (Some("/.prewarm"), Some(true)));
    }

    #[test]
    fn hardened_is_the_strict_set_and_single_keys_refine_it() {
        let h = body(|p| p.security = Security::Hardened).host_config.unwrap();
        assert_eq!(h.cap_drop, Some(vec!["ALL".into()]));
        assert_eq!(h.security_opt, Some(vec!["no-new-privileges".into()]));
        assert_eq!((h.pids_limit, h.network_mode.as_deref()), (Some(512), Some("none")));

        let h = body(|p| {
            p.security = Security::Hardened;
            p.cap_add = vec!["CHOWN".into()];
            p.pids = Some(9);
            p.network = Some("bridge".into());
        })
        .host_config
        .unwrap();
        assert_eq!((h.cap_add, h.cap_drop), (Some(vec!["CHOWN".into()]), Some(vec!["ALL".into()])));
        assert_eq!((h.pids_limit, h.network_mode.as_deref()), (Some(9), Some("bridge")));
    }

    #[test]
    fn limits_and_mounts_are_translated() {
        let b = body(|p| {
            p.env = vec![("A".into(), "1=2".into())];
            p.memory = Some(64 << 20);
            p.cpus_milli = Some(1500);
            p.shm_size = Some(1 << 20);
            p.tmpfs = BTreeMap::from([("/scratch".into(), "size=64m".into())]);
            p.ulimits = BTreeMap::from([("nofile".into(), Ulimit { soft: 1, hard: -1 })]);
            p.mounts = vec![
                MountConfig { source: "/srv".into(), target: "/s".into(), read_only: true, shared: false },
                MountConfig { source: "vol".into(), target: "/v".into(), read_only: false, shared: false },
            ];
        });
        assert_eq!(b.env, Some(vec!["A=1=2".into()]));
        let h = b.host_config.unwrap();
        assert_eq!((h.memory, h.nano_cpus, h.shm_size), (Some(64 << 20), Some(1_500_000_000), Some(1 << 20)));
        assert_eq!(h.tmpfs.unwrap()["/scratch"], "size=64m");
        let u = &h.ulimits.unwrap()[0];
        assert_eq!((u.name.as_deref(), u.soft, u.hard), (Some("nofile"), Some(1), Some(-1)));
        let kinds: Vec<_> = h.mounts.unwrap().iter().map(|m| m.typ).collect();
        assert_eq!(kinds, [Some(MountType::VOLUME), Some(MountType::BIND), Some(MountType::VOLUME)]);
    }
}
