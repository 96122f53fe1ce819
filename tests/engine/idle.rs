//! Idle containers that somebody removes or pauses.

use std::time::Duration;

use rand::RngExt;

use crate::flow::{all_succeeded, docker_aside, flow, in_state, nothing_leaked, pace, retired};
use crate::support::docker::docker;
use crate::support::engine::containers;
use crate::support::worker::{Site, eventually, run};

const KEYS: &str = "idle = 3\nconcurrency = 2\nnetwork = \"host\"";

#[test]
fn removed_at_random() {
    // Jobs lease some of them before the engine gets to removing them: more the slower it is. Half would be usual.
    const DIED: f64 = 6.0;
    const AT_MOST: usize = 60;
    run(async |site: &Site| {
        let worker = site.worker().pool("box", KEYS).full().await;
        let (jobs, ()) = flow(site, pace(&worker).await, async {
            for _ in 0..AT_MOST {
                tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..600))).await;
                let victim = eventually("one is idle", async || {
                    let idle = in_state(&worker, "idle").await;
                    (!idle.is_empty()).then(|| idle[rand::rng().random_range(0..idle.len())].clone())
                })
                .await;
                // It may have served and gone in between.
                let remove = move || docker(["rm", "-f", &victim]).output().unwrap();
                tokio::task::spawn_blocking(remove).await.unwrap();
                if retired(&worker, "died").await >= DIED {
                    break;
                }
            }
        })
        .await;
        all_succeeded(site, &jobs).await;
        nothing_leaked(&worker, || containers(&worker.name)).await;
        let died = retired(&worker, "died").await;
        assert!(died >= DIED, "{died} of {AT_MOST} died idle");
        assert!(worker.stop().await.success());
    });
}

#[test]
fn all_paused() {
    // Jobs lease some before they are paused, and some have served when they are doubted.
    const DOUBTED: f64 = 6.0;
    const AT_MOST: usize = 60;
    run(async |site: &Site| {
        let worker = site.worker().pool("box", KEYS).full().await;
        let (jobs, paused) = flow(site, pace(&worker).await, async {
            let mut paused = 0;
            for _ in 0..AT_MOST {
                worker.until_one(async |p| p["idle"].as_u64() >= Some(1)).await;
                for victim in in_state(&worker, "idle").await {
                    // It may have been leased in between, and be gone.
                    let pause = {
                        let victim = victim.clone();
                        move || docker(["pause", &victim]).output().unwrap().status.success()
                    };
                    if !tokio::task::spawn_blocking(pause).await.unwrap() {
                        continue;
                    }
                    eventually("it is no longer idle", async || {
                        let idle = in_state(&worker, "idle").await.contains(&victim);
                        (!idle).then_some(())
                    })
                    .await;
                    if in_state(&worker, "leased").await.contains(&victim) {
                        // Not idle any more when it was paused: whoever pauses a job wants it to wait.
                        docker_aside(&["unpause", &victim]).await;
                    } else {
                        paused += 1;
                    }
                }
                if retired(&worker, "doubt").await >= DOUBTED {
                    break;
                }
            }
            paused
        })
        .await;
        all_succeeded(site, &jobs).await;
        nothing_leaked(&worker, || containers(&worker.name)).await;
        let doubt = retired(&worker, "doubt").await;
        println!("paused: {paused}, doubt: {doubt}");
        assert!(doubt >= DOUBTED, "{doubt} of {paused} paused");
        assert!(worker.stop().await.success());
    });
}
