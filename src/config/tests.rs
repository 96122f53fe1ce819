//! Whole configurations: defaults, every class of fault with its place, variables, and hostile input.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// The example of the design, with every key that it mentions.
const EXAMPLE: &str = r#"
[broker]
url = "amqp://guest:guest@127.0.0.1:5672/%2f"
prefix = "prewarm"

[http]
listen = "127.0.0.1:9464"

[pool.build]                       # a job's pool is its routing key
image = "acme/build:7"
idle = { min = 2, max = 8, hit_target = 0.99 }
concurrency = 4                    # jobs of this pool at once
timeout = { default = "10m", max = "2h" }
memory = "2GiB"
cpus = 1.5
pids = 256
network = "bridge"
security = "docker"                # default: what `docker run` gives; "hardened": no capabilities,
cap_add = ["CHOWN"]                # no_new_privs, 512 pids, no network unless named. The single keys
cap_drop = []                      # (cap_add, cap_drop, security_opt, pids, network …) refine either
isolation = "container"
# as in Docker: entrypoint, args, env, user, workdir, read_only, cpu_shares, shm_size, runtime,
tmpfs = { "/scratch" = "size=64m" }
ulimits = { nofile = 1024 }        # or { nofile = { soft = 1024, hard = 4096 } }
mounts = [{ source = "/srv/cache", target = "/cache", read_only = true }]
"#;

const MINIMAL: &str = "[pool.build]\nimage = \"x\"\n";

