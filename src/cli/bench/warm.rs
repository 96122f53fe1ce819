//! prewarm's own way: a job in a container of a warm pool.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::Job;
use super::measure::{Lease, Sample};
use super::ways::{Idle, LONGEST_JOB, Runner};
use crate::attempt::{self, Controls, Happening};
use crate::config::{IdleConfig, Isolation, PoolConfig};
use crate::contract::PoolName;
use crate::contract::event::LeaseKind;
use crate::contract::job::Env;
use crate::init::wire::End;
use crate::launch::{self, Order};
use crate::outcome::Outcome;
use crate::pool::{PoolStatus, Pools};
use crate::secrets;

/// How long an idle container is waited for, and a pool's coming to rest.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether a pool is at rest.
const LOOK: Duration = Duration::from_millis(2);

/// One pool.
pub struct Warm {
    pools: Pools,
    name: PoolName,
    config: PoolConfig,
    given: Env,
    job: Job,
}

impl Warm {
    /// Jobs in this pool, with what its `secrets_from` has. `config` is what it is to be when it sizes itself.
    pub fn new(pools: Pools, name: PoolName, config: PoolConfig, job: Job) -> Warm {
        // It could be read when the configuration was.
        let given = config.secrets_from.as_deref().and_then(|d| secrets::read(d).ok()).unwrap_or_default();
        Warm { pools, name, config, given, job }
    }

    /// Waits until this is so of the pool.
    async fn until(&self, is_so: impl Fn(&PoolStatus) -> bool) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let Some(status) = self.status().await else { return Err("the pools are closed".into()) };
            if is_so(&status) {
                return Ok(());
            }
            if let Some(failure) = status.last_failure {
                return Err(failure);
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("its pool did not come to rest within {PATIENCE:?}"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn status(&self) -> Option<PoolStatus> {
        self.pools.status().await.into_iter().find(|status| status.pool == self.name)
    }
}

/// Why a job didn't run.
fn said(outcome: Outcome) -> String {
    match outcome {
        Outcome::Ran(verdict) => verdict.error.map(|error| error.message).unwrap_or_default(),
        Outcome::Rejected(rejection) => rejection.to_string(),
        Outcome::Trouble(error) | Outcome::PerhapsBegun(error) => error.message,
        Outcome::NotBegun | Outcome::Cancelled => "stopped before it began".into(),
    }
}

#[async_trait]
impl Runner for Warm {
    async fn one(&self) -> Result<Sample, String> {
        let lease = self.pools.lease(&self.name, PATIENCE).await.map_err(|e| e.to_string())?;
        let came = Lease { hit: lease.kind == LeaseKind::Hit, waited: lease.waited };
        let order = Order {
            args: self.job.args.as_deref(),
            env: &self.job.env,
            given: &self.given,
            stdin: None,
            files: &[],
            artifacts: &[],
            traceparent: None,
            timeout: LONGEST_JOB,
            stop_grace: Duration::ZERO,
        };
        let (plan, executable) =
            launch::plan(&lease.image, &lease.config, order).map_err(|e| e.to_string())?;
        let (happen, mut happenings) = mpsc::channel(attempt::CHANNEL);
        let controls = Controls::default();
        let mut sample = Sample { lease: Some(came), ..Sample::default() };
        let begun = Instant::now();
        let run = async {
            let ended = attempt::run(lease, plan, &controls, happen).await;
            (ended, begun.elapsed())
        };
        let follow = async {
            while let Some(happening) = happenings.recv().await {
                match happening {
                    Happening::Started(at) => sample.executing = Some(at.saturating_duration_since(begun)),
                    Happening::Output(..) => {
                        sample.first_output.get_or_insert_with(|| begun.elapsed());
                    }
                    Happening::Artifact(_) => {}
                }
            }
        };
        let ((ended, took), ()) = tokio::join!(run, follow);
        let ended = ended.map_err(|error| said(Outcome::of(Err(error), &executable, LONGEST_JOB)))?;
        if ended.stopped.is_some() {
            return Err(format!("the job was not over after {LONGEST_JOB:?}; this is for short ones"));
        }
        sample.exit = Some(took);
        // Both may be taken from what has arrived before the one who follows has its turn.
        sample.first_output = sample.first_output.map(|first| first.min(took));
        sample.succeeded = ended.exited.is_some_and(|exited| exited.end == End::Code(0));
        Ok(sample)
    }

    async fn settle(&self) -> Result<(), String> {
        // More than wanted may be kept, where they cost no job anything.
        let at_rest = |pool: &PoolStatus| {
            pool.starting + pool.leased + pool.removing + pool.waiting == 0 && pool.idle >= pool.target
        };
        self.until(at_rest).await
    }

    async fn restore(&self) -> Result<(), String> {
        match self.config.isolation {
            Isolation::Container => self.settle().await,
            // Jobs use none up. What was added while some were out, and goes again, is no cost of theirs.
            Isolation::Namespace => self.until(|pool| pool.leased == 0 && pool.idle >= pool.target).await,
        }
    }

    fn keep(&self, idle: Idle) {
        let mut config = self.config.clone();
        if let Idle::Fixed(n) = idle {
            config.idle = IdleConfig { min: n, max: n, ttl: None, max_age: None, ..config.idle };
        }
        // Refused by pools that are closed only, and then nothing else works either.
        let _ = self.pools.reload(&self.name, config);
    }

    async fn idle(&self) -> Option<usize> {
        self.status().await.map(|status| status.idle)
    }
}
