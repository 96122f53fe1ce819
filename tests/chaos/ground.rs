//! Where a run takes place: a broker and an engine, shared or of the test's own.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::nodes::Nodes;
use crate::support::docker::{docker, run};
use crate::support::engine::Container;
use crate::support::own_engine::OwnEngine;
use crate::support::{broker, engine};

pub struct Ground<'a> {
    /// Where publishers and readers find the broker: the addresses are tried in turn.
    pub urls: Vec<String>,
    /// For the table.
    pub broker: String,
    /// As in `DOCKER_HOST`, if it isn't the shared one.
    pub engine_host: Option<String>,
    own_engine: Option<&'a RefCell<OwnEngine>>,
    /// For the pool, as in the configuration.
    pub network: &'static str,
}

impl<'a> Ground<'a> {
    /// The servers that all tests share.
    pub fn shared() -> Ground<'static> {
        Ground {
            urls: vec![broker::url()],
            broker: "shared".into(),
            engine_host: None,
            own_engine: None,
            network: "\"none\"",
        }
    }

    pub fn on_nodes(nodes: &Nodes) -> Ground<'static> {
        Ground { urls: nodes.urls(), broker: nodes.version.clone(), ..Ground::shared() }
    }

    pub fn on_engine(engine: &'a RefCell<OwnEngine>) -> Ground<'a> {
        Ground {
            engine_host: Some(engine.borrow().host()),
            own_engine: Some(engine),
            // It has no bridge, and this is the cheapest besides.
            network: "\"host\"",
            ..Ground::shared()
        }
    }

    /// Containers of these workers, in every state.
    fn containers(&self, workers: &[String]) -> Vec<Container> {
        match self.own_engine {
            Some(engine) => engine.borrow().containers(),
            None => workers.iter().flat_map(|worker| engine::containers(worker)).collect(),
        }
    }

    /// What the engine answers to whoever wants such a container removed.
    pub fn refusal(&self, container: &Container) -> String {
        let host = self.engine_host.iter().flat_map(|host| ["--host", host]);
        let mut answers = String::new();
        for verb in [&["inspect", "--format", "{{json .State}}"][..], &["rm", "-f"]] {
            let args = host.clone().chain(verb.iter().copied()).chain([container.id.as_str()]);
            let done = run(&mut docker(args), None, Duration::from_secs(30));
            answers += &format!("{} {}", done.stdout, done.stderr);
        }
        answers
    }

    /// Whether the engine lists it without having it. Docker 20.10 does so with some whose removal had begun when it was killed:
    /// it loads them as `dead`, and answers "No such container" to whoever asks for them by id; nobody can remove them.
    fn is_only_listed(&self, container: &Container) -> bool {
        let host = self.engine_host.iter().flat_map(|host| ["--host", host]);
        let args = host.chain(["inspect", container.id.as_str()]);
        container.state == "dead"
            && run(&mut docker(args), None, Duration::from_secs(30))
                .stderr
                .to_string()
                .contains("No such object")
    }

    /// Containers that these workers have left, after a while: they go by themselves, a moment after the worker.
    pub async fn containers_left(&self, workers: &[String]) -> Vec<Container> {
        let begun = Instant::now();
        loop {
            let left = tokio::task::block_in_place(|| {
                let mut left = self.containers(workers);
                left.retain(|container| !self.is_only_listed(container));
                left
            });
            if left.is_empty() || begun.elapsed() > Duration::from_secs(5) {
                return left;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}