fn parse_with(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, Faults> {
    let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    parse(Path::new("f.toml"), text, environment)
}

fn loaded(text: &str) -> Config {
    parse_with(text, &[]).unwrap_or_else(|faults| panic!("{faults}\nin\n{text}")).config
}

/// The keys of a pool that is otherwise fine, from line 3 on.
fn pool_with(keys: &str) -> PoolConfig {
    loaded(&format!("{MINIMAL}{keys}")).pools.into_values().next().expect("a pool")
}

fn faults(text: &str) -> Vec<String> {
    faults_with(text, &[])
}

fn faults_with(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let faults = parse_with(text, environment).expect_err(text);
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn everything_but_the_image_has_a_default() {
    let config = loaded(MINIMAL);
    let second = Duration::from_secs(1);
    assert_eq!(
        config.broker,
        BrokerConfig {
            urls: vec!["amqp://guest:guest@127.0.0.1:5672/%2f".into()],
            tls: TlsConfig::default(),
            prefix: "prewarm".into(),
            topology: TopologyMode::Declare,
            heartbeat: 10 * second,
            timeout: 10 * second,
            delivery_limit: 20,
            reply_patience: 30 * second,
            retry_delays: [1, 10, 60, 300].map(Duration::from_secs).into(),
            expired: Expired::Dead,
        }
    );
    assert_eq!(config.engine, EngineConfig { timeout: 60 * second, ..EngineConfig::default() });
    assert_eq!((config.http.listen.to_string().as_str(), config.http.page), ("127.0.0.1:9464", true));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux");
    assert_eq!(
        config.worker,
        WorkerConfig {
            name: host.trim().into(),
            drain_timeout: 3600 * second,
            retries: 4,
            lease_timeout: 120 * second,
            max_message: 16 << 20,
            runtime_dir: None,
            reply_to: vec!["*".into()],
            cancel_memory: 24 * 3600 * second,
            remember: 60 * second,
        }
    );
    assert_eq!(
        config.pools[&PoolName::new("build").expect("a name")],
        PoolConfig {
            image: "x".into(),
            pull: Pull::Missing,
            idle: IdleConfig { min: 1, max: 4, hit_target: 0.99, ttl: None, max_age: None },
            concurrency: 4,
            timeout: TimeoutConfig { default: 3600 * second, max: 24 * 3600 * second },
            stop_grace: 10 * second,
            logs_limit: 10 << 20,
            secrets_from: None,
            files: FilesConfig { max: 100, size: 16 << 20 },
            artifacts: ArtifactsConfig { max: 100, size: 64 << 20, inline: 256 << 10, timeout: 60 * second },
            entrypoint: None,
            args: None,
            env: vec![],
            user: None,
            workdir: None,
            memory: None,
            cpus_milli: None,
            cpu_shares: None,
            pids: None,
            network: None,
            security: Security::Docker,
            cap_add: vec![],
            cap_drop: vec![],
            security_opt: vec![],
            runtime: None,
            read_only: false,
            tmpfs: BTreeMap::new(),
            mounts: vec![],
            ulimits: BTreeMap::new(),
            shm_size: None,
            isolation: Isolation::Container,
            scratch: 1 << 30,
            max_jobs: 10_000,
        }
    );
}

#[test]
fn the_designs_example_loads_unchanged() {
    let pool = loaded(EXAMPLE).pools.into_values().next().expect("a pool");
    assert_eq!(pool.image, "acme/build:7");
    assert_eq!(pool.idle, IdleConfig { min: 2, max: 8, hit_target: 0.99, ttl: None, max_age: None });
    assert_eq!(pool.timeout.default, Duration::from_secs(600));
    assert_eq!(pool.timeout.max, Duration::from_secs(7200));
    assert_eq!((pool.memory, pool.cpus_milli, pool.pids), (Some(2 << 30), Some(1500), Some(256)));
    assert_eq!(pool.network.as_deref(), Some("bridge"));
    assert_eq!(pool.cap_add, ["CHOWN"]);
    assert_eq!(pool.tmpfs["/scratch"], "size=64m");
    assert_eq!(pool.ulimits["nofile"], Ulimit { soft: 1024, hard: 1024 });
    let mount =
        MountConfig { source: "/srv/cache".into(), target: "/cache".into(), read_only: true, shared: false };
    assert_eq!(pool.mounts, [mount]);
}

#[test]
fn each_fault_has_its_place() {
    for (key, fault) in [
        ("[broker]\nurl = \"http://u:secret@h\"", "2:7: broker.url: not a broker's URL: write"),
        ("[broker]\nurl = 5", "2:7: broker.url: not text: write"),
        ("[broker]\nurl = [\"amqp://u:secret@h\", \"amqp://u:secret@\"]", "2:29: broker.url[1]: has no host"),
        ("[broker]\nurl = []", "2:7: broker.url: empty: write at least one"),
        ("[broker]\nurl = [5]", "2:8: broker.url[0]: not text: write"),
        ("[broker.tls]\ncert = \"x\"", "2:8: broker.tls.cert: needs its key"),
        ("[broker.tls]\nkey = \"x\"", "2:7: broker.tls.key: needs its certificate"),
        ("[broker.tls]\nca = \"/nonexistent\"", "2:6: broker.tls.ca: '/nonexistent' can't be read"),
        ("[broker.tls]\nserver_name = \"a b\"", "2:15: broker.tls.server_name: 'a b' is not a host's name"),
        ("[broker.tls]\nserver_name = \"h\"", "1:1: broker.tls: of no effect"),
        ("[broker.tls]\ninsecure = true", "2:1: broker.tls: unknown key 'insecure'"),
        ("[broker]\nprefix = \"a b\"", "2:10: broker.prefix: 'a b' is not a name: use 1 to 64"),
        (
            "[broker]\ntopology = \"chek\"",
            "2:12: broker.topology: 'chek' is not known here: write \"declare\", \"check\"; did you mean 'check'?",
        ),
        ("[broker]\ntopology = true", "2:12: broker.topology: 'true' is not known here"),
        ("[broker]\nheartbeat = 10", "2:13: broker.heartbeat: '10' has no unit: write 10s or 10m"),
        ("[broker]\nheartbeat = \"6m\"", "2:13: broker.heartbeat: '6m' is not in range: write 1s to 5m"),
        (
            "[broker]\ndelivery_limit = 0",
            "2:18: broker.delivery_limit: '0' is not in range: write a whole number from 1",
        ),
        ("[broker]\nretry_delays = \"1s\"", "2:16: broker.retry_delays: '1s' is not an array: write"),
        ("[broker]\nretry_delays = []", "2:16: broker.retry_delays: has 0 delays: write 1 to 10"),
        (
            "[broker]\nretry_delays = [\"1s\",\"2s\",\"3s\",\"4s\",\"5s\",\"6s\",\"7s\",\"8s\",\"9s\",\"10s\",\"11s\"]",
            "2:16: broker.retry_delays: has 11 delays: write 1 to 10",
        ),
        ("[broker]\nretry_delays = [1]", "2:17: broker.retry_delays[0]: '1' has no unit: write 1s or 1m"),
        (
            "[broker]\nretry_delays = [\"9ms\"]",
            "2:17: broker.retry_delays[0]: '9ms' is not in range: write 10ms to 1d",
        ),
        (
            "[broker]\nretry_delays = [\"25h\"]",
            "2:17: broker.retry_delays[0]: '25h' is not in range: write 10ms to 1d",
        ),
        (
            "[broker]\nretry_delays = [\"10ms 500us\"]",
            "2:17: broker.retry_delays[0]: '10ms 500us' is not a whole number of milliseconds",
        ),
        (
            "[broker]\nretry_delays = [\"1m\", \"1s\"]",
            "2:23: broker.retry_delays[1]: '1s' is not longer than the delay before it, 1m: write them in growing order",
        ),
        (
            "[broker]\nretry_delays = [\"1s\", \"1000ms\"]",
            "2:23: broker.retry_delays[1]: '1000ms' is not longer than the delay before it, 1s",
        ),
        ("[engine]\nhost = \"docker.sock\"", "2:8: engine.host: not an engine's address: write"),
        (
            "[engine]\ntimeout = \"soon\"",
            "2:11: engine.timeout: 'soon' is not a duration: write 30s, 10m or 1h 30m",
        ),
        ("[engine]\ncreations = 1.5", "2:13: engine.creations: '1.5' is not a whole number: write"),
        (
            "[http]\nlisten = \"localhost:9464\"",
            "2:10: http.listen: 'localhost:9464' is not an IP address and port",
        ),
        ("[worker]\nname = \"\"", "2:8: worker.name: '' is not a name"),
        (
            "[worker]\nretries = 21",
            "2:11: worker.retries: '21' is not in range: write a whole number from 1 to 20",
        ),
        (
            "[worker]\nmax_message = \"1GiB\"",
            "2:15: worker.max_message: '1GiB' is not in range: write 1KiB to 512MiB",
        ),
        (
            "[worker]\ndrain_timeout = \"99999999999999999999y\"",
            "2:17: worker.drain_timeout: '99999999999999999999y' is not a duration",
        ),
        ("[worker]\nretrys = 1", "2:1: worker: unknown key 'retrys'; did you mean 'retries'?"),
        (
            "[worker]\nfoo = 1",
            "2:1: worker: unknown key 'foo'; known are cancel_memory, drain_timeout, lease_timeout, ",
        ),
        ("[brokr]", "1:2: unknown section 'brokr'; did you mean 'broker'?"),
        ("foo = 1", "1:1: unknown key 'foo'; known are broker, engine, http, pool, worker"),
        ("http = 1", "1:8: http: not a section: write [http]"),
        ("[[http]]", "1:1: http: not a section: write [http]"),
    ] {
        let found = faults(&format!("{key}\n{MINIMAL}"));
        assert_eq!(found.len(), 1, "{key}: {found:?}");
        assert!(found[0].starts_with(&format!("f.toml:{fault}")), "{key}: {found:?}");
        assert!(!found[0].contains("secret"), "{key}: {found:?}");
    }
}

#[test]
fn each_fault_of_a_pool_has_its_place() {
    for (key, fault) in [
        (
            "memory = \"2 gigs\"",
            "10: pool.build.memory: '2 gigs' is not a size: write 512MiB, 2GiB or a number of bytes",
        ),
        ("memory = \"5MiB\"", "10: pool.build.memory: '5MiB' is not in range: write at least 6MiB"),
        ("memory = -1", "10: pool.build.memory: '-1' is not a size"),
        (
            "memory = 99999999999999999999999",
            "10: pool.build.memory: '99999999999999999999999' is not a size",
        ),
        ("shm_size = 0", "12: pool.build.shm_size: '0' is not in range"),
        ("logs_limit = inf", "14: pool.build.logs_limit: 'inf' is not a size"),
        ("memroy = 1", "1: pool.build: unknown key 'memroy'; did you mean 'memory'?"),
        ("\"a\\nb\" = 1", "1: pool.build: unknown key 'a\\nb'; known are args, artifacts, cap_add, "),
        (
            "pull = \"sometimes\"",
            "8: pool.build.pull: 'sometimes' is not known here: write \"missing\", \"always\", \"never\"",
        ),
        ("idle = 0", "8: pool.build.idle: '0' is not in range: write a whole number from 1 to 10000"),
        ("idle = \"2\"", "8: pool.build.idle: '2' is not a whole number"),
        ("idle = { min = 5, max = 3 }", "16: pool.build.idle.min: '5' is above max: write at most 3"),
        ("idle = { max = 0 }", "16: pool.build.idle.max: '0' is not in range"),
        (
            "idle = { hit_target = 1.0 }",
            "23: pool.build.idle.hit_target: '1.0' is not in range: write a share",
        ),
        ("idle = { hit_target = nan }", "23: pool.build.idle.hit_target: 'nan' is not a number"),
        ("idle = { mn = 1 }", "10: pool.build.idle: unknown key 'mn'; did you mean 'min'?"),
        ("concurrency = 1001", "15: pool.build.concurrency: '1001' is not in range"),
        ("timeout = 600", "11: pool.build.timeout: '600' has no unit: write 600s or 600m"),
        ("timeout = \"0s\"", "11: pool.build.timeout: '0s' is not in range"),
        (
            "timeout = { default = \"3h\", max = \"1h\" }",
            "23: pool.build.timeout.default: '3h' is above max: write at most 1h",
        ),
        ("stop_grace = \"2h\"", "14: pool.build.stop_grace: '2h' is not in range: write 0s to 1h"),
        (
            "entrypoint = \"sh -c true\"",
            "14: pool.build.entrypoint: 'sh -c true' is not an array: write [\"/bin/program\"",
        ),
        ("entrypoint = []", "14: pool.build.entrypoint: names no program"),
        ("entrypoint = [\"\"]", "14: pool.build.entrypoint: names no program"),
        ("args = [\"a\", 1]", "14: pool.build.args[1]: '1' is not text"),
        ("args = [\"a\\u0000\"]", "9: pool.build.args[0]: contains a NUL byte"),
        ("env = { A = 1 }", "13: pool.build.env.A: a value of type integer is not text: put it in quotes"),
        ("env = { A = true }", "13: pool.build.env.A: a value of type boolean is not text: put it in quotes"),
        ("env = { \"A=\" = \"x\" }", "16: pool.build.env.'A=': a variable's name must not"),
        ("env = { \"\" = \"x\" }", "14: pool.build.env.'': a variable's name must not"),
        ("env = [\"A=x\"]", "7: pool.build.env: not a table: write { NAME = \"value\" }"),
        ("secrets_from = \"no/such\"", "16: pool.build.secrets_from: no/such: can't be read"),
        ("files = 5", "9: pool.build.files: not a section: write [pool.build.files]"),
        (
            "files = { max = 1001 }",
            "17: pool.build.files.max: '1001' is not in range: write a whole number from 0 to 1000",
        ),
        (
            "artifacts = { inline = \"9MiB\" }",
            "24: pool.build.artifacts.inline: '9MiB' is not in range: write at most 8MiB",
        ),
        ("artifacts = { number = 1 }", "15: pool.build.artifacts: unknown key 'number'"),
        ("user = 1000", "8: pool.build.user: '1000' is not text"),
        ("user = \"a:b:c\"", "8: pool.build.user: 'a:b:c' is not a user"),
        ("user = \"a:\"", "8: pool.build.user: 'a:' is not a user"),
        ("workdir = \"x\"", "11: pool.build.workdir: 'x' is not an absolute path"),
        ("cpus = 0", "8: pool.build.cpus: '0' is not in range"),
        ("cpus = nan", "8: pool.build.cpus: 'nan' is not a number"),
        ("cpus = -inf", "8: pool.build.cpus: '-inf' is not a number"),
        ("cpus = 1e400", "8: pool.build.cpus: '1e400' is not a number"),
        ("cpu_shares = 1", "14: pool.build.cpu_shares: '1' is not in range"),
        ("pids = -1", "8: pool.build.pids: '-1' is not in range"),
        ("network = \"container:abc\"", "11: pool.build.network: another container's network is refused"),
        ("network = \"a b\"", "11: pool.build.network: 'a b' is not a network"),
        (
            "security = \"hardend\"",
            "12: pool.build.security: 'hardend' is not known here: write \"docker\", \"hardened\"; did you mean 'hardened'?",
        ),
        (
            "cap_add = [\"CHOWM\"]",
            "12: pool.build.cap_add[0]: 'CHOWM' is not a capability of the kernel; did you mean 'CHOWN'?",
        ),
        ("cap_drop = \"ALL\"", "12: pool.build.cap_drop: 'ALL' is not an array: write ["),
        (
            "security_opt = [\"systempaths=unconfined\"]",
            "17: pool.build.security_opt[0]: 'systempaths=unconfined' is not a security option",
        ),
        (
            "security_opt = [\"seccomp=no/such.json\"]",
            "17: pool.build.security_opt[0]: the seccomp profile 'no/such.json' can't be read",
        ),
        ("runtime = \"\"", "11: pool.build.runtime: empty"),
        ("read_only = \"yes\"", "13: pool.build.read_only: 'yes' is not known here: write true or false"),
        ("tmpfs = [\"/\"]", "10: pool.build.tmpfs[0]: '/' is the image's own"),
        ("tmpfs = [\"/a\", \"/a/\"]", "16: pool.build.tmpfs[1]: '/a' is mounted twice"),
        ("tmpfs = { \"a\" = \"\" }", "17: pool.build.tmpfs.a: 'a' is not a mount point"),
        (
            "tmpfs = { \"/a\" = \"size=1 m\" }",
            "18: pool.build.tmpfs.'/a': 'size=1 m' is not a list of mount options",
        ),
        ("tmpfs = 1", "9: pool.build.tmpfs: '1' is not a table of mount points"),
        (
            "mounts = [{ source = \"./x\", target = \"/x\" }]",
            "22: pool.build.mounts[0].source: './x' is not a source",
        ),
        (
            "mounts = [{ source = \"v\", target = \"/a/../b\" }]",
            "36: pool.build.mounts[0].target: '/a/../b' is not a mount point",
        ),
        (
            "mounts = [{ source = \"v\", target = \"//.prewarm/x\" }]",
            "36: pool.build.mounts[0].target: '/.prewarm' is where",
        ),
        (
            "mounts = [{ source = \"v\" }]",
            "11: pool.build.mounts[0]: 'target' is missing: write target = \"/cache\"",
        ),
        (
            "mounts = [{ source = \"v\", target = \"/a\", readonly = true }]",
            "42: pool.build.mounts[0]: unknown key 'readonly'; did you mean 'read_only'?",
        ),
        ("mounts = [1]", "11: pool.build.mounts[0]: '1' is not a mount"),
        ("mounts = {}", "10: pool.build.mounts: a table is not an array"),
        (
            "ulimits = { nofiles = 1 }",
            "23: pool.build.ulimits.nofiles: unknown limit 'nofiles'; did you mean 'nofile'?",
        ),
        (
            "ulimits = { nofile = { soft = 5, hard = 3 } }",
            "31: pool.build.ulimits.nofile.soft: '5' is above hard: write at most 3",
        ),
        (
            "ulimits = { nofile = { soft = -1, hard = 3 } }",
            "31: pool.build.ulimits.nofile.soft: '-1' is above hard",
        ),
        ("ulimits = { nofile = -2 }", "22: pool.build.ulimits.nofile: '-2' is not in range"),
        ("isolation = \"vm\"", "13: pool.build.isolation: 'vm' is not known here"),
        ("scratch = \"1GiB\"", "11: pool.build.scratch: has a meaning with isolation = \"namespace\" alone"),
        ("max_jobs = 5", "12: pool.build.max_jobs: has a meaning with isolation = \"namespace\" alone"),
    ] {
        let found = faults(&format!("{MINIMAL}{key}"));
        assert_eq!(found.len(), 1, "{key}: {found:?}");
        assert!(found[0].starts_with(&format!("f.toml:3:{fault}")), "{key}: {found:?}");
    }
}

#[test]
fn a_pools_image_and_name_are_checked() {
    let name = "'a b' is not a pool name: use 1 to 64 ASCII letters, digits, '-', '_' or '.', starting with a letter \
                or a digit";
    for (text, fault) in [
        ("[pool.build]", "1:1: pool.build: 'image' is missing: write image = \"acme/build:7\""),
        ("[pool.build]\nimgae = \"x\"", "2:1: pool.build: unknown key 'imgae'; did you mean 'image'?"),
        (
            "[pool.build]\nimage = \"../images/x\"",
            "2:9: pool.build.image: '../images/x' is not an image's name: write",
        ),
        (
            "[pool]\nimage = \"x\"",
            "2:9: pool.image: not a section: pool has sections of its own, write [pool.NAME]",
        ),
        ("[pool.\"a b\"]\nimage = \"x\"", &format!("1:1: pool.'a b': {name}")),
        ("[[pool]]\nimage = \"x\"", "1:1: pool: not a section: write [pool]"),
    ] {
        let found = faults(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].starts_with(&format!("f.toml:{fault}")), "{text}: {found:?}");
    }
    for empty in ["", "\u{feff}", "# nothing\r\n", "[pool]", "[broker]\n"] {
        let expected =
            "f.toml: no pool is configured: write one, such as [pool.build] with image = \"busybox:1.36\"";
        assert_eq!(faults(empty), [expected], "{empty}");
    }
}

#[test]
fn all_faults_are_reported_together() {
    let text = "[broker]\nurl = \"x\"\nheartbeat = 1\n[htp]\n[worker]\nretries = 0\n[pool.a]\nidle = 0\nmemory = \"x\"\n\
                pids = 0\ncap_add = [\"X\", \"Y\"]\n[pool.b]\nimage = \"B\"\n";
    let found = faults_with(text, &[("PREWARM_ENGINE_CREATIONS", "0")]);
    let places: Vec<_> = found.iter().map(|fault| fault.split(": ").next().unwrap_or_default()).collect();
    let expected = [
        "f.toml:2:7",
        "f.toml:3:13",
        "f.toml:4:2",
        "f.toml:6:11",
        "f.toml:7:1",
        "f.toml:8:8",
        "f.toml:9:10",
        "f.toml:10:8",
        "f.toml:11:12",
        "f.toml:11:17",
        "f.toml:13:9",
        "PREWARM_ENGINE_CREATIONS",
    ];
    assert_eq!(places, expected);
}

#[test]
fn faults_of_syntax_have_their_places() {
    for (text, fault) in [
        ("a = ", "f.toml:1:5: not TOML: string values must be quoted"),
        ("a = 1\r\nb = ?\r\n", "f.toml:2:5: not TOML: "),
        ("\u{feff}é", "f.toml:1:1: not TOML: "),
        ("[pool.a]\nimage = \"x\"\nimage = \"y\"\n", "f.toml:3:1: not TOML: duplicate key"),
        ("[pool.a]\n[pool.a]\n", "f.toml:2:7: not TOML: duplicate key"),
        ("a = \"unterminated\nb = 1\n", "f.toml:1:"),
        ("a = \u{1}", "f.toml:1:5: not TOML: "),
    ] {
        let found = faults(text);
        assert!(found[0].starts_with(fault), "{text}: {found:?}");
    }
    let found = faults("url = amqp://u:secret@h\n[x\n");
    assert!(found.len() > 1 && !found.concat().contains("secret"), "{found:?}");
}

#[test]
fn depth_does_no_harm() {
    for depth in [100, 100_000] {
        let keys = vec!["a"; depth].join(".");
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let tables = "{ a = ".repeat(depth);
        for text in [
            format!("{keys} = 1"),
            format!("[{keys}]"),
            format!("a = {open}{close}"),
            format!("a = {tables}"),
        ] {
            faults(&text);
            faults_with(MINIMAL, &[("PREWARM_POOL_BUILD_ARGS", &text[4..])]);
        }
    }
}

#[test]
fn variables_lie_over_the_file() {
    let variables = [
        ("PREWARM_BROKER_URL", "amqps://other/v"),
        ("PREWARM_HTTP_LISTEN", "[::]:1"),
        ("PREWARM_ENGINE_HOST", "unix:///run/docker.sock"),
        ("PREWARM_WORKER_DRAIN_TIMEOUT", "5m"),
        ("PREWARM_WORKER_RETRIES", "7"),
        ("PREWARM_POOL_MY_BUILD_X_IMAGE", "other:1"),
        ("PREWARM_POOL_MY_BUILD_X_IDLE_MIN", "7"),
        ("PREWARM_POOL_MY_BUILD_X_TIMEOUT_MAX", "3h"),
        ("PREWARM_POOL_MY_BUILD_X_USER", "1000"),
        ("PREWARM_POOL_MY_BUILD_X_CPUS", "2"),
        ("PREWARM_POOL_MY_BUILD_X_READ_ONLY", "true"),
        ("PREWARM_POOL_MY_BUILD_X_ARGS", "[\"true\", \"1\"]"),
        ("PREWARM_POOL_MY_BUILD_X_ENV", "{ B = \"2\", A = \"1\" }"),
        ("PREWARM_POOL_MY_BUILD_X_MEMORY", "1g"),
        ("PREWARM_LOG", "debug"),
        ("PREWARM_TEST_ANYTHING", "x"),
        ("HOME", "/root"),
    ];
    let text = "[broker]\nurl = 5\n[pool.\"My-build.x\"]\nimage = \"x\"\nidle = 8\ntimeout = \"1h\"\n\
                env = { C = \"3\" }\n";
    let config = parse_with(text, &variables).unwrap_or_else(|faults| panic!("{faults}")).config;
    assert_eq!(config.broker.urls, ["amqps://other/v"], "what it replaces isn't even looked at");
    assert_eq!(config.http.listen.to_string(), "[::]:1");
    assert_eq!(config.engine.host.as_deref(), Some("unix:///run/docker.sock"));
    assert_eq!(config.worker.drain_timeout, Duration::from_secs(300));
    assert_eq!(config.worker.retries, 7);
    let pool = &config.pools[&PoolName::new("My-build.x").expect("a name")];
    assert_eq!(pool.image, "other:1");
    assert_eq!((pool.idle.min, pool.idle.max), (7, 8), "one of two that a plain value stands for");
    assert_eq!(pool.timeout.default, Duration::from_secs(3600));
    assert_eq!(pool.timeout.max, Duration::from_secs(3 * 3600));
    assert_eq!(pool.user.as_deref(), Some("1000"), "a number where text is wanted");
    assert_eq!((pool.cpus_milli, pool.memory, pool.read_only), (Some(2000), Some(1 << 30), true));
    assert_eq!(pool.args.as_deref(), Some(&["true".to_owned(), "1".to_owned()][..]));
    assert_eq!(pool.env, [("B".into(), "2".into()), ("A".into(), "1".into())]);
}

#[test]
fn the_broker_may_have_several_addresses() {
    let urls = |text: &str, environment: &[(&str, &str)]| {
        let text = format!("[broker]\n{text}\n{MINIMAL}");
        parse_with(&text, environment).unwrap_or_else(|faults| panic!("{faults}")).config.broker.urls
    };
    let both = ["amqp://a", "amqps://b/v"];
    assert_eq!(urls("url = [\"amqp://a\", \"amqps://b/v\"]", &[]), both);
    assert_eq!(urls("url = \"amqp://a,amqps://b/v\"", &[]), both);
    assert_eq!(urls("", &[("PREWARM_BROKER_URL", "amqp://a, amqps://b/v")]), both);
    assert_eq!(urls("", &[("PREWARM_BROKER_URL", "[\"amqp://a\", \"amqps://b/v\"]")]), both);
}

#[test]
fn variables_can_make_a_pool() {
    let variables = [("PREWARM_POOL_MY_TEST_IMAGE", "y"), ("PREWARM_POOL_MY_TEST_IDLE", "{ min = 9 }")];
    let config = parse_with(MINIMAL, &variables).expect("valid").config;
    let names: Vec<_> = config.pools.keys().map(PoolName::as_str).collect();
    assert_eq!(names, ["build", "my_test"]);
    let pool = &config.pools[&PoolName::new("my_test").expect("a name")];
    assert_eq!((pool.idle.min, pool.idle.max), (9, 9));
}

#[test]
fn a_fault_of_a_variable_names_it() {
    for (name, text, fault) in [
        ("PREWARM_POOL_BUILD_MEMORY", "2 gigs", ": pool.build.memory: '2 gigs' is not a size: write"),
        ("PREWARM_POOL_BUILD_IDLE_MIN", "9999999", ": pool.build.idle.min: '9999999' is not in range"),
        ("PREWARM_POOL_BUILD_IDLE", "{ min = 3, max = 2 }", ": pool.build.idle.min: '3' is above max"),
        ("PREWARM_POOL_BUILD_ARGS", "[1]", ": pool.build.args[0]: '1' is not text"),
        ("PREWARM_POOL_BUILD_TIMEOUT", "10", ": pool.build.timeout: '10' has no unit: write 10s or 10m"),
        ("PREWARM_POOL_BUILD_ENV", "TOKEN=secret", ": pool.build.env: not a table: write"),
        ("PREWARM_BROKER_URL", "amqp://u:secret@", ": broker.url: has no host"),
        ("PREWARM_BROKER_URI", "amqp://u:secret@", ": unknown variable; did you mean 'PREWARM_BROKER_URL'?"),
        ("PREWARM_POOL_BUILD_MEMROY", "1", ": unknown variable; did you mean 'PREWARM_POOL_BUILD_MEMORY'?"),
        ("PREWARM_POOL_BULID_MEMORY", "1", ": unknown variable; did you mean 'PREWARM_POOL_BUILD_MEMORY'?"),
        ("PREWARM_POOL_OTHER_MEMORY", "1", ": unknown variable: no pool has such a key; a pool that is not"),
        ("PREWARM_POOL_build_MEMORY", "1", ": unknown variable; did you mean 'PREWARM_POOL_BUILD_MEMORY'?"),
        ("PREWARM_POOL__X_IMAGE", "x", ": pool._x: '_x' is not a pool name"),
        ("PREWARM_POOL_X_IMAGE", "", ": pool.x.image: '' is not an image's name"),
        ("PREWARM_POOL", "x", ": unknown variable"),
        ("PREWARM_", "x", ": unknown variable: write PREWARM_<SECTION>_<KEY>, such as"),
        ("PREWARM_FOO", "x", ": unknown variable: write PREWARM_<SECTION>_<KEY>, such as"),
        ("PREWARM_LOG_FORMT", "x", ": unknown variable; did you mean 'PREWARM_LOG_FORMAT'?"),
    ] {
        let found = faults_with(MINIMAL, &[(name, text)]);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert!(found[0].starts_with(&format!("{name}{fault}")), "{name}: {found:?}");
        assert!(!found[0].contains("secret"), "{name}: {found:?}");
    }
}

#[test]
fn a_variable_that_stands_for_two_pools_is_refused() {
    let text = "[pool.a-b]\nimage = \"x\"\n[pool.\"a.b\"]\nimage = \"x\"\n";
    parse_with(text, &[]).expect("no variable, no conflict");
    let found = faults_with(text, &[("PREWARM_POOL_A_B_PIDS", "5")]);
    let expected = "PREWARM_POOL_A_B_PIDS: stands for both pool.a-b.pids and pool.'a.b'.pids: rename a pool, or set it \
                    in the file";
    assert_eq!(found, [expected]);
}

#[test]
fn short_forms_and_single_bounds() {
    let idle = |keys| {
        let idle = pool_with(keys).idle;
        (idle.min, idle.max)
    };
    assert_eq!(idle("idle = 3"), (3, 3));
    assert_eq!(idle("idle = { min = 9 }"), (9, 9));
    assert_eq!(idle("idle = { min = 0 }"), (0, 4));
    assert_eq!(idle("idle.max = 2"), (1, 2));
    let hours = |keys| {
        let timeout = pool_with(keys).timeout;
        (timeout.default.as_secs_f64() / 3600.0, timeout.max.as_secs_f64() / 3600.0)
    };
    assert_eq!(hours("timeout = \"1h 30m\""), (1.5, 1.5));
    assert_eq!(hours("timeout.max = \"30m\""), (0.5, 0.5));
    assert_eq!(hours("timeout.default = \"48h\""), (48.0, 48.0));
    let ulimit = |keys| pool_with(keys).ulimits["nofile"];
    assert_eq!(ulimit("ulimits.nofile = { soft = 1, hard = -1 }"), Ulimit { soft: 1, hard: -1 });
    assert_eq!(ulimit("ulimits.nofile.soft = 1"), Ulimit { soft: 1, hard: 1 });
    assert_eq!(pool_with("tmpfs = [\"/a/\"]").tmpfs["/a"], "");
    assert_eq!(pool_with("args = []").args, Some(vec![]));
}

#[test]
fn an_environment_keeps_its_order() {
    let expected: Vec<(String, String)> =
        ["Z", "A", "M"].iter().map(|name| ((*name).to_owned(), "é=\n".to_owned())).collect();
    let value = "\"é=\\n\"";
    assert_eq!(pool_with(&format!("env = {{ Z = {value}, A = {value}, M = {value} }}")).env, expected);
    assert_eq!(
        pool_with(&format!("[pool.build.env]\nZ = {value}\nA = {value}\nM = {value}\n")).env,
        expected
    );
}

#[test]
fn capabilities_and_options_are_normalized() {
    let pool = pool_with(
        "cap_add = [\"cap_net_raw\", \"CHOWN\"]\ncap_drop = [\"all\"]\nsecurity_opt = [\"no-new-privileges:true\", \
         \"seccomp=unconfined\", \"label:disable\", \"apparmor=docker-default\"]",
    );
    assert_eq!(pool.cap_add, ["NET_RAW", "CHOWN"]);
    assert_eq!(pool.cap_drop, ["ALL"]);
    let expected = ["no-new-privileges", "seccomp=unconfined", "label=disable", "apparmor=docker-default"];
    assert_eq!(pool.security_opt, expected);
}

#[test]
fn advice_is_no_fault() {
    let advice = |text: &str| parse_with(text, &[]).expect("valid").advice;
    let hardened = format!("{MINIMAL}security = \"hardened\"\n");
    assert!(advice(&hardened).is_empty());
    assert!(advice(MINIMAL)[0].starts_with("pool.build: is not hardened"));
    assert!(advice(&format!("{hardened}network = \"host\""))[0].contains("shares the host's network"));
    let socket = format!("{hardened}mounts = [{{ source = \"/var/run/docker.sock\", target = \"/s\" }}]");
    assert!(advice(&socket)[0].starts_with("pool.build.mounts[0].source: gives jobs the engine's socket"));
}

#[test]
fn the_password_is_never_shown() {
    let urls = "[\"amqp://user:passw0rd@h:1/v\", \"amqp://user:passw0rd@i/v\"]";
    let config = loaded(&format!("[broker]\nurl = {urls}\n{MINIMAL}"));
    assert_eq!(config.broker.addresses(), "amqp://h:1/v, amqp://i/v");
    let debug = format!("{config:?}");
    assert!(debug.contains("amqp://h:1/v") && !debug.contains("passw0rd"), "{debug}");
}

/// The example with some of its characters replaced, removed or inserted.
fn mutated() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "",
        "\"",
        "'",
        "\"\"\"",
        "[",
        "]",
        "{",
        "}",
        ".",
        "=",
        ",",
        "#",
        "\n",
        "\r",
        "\r\n",
        "\0",
        "\\u0000",
        "-",
        "9999999999",
        "0x",
        "inf",
        "nan",
        "true",
        "1979-05-27",
        "é",
        "\u{202e}",
        "\u{feff}",
        "pool",
        "[[pool]]",
        " ",
    ]);
    let mutation = (any::<prop::sample::Index>(), 0..4_usize, pieces);
    prop::collection::vec(mutation, 1..6).prop_map(|mutations| {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, removed, piece) in mutations {
            let at = at.index(text.len());
            text.splice(at..(at + removed).min(text.len()), piece.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #[test]
    fn no_text_causes_a_panic(text in mutated()) {
        if let Err(faults) = parse_with(&text, &[]) {
            prop_assert!(!faults.to_string().is_empty());
        }
    }

    #[test]
    fn no_variable_causes_a_panic(
        name in "PREWARM_(POOL_)?(BUILD_)?(IMAGE|IDLE|IDLE_MIN|ENV|MOUNTS|TIMEOUT|CPUS|MEMORY|[A-Z_é]{0,9})",
        text in "\\PC{0,9}|[-0-9.eE+_]{1,30}|[\\[{][\"a-z=, 0-9]{0,9}[\\]}]",
    ) {
        if let Err(faults) = parse_with(EXAMPLE, &[(&name, &text)]) {
            prop_assert!(faults.iter().all(|fault| fault.place == Place::Variable(name.clone())), "{}", faults);
        }
    }

    #[test]
    fn no_message_has_more_than_one_line(value in "\\PC{0,9}|(?s).{0,9}") {
        let value = value.replace('\'', "");
        for key in ["image", "memory", "timeout", "user", "network", "pull", "workdir", "args", "tmpfs"] {
            if let Err(faults) = parse_with(&format!("[pool.b]\nimage = \"x\"\n[pool.a]\n{key} = '{value}'"), &[]) {
                prop_assert!(faults.iter().all(|fault| !fault.to_string().contains('\n')), "{}", faults);
            }
        }
    }
}

#[test]
fn isolation_by_namespaces_refuses_what_the_next_job_would_see() {
    let text = |keys: &str| format!("{MINIMAL}isolation = \"namespace\"\n{keys}");
    let pool = |keys: &str| faults(&text(keys));
    for keys in [
        "scratch = \"64MiB\"\nmax_jobs = 5",
        "cap_add = [\"SYS_PTRACE\"]\nsecurity_opt = [\"no-new-privileges\"]",
        "mounts = [{ source = \"/a\", target = \"/a\", read_only = true }]",
        "mounts = [{ source = \"/a\", target = \"/a\", shared = true }]",
    ] {
        let pool = loaded(&text(keys)).pools.into_values().next().expect("a pool");
        assert_eq!(pool.isolation, Isolation::Namespace, "{keys}");
    }
    for (keys, said) in [
        ("cap_add = [\"NET_ADMIN\"]", "cap_add: 'NET_ADMIN' reaches what jobs in one container share"),
        ("cap_add = [\"ALL\"]", "cap_add: 'ALL' reaches"),
        ("security_opt = [\"seccomp=unconfined\"]", "security_opt: 'seccomp' can't be chosen"),
        ("security_opt = [\"apparmor=mine\"]", "security_opt: 'apparmor' can't be chosen"),
        ("network = \"host\"", "network: 'host' is shared with the host"),
        ("ulimits = { cpu = 10 }", "ulimits: 'cpu' would count what init uses for all jobs"),
        (
            "mounts = [{ source = \"/a\", target = \"/b\" }]",
            "mounts: what one job writes to '/b' the next one sees",
        ),
    ] {
        let found = pool(keys);
        assert_eq!(found.len(), 1, "{keys}: {found:?}");
        assert!(found[0].contains(said), "{keys}: {found:?}");
    }
}
