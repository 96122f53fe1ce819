//! Jobs that are published again.

use crate::support::broker::{Job, RESULT, Reply};
use crate::support::marks::Marks;
use crate::support::worker::{Site, eventually, run};

/// The results of a job that was published so often.
async fn results_of(site: &Site, job: &Job, published: usize) -> Vec<Reply> {
    let results = |replies: &[Reply]| replies.iter().filter(|r| r.kind == RESULT).count();
    let replies = site.broker.until(job, |replies| results(replies) >= published).await;
    replies.into_iter().filter(|r| r.kind == RESULT).collect()
}

#[test]
fn a_job_that_is_published_again_is_answered_and_not_run() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        let worker =
            site.worker().pool("box", &format!("idle = 1\nconcurrency = 1\n{}", marks.mount())).ready().await;
        // Over, whatever its exit code.
        for code in [0, 3] {
            let name = format!("job{code}");
            let job = Job::shell(&format!("echo run >>/marks/{name}; echo out; exit {code}"));
            let job = site.broker.submit("box", job).await;
            site.broker.finished(&job).await;
            site.broker.submit("box", job.clone()).await;
            let [first, second] = &results_of(site, &job, 2).await[..] else { panic!() };
            assert_eq!(marks.runs(&name), 1);
            assert_eq!((&second.body["repeated"], &second.body["seq"]), (&true.into(), &0.into()));
            assert!(first.body.get("repeated").is_none());
            for field in ["status", "exit_code", "stdout", "container", "timings_ms", "job_id"] {
                assert_eq!(first.body[field], second.body[field], "{field}");
            }
            assert_eq!(first.properties.correlation_id(), second.properties.correlation_id());
        }
        // Another body under the same id is another job; so is each without an id.
        let mut job = Job::shell("echo run >>/marks/body");
        job = site.broker.submit("box", job).await;
        site.broker.finished(&job).await;
        job.body.push(b' ');
        site.broker.submit("box", job.clone()).await;
        results_of(site, &job, 2).await;
        assert_eq!(marks.runs("body"), 2);
        let metrics = worker.metrics().await;
        assert_eq!(metrics.get("prewarm_jobs_repeated_total", &[("pool", "box")]), 2.0);
        assert!(worker.stop().await.success());
        assert_eq!(site.broker.ready(&site.broker.pool_queue("box")).await, 0);
    });
}

#[test]
fn while_it_runs_the_second_one_waits_for_its_result() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        let worker =
            site.worker().pool("box", &format!("idle = 1\nconcurrency = 2\n{}", marks.mount())).ready().await;
        let job = Job::shell(&format!("echo run >>/marks/job; {}", Marks::WAIT));
        let job = site.broker.submit("box", job).await;
        site.broker.started(&job).await;
        site.broker.submit("box", job.clone()).await;
        eventually("it waits", async || {
            worker.log().contains("published again while it runs here").then_some(())
        })
        .await;
        // And doesn't keep others from running meanwhile.
        site.broker.run("box", Job::shell("true")).await.succeeded();
        assert!(!site.broker.so_far(&job).iter().any(|reply| reply.kind == RESULT));
        marks.let_go();
        let results = results_of(site, &job, 2).await;
        assert_eq!((marks.runs("job"), &results[1].body["repeated"]), (1, &true.into()));

        // Cancelled, it is as if it had never been here: so the second is cancelled for itself.
        let job = site.broker.submit("box", Job::shell("echo up; sleep 60")).await;
        site.broker.started(&job).await;
        site.broker.submit("box", job.clone()).await;
        crate::call(&worker, &["cancel", &job.id]).ok("cancel");
        for result in results_of(site, &job, 2).await {
            assert_eq!((&result.body["status"], result.body.get("repeated")), (&"cancelled".into(), None));
        }
        assert!(worker.stop().await.success());
    });
}

#[test]
fn it_is_forgotten_after_its_time_and_can_be_switched_off() {
    run(async |site: &Site| {
        let marks = Marks::new(site);
        for remember in ["0s", "200ms"] {
            let setup = site.worker().set(&format!("remember = \"{remember}\""));
            let worker =
                setup.pool("box", &format!("idle = 1\nconcurrency = 1\n{}", marks.mount())).ready().await;
            let name = format!("job{remember}");
            let job = site.broker.submit("box", Job::shell(&format!("echo run >>/marks/{name}"))).await;
            site.broker.finished(&job).await;
            let mut published = 1;
            eventually("it runs again", async || {
                published += 1;
                site.broker.submit("box", job.clone()).await;
                results_of(site, &job, published).await;
                (marks.runs(&name) == 2).then_some(())
            })
            .await;
            assert!(remember != "0s" || published == 2, "the second one was answered");
            assert!(worker.stop().await.success());
        }
    });
}
