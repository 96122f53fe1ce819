//! The image is another, or the configuration, while jobs keep coming: none of them waits for a container.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::flow::{all_succeeded, docker_aside, flow, nothing_leaked, retired};
use crate::support::broker::Job;
use crate::support::docker::{BUSYBOX, Image, docker_ok};
use crate::support::engine::containers;
use crate::support::worker::{Site, Worker, eventually, run, signal};

/// How often jobs are to come: so rarely that a pool can replace its containers besides. While it looks for image and
/// init it makes none, and then several at once.
async fn pace(worker: &Worker) -> Duration {
    Duration::from_secs(1).max(3 * worker.warmup("box").await)
}

async fn until_served(worker: &Worker, more: f64) {
    let before = retired(worker, "used").await;
    eventually("jobs were served", async || (retired(worker, "used").await >= before + more).then_some(()))
        .await;
}

fn all_hit(results: &[Value]) {
    let missed: Vec<_> = results.iter().filter(|r| r["lease"] != "hit").collect();
    assert!(missed.is_empty(), "{} of {} missed: {missed:#?}", missed.len(), results.len());
}

#[test]
fn the_image_is_rolled_over() {
    run(async |site: &Site| {
        let [one, two] = ["1", "2"].map(|n| Image::build(&format!("FROM {BUSYBOX}\nENV GENERATION={n}\n")));
        let image = one.tagged();
        let id = |image: &Image| {
            docker_ok(["image", "inspect", "--format", "{{.Id}}", image.name()]).trim().to_owned()
        };
        let (old, new) = (id(&one), id(&two));
        let keys = format!("image = \"{}\"\nidle = 4\nconcurrency = 2\nnetwork = \"host\"", image.name());
        let worker =
            site.worker().section("\n[engine]\nimage_check = \"1s\"\n").pool("box", &keys).full().await;
        let (jobs, late) = flow(site, pace(&worker).await, async {
            until_served(&worker, 2.0).await;
            docker_aside(&["tag", two.name(), image.name()]).await;
            worker.until_one(async |p| p["image_id"] == *new && p["stale"] == 0).await;
            until_served(&worker, 3.0).await;
            site.broker.submit("box", Job::shell("echo $GENERATION")).await
        })
        .await;
        let results = all_succeeded(site, &jobs).await;
        let late = all_succeeded(site, &[late]).await;
        all_hit(&results);
        all_hit(&late);
        let made_of = |id: &str| format!("{}@{id}", image.name());
        assert_eq!(results[0]["image"], made_of(&old));
        assert_eq!(late[0]["image"], made_of(&new));
        assert_eq!(late[0]["stdout"]["text"], "2\n");
        nothing_leaked(&worker, || containers(&worker.name)).await;
        for container in containers(&worker.name) {
            assert_eq!(docker_ok(["inspect", "--format", "{{.Image}}", &container.id]).trim(), new);
        }
        assert!(retired(&worker, "rolled").await >= 1.0);
        assert!(worker.stop().await.success());
    });
}

#[test]
fn the_configuration_is_read_again() {
    run(async |site: &Site| {
        let keys = "idle = 3\nconcurrency = 2\nnetwork = \"host\"\nenv = { COLOUR = \"red\" }";
        let worker = site.worker().pool("box", keys).full().await;
        let text = fs::read_to_string(&worker.config).unwrap();
        let first: Vec<String> = containers(&worker.name).into_iter().map(|c| c.id).collect();
        let colour = async || {
            let attempt = site.broker.run("box", Job::shell("echo $COLOUR")).await.succeeded();
            String::from_utf8(attempt.stdout).unwrap()
        };
        let (jobs, ()) = flow(site, pace(&worker).await, async {
            assert_eq!(colour().await, "red\n");

            // One key is right and new, the other wrong: neither is taken over.
            let wrong = text.replace("\"red\"", "\"green\"").replace("idle = 3", "idle = \"three\"");
            fs::write(&worker.config, &wrong).unwrap();
            signal("HUP", worker.pid());
            let (line, of_line) = wrong.lines().enumerate().find(|(_, l)| l.contains("three")).unwrap();
            let place = format!(
                "{}:{}:{}: pool.box.idle",
                worker.config.display(),
                line + 1,
                of_line.find('"').unwrap() + 1
            );
            eventually("the log says what is wrong, and where", async || {
                let said = worker.log();
                (said.contains("SIGHUP: nothing is taken over") && said.contains(&place)).then_some(())
            })
            .await;
            until_served(&worker, 3.0).await;
            let pool = worker.until_full().await["pools"][0].clone();
            assert_eq!((&pool["idle_max"], &pool["stale"]), (&3.into(), &0.into()));
            assert_eq!(retired(&worker, "rolled").await, 0.0);
            assert_eq!(colour().await, "red\n");

            fs::write(&worker.config, text.replace("\"red\"", "\"blue\"").replace("idle = 3", "idle = 5"))
                .unwrap();
            signal("HUP", worker.pid());
            worker.until_one(async |p| p["idle_max"] == 5 && p["idle"] == 5 && p["stale"] == 0).await;
            assert_eq!(colour().await, "blue\n");
            until_served(&worker, 2.0).await;
        })
        .await;
        all_hit(&all_succeeded(site, &jobs).await);
        nothing_leaked(&worker, || containers(&worker.name)).await;
        let now = containers(&worker.name);
        assert_eq!(now.len(), 5);
        assert!(now.iter().all(|c| !first.contains(&c.id)));
        assert!(worker.stop().await.success());
    });
}
