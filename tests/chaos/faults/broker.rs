//! What happens to the broker, and to the way there.

use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use tokio::time::sleep;

use crate::books::Tally;
use crate::nodes::Nodes;
use crate::proxy::Proxy;
use crate::publisher::connect;
use crate::run::{Run, until};

/// From a broker that is gone to a worker that says so.
const NOTICED: Duration = Duration::from_secs(15);

/// The application in the node stops, and with it all connections; it starts again with what it has on disk.
pub async fn stopped_and_started(run: Run<'_>, nodes: &Nodes) -> Tally {
    let worker = run.worker().await;
    run.under_load(async {
        for _ in 0..run.scale.outages {
            run.mid_job(&worker).await;
            nodes.ctl(0, &["stop_app"]).await;
            run.until_unready(&worker, NOTICED).await;
            nodes.ctl(0, &["start_app"]).await;
            run.over();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    nothing_twice(run.close().await)
}

/// The node is gone for a while, once in an orderly way and once not.
pub async fn away(run: Run<'_>, nodes: &Nodes) -> Tally {
    let worker = run.worker().await;
    run.under_load(async {
        for signal in ["KILL", "TERM"].into_iter().take(run.scale.choose(1, 2)) {
            run.mid_job(&worker).await;
            tokio::task::block_in_place(|| nodes.end(0, signal));
            run.until_unready(&worker, NOTICED).await;
            sleep(run.scale.lasting(10, 60)).await;
            nodes.again(0);
            tokio::task::block_in_place(|| nodes.until_up(0));
            run.over();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    nothing_twice(run.close().await)
}

/// Somebody closes all connections, of workers and publishers and readers.
pub async fn connections_closed(run: Run<'_>, nodes: &Nodes) -> Tally {
    let worker = run.worker().await;
    run.under_load(async {
        for _ in 0..run.scale.times + 1 {
            run.mid_job(&worker).await;
            // Only connections that there are can be closed.
            worker.until_ready().await;
            let before = worker.metrics().await.get("prewarm_broker_reconnects_total", &[]);
            nodes.ctl(0, &["close_all_connections", "chaos"]).await;
            run.over();
            until("the worker has connected again", async || {
                worker.metrics().await.get("prewarm_broker_reconnects_total", &[]) >= before + 2.0
            })
            .await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    nothing_twice(run.close().await)
}

/// Nothing gets through any more, in either direction, on connections that stay open.
pub async fn silent_peer(run: Run<'_>) -> Tally {
    let proxy = Proxy::before(&run.ground.urls).await;
    *run.way.borrow_mut() = Some(proxy.url.clone());
    run.env("PREWARM_BROKER_HEARTBEAT", "2s");
    let worker = run.worker().await;
    run.under_load(async {
        for _ in 0..run.scale.outages {
            run.mid_job(&worker).await;
            proxy.freeze();
            // Two heartbeats, and half of one since lapin looks that often: five seconds. By default it would be fifteen
            // at least.
            run.until_unready(&worker, NOTICED).await;
            sleep(run.scale.lasting(3, 30)).await;
            proxy.open();
            run.over();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    nothing_twice(run.close().await)
}

/// Jobs that take longer than the broker waits for an acknowledgement: it closes their channels and gives them out again.
/// The same worker gets them, and must not run them again.
pub async fn acknowledgement_timeout(run: Run<'_>, nodes: &Nodes) -> Tally {
    // Read by each channel when it is opened.
    let set = async |key: &str, value: &str| {
        let call = format!("application:set_env(rabbit, {key}, {value}).");
        nodes.ctl(0, &["eval", &call]).await;
    };
    set("consumer_timeout", "5000").await;
    set("channel_tick_interval", "1000").await;
    let worker = run.worker().await;
    let special = |n: usize| (n % 8 == 2).then(|| run.marked(8.0, 0));
    run.load(special, run.results(run.scale.jobs / 2)).await;
    until("all have run", async || run.books().open().is_empty()).await;
    let adopted = worker.metrics().await.get("prewarm_deliveries_adopted_total", &[("pool", "box")]);
    assert!(adopted >= 1.0, "no acknowledgement was too late");
    run.settle(vec![worker]).await;
    set("consumer_timeout", "1800000").await;
    set("channel_tick_interval", "60000").await;
    nothing_twice(run.close().await)
}

/// The queue is deleted while jobs run and none is waiting, and declared again by the worker; publishers go on.
pub async fn queue_deleted(run: Run<'_>) -> Tally {
    let worker = run.worker().await;
    let connection = connect(&run.ground.urls[0]).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("{}.jobs.box", run.site.name);
    run.under_load(async {
        for _ in 0..run.scale.times {
            run.results(3).await;
            run.pause().await;
            // One that is still on the way to it would go with the queue.
            until("none is waiting", async || {
                let open = run.books().open();
                let status = worker.status().await;
                let jobs = status["jobs"].as_array().unwrap();
                open.iter().all(|id| jobs.iter().any(|job| job["job_id"] == id.as_str()))
            })
            .await;
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
            run.over();
            run.resume();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    nothing_twice(run.close().await)
}

/// The broker takes nothing more from whoever publishes.
pub async fn memory_alarm(run: Run<'_>, nodes: &Nodes) -> Tally {
    let worker = run.worker().await;
    run.under_load(async {
        for _ in 0..run.scale.outages {
            run.mid_job(&worker).await;
            nodes.ctl(0, &["set_vm_memory_high_watermark", "0.0000001"]).await;
            run.until_unready(&worker, NOTICED).await;
            sleep(run.scale.lasting(3, 30)).await;
            nodes.ctl(0, &["set_vm_memory_high_watermark", "0.4"]).await;
            run.over();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    nothing_twice(run.close().await)
}

/// There was one worker all the time, and so each delivery that came again came to the one that knew it.
pub fn nothing_twice(tally: Tally) -> Tally {
    assert_eq!(tally.duplicates(), 0, "ran again though the only worker had them: {:?}", tally.duplicated);
    tally
}
