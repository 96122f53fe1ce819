use super::*;
use crate::contract::PoolName;
use crate::contract::event::Status as Ended;
use crate::pool::ContainerStatus;
use crate::pool::planner::{Host, Reason, Sizing};

const HOSTILE: &str = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>\u{202e}&lt;";

fn name(name: &str) -> PoolName {
    PoolName::new(name).unwrap()
}

fn idle_pool(pool: &str) -> PoolStatus {
    PoolStatus {
        pool: name(pool),
        image: "acme/build:7".into(),
        image_id: None,
        able: true,
        idle_min: 1,
        idle_max: 8,
        memory: None,
        target: 2,
        sizing: Sizing {
            target: 2,
            away: 0,
            reason: Reason::Demand,
            rate: 1.25,
            burst: 1.0,
            warm_seconds: 0.25,
            warm_seconds_alone: 0.2,
            warm_seconds_p95: 0.3,
            warm_variation: 0.1,
            creators: 3.0,
            hit_target: 0.99,
            expected_hit_rate: 0.995,
            hit_rate: None,
            correction: 0,
        },
        starting: 0,
        idle: 0,
        stale: 0,
        leased: 0,
        removing: 0,
        waiting: 0,
        last_failure: None,
        containers: Vec::new(),
    }
}

fn worker(pools: Vec<PoolStatus>) -> Status {
    Status {
        worker: "worker-1".into(),
        version: "0.1.0",
        uptime_seconds: 3700,
        ready: true,
        draining: false,
        not_ready_because: Vec::new(),
        broker_connected: true,
        host: Host { creators: 3, containers: None, memory: None },
        pools,
        jobs: Vec::new(),
        failures: Vec::new(),
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

/// What a reader sees: the body without markup and script, its entities resolved.
fn seen(html: &str) -> String {
    let (_, body) = html.split_once("<main>").unwrap();
    let (body, _) = body.split_once("</main>").unwrap();
    let mut text = String::new();
    for piece in body.split('<') {
        text += piece.split_once('>').map_or(piece, |(_, after)| after);
        text.push(' ');
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

fn assert_seen(html: &str, texts: &[&str]) {
    let seen = seen(html);
    for text in texts {
        assert!(seen.contains(text), "'{text}' is not in: {seen}");
    }
}

#[test]
fn an_empty_worker_says_that_there_is_nothing() {
    let html = render(&worker(vec![idle_pool("build")]), &Past::new(), at(45_296));
    assert_seen(
        &html,
        &[
            "worker-1 ready version 0.1.0 · up 1 h 1 m · broker connected · pools able: 1 of 1 · as of 12:34:56 UTC",
            "Hit rate – no leases",
            "Target 2 what the jobs ask for",
            "1 to 8 idle; goal 99 % hits, expected 99.5 %; 1.2 jobs/s; replacing one takes 250 ms",
            "No job is running.",
            "No attempt has ended badly since the worker started.",
        ],
    );
    assert!(!seen(&html).contains("Not ready because"));
    assert!(html.contains("<title>worker-1: ready · prewarm</title>"));
    assert_seen(&render(&worker(Vec::new()), &Past::new(), at(0)), &["The pools are closed."]);
}

#[test]
fn a_busy_worker_shows_containers_jobs_and_failures() {
    let mut pool = idle_pool("build");
    (pool.starting, pool.idle, pool.stale, pool.leased, pool.removing, pool.waiting) = (2, 1, 1, 3, 1, 4);
    pool.containers = [("a1b2c3d4e5f6a7b8", "idle"), ("ffffffffffffffff", "leased")]
        .map(|(id, state)| ContainerStatus { id: id.into(), state })
        .into();
    let mut worker = worker(vec![pool]);
    let job = |n: u64| RunningJob {
        job_id: format!("job-{n}"),
        pool: name("build"),
        attempt: 2,
        seconds: 75,
        container: (n == 0).then(|| "ffffffffffffffff".into()),
    };
    worker.jobs = (0..150).map(job).collect();
    let mut failure = Failure::new("job-x", &name("build"), 3, Ended::TimedOut, "ran longer than 1m");
    (failure.time, failure.retried) = ("1970-01-01T00:00:10.000Z".into(), true);
    worker.failures.push(failure);
    let columns = vec![Tally::of(9, 0, &[0.0008; 9]), Tally::of(0, 1, &[0.3])];
    let html = render(&worker, &Past::from([("build".into(), columns)]), at(100));
    assert_seen(
        &html,
        &[
            "Hit rate 90 % 9 of 10, since the start",
            "Running jobs 150 4 of them wait for a container",
            "Idle containers 1 of 2 7 containers in all states",
            "2 starting 1 idle (1 to be replaced) 3 leased 1 removing 4 jobs waiting",
            "job-0 build 2 1 m 15 s ffffffffffff",
            "job-1 build 2 1 m 15 s waits for one",
            "and 50 more; /status has them all",
            "timed out ran longer than 1m ; another attempt follows job-x build 3 1 m 30 s ago",
        ],
    );
    let drawn = |state: &str| html.matches(&format!(r#"<i class="box {state}" title"#)).count();
    assert_eq!(["starting", "idle", "leased", "removing"].map(drawn), [2, 1, 3, 1]);
    assert!(html.contains(r#"aria-label="2 starting, 1 idle, 3 leased, 1 removing""#));
    assert!(
        html.contains(r#"title="a1b2c3d4e5f6: idle""#) && html.contains(r#"title="no id yet: starting""#)
    );
    assert!(html.contains("hits 9, misses 1"));
    let full = vec![Tally::default(); KEPT];
    assert_seen(
        &render(&worker, &Past::from([("build".into(), full)]), at(100)),
        &["no leases, last 15 min"],
    );
}

#[test]
fn more_containers_than_can_be_seen_are_counted() {
    let mut pool = idle_pool("build");
    pool.idle = SHOWN + 7;
    let html = render(&worker(vec![pool]), &Past::new(), at(0));
    assert_eq!(html.matches(r#"<i class="box idle" title"#).count(), SHOWN);
    assert_seen(&html, &["and 7 more idle", "107 idle"]);
}

#[test]
fn a_broken_pool_says_why() {
    let mut pool = idle_pool("broken");
    (pool.able, pool.last_failure) = (false, Some("image 'nowhere/x': no such image".into()));
    let mut worker = worker(vec![idle_pool("build"), pool]);
    worker.ready = false;
    worker.broker_connected = false;
    worker.not_ready_because =
        vec!["broker: not connected".into(), "pool broken: image 'nowhere/x': no such image".into()];
    let html = render(&worker, &Past::new(), at(0));
    assert_seen(
        &html,
        &[
            "worker-1 not ready",
            "· broker not connected · pools able: 1 of 2 ·",
            "Not ready because broker: not connected pool broken: image 'nowhere/x': no such image",
            "build acme/build:7 able",
            "not able: takes no jobs The last container couldn’t be made: image 'nowhere/x': no such image",
        ],
    );
    assert!(html.contains(r#"<article class="pool bad" id="pool-broken""#));
}

#[test]
fn a_pool_that_drains_is_no_broken_one() {
    let mut pool = idle_pool("build");
    pool.able = false;
    let mut worker = worker(vec![pool]);
    (worker.ready, worker.draining) = (false, true);
    let html = render(&worker, &Past::new(), at(0));
    assert!(seen(&html).contains("draining: takes no more jobs"), "{html}");
    assert!(!html.contains("not able") && !html.contains(r#"class="pool bad""#));
}

#[test]
fn nothing_from_outside_is_markup() {
    let mut pool = idle_pool("build");
    pool.image = HOSTILE.into();
    pool.last_failure = Some(HOSTILE.into());
    pool.idle = 1;
    pool.containers = vec![ContainerStatus { id: HOSTILE.into(), state: "idle" }];
    let mut worker = worker(vec![pool]);
    worker.worker = HOSTILE.into();
    worker.not_ready_because = vec![HOSTILE.into()];
    let job = |container: &str| RunningJob {
        job_id: HOSTILE.into(),
        pool: name("build"),
        attempt: 1,
        seconds: 0,
        container: Some(container.into()),
    };
    worker.jobs = vec![job(HOSTILE)];
    let mut failure = Failure::new(HOSTILE, &name("build"), 1, Ended::Error, HOSTILE);
    failure.time = HOSTILE.into();
    worker.failures.push(failure);
    let html = render(&worker, &Past::new(), at(0));
    // The page's own script is the only one, its icon the only thing that loads, and no attribute is anybody's handler.
    assert_eq!(html.matches("<script").count(), 1);
    assert!(!html.contains("<img") && !html.contains("onerror='") && !html.contains('\u{202e}'));
    let shown = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>\\u202e&lt;";
    assert_eq!(seen(&html).matches(shown).count(), 7, "{}", seen(&html));
}

#[test]
fn the_policy_allows_what_the_page_has_and_no_more() {
    let html = render(&worker(Vec::new()), &Past::new(), at(0));
    let inside = |tag: &str| {
        let (_, rest) = html.split_once(&format!("<{tag}>")).unwrap();
        rest.split_once(&format!("</{tag}>")).unwrap().0
    };
    let policy = headers().into_iter().find(|(name, _)| name == header::CONTENT_SECURITY_POLICY).unwrap().1;
    let policy = policy.to_str().unwrap();
    for (directive, tag) in [("style-src", "style"), ("script-src", "script")] {
        let hash = BASE64_STANDARD.encode(Sha256::digest(inside(tag)));
        assert!(policy.contains(&format!("{directive} 'sha256-{hash}';")), "{policy}");
    }
    assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"));
    assert!(!policy.contains("unsafe"));
    for forbidden in [" style=", " onclick=", "http://", "https://"] {
        let html = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!html.contains(forbidden), "{forbidden}");
    }
}
