//! The end of a run: everything comes to rest, and the books are closed.

use std::fs;
use std::time::{Duration, Instant};

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokio::time::sleep;

use super::{Run, SETTLING};
use crate::books::Tally;
use crate::ground::Ground;
use crate::publisher::connect;
use crate::report::Row;
use crate::scale;
use crate::support::worker::Worker;

/// From the end of a fault to the next result: a broker that has just started is slow, and whoever it refused waits
/// before the next try.
const RECOVERY: Duration = Duration::from_secs(60);

impl Run<'_> {
    /// Waits until every confirmed job has come to something, and nothing is on its way any more, or nothing has come for long; then
    /// stops the workers, which must end well.
    pub async fn settle(&self, workers: Vec<Worker>) {
        let mut since = (Instant::now(), self.books().results());
        let mut probe = Probe::new(self);
        while since.0.elapsed() < SETTLING {
            if self.books().open().is_empty() && probe.messages().await == Some(0) && idle(&workers).await {
                break;
            }
            // What came while the engine was away takes a while.
            let results = self.books().results();
            if results > since.1 {
                since = (Instant::now(), results);
            }
            sleep(Duration::from_millis(200)).await;
        }
        for worker in workers {
            let name = worker.name.clone();
            let status = worker.stop().await;
            assert!(status.success(), "{}: {name} stopped with {status}", self.fault);
        }
    }

    /// Closes the books, and says what is wrong.
    pub async fn close(self) -> Tally {
        // What workers left unacknowledged is back in the queues when their connections are closed.
        sleep(Duration::from_millis(500)).await;
        let messages_left = Probe::new(&self).messages_surely().await;
        let containers_left = self.containers_left().await;
        let marks = fs::read_to_string(self.marks.join("runs")).unwrap_or_default();
        let tally = self.books().close(&marks);
        if !tally.lost.is_empty() {
            self.explain(&tally.lost, &marks).await;
        }
        let row = Row {
            fault: self.fault.clone(),
            broker: self.ground.broker.clone(),
            tally: tally.clone(),
            containers_left,
            messages_left,
            took: self.begun.elapsed(),
        };
        row.enter();
        let mut wrong = Vec::new();
        for (what, ids) in [("lost", &tally.lost), ("unexpected", &tally.unexpected)] {
            if !ids.is_empty() {
                wrong.push(format!("{} {what}: {}", ids.len(), ids[..ids.len().min(5)].join("\n  ")));
            }
        }
        if containers_left > 0 {
            wrong.push(format!("{containers_left} containers are left"));
        }
        if messages_left > 0 {
            wrong.push(format!("{messages_left} messages are left in the queues of jobs"));
        }
        if let Some(recovery) = tally.recovery.filter(|recovery| *recovery > RECOVERY) {
            wrong.push(format!("no result came for {recovery:?} after the fault was over"));
        }
        assert!(wrong.is_empty(), "{}: {}", self.fault, wrong.join("\n"));
        tally
    }

    /// What there is to be known of jobs that are lost.
    async fn explain(&self, lost: &[String], marks: &str) {
        for id in lost {
            let of_id: Vec<&str> = marks.lines().filter(|line| line.split(' ').next() == Some(id)).collect();
            println!("{}: lost {id}: {of_id:?}", self.fault);
        }
        let connection = connect(&self.ground.urls[0]).await.unwrap();
        for queue in ["replies", "results", "dead"].map(|name| format!("{}.{name}", self.site.name)) {
            let channel = connection.create_channel().await.unwrap();
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let asked = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await;
            println!("{}: {queue}: {:?} messages", self.fault, asked.map(|queue| queue.message_count()));
        }
    }

    /// Containers that are left after a sweep. What the engine carried out of a killed worker's requests when the next one
    /// had swept already is the next sweep's, two minutes later or when a worker starts.
    async fn containers_left(&self) -> usize {
        let workers = self.workers.borrow().clone();
        let left = self.ground.containers_left(&workers).await;
        if left.is_empty() || left.iter().any(|container| container.state == "running") {
            return left.len();
        }
        println!("{}: for the sweep: {left:?}", self.fault);
        let sweeper = self.again(&workers[0]).await;
        let begun = Instant::now();
        let unswept;
        loop {
            let mut found = self.ground.containers_left(&workers).await;
            found.retain(|container| container.state != "running");
            if found.is_empty() || begun.elapsed() > Duration::from_secs(20) {
                unswept = found.len();
                for container in found {
                    println!("{}: not swept: {}", self.fault, self.ground.refusal(&container));
                }
                break;
            }
        }
        assert!(sweeper.stop().await.success());
        self.ground.containers_left(&workers).await.len().max(unswept)
    }
}

