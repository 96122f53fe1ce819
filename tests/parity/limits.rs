//! What a job may do, and how much it may use.

use crate::meant;
use crate::row::{Isolation, Row, process_ids_and_usage, row};

pub fn rows() -> Vec<Row> {
    [privileges(), resources()].into_iter().flatten().collect()
}

fn privileges() -> Vec<Row> {
    // A job has a session of its own, where Docker's is in that of tini: its signals and its terminal, if it opens
    // one, concern nobody else.
    // With isolation `namespace` it is the first process, and has all its numbers.
    let container = Isolation::Container;
    let own_session = |row: Row| {
        let row = row.mask_in(container, process_ids_and_usage);
        meant::filters(row.but_in(container, "NSsid:\t1\n", "NSsid:\t(own)\n"))
    };
    let status = |name| own_session(row(name).args(["cat", "/proc/self/status"]));
    let cap = |name, toml: &str, docker: &str| status(name).option(toml, docker);
    let hardened = "--cap-drop ALL --security-opt no-new-privileges --pids-limit 512 --network none";
    vec![
        status("process status"),
        status("process status of a user").user("app"),
        status("process status of a uid and gid that nobody has").user("4242:4343"),
        cap(
            "capabilities added",
            r#"cap_add = ["SYS_PTRACE", "CAP_NET_ADMIN"]"#,
            "--cap-add SYS_PTRACE --cap-add NET_ADMIN",
        )
        .in_container("NET_ADMIN reaches the network, which jobs of one container share"),
        cap("a capability added", r#"cap_add = ["SYS_PTRACE"]"#, "--cap-add SYS_PTRACE"),
        cap(
            "capabilities added that reach nobody else",
            r#"cap_add = ["IPC_LOCK", "IPC_OWNER", "LEASE", "NET_BROADCAST", "SYS_NICE"]"#,
            "--cap-add IPC_LOCK --cap-add IPC_OWNER --cap-add LEASE --cap-add NET_BROADCAST --cap-add SYS_NICE",
        ),
        cap("capabilities dropped", r#"cap_drop = ["CHOWN", "KILL"]"#, "--cap-drop CHOWN --cap-drop KILL"),
        cap("all capabilities dropped", r#"cap_drop = ["ALL"]"#, "--cap-drop ALL"),
        cap(
            "all capabilities dropped but one",
            "cap_drop = [\"ALL\"]\ncap_add = [\"CHOWN\"]",
            "--cap-drop ALL --cap-add CHOWN",
        ),
        cap("capabilities of a user", r#"cap_add = ["SYS_PTRACE"]"#, "--cap-add SYS_PTRACE").user("app"),
        cap(
            "no new privileges",
            r#"security_opt = ["no-new-privileges"]"#,
            "--security-opt no-new-privileges",
        )
        .user("app"),
        row("no seccomp")
            .args(["cat", "/proc/self/status"])
            .mask(process_ids_and_usage)
            .but("NSsid:\t1\n", "NSsid:\t(own)\n")
            .option(r#"security_opt = ["seccomp=unconfined"]"#, "--security-opt seccomp=unconfined")
            .in_container("a job without a filter could do what init may do"),
        cap("hardened", r#"security = "hardened""#, hardened),
        cap("hardened, as a user", r#"security = "hardened""#, hardened).user("app"),
        row("what seccomp refuses")
            .sh("unshare -U true; mount -t tmpfs x /tmp; mknod /tmp/null c 1 3; echo $?; \
             chown 1:1 /tmp/null; stat -c %u /tmp/null"),
        own_session(row("a set-user-id program").user("app").args(["probe-setuid", "status"])),
    ]
}

/// Of either version of control groups, the files that are there.
fn cgroup(name: &'static str, files: &'static str) -> Row {
    row(name).args([
        "sh",
        "-c",
        "cd /sys/fs/cgroup; for f in $0; do [ -e $f ] && echo $f && cat $f; done; true",
        files,
    ])
}

fn resources() -> Vec<Row> {
    let limits = |name| row(name).args(["cat", "/proc/self/limits"]);
    vec![
        limits("limits"),
        limits("limits of a user").user("app"),
        limits("limits set").option(
            "ulimits = { nofile = { soft = 1024, hard = 4096 }, nproc = 100, core = 0, stack = -1 }",
            "--ulimit nofile=1024:4096 --ulimit nproc=100 --ulimit core=0 --ulimit stack=-1",
        ),
        row("a limit works")
            .option("ulimits = { fsize = 1000, core = 0 }", "--ulimit fsize=1000 --ulimit core=0")
            .sh("head -c 1001 /dev/zero >/tmp/x; echo $?; wc -c </tmp/x")
            .prints("153\n1000\n"),
        cgroup(
            "memory",
            "memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.oom_control \
             memory/memory.swappiness memory.max memory.swap.max",
        )
        .option("memory = \"64MiB\"", "--memory 64m"),
        cgroup("no memory limit", "memory/memory.limit_in_bytes memory/memory.oom_control memory.max"),
        cgroup("cpus", "cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpu.max cpu.weight")
            .option("cpus = 1.5", "--cpus 1.5"),
        cgroup("cpu shares", "cpu/cpu.shares cpu/cpu.cfs_quota_us cpu.weight")
            .option("cpu_shares = 512", "--cpu-shares 512"),
        meant::processes(
            cgroup("pids", "pids/pids.max pids.max").option("pids = 77", "--pids-limit 77"),
        ),
        row("no more processes than allowed")
            .option("pids = 6", "--pids-limit 6")
            .sh("for i in 1 2 3 4 5 6 7 8; do sleep 20 & echo $i; done")
            .code(2),
        // Docker says nothing of it.
        row("out of memory")
            .option("memory = \"32MiB\"", "--memory 32m")
            .probe("out before , memory 100000000 , out after")
            .code(137)
            .prints("before\n")
            .note(
                "prewarm: the container reached its memory limit and the kernel killed the job; \
                 raise the pool's `memory`",
            ),
        row("what else is inherited").sh(
            "cd /proc/self; grep . oom_score_adj coredump_filter timerslack_ns personality loginuid sessionid \
             attr/current; umask; nice; ionice",
        ),
    ]
}
