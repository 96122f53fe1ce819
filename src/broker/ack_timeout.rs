//! How long the broker lets a worker hold a job.
//!
//! RabbitMQ gives a message out again that was not acknowledged within `consumer_timeout`, 30 minutes unless somebody set it:
//! a longer job would run twice. What can be done about it depends on the version. Tried on 3.10.8, 4.0.5 and 4.3.6:
//!
//! | | `rabbitmq.conf` | argument of the queue, policy (the lesser counts) | argument of the consumer |
//! | --- | --- | --- | --- |
//! | to 3.11 | yes | the argument is ignored, the policy refused | ignored |
//! | 3.12 to 4.2 | yes | over `rabbitmq.conf` | ignored |
//! | from 4.3 | yes | over `rabbitmq.conf` | over all others |
//!
//! So the worker says [`ACK_TIMEOUT`] with its queues and with its consumers. It is one value and not what the pools' timeouts
//! come to, because a queue keeps what it was declared with: were it the configuration's, a timeout that is
//! raised later would find the queue with the old one, which no policy can raise. A worker that is gone or
//! stuck is noticed by its heartbeats, and a job by its own deadline; neither needs this one.

use std::fmt::Write;
use std::time::Duration;

use crate::config::PoolConfig;
use crate::contract::PoolName;
use crate::contract::topology::Names;

/// What our queues and consumers ask for: the most, in whole days, that all brokers take as a number of milliseconds.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(24 * 24 * 3600);

/// What a broker has where nobody set it.
const DEFAULT: Duration = Duration::from_secs(30 * 60);

/// For all that is neither the run nor the wait for a container: decoding, output under way, the result's confirm; and the
/// broker looks once a minute.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// How long one delivery of this pool can be held.
#[must_use]
pub fn longest(pool: &PoolConfig, lease_timeout: Duration) -> Duration {
    pool.timeout.max + pool.stop_grace + lease_timeout + MARGIN
}

/// What is to be known of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Its name.
    pub pool: &'a PoolName,
    /// As [`longest`] has it.
    pub longest: Duration,
    /// Whether its queue exists. One that doesn't will be declared with our argument, if it is ours to declare.
    pub queue: Queue,
}

/// Where a pool's queue has its arguments from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// This worker will declare it.
    Ours,
    /// It exists, and no broker tells a client with which arguments.
    Unseen,
}

/// Whether jobs can be held for as long as they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They can.
    Enough(String),
    /// They can't, or it can't be seen: what to do.
    Advice(String),
}

