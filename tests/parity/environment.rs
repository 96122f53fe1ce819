//! The environment: its variables, their order, and those that somebody else sets.

use crate::docker::{BUSYBOX, DEBIAN, SCRATCH};
use crate::row::{Row, hostname, order, row};

pub fn rows() -> Vec<Row> {
    // Each of them shows the environment.
    let rows = [variables(), large(), home(), path_and_hostname()].into_iter().flatten();
    rows.map(|row| if row.variables() > 1 { row.mask(hostname).mask(order) } else { row.mask(hostname) })
        .collect()
}

const IMAGE: &str = r#"ENV A=image B="two words" EMPTY= Z=z
ENV A=later
CMD ["env"]"#;

fn variables() -> Vec<Row> {
    let env = |name| row(name).busybox(IMAGE);
    vec![
        env("the image's environment"),
        env("a job's variables come before the image's").env("N=new").env("Z=job"),
        env("an override").env("A=job"),
        env("an override with nothing").env("A=").env("N="),
        env("newlines, tabs, blanks at the ends").env("N= a\nb\tc\r\n "),
        env("equals signs").env("N==").env("M=a=b=").env("O=a==b"),
        env("UTF-8").env("N=é🐇\u{202e}").env("É=1"),
        env("shell characters").env("N=$HOME `id` \"' \\ * ;&|"),
        env("names with odd characters")
            .env("a.b=1")
            .env("a-b=2")
            .env("a b=3")
            .env("1=4")
            .env("[x]=5")
            .env("%=6")
            .env("a\nb=7"),
        env("names that differ in case").env("a=1").env("b=2"),
        env("the same name twice").env("N=1").env("M=2").env("N=3").env("A=4").env("A=5"),
        env("a name alone takes the caller's value").env("OUTER").outer("OUTER", "x\ny=z"),
        env("a name alone that the caller doesn't have").env("NOBODY_HAS_THIS").env("N=1"),
        env("names that mean something to us or to Docker")
            .env("TERM=xterm")
            .env("container=x")
            .env("PREWARM_CONFIG=/x")
            .env("DOCKER_HOST=x")
            .env("LD_PRELOAD="),
        env("the pool's environment comes first")
            .option(r#"env = { P = "pool", A = "pool" }"#, "-e P=pool -e A=pool")
            .env("N=job"),
        env("a job's variables over the pool's")
            .option(r#"env = { P = "pool", Q = "q", A = "pool" }"#, "-e P=pool -e Q=q -e A=pool")
            .env("A=job")
            .env("P=job")
            .env("N=job"),
        row("a real Debian's environment").image(DEBIAN).args(["env"]).env("N=é"),
        row("an environment from scratch").image(SCRATCH).args(["env"]).env("N=n").env("A=a"),
    ]
}

/// A string of the environment may have 128 KiB with its NUL.
const LONGEST: usize = 128 * 1024 - 1;

fn large() -> Vec<Row> {
    let many = (0..64).fold(row("1 MiB in all").args(["env"]), |row, n| {
        row.env(format!("V{n}={}", char::from(b'a' + n % 26).to_string().repeat(16 * 1024)))
    });
    vec![
        many,
        row("the longest variable that there can be")
            .args(["env"])
            .env(format!("N={}", "n".repeat(LONGEST - 2))),
        (0..2000).fold(row("two thousand variables").args(["env"]), |row, n| row.env(format!("V{n}={n}"))),
    ]
}

fn home() -> Vec<Row> {
    let with_home = |name| row(name).busybox("ENV A=a HOME=/image B=b").args(["env"]);
    let env = |name| row(name).args(["env"]);
    vec![
        env("HOME of root"),
        env("HOME of a user by name").user("app"),
        env("HOME of a user by uid").user("1000"),
        env("HOME of a uid that nobody has").user("4242"),
        env("HOME of a user with another group").user("app:media"),
        env("HOME of nobody").user("nobody"),
        row("HOME of the image's user").busybox("USER app").args(["env"]),
        row("HOME from scratch").image(SCRATCH).args(["env"]).user("1000"),
        env("HOME set by the job").env("HOME=/job"),
        env("HOME set by the job, empty").env("A=a").env("HOME=").env("B=b"),
        env("HOME set by the job, empty, for a user").user("app").env("HOME="),
        env("HOME set by the job, empty, for a uid that nobody has").user("4242").env("HOME="),
        row("HOME from scratch, set by the job, empty").image(SCRATCH).args(["env"]).user("1000").env("HOME="),
        env("HOME set by the pool").option("env = { HOME = \"/pool\" }", "-e HOME=/pool"),
        env("HOME set by the pool, empty").option("env = { HOME = \"\" }", "-e HOME="),
        with_home("HOME set by the image"),
        with_home("HOME set by image and job").env("HOME=/job"),
        with_home("HOME set by the image, empty by the job").env("N=n").env("HOME="),
        with_home("HOME set by the image, empty by a user's job").user("app").env("HOME="),
        with_home("HOME set by the image, empty by the job, for a uid that nobody has").user("4242").env("HOME="),
        with_home("HOME set by the image, empty by the pool").option("env = { HOME = \"\" }", "-e HOME="),
        row("HOME set by the image, empty").busybox("ENV HOME= A=a").args(["env"]),
        // The first line counts, whoever comes later, and what is no line of a passwd file is passed over.
        row("HOME of an odd passwd file").dockerfile(format!(
            "FROM {BUSYBOX}\nENV HOME=/image\nRUN printf '{}' >/etc/passwd",
            r"# comment\n\nx\ny:x:nan:1:::\nfirst:x:1000:1000::/first\nsecond:x:1000:1000::/second:/bin/sh\n"
        )).args(["env"]).user("1000").env("HOME="),
        row("HOME of a passwd line that ends early").dockerfile(format!(
            "FROM {BUSYBOX}\nENV HOME=/image\nRUN printf 'short:x:77:77\\n' >/etc/passwd"
        )).args(["env"]).user("77:77").env("HOME="),
    ]
}

fn path_and_hostname() -> Vec<Row> {
    let with_both = |name| row(name).busybox("ENV A=a PATH=/image:/bin HOSTNAME=image").args(["env"]);
    vec![
        row("PATH set by the job").args(["/bin/env"]).env("A=a").env("PATH=/job:/bin").env("B=b"),
        row("PATH set by the pool")
            .args(["env"])
            .option("env = { PATH = \"/pool:/bin\" }", "-e PATH=/pool:/bin"),
        with_both("PATH and HOSTNAME set by the image"),
        with_both("PATH and HOSTNAME set by image and job").env("HOSTNAME=job").env("PATH=/job:/bin"),
        row("HOSTNAME set by the job").args(["env"]).env("HOSTNAME=job"),
        row("HOSTNAME is what the kernel says").sh("[ $HOSTNAME = $(hostname) ] && [ ${#HOSTNAME} = 12 ]"),
        row("the host's network has the host's name")
            .sh("hostname; env")
            .option("network = \"host\"", "--network host")
            .in_container("what one job leaves there the next one would meet"),
    ]
}
