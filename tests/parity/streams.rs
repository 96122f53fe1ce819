//! Standard input, output and error, and every other descriptor.

use crate::docker::{DEBIAN, SCRATCH};
use crate::row::{Isolation, Row, ids, row};

pub fn rows() -> Vec<Row> {
    [descriptors(), input(), output(), left_overs()].into_iter().flatten().collect()
}

/// What is open, and how it was opened; by the shell itself, whose only other descriptor is that of its `*`.
const OPEN: &str = "cd /proc/$$/fd; for n in *; do \
                    [ -e $n ] && stat -c '%A %u %N' $n && grep flags ../fdinfo/$n; done; true";

fn descriptors() -> Vec<Row> {
    let open = |name| row(name).sh(OPEN).mask(ids);
    vec![
        open("open descriptors"),
        open("open descriptors of a user").user("app"),
        open("open descriptors with a stdin").stdin("x"),
        row("open descriptors from scratch")
            .image(SCRATCH)
            .args(["fds"])
            .prints("0 device\n1 pipe\n2 pipe\n"),
        row("no terminal").sh("for n in 0 1 2; do [ -t $n ]; echo $?; done; tty").code(1),
        row("streams can be opened again")
            .sh("echo 1 >/dev/stdout; echo 2 >/dev/stderr; echo 3 >/proc/self/fd/1; echo 4 >/dev/fd/2"),
        row("streams can be opened again by a user")
            .user("app")
            .stdin("line\n")
            .sh("cat /dev/stdin; echo 1 >/dev/stdout; echo 2 >/dev/stderr; echo 3 >>/proc/self/fd/1; \
                 chmod 600 /dev/stdout; stat -L -c '%u' /dev/stdout /dev/stdin"),
        // runc gives Docker's pipes to the user and leaves them the engine's group, as init does for a job of many; those of
        // an init that is the user's are the user's own.
        row("the streams' group").user("app").sh("stat -L -c '%g' /dev/stdout /dev/stderr").but_in(
            Isolation::Container,
            "0\n0\n",
            "1000\n1000\n",
        ),
        row("writing to stdin").sh("echo x >&0; echo $?"),
    ]
}

fn input() -> Vec<Row> {
    let mebibyte: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    vec![
        row("no stdin").args(["cat"]),
        row("an empty stdin").args(["cat"]).stdin(""),
        row("one byte").args(["cat"]).stdin([0]),
        row("lines").sh("read a; read b; echo $b $a").stdin("1\n2\n"),
        row("1 MiB").args(["cat"]).stdin(mebibyte.clone()),
        row("1 MiB, read by a user's child").user("app").sh("sha256sum | cat").stdin(mebibyte.clone()),
        row("1 MiB that is not read").args(["echo", "done"]).stdin(mebibyte.clone()),
        row("1 MiB of which a little is read")
            .sh("head -c 3 | wc -c; exit 4")
            .code(4)
            .stdin(mebibyte.clone()),
        row("1 MiB to a job that closes it").sh("exec 0<&-; echo closed; exit 5").code(5).stdin(mebibyte),
    ]
}

fn output() -> Vec<Row> {
    vec![
        row("nothing").args(["true"]).prints(""),
        row("no newline at the end").probe("print x").prints("x"),
        row("one NUL").args(["printf", "\\0"]).prints("\0"),
        row("only stderr").probe("err x"),
        row("every byte").probe("emit 256"),
        row("a page, to both").probe("emit 4096 , emit-err 4097"),
        row("a pipe full, and one byte").probe("emit 65537"),
        row("many megabytes to both").probe("emit 3000001 , emit-err 3000003 , emit 7"),
        row("100 MiB").probe("emit 104857600"),
        row("lines by turns").image(DEBIAN).args([
            "bash",
            "-c",
            "for i in {1..3000}; do echo out $i; echo err $i >&2; done",
        ]),
        row("stdout closed early")
            .sh("echo 1; exec 1>&-; echo 2 >&2; sleep 0.1; exit 3")
            .code(3)
            .prints("1\n"),
        row("both closed early").sh("echo 1; exec 1>&- 2>&-; sleep 0.1; exit 3").code(3).prints("1\n"),
        row("a full pipe has a reader that goes away")
            .image(DEBIAN)
            .args(["bash", "-c", "yes | head -n 1; echo ${PIPESTATUS[*]}"])
            .prints("y\n141 0\n"),
    ]
}

fn left_overs() -> Vec<Row> {
    vec![
        row("a child in the background holds stdout")
            .sh("sleep 30 & echo done; exit 3")
            .code(3)
            .prints("done\n"),
        row("a daemon holds stdout").probe("daemon 30 late , out done").prints("done\n"),
        row("a daemon writes before the end")
            .sh("setsid sh -c '(echo early; touch /tmp/early) &'; \
                 until [ -e /tmp/early ]; do sleep 0.05; done; echo done")
            .prints("early\ndone\n"),
        row("a set-user-id daemon of a user's job holds stdout")
            .user("app")
            .sh("probe-setuid daemon 30 late; echo done")
            .prints("done\n"),
        row("a child writes much to the end").sh("(yes | head -c 1000000) & wait; echo done"),
        row("zombies are reaped")
            .sh("probe zombies 50; for i in $(seq 100); do \
                 n=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '); \
                 [ $n = 0 ] && break; sleep 0.1; done; echo $n")
            .prints("0\n"),
        // Processes that the user's init can't kill: only the end of the container ends them.
        row("a root's process of a user's job holds stdout")
            .dockerfile(format!(
                "FROM {DEBIAN}\nRUN cp /usr/bin/setpriv /usr/bin/raise && chmod 4755 /usr/bin/raise"
            ))
            .user("app")
            .args(["bash", "-c", RAISE])
            .prints("1\ndone\n"),
        row("processes of others").sh("cat /proc/[0-9]*/comm").but_in(
            Isolation::Container,
            "docker-init\n",
            "init\n",
        ),
    ]
}

const RAISE: &str = "raise --reuid 0 --regid 0 --clear-groups sleep 30 & \
                     until grep -q '^Uid:.0.0.0.0' /proc/$!/status; do :; done; \
                     kill -KILL $! 2>/dev/null; echo $?; echo done; exit 0";
