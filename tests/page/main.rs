//! The page at `/` of the HTTP port, as a real browser shows it: of real workers with real jobs.

#[path = "../support/mod.rs"]
mod support;

mod browser;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use browser::Browser;
use support::broker::Job;
use support::docker::{BUSYBOX, docker_ok, unique};
use support::worker::{DEADLINE, Site, Worker, eventually, prewarm, run};

/// The refreshing script would have time to do something wrong in it.
const HOSTILE: &str = "<img src=x onerror=\"document.title='broken in'\"></script><script>alert(1)</script>";

fn address(worker: &Worker) -> String {
    format!("http://{}/", worker.listen)
}

/// Waits until a person sees all these; gives all that is seen then.
async fn until_seen(browser: &Browser, texts: &[&str]) -> String {
    let begun = Instant::now();
    loop {
        let seen = browser.text();
        if texts.iter().all(|text| seen.contains(text)) {
            return seen;
        }
        assert!(begun.elapsed() < DEADLINE, "{texts:?} are not all in:\n{seen}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn cancel(worker: &Worker, job: &Job) {
    let mut command = prewarm();
    let cancelled = command.arg("--config").arg(&worker.config).args(["cancel", "--", &job.id]).output();
    assert!(cancelled.unwrap().status.success());
}

/// Nothing went wrong in the page, and it asked for nothing but itself.
fn was_quiet(browser: &Browser, worker: &Worker) {
    assert_eq!(browser.console(), [""; 0]);
    let requests = browser.requests();
    let own = |url: &String| *url == address(worker) || url.starts_with("data:image/svg+xml,");
    assert!(!requests.is_empty() && requests.iter().all(own), "{requests:#?}");
}

#[test]
fn jobs_come_and_go_before_ones_eyes() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 2\nconcurrency = 2").full().await;
        let browser = Browser::start(&site.dir);
        browser.open(&address(&worker));
        let text = until_seen(&browser, &["Target 2", "2 idle"]).await;
        for part in [&worker.name, "ready", "broker connected", "no leases", "No job is running.", BUSYBOX] {
            assert!(text.contains(part), "'{part}' is not in:\n{text}");
        }
        // Were the page loaded again, this would be lost.
        browser.run("window.same = true; window.heading = document.querySelector('h1')");

        let mut job = Job::shell("sleep 600");
        HOSTILE.clone_into(&mut job.id);
        job.properties = job.properties.with_message_id(HOSTILE.into());
        let job = site.broker.submit("box", job).await;
        until_seen(&browser, &[HOSTILE, "1 leased", "1 of 1", "100 %"]).await;
        assert_eq!(browser.run("return document.querySelectorAll('.boxes .leased').length"), 1);
        assert_eq!(browser.run("return document.querySelectorAll('.chart rect.hit').length"), 1);

        let unknown = json!({HOSTILE: 1});
        let rejected = site.broker.submit("box", Job::new(unknown)).await;
        site.broker.finished(&rejected).await;
        let secret =
            json!({"args": ["sh", "-c", "echo $T; exit 3"], "env": {"T": "s3cret"}, "secrets": ["T"]});
        let failed = site.broker.submit("box", Job::new(secret)).await;
        site.broker.finished(&failed).await;
        cancel(&worker, &job);
        let text = until_seen(&browser, &["No job is running.", "0 leased", "exit code 3", "rejected"]).await;
        assert!(text.contains(&rejected.id) && text.contains(HOSTILE), "{text}");

        let same = "return [window.same, window.heading.isConnected, document.title]";
        let title = format!("{}: ready · prewarm", worker.name);
        assert_eq!(browser.run(same), json!([true, true, title]), "it was never loaded again");
        let inside = "return document.querySelectorAll('main img, main script').length";
        assert_eq!(browser.run(inside), 0);
        was_quiet(&browser, &worker);
        assert!(!worker.get("/").await.unwrap().1.contains("s3cret"));
        site.broker.take(&site.broker.dead()).await;
    });
}

#[test]
fn a_pool_that_is_broken_says_why_until_it_works() {
    run(async |site: &Site| {
        let missing = unique("image");
        let keys = format!("image = \"{missing}\"\npull = \"never\"\nidle = 1");
        let worker = site.worker().pool("box", "idle = 1").pool("broken", &keys).start().await;
        let browser = Browser::start(&site.dir);
        browser.open(&address(&worker));
        let text =
            until_seen(&browser, &["not able: takes no jobs", "couldn’t be made", "pool broken: "]).await;
        assert!(text.contains("not ready") && text.contains(&missing), "{text}");
        let states = "return [...document.querySelectorAll('.pool .state')].map(state => state.innerText)";
        let until_states = async |wanted: Value| {
            eventually(&wanted.to_string(), async || (browser.run(states) == wanted).then_some(())).await;
        };
        until_states(json!(["able", "not able: takes no jobs"])).await;

        docker_ok(["tag", BUSYBOX, &missing]);
        until_states(json!(["able", "able"])).await;
        let text = browser.text();
        assert!(!text.contains("not ready") && !text.contains("couldn’t"), "{text}");
        was_quiet(&browser, &worker);
        assert!(worker.stop().await.success());
        until_seen(&browser, &["The worker doesn’t answer."]).await;
        docker_ok(["image", "rm", &missing]);
    });
}

