//! AMQP priorities, where queues have them.

use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::call;
use crate::support::marks::Marks;
use crate::support::own_broker::{self, OwnBroker};
use crate::support::worker::{Site, Worker, eventually, run};

/// Keys of a pool with one seat, whose jobs write their names down, one after the other.
fn keys(marks: &Marks) -> String {
    format!("idle = 1\nconcurrency = 1\n{}", marks.mount())
}

/// Submits jobs of these priorities while the only seat is taken, and gives the order in which they ran.
async fn order(marks: &Marks, worker: &Worker, priorities: &[&str]) -> Vec<String> {
    let submit = |args: &[&str], script: &str| {
        let line = [&["submit", "box", "--detach"], args, &["--", "sh", "-c", script]].concat();
        call(worker, &line).ok("submit")
    };
    submit(&[], &format!("echo run >>/marks/up; {}", Marks::WAIT));
    eventually("it runs", async || (marks.runs("up") == 1).then_some(())).await;
    for priority in priorities {
        submit(&["--priority", priority], &format!("echo {priority} >>/marks/order"));
    }
    marks.let_go();
    eventually("all have run", async || {
        let order = marks.lines("order");
        (order.len() == priorities.len()).then_some(order)
    })
    .await
}

/// A classic queue with `x-max-priority`, which its operator declares: on every version of the broker.
#[test]
fn a_queue_that_an_operator_gave_priorities_has_them() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        let keys = keys(&marks);
        let declares = site.worker().pool("box", &keys).ready().await;
        assert!(declares.stop().await.success());
        let channel = &site.broker.channel;
        let queue = site.broker.pool_queue("box");
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-priority".into(), AMQPValue::LongInt(9));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
        let exchange = format!("{}.jobs", site.name);
        let bind = channel.queue_bind(
            queue.as_str().into(),
            exchange.into(),
            "box".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bind.await.unwrap();
        let setup = site.worker().env("PREWARM_BROKER_TOPOLOGY", "check");
        let worker = setup.pool("box", &keys).ready().await;
        assert_eq!(order(&marks, &worker, &["1", "9", "5", "0"]).await, ["9", "5", "1", "0"]);
        assert!(worker.stop().await.success());
    });
}

/// Quorum queues, which prewarm declares: two levels in 4.0, of which the higher one is served twice as often, strict ones from 4.3 on; none
/// before.
#[test]
fn quorum_queues_of_later_brokers_have_levels() {
    for suite in ["trixie", "sid"] {
        run(async |site: &Site| {
            let root = own_broker::root(suite);
            let mut broker = OwnBroker::prepare(Some(&root), |_| String::new());
            broker.up();
            let marks = Marks::new(site);
            let setup = site.worker().pool("box", &keys(&marks));
            let worker = setup.start_with(&broker.url()).await;
            worker.until_ready().await;
            let ran = order(&marks, &worker, &["0", "1", "2", "3", "9", "5"]).await;
            if suite == "sid" {
                assert_eq!(ran, ["9", "5", "3", "2", "1", "0"]);
            } else {
                let place = |priority: &str| ran.iter().position(|p| p == priority).unwrap();
                assert!(place("9") < 2 && place("5") < 4 && place("9") < place("5"), "{ran:?}");
                assert!(
                    place("0") < place("1") && place("1") < place("2") && place("2") < place("3"),
                    "{ran:?}"
                );
            }
            assert!(worker.stop().await.success());
        });
    }
}
