//! What happens to workers: killed at the worst moments, told to stop while jobs run.

use std::time::Duration;

use crate::books::Tally;
use crate::proxy::Proxy;
use crate::run::{Run, until};
use crate::support::worker::{DEADLINE, signal};

/// A worker that is told twice to stop is gone after this.
const FORCED: Duration = Duration::from_secs(5);

pub async fn killed_mid_job(run: Run<'_>) -> Tally {
    let mut worker = run.worker().await;
    let worker = run
        .under_load(async {
            for _ in 0..run.scale.times {
                run.mid_job(&worker).await;
                worker.kill();
                run.over();
                worker = run.again(&worker.name).await;
            }
            worker
        })
        .await;
    run.settle(vec![worker]).await;
    run.close().await
}

/// The result is with the publisher, the acknowledgement never reaches the broker.
pub async fn killed_between_result_and_ack(run: Run<'_>) -> Tally {
    let proxy = Proxy::before(&run.ground.urls).await;
    *run.way.borrow_mut() = Some(proxy.url.clone());
    let mut worker = run.worker().await;
    let worker = run
        .under_load(async {
            for _ in 0..run.scale.times {
                run.mid_job(&worker).await;
                proxy.hold_acks().await;
                worker.kill();
                proxy.cut();
                proxy.open();
                run.over();
                worker = run.again(&worker.name).await;
            }
            worker
        })
        .await;
    run.settle(vec![worker]).await;
    let times = run.scale.times;
    let tally = run.close().await;
    // One job may be hit more than once: it is given out again before all others.
    let again = tally.second_results;
    assert!(
        again >= times,
        "{again} second results of {times} acknowledgements held back: {:?}",
        tally.duplicated
    );
    tally
}

pub async fn killed_while_starting_containers(run: Run<'_>) -> Tally {
    run.keys("idle = 6");
    let mut worker = run.worker().await;
    let worker = run
        .under_load(async {
            for _ in 0..run.scale.times {
                run.results(1).await;
                until("containers are being started", async || {
                    worker.pool("box").await["starting"].as_u64() >= Some(2)
                })
                .await;
                run.sometime(80).await;
                worker.kill();
                run.over();
                worker = run.again(&worker.name).await;
            }
            worker
        })
        .await;
    run.settle(vec![worker]).await;
    run.close().await
}

/// Nobody comes back: the other one finishes all of it.
pub async fn one_of_two_killed(run: Run<'_>) -> Tally {
    let mut one = run.worker().await;
    let other = run.worker().await;
    run.under_load(async {
        run.mid_job(&one).await;
        one.kill();
        run.over();
        run.results(4).await;
    })
    .await;
    run.settle(vec![other]).await;
    run.close().await
}

/// Told to stop under load, a worker finishes what it has, and nothing runs twice.
pub async fn told_to_stop(run: Run<'_>) -> Tally {
    let mut worker = run.worker().await;
    let worker = run
        .under_load(async {
            for _ in 0..run.scale.times {
                run.mid_job(&worker).await;
                let next = run.worker().await;
                run.over();
                let ended = std::mem::replace(&mut worker, next).stop().await;
                assert!(ended.success(), "{ended}");
            }
            worker
        })
        .await;
    run.settle(vec![worker]).await;
    let tally = run.close().await;
    assert_eq!(tally.duplicates(), 0, "a worker that drains finishes or hands back: {:?}", tally.duplicated);
    tally
}

/// Told twice, it gives up what it has, which others run again.
pub async fn told_twice_to_stop(run: Run<'_>) -> Tally {
    let mut worker = run.worker().await;
    let worker = run
        .under_load(async {
            for _ in 0..run.scale.times {
                run.mid_job(&worker).await;
                signal("TERM", worker.pid());
                // Two signals at once may be one to it.
                run.until_unready(&worker, DEADLINE).await;
                run.sometime(300).await;
                signal("TERM", worker.pid());
                let ended = tokio::time::timeout(FORCED, worker.ended()).await;
                run.over();
                // It may have had nothing left to do.
                let ended = ended.expect("a second signal forces");
                assert!(ended.code().is_some(), "it ended by itself: {ended}");
                worker = run.worker().await;
            }
            worker
        })
        .await;
    run.settle(vec![worker]).await;
    run.close().await
}
