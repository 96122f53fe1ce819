//! What happens to the engine: an engine of the test's own.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::books::Tally;
use crate::run::{Run, until};
use crate::support::own_engine::OwnEngine;

/// From an engine that is gone to a worker that says so.
const NOTICED: Duration = Duration::from_secs(15);

/// Ended in this way, and started again after a while.
pub async fn ended(run: Run<'_>, engine: &RefCell<OwnEngine>, signal: &str, away: Duration) -> Tally {
    let worker = run.worker().await;
    run.under_load(async {
        for _ in 0..run.scale.outages {
            run.mid_job(&worker).await;
            engine.borrow().signal(signal);
            tokio::task::block_in_place(|| engine.borrow_mut().ended());
            run.until_unready(&worker, NOTICED).await;
            sleep(away).await;
            engine.borrow_mut().again();
            tokio::task::block_in_place(|| engine.borrow().until_up());
            run.over();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    run.close().await
}

/// It stands still for a while, shorter than requests may take: nothing is lost, all only takes longer.
pub async fn frozen(run: Run<'_>, engine: &RefCell<OwnEngine>) -> Tally {
    let worker = run.worker().await;
    run.under_load(async {
        for _ in 0..run.scale.outages {
            run.mid_job(&worker).await;
            engine.borrow().signal("STOP");
            sleep(run.scale.lasting(6, 20)).await;
            engine.borrow().signal("CONT");
            run.over();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    let tally = run.close().await;
    assert_eq!(tally.duplicates(), 0, "{:?}", tally.duplicated);
    tally
}

/// Its disk is full, and then isn't any more.
pub async fn disk_full(run: Run<'_>, engine: &RefCell<OwnEngine>) -> Tally {
    let data = Path::new(engine.borrow().host().strip_prefix("unix://").unwrap()).with_file_name("data");
    let worker = run.worker().await;
    run.under_load(async {
        for _ in 0..run.scale.outages {
            run.mid_job(&worker).await;
            let filler = data.join("filler");
            let mut file = File::create(&filler).unwrap();
            while file.write_all(&[1; 4096]).is_ok() {}
            until("containers can't be made", async || {
                let pool = worker.pool("box").await;
                pool["last_failure"].is_string() && pool["idle"] == 0
            })
            .await;
            run.until_unready(&worker, NOTICED).await;
            sleep(run.scale.lasting(2, 30)).await;
            std::fs::remove_file(&filler).unwrap();
            run.over();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    run.close().await
}
