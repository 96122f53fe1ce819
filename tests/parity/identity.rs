//! Who a job is, where it is, and what it sees of the file system.

use crate::docker::{DEBIAN, SCRATCH};
use crate::meant;
use crate::row::{Isolation, Row, ids, roots_and_inits, row};

/// `directory` is one of the host's, `volume` is the name of an empty one.
pub fn rows(directory: &str, volume: &str) -> Vec<Row> {
    [users(), working_directories(), file_systems(), mounts(directory, volume)]
        .into_iter()
        .flatten()
        .collect()
}

/// What `id` says, and who may do what.
const WHO: &str =
    "id; id -G; stat -c '%u %g %a %n' /proc/self/environ /proc/self/fd; touch /root/x && rm /root/x; echo $?";

fn users() -> Vec<Row> {
    let who = |name| row(name).sh(WHO);
    vec![
        who("root"),
        who("a user by name").user("app"),
        who("a user by uid").user("1000"),
        who("a user by uid and gid").user("1000:1000"),
        who("a user by name, a group by name").user("app:media"),
        who("a user by name, a group by number").user("app:2000"),
        who("a user by uid, a group by name").user("1000:media"),
        who("a uid that nobody has").user("4242"),
        who("a uid and a gid that nobody has").user("4242:4343"),
        who("root by number").user("0"),
        who("root with another group").user("0:2000"),
        row("the image's user").busybox("USER app").sh(WHO),
        row("the image's user and group").busybox("USER app:media").sh(WHO),
        row("the image's uid").busybox("USER 1000").sh(WHO),
        row("the pool's user over the image's").busybox("USER app").user("root").sh(WHO),
        row("a real Debian's user").image(DEBIAN).user("app").args([
            "bash",
            "-c",
            "id; whoami; groups; cd; pwd; touch x && ls -n --time-style=+",
        ]),
        row("a uid from scratch").image(SCRATCH).user("1000").args(["id", ",", "cwd"]),
        row("a user that there isn't").user("nosuch").args(["id"]).not_run(125, "nosuch"),
        row("a group that there isn't").user("app:nosuch").args(["id"]).not_run(125, "nosuch"),
    ]
}

fn working_directories() -> Vec<Row> {
    let here = |name| row(name).sh("pwd; echo $PWD; stat -c '%u %g %a' .");
    vec![
        here("the root by default"),
        here("the image's working directory").busybox("RUN mkdir -m 1777 /w\nWORKDIR /w"),
        here("one that the image made").busybox("WORKDIR /made/here"),
        here("a relative one").busybox("WORKDIR /made\nWORKDIR here"),
        here("the pool's, which exists").workdir("/var/tmp"),
        here("the pool's, which is made").workdir("/not/there yet").user("app"),
        here("through a link").busybox("RUN ln -s /var/tmp /link\nWORKDIR /link"),
        row("one that is closed to the user")
            .busybox("RUN mkdir -m 700 /closed\nWORKDIR /closed")
            .user("app")
            .sh("pwd; ls")
            .code(1),
        row("OLDPWD is not set").sh("echo ${OLDPWD-unset}").prints("unset\n"),
    ]
}

/// Mounts as the kernel shows them; writes where a job might.
const MOUNTS: &str = "cat /proc/mounts; for d in / /tmp /dev/shm /scratch /data /run /.prewarm; do \
                      [ -d $d ] && { touch $d/x 2>/dev/null && echo $d is writable; rm -f $d/x; }; done; true";

fn shown(name: &'static str) -> Row {
    meant::mounts(row(name).sh(MOUNTS).mask(roots_and_inits).mask(ids))
}

