//! An engine on another host, as far as a worker can tell: it is reached over TCP.

use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;

use crate::support::broker::Job;
use crate::support::engine::upstream;
use crate::support::worker::{Site, run};

#[test]
fn an_engine_may_be_reached_over_tcp() {
    run(async |site: &Site| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("tcp://{}", listener.local_addr().unwrap());
        let forward = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut engine = upstream().await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut engine).await;
                });
            }
        });
        for isolation in ["container", "namespace"] {
            let keys = format!("idle = 2\nconcurrency = 1\nisolation = \"{isolation}\"");
            let worker = site.worker().env("DOCKER_HOST", &host).pool("box", &keys).full().await;
            for n in 0..4 {
                let job = Job::shell(&format!("echo out {n}; echo err >&2; exit {n}"));
                let attempt = site.broker.run("box", job).await;
                assert_eq!(attempt.result["exit_code"], n, "{:#}", attempt.result);
                assert_eq!(
                    (attempt.stdout, attempt.stderr),
                    (format!("out {n}\n").into(), b"err\n".to_vec())
                );
            }
            // Init's volume was filled and jobs' input is carried the same way.
            let stdin = "x".repeat(300_000);
            let job = Job::new(serde_json::json!({"args": ["wc", "-c"], "stdin": stdin}));
            assert_eq!(site.broker.run("box", job).await.succeeded().stdout, b"300000\n");
            assert!(worker.stop().await.success());
        }
        forward.abort();
    });
}