/// Keeps what the workers have logged, if somebody wants to read it.
impl Drop for Run<'_> {
    fn drop(&mut self) {
        let Some(dir) = scale::logs() else { return };
        let keep = || {
            fs::create_dir_all(&dir)?;
            for file in fs::read_dir(&self.site.dir)? {
                let file = file?.path();
                if file.extension().is_some_and(|extension| extension == "log") {
                    let name = file.file_name().unwrap_or_default().to_string_lossy();
                    fs::copy(&file, dir.join(format!("{} {name}", self.fault)))?;
                }
            }
            Ok(())
        };
        let kept: std::io::Result<()> = keep();
        if let Err(error) = kept {
            println!("{}: logs not kept: {error}", self.fault);
        }
    }
}

/// Deletes what a run has declared, however it has ended.
pub async fn delete_queues(ground: &Ground<'_>, prefix: &str) {
    let Ok(connection) = connect(&ground.urls[0]).await else { return };
    let Ok(channel) = connection.create_channel().await else { return };
    let others = ["replies", "unread", "dead", "results"].map(|name| format!("{prefix}.{name}"));
    for queue in job_queues(prefix).into_iter().chain(others) {
        _ = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
    }
    _ = connection.close(200, "OK".into()).await;
}

fn job_queues(prefix: &str) -> Vec<String> {
    let retries = [1000, 10_000, 60_000, 300_000].map(|ms| format!("{prefix}.retry.{ms}ms"));
    [format!("{prefix}.jobs.box")].into_iter().chain(retries).collect()
}

async fn idle(workers: &[Worker]) -> bool {
    for worker in workers {
        if worker.status().await["jobs"].as_array().is_none_or(|jobs| !jobs.is_empty()) {
            return false;
        }
    }
    true
}

/// Counts messages that wait in the queues of jobs and retries.
struct Probe<'a> {
    run: &'a Run<'a>,
    open: Option<(lapin::Connection, lapin::Channel)>,
}

impl<'a> Probe<'a> {
    fn new(run: &'a Run<'a>) -> Probe<'a> {
        Probe { run, open: None }
    }

    /// `None` while the broker can't say.
    async fn messages(&mut self) -> Option<usize> {
        let counted = tokio::time::timeout(Duration::from_secs(5), self.count()).await;
        let counted = counted.ok().and_then(Result::ok);
        if let (None, Some((connection, _))) = (counted, self.open.take_if(|_| counted.is_none())) {
            tokio::spawn(async move { connection.close(200, "OK".into()).await });
        }
        counted
    }

    async fn messages_surely(&mut self) -> usize {
        loop {
            if let Some(messages) = self.messages().await {
                return messages;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn count(&mut self) -> lapin::Result<usize> {
        let (_, channel) = match &mut self.open {
            Some(open) => open,
            none => {
                let connection = connect(&self.run.ground.urls[0]).await?;
                let channel = connection.create_channel().await?;
                none.insert((connection, channel))
            }
        };
        let mut messages = 0;
        for queue in job_queues(&self.run.site.name) {
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
            messages += declared.message_count() as usize;
        }
        Ok(messages)
    }
}