/// Compares what the pools need with what a broker of this version (`3.10.8`) is known to give.
#[must_use]
pub fn judge(version: Option<&str>, names: &Names, vhost: &str, pools: &[Held<'_>]) -> Verdict {
    let Some(most) = pools.iter().map(|held| held.longest).max() else {
        return Verdict::Enough("no pools".to_owned());
    };
    let takes = humantime::format_duration(most);
    let version = version.and_then(parse);
    if most <= DEFAULT {
        return Verdict::Enough(format!(
            "jobs take at most {takes}, which every broker waits for by default"
        ));
    }
    if most > ACK_TIMEOUT {
        let limit = humantime::format_duration(ACK_TIMEOUT);
        return Verdict::Advice(format!(
            "a job may take {takes}, but a broker waits for {limit} at most and then gives it out again: lower the \
             pools' timeout.max"
        ));
    }
    let milliseconds = most.as_millis();
    let conf = format!("consumer_timeout = {milliseconds} in rabbitmq.conf");
    match version {
        Some((4, 3..) | (5.., _)) => {
            Verdict::Enough(format!("jobs take at most {takes}; the worker has the broker wait for them"))
        }
        Some((3, 12..) | (4, _)) => {
            let unseen: Vec<&PoolName> = pools
                .iter()
                .filter(|held| held.queue == Queue::Unseen && held.longest > DEFAULT)
                .map(|held| held.pool)
                .collect();
            if unseen.is_empty() {
                return Verdict::Enough(format!(
                    "jobs take at most {takes}; the worker declares the queues so that the broker waits for them"
                ));
            }
            Verdict::Advice(format!(
                "jobs take up to {takes}. The broker waits for them if {} x-consumer-timeout, as those that prewarm \
                 declares have (see: rabbitmqctl list_queues --vhost {} name arguments). If not: {}; or {conf}",
                owners(names, &unseen),
                quoted(vhost),
                policy(names, vhost, &unseen, milliseconds)
            ))
        }
        Some(_) => Verdict::Advice(format!(
            "jobs take up to {takes}, and this broker gives a job out again after 30 min unless it has {conf} (restart it \
             then); a version from 3.12 on can be told by the worker itself"
        )),
        None => Verdict::Advice(format!(
            "jobs take up to {takes}, and a broker gives a job out again after 30 min by default; this one doesn't tell its \
             version. To be safe: {conf}"
        )),
    }
}

/// As in "queue 'prewarm.jobs.build' has".
fn owners(names: &Names, pools: &[&PoolName]) -> String {
    let queues: Vec<String> = pools.iter().map(|pool| format!("'{}'", names.pool_queue(pool))).collect();
    match queues.as_slice() {
        [one] => format!("queue {one} has"),
        all => format!("queues {} have", all.join(", ")),
    }
}

/// One policy for all: a queue obeys a single one, so more than one could be in each other's way.
fn policy(names: &Names, vhost: &str, pools: &[&PoolName], milliseconds: u128) -> String {
    let mut pattern = String::from("^(");
    for (at, pool) in pools.iter().enumerate() {
        let bar = if at > 0 { "|" } else { "" };
        _ = write!(pattern, "{bar}{}", names.pool_queue(pool).replace('.', "\\."));
    }
    pattern.push_str(")$");
    format!(
        "rabbitmqctl set_policy --vhost {} --apply-to queues {} {} '{{\"consumer-timeout\":{milliseconds}}}' (where these \
         queues have a policy already, add the key to that one)",
        quoted(vhost),
        quoted(&names.jobs()),
        quoted(&pattern),
    )
}

/// For a shell. Names of vhosts are free.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn verdict(version: &str, vhost: &str, pools: &[(&str, Duration, Queue)]) -> Verdict {
        let named: Vec<PoolName> = pools.iter().map(|(name, ..)| PoolName::new(*name).unwrap()).collect();
        let held: Vec<Held<'_>> = named
            .iter()
            .zip(pools)
            .map(|(pool, (_, longest, queue))| Held { pool, longest: *longest, queue: *queue })
            .collect();
        judge(Some(version).filter(|version| !version.is_empty()), &Names::new("p"), vhost, &held)
    }

    fn advice(version: &str, pools: &[(&str, Duration, Queue)]) -> String {
        match verdict(version, "/", pools) {
            Verdict::Advice(text) => text,
            Verdict::Enough(text) => panic!("{version}: enough? {text}"),
        }
    }

    fn enough(version: &str, pools: &[(&str, Duration, Queue)]) {
        let verdict = verdict(version, "/", pools);
        assert!(matches!(verdict, Verdict::Enough(_)), "{version}: {verdict:?}");
    }

    #[test]
    fn everything_that_a_delivery_is_held_for_counts() {
        let mut pool = PoolConfig::of_image("x");
        pool.timeout.max = HOUR;
        pool.stop_grace = Duration::from_secs(10);
        assert_eq!(longest(&pool, Duration::from_secs(120)), HOUR + Duration::from_secs(10 + 120) + MARGIN);
    }

    #[test]
    fn short_jobs_need_nothing_anywhere() {
        for version in ["3.8.1", "3.10.8", "3.13.0", "4.0.5", "4.3.6", ""] {
            enough(version, &[("a", HOUR / 2, Queue::Unseen)]);
        }
    }

    #[test]
    fn old_brokers_need_their_own_configuration() {
        for version in ["3.8.1", "3.10.8", "3.11.28"] {
            let text = advice(version, &[("a", HOUR, Queue::Ours), ("b", 3 * HOUR, Queue::Ours)]);
            assert!(text.contains("consumer_timeout = 10800000 in rabbitmq.conf"), "{text}");
            assert!(!text.contains("set_policy"), "{text}");
        }
        assert!(advice("", &[("a", HOUR, Queue::Ours)]).contains("consumer_timeout = 3600000"));
        assert!(advice("unknown", &[("a", HOUR, Queue::Ours)]).contains("doesn't tell its version"));
    }

    #[test]
    fn queues_that_we_declare_are_enough_from_3_12_on() {
        for version in ["3.12.0", "3.13.7", "4.0.5", "4.2.1", "4.3.0", "4.10.0", "5.0.0"] {
            enough(version, &[("a", HOUR, Queue::Ours)]);
        }
    }

    #[test]
    fn queues_that_exist_may_be_told_by_a_policy() {
        let pools = [
            ("a", HOUR, Queue::Unseen),
            ("b.x", 2 * HOUR, Queue::Unseen),
            ("c", HOUR / 2, Queue::Unseen),
            ("d", HOUR, Queue::Ours),
        ];
        for version in ["3.12.0-rc.1", "3.13.7", "4.0.5", "4.2.9+x"] {
            let text = advice(version, &pools);
            let command = "rabbitmqctl set_policy --vhost '/' --apply-to queues 'p.jobs' \
                           '^(p\\.jobs\\.a|p\\.jobs\\.b\\.x)$' '{\"consumer-timeout\":7200000}'";
            assert!(text.contains(command), "{text}");
            assert!(text.contains("if queues 'p.jobs.a', 'p.jobs.b.x' have x-consumer-timeout"), "{text}");
        }
        for version in ["4.3.0", "4.3.6"] {
            enough(version, &pools);
        }
        let Verdict::Advice(text) = verdict("4.0.5", "it's", &pools[..1]) else { panic!("enough?") };
        assert!(text.contains("--vhost 'it'\\''s'") && text.contains("if queue 'p.jobs.a' has"), "{text}");
    }

    #[test]
    fn beyond_what_brokers_can_wait_is_said() {
        for version in ["3.10.8", "4.0.5", "4.3.6"] {
            assert!(
                advice(version, &[("a", ACK_TIMEOUT + HOUR, Queue::Ours)])
                    .contains("lower the pools' timeout.max")
            );
        }
    }
}