#[test]
fn it_can_be_paused_and_used_with_the_keyboard_on_any_screen() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").full().await;
        let job = site.broker.submit("box", Job::shell("sleep 600")).await;
        site.broker.started(&job).await;
        let browser = Browser::start(&site.dir);
        browser.open(&address(&worker));
        until_seen(&browser, &[&job.id, "Pause"]).await;
        let style = |scheme: &str| {
            let feature = json!([{"name": "prefers-color-scheme", "value": scheme}]);
            browser.chromium("Emulation.setEmulatedMedia", &json!({"features": feature}));
            let [ground, texts] =
                ["return getComputedStyle(document.body).backgroundColor", CONTRASTS].map(|s| browser.run(s));
            (ground, texts)
        };
        let (light, dark) = (style("light"), style("dark"));
        assert_ne!(light.0, dark.0, "there are two schemes");
        for (_, contrasts) in [light, dark] {
            let contrasts = contrasts.as_object().unwrap().clone();
            assert!(contrasts.len() > 15, "{contrasts:#?}");
            let weak: Vec<_> = contrasts.iter().filter(|(_, c)| c.as_f64().unwrap() < 4.5).collect();
            assert!(weak.is_empty(), "text that is hard to read: {weak:#?}");
        }
        for width in [320, 390, 800, 1280] {
            let screen =
                json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500});
            browser.chromium("Emulation.setDeviceMetricsOverride", &screen);
            let fits = browser.run("return document.documentElement.scrollWidth <= innerWidth");
            assert_eq!(fits, true, "at {width} it has to be scrolled sideways");
        }

        // Tab, and the space bar: the first thing to reach is the button.
        let press = |key: &str| {
            let keys = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
            browser.actions(&json!([{"type": "key", "id": "keyboard", "actions": keys}]));
        };
        press("\u{e004}");
        assert_eq!(browser.run("return document.activeElement.id"), "pause");
        press(" ");
        assert_eq!(browser.run("return document.activeElement.ariaPressed"), "true");
        let paused = browser.text();
        cancel(&worker, &job);
        site.broker.finished(&job).await;
        worker.until_full().await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(browser.text(), paused, "for longer than it ever stays the same by itself");
        press(" ");
        until_seen(&browser, &["No job is running.", "Pause"]).await;
        assert_eq!(browser.run("return document.activeElement.id"), "pause", "focus stays");
        was_quiet(&browser, &worker);
    });
}

/// For each kind of text, how it stands out against what is behind it (WCAG 2).
const CONTRASTS: &str = r"
    const rgb = (color) => color.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const color = rgb(getComputedStyle(element).backgroundColor);
            if (color.length === 3) return color;
        }
        return [255, 255, 255];
    };
    const found = {};
    for (const element of document.querySelectorAll('body *')) {
        if (element.closest('script, [hidden]') || ![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
        const style = getComputedStyle(element);
        const [a, b] = [light(rgb(element.closest('svg') ? style.fill : style.color)), light(behind(element))];
        found[element.tagName + '.' + (element.getAttribute('class') ?? '')] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }
    return found;
";

#[test]
fn without_script_it_shows_all_and_loads_itself_again() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1\nconcurrency = 1").full().await;
        let job = site.broker.submit("box", Job::shell("sleep 600")).await;
        site.broker.started(&job).await;
        let browser = Browser::start(&site.dir);
        browser.chromium("Emulation.setScriptExecutionDisabled", &json!({"value": true}));
        browser.open(&address(&worker));
        let text = until_seen(&browser, &[&job.id, "1 leased"]).await;
        for part in [&worker.name, "ready", "broker connected", "1 of 1", "Target 1", "Last failures"] {
            assert!(text.contains(part), "'{part}' is not in:\n{text}");
        }
        assert!(!text.contains("Pause"), "what needs the script isn't there: {text}");
        assert_eq!(browser.run("return document.querySelectorAll('.chart').length"), 2);
        cancel(&worker, &job);
        until_seen(&browser, &["No job is running."]).await;
        was_quiet(&browser, &worker);
    });
}

#[test]
fn it_is_guarded_by_its_headers_and_can_be_off() {
    run(async |site: &Site| {
        let worker = site.worker().pool("box", "idle = 1").ready().await;
        let browser = Browser::start(&site.dir);
        browser.open(&address(&worker));
        let headers = browser.run("return fetch('').then((answer) => Object.fromEntries(answer.headers))");
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(headers[name], value, "{headers:#}");
        }
        let policy = headers["content-security-policy"].as_str().unwrap();
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        was_quiet(&browser, &worker);
        // What somebody managed to put into it would not run.
        browser.run(
            "const script = document.createElement('script'); script.text = 'window.ran = true';
             document.body.append(script);
             document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\" onclick=\"window.ran = true\">');
             document.body.lastChild.click();",
        );
        assert_eq!(browser.run("return window.ran ?? null"), Value::Null);
        assert!(browser.console().iter().all(|line| line.contains("Content Security Policy")));

        let off = site.worker().pool("other", "idle = 1").env("PREWARM_HTTP_PAGE", "false").ready().await;
        let (code, body) = off.get("/").await.unwrap();
        assert_eq!((code, body.contains("[http] page = false")), (404, true), "{body}");
        assert_eq!(off.get("/status").await.unwrap().0, 200);
    });
}