fn file_systems() -> Vec<Row> {
    vec![
        shown("mounts"),
        shown("mounts, as a user").user("app"),
        shown("a read-only root").option("read_only = true", "--read-only"),
        row("writing to a read-only root")
            .option("read_only = true", "--read-only")
            .sh("echo >/x; echo >/etc/x; echo >/dev/shm/x; echo $?"),
        shown("a tmpfs").option(r#"tmpfs = ["/scratch"]"#, "--tmpfs /scratch"),
        shown("a tmpfs with options").option(
            r#"tmpfs = { "/scratch" = "size=64m,mode=1770,uid=1000,exec" }"#,
            "--tmpfs /scratch:size=64m,mode=1770,uid=1000,exec",
        ),
        shown("a read-only root with a tmpfs")
            .option("read_only = true", "--read-only")
            .option(r#"tmpfs = { "/run" = "" }"#, "--tmpfs /run"),
        shown("shared memory").option("shm_size = \"32MiB\"", "--shm-size 32m"),
        row("what the engine puts into /etc and /dev").sh(
            "ls -l /dev | sed 's/[A-Z][a-z][a-z] .*:[0-9][0-9] //'; ls -d /.dockerenv; \
                 ls /sys /proc | grep -v '^[0-9]'; \
                 cat /etc/resolv.conf; sed 's/^[0-9].*\\t.*/(address)/' /etc/hosts | sort | uniq",
        ),
        // The mount point of init, in place of Docker's file /sbin/docker-init. A job of many doesn't see it.
        row("the root")
            .busybox("RUN mkdir /sbin")
            .sh("ls -A / /sbin")
            .but_in(Isolation::Container, "\n.dockerenv\n", "\n.dockerenv\n.prewarm\n")
            .but_in(Isolation::Container, "\ndocker-init\n", "\n"),
        row("no network")
            .option("network = \"none\"", "--network none")
            .sh("ls /sys/class/net; cat /etc/resolv.conf /etc/hosts"),
        row("bridge network")
            .option("network = \"bridge\"", "--network bridge")
            .sh("ls /sys/class/net; ip route | wc -l"),
    ]
}

fn mounts(directory: &str, volume: &str) -> Vec<Row> {
    let at_data = |row: Row, source: &str, options: &str| {
        let read_only = options == ":ro";
        row.option_as(
            &format!(r#"mounts = [{{ source = "{source}", target = "/data", read_only = {read_only} }}]"#),
            ["--volume", &format!("{source}:/data{options}")],
        )
    };
    // What every job may write to has to be called so, unless there is but one.
    let shared = |row: Row, source: &str| {
        row.option_as(
            &format!(r#"mounts = [{{ source = "{source}", target = "/data", shared = true }}]"#),
            ["--volume", &format!("{source}:/data")],
        )
    };
    let one_job = "what one job writes to a mount that isn't `shared` the next one would see";
    // What one leaves there, the next one finds.
    const COUNT: &str =
        "x=$(cat /data/count 2>/dev/null)x; echo $x | tee /data/count; stat -c '%u %g %a %n' /data /data/*";
    const ANONYMOUS: &str = "cat /data/file; stat -c '%u %a %n' /data /data/*; echo new >/data/new; cat /data/new; \
                             grep ' /data ' /proc/self/mountinfo | cut -d ' ' -f 4-6";
    let content = "RUN mkdir /data && echo content >/data/file && chown -R 1000:1000 /data";
    vec![
        at_data(shown("a directory of the host's"), directory, "").in_container(one_job),
        shared(shown("a directory of the host's, shared"), directory),
        at_data(shown("a directory of the host's, read-only"), directory, ":ro"),
        at_data(shown("a volume"), volume, "").in_container(one_job),
        shared(shown("a volume, shared"), volume),
        at_data(shown("a volume, read-only"), volume, ":ro"),
        // Docker's job comes first.
        shared(
            row("a directory of the host's keeps what is written").sh(COUNT).but("x\n", "xx\n"),
            directory,
        ),
        // Its id is looked for when everything is over.
        meant::volume(
            row("an image's VOLUME")
                .busybox(&format!("{content}\nVOLUME /data"))
                .user("app")
                .sh(ANONYMOUS)
                .mask(ids),
        ),
        meant::volume_below_a_read_only_root(
            row("an image's VOLUME, with a read-only root")
                .busybox(&format!("{content}\nVOLUME /data"))
                .option("read_only = true", "--read-only")
                .sh(ANONYMOUS)
                .mask(ids),
        ),
    ]
}
