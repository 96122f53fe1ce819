//! What happens to the nodes of a cluster.

use std::time::Duration;

use tokio::time::sleep;

use crate::books::Tally;
use crate::faults::broker::nothing_twice;
use crate::nodes::Nodes;
use crate::proxy::Proxy;
use crate::run::Run;

/// The node that leads the queues is killed under load; then the two others, so that one is left that may not decide alone.
pub async fn nodes_lost(run: Run<'_>, nodes: &Nodes) -> Tally {
    let proxy = Proxy::before(&run.ground.urls).await;
    *run.way.borrow_mut() = Some(proxy.url.clone());
    // Slower: three nodes write everything down on the same machine.
    run.pace(Duration::from_millis(400));
    let worker = run.worker().await;
    run.under_load(async {
        for _ in 0..run.scale.outages {
            run.mid_job(&worker).await;
            // Queues are led where they were declared, which is where the worker is connected.
            tokio::task::block_in_place(|| nodes.end(0, "KILL"));
            run.over();
            run.results(4).await;
            nodes.again(0);
            tokio::task::block_in_place(|| nodes.until_up(0));
            run.results(2).await;

            for n in [1, 2] {
                tokio::task::block_in_place(|| nodes.end(n, "KILL"));
            }
            sleep(run.scale.lasting(8, 45)).await;
            [1, 2].into_iter().for_each(|n| nodes.again(n));
            [1, 2].into_iter().for_each(|n| tokio::task::block_in_place(|| nodes.until_up(n)));
            run.over();
            run.results(4).await;
        }
    })
    .await;
    run.settle(vec![worker]).await;
    nothing_twice(run.close().await)
}
