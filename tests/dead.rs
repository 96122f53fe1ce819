//! Dead letters on a real broker: both ways of dying, and that `prewarm dead` loses none of them, whenever it is killed.

mod support;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use prewarm::broker::Broker as _;
use prewarm::broker::amqp::{Amqp, BrokerMetrics};
use prewarm::config::{BrokerConfig, TopologyMode};
use prewarm::contract::PoolName;
use serde_json::{Value, json};
use support::broker::{self, Job, LOG, RESULT, STARTED, rabbitmqctl};
use support::docker::{Done, docker_ok};
use support::worker::{DEADLINE, Site, eventually, prewarm, run, signal};

const LIMIT: Duration = Duration::from_secs(120);

/// A queue of dead letters with two pools' queues, and the configuration of commands that look at it.
struct Morgue<'a> {
    site: &'a Site,
    channel: Channel,
    connection: Connection,
    config: String,
}

/// Where nobody listens, since whoever did has gone.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Morgue<'_> {
    /// Declares what a worker declares, with a delivery limit of 2.
    async fn of(site: &Site) -> Morgue<'_> {
        let setup = site.worker().pool("box", "idle = 1").pool("other", "idle = 1");
        let config = setup.write(nobody(), &broker::url()).display().to_string();
        let pools = ["box", "other"].map(|pool| PoolName::new(pool).unwrap());
        let settings = BrokerConfig {
            reply_patience: Duration::from_secs(30),
            urls: vec![broker::url()],
            tls: prewarm::config::TlsConfig::default(),
            prefix: site.name.clone(),
            topology: TopologyMode::Declare,
            heartbeat: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            delivery_limit: 2,
            retry_delays: [1, 10, 60, 300].map(Duration::from_secs).into(),
            expired: prewarm::config::Expired::Dead,
        };
        let metrics = BrokerMetrics::new(&prewarm::metrics::Metrics::new());
        let declaring = Amqp::new(&settings, "tester", &pools, metrics).unwrap();
        let mut connected = declaring.connected();
        tokio::time::timeout(DEADLINE, connected.wait_for(|up| *up)).await.expect("in time").unwrap();
        declaring.close().await;
        let connection = Connection::connect(&broker::url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Morgue { site, channel, connection, config }
    }

    async fn close(self) {
        self.connection.close(200, "OK".into()).await.unwrap();
    }

    fn dead(&self) -> String {
        self.site.broker.dead()
    }

    fn queue(&self, pool: &str) -> String {
        self.site.broker.pool_queue(pool)
    }

    async fn ready(&self, queue: &str) -> u32 {
        self.site.broker.ready(queue).await
    }

    async fn until_ready(&self, queue: &str, count: u32) {
        let what = format!("{count} messages in {queue}");
        eventually(&what, async || (self.ready(queue).await == count).then_some(())).await;
    }

    /// Puts a letter where workers put them, as they do.
    async fn bury(&self, id: Option<&str>, pool: &str, kind: &str, body: impl Into<Vec<u8>>) {
        self.bury_all([(id.map(str::to_owned), pool, kind, body.into())]).await;
    }

    async fn bury_all<'l>(
        &self,
        letters: impl IntoIterator<Item = (Option<String>, &'l str, &'l str, Vec<u8>)>,
    ) {
        let dead = self.dead();
        let publish = letters.into_iter().map(async |(id, pool, kind, body)| {
            let mut headers = FieldTable::default();
            let died = humantime::format_rfc3339(std::time::SystemTime::now()).to_string();
            for (name, value) in [
                ("x-prewarm-reason", "for no reason"),
                ("x-prewarm-kind", kind),
                ("x-prewarm-pool", pool),
                ("x-prewarm-died-at", &died),
            ] {
                headers.insert(name.into(), AMQPValue::LongString(value.into()));
            }
            headers.insert("x-prewarm-attempts".into(), AMQPValue::LongLongInt(4));
            let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
            if let Some(id) = id {
                properties = properties.with_message_id(id.into());
            }
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let sent =
                self.channel.basic_publish("".into(), dead.as_str().into(), options, &body, properties).await;
            assert!(matches!(sent.unwrap().await.unwrap(), lapin::Confirmation::Ack(None)));
        });
        join_all(publish).await;
    }

    /// Takes a job and puts it back until the broker has had enough.
    async fn kill_workers_with(&self, pool: &str) -> u32 {
        let queue = self.queue(pool);
        let before = self.ready(&self.dead()).await;
        for given_out in 0.. {
            let get = self.channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: false });
            let Some(job) = get.await.unwrap() else {
                self.until_ready(&self.dead(), before + 1).await;
                return given_out;
            };
            let requeue = BasicNackOptions { requeue: true, ..Default::default() };
            job.delivery.acker.nack(requeue).await.unwrap();
        }
        unreachable!()
    }

    async fn take(&self, queue: &str) -> lapin::message::Delivery {
        eventually(&format!("a message in {queue}"), async || {
            let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap();
            got.map(|message| message.delivery)
        })
        .await
    }

    /// The ids of all that is in a queue, in its order.
    async fn drain(&self, queue: &str) -> Vec<String> {
        let mut ids = Vec::new();
        loop {
            let get = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true });
            let Some(message) = get.await.unwrap() else { return ids };
            ids.push(
                message.delivery.properties.message_id().as_ref().map_or("-".into(), ToString::to_string),
            );
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = prewarm();
        command.args(["-c", &self.config, "dead"]).args(args);
        command
    }

    fn call(&self, args: &[&str]) -> Done {
        support::docker::run(&mut self.command(args), None, LIMIT)
    }

    /// What `ls --json` says.
    fn list(&self) -> Vec<Value> {
        let done = self.call(&["ls", "--json"]).ok("ls --json");
        done.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts a command, waits until it is in the midst of the queue, and kills it there. `midway` is asked while it
    /// stands still.
    async fn kill_midway(&self, args: &[&str], midway: impl AsyncFn() -> bool) {
        let mut child = self.stop_midway(args, midway).await;
        child.0.kill().unwrap();
        assert_eq!(child.0.wait().unwrap().signal(), Some(9));
    }

    /// The command, standing still midway.
    async fn stop_midway(&self, args: &[&str], midway: impl AsyncFn() -> bool) -> Killed {
        let mut child = Killed(
            self.command(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let begun = Instant::now();
        loop {
            signal("STOP", child.0.id());
            if midway().await {
                break;
            }
            signal("CONT", child.0.id());
            assert!(child.0.try_wait().unwrap().is_none(), "it was over before it could be killed");
            assert!(begun.elapsed() < DEADLINE, "never midway");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child
    }
}

/// Leaves no process behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ends(done: &Done, code: i32, words: &[&str]) {
    let text = format!("{}{}", done.stdout, done.stderr);
    assert_eq!(done.code, Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

fn string(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[test]
fn what_a_worker_gives_up_is_listed_shown_and_can_be_tried_again() {
    run(async |site: &Site| {
        let morgue = Morgue::of(site).await;
        ends(&morgue.call(&["ls"]), 0, &["holds no dead letters"]);
        assert_eq!(morgue.list(), Vec::<Value>::new());
        let worker = site
            .worker()
            .env("PREWARM_BROKER_DELIVERY_LIMIT", "2")
            .pool("box", "idle = 1\nconcurrency = 1")
            .ready()
            .await;
        let body = json!({"env": {"TOKEN": "s3cret"}, "args": ["-t", "s3cret"], "timeout": "30d", "secrets": ["TOKEN"]});
        let job = site.broker.submit("box", Job::new(body.clone()).header("x-theirs", "mine")).await;
        assert_eq!(site.broker.finished(&job).await.status(), "rejected");
        morgue.until_ready(&morgue.dead(), 1).await;

        let text = morgue.call(&["ls"]).ok("ls");
        for word in
            [&job.id, "box", "invalid_job", "timeout: 30days is more", "1  box  invalid_job", "1  in all"]
        {
            assert!(text.contains(word), "'{word}' is not in: {text}");
        }
        let listed = morgue.list();
        assert_eq!((&listed[0]["id"], &listed[0]["attempts"]), (&json!(job.id), &json!(1)), "{listed:#?}");
        let died = humantime::parse_rfc3339(listed[0]["died_at"].as_str().unwrap()).unwrap();
        assert!(died.elapsed().unwrap() < DEADLINE, "{listed:#?}");

        let shown = morgue.call(&["show", &job.id]).ok("show");
        for word in ["x-theirs: mine", "\"TOKEN\": \"***\"", "30d", "reply_to", &site.broker.reply_queue] {
            assert!(shown.contains(word), "'{word}' is not in: {shown}");
        }
        assert!(!shown.contains("s3cret"), "{shown}");
        let shown = morgue.call(&["show", &job.id, "--json"]).ok("show --json");
        assert!(!shown.contains("s3cret"), "{shown}");
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["body"]["args"], json!(["-t", "***"]));
        assert_eq!(shown["properties"]["headers"]["x-theirs"], "mine");
        let raw = morgue.call(&["show", &job.id, "--body"]);
        assert_eq!(raw.stdout.bytes, job.body, "as it is");

        // It is as wrong as before. That it comes back must not make the command go on for ever.
        ends(&morgue.call(&["replay", "--all"]), 0, &["replayed 1"]);
        let again =
            site.broker.until(&job, |replies| replies.iter().filter(|r| r.kind == RESULT).count() == 2).await;
        assert_eq!(again.last().unwrap().body["attempt"], 1, "all its attempts are before it");
        morgue.until_ready(&morgue.dead(), 1).await;
        ends(&morgue.call(&["purge", &job.id]), 0, &["purged 1"]);
        morgue.until_ready(&morgue.dead(), 0).await;
        assert!(worker.stop().await.success());
        morgue.close().await;
    });
}

#[test]
fn what_the_broker_gives_up_comes_back_as_it_was_published() {
    run(async |site: &Site| {
        let morgue = Morgue::of(site).await;
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), string("00-1-2-01"));
        headers.insert(
            "x-theirs".into(),
            AMQPValue::FieldArray(vec![AMQPValue::LongInt(7), string("a")].into()),
        );
        let published = BasicProperties::default()
            .with_message_id("the id".into())
            .with_correlation_id("the correlation".into())
            .with_reply_to("their queue".into())
            .with_content_type("application/json".into())
            .with_type("their type".into())
            .with_priority(3)
            .with_timestamp(1_700_000_000)
            .with_app_id("their app".into())
            .with_delivery_mode(2);
        let mut with_attempts = headers.clone();
        with_attempts.insert("x-prewarm-attempts".into(), AMQPValue::LongInt(2));
        let mut job = Job::raw("{\"env\":{}}");
        job.properties = published.clone().with_headers(with_attempts);
        site.broker.publish("other", &job).await;
        assert_eq!(morgue.kill_workers_with("other").await, 3, "once more than the limit says");

        let listed = morgue.list();
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (&listed[0]["id"], &listed[0]["pool"]),
            (&json!("the id"), &json!("other")),
            "{listed:#?}"
        );
        assert_eq!(listed[0]["kind"], "delivery_limit");
        assert!(listed[0]["reason"].as_str().unwrap().contains("did it kill its workers?"), "{listed:#?}");
        let died = humantime::parse_rfc3339(listed[0]["died_at"].as_str().unwrap()).unwrap();
        assert!(died.elapsed().unwrap_or_default() < DEADLINE, "{listed:#?}");
        let shown: Value =
            serde_json::from_str(&morgue.call(&["show", "the id", "--json"]).ok("show")).unwrap();
        assert_eq!(shown["properties"]["headers"]["x-death"][0]["reason"], "delivery_limit", "{shown:#}");

        ends(&morgue.call(&["replay", "the id"]), 0, &["replayed 1"]);
        let got = morgue.take(&morgue.queue("other")).await;
        // The broker's own count, which begins anew.
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(0));
        assert_eq!(got.properties, published.with_headers(headers));
        assert_eq!(got.data, job.body);
        morgue.until_ready(&morgue.dead(), 0).await;
        morgue.close().await;
    });
}

#[test]
fn only_what_is_chosen_is_acted_on() {
    run(async |site: &Site| {
        let morgue = Morgue::of(site).await;
        for (id, pool, kind) in [
            (Some("1"), "box", "invalid_job"),
            (Some("2"), "other", "invalid_job"),
            (None, "box", "container_lost"),
            (Some("1"), "box", "container_lost"),
            (Some("3"), "gone", "invalid_job"),
            (Some("4"), "other", "no_container"),
            (Some("1"), "no pool", "x"),
        ] {
            morgue.bury(id, pool, kind, "{}").await;
        }
        let order =
            |list: &[Value]| list.iter().map(|l| l["id"].as_str().unwrap_or("-").to_owned()).collect();
        let ids: Vec<String> = order(&morgue.list());
        assert_eq!(ids, ["1", "2", "-", "1", "3", "4", "1"]);
        let again: Vec<String> = order(&morgue.list());
        assert_eq!(again, ids, "looking changes nothing");
        let text = morgue.call(&["ls"]).ok("ls");
        for word in
            ["2  box  container_lost", "1  -  x", "7  in all", "2 have an id that another one has too"]
        {
            assert!(text.contains(word), "'{word}' is not in: {text}");
        }
        let text = morgue.call(&["ls", "--limit", "2"]).ok("ls --limit");
        assert!(text.contains("2  of 7 in the queue"), "{text}");
        let text = morgue.call(&["ls", "--pool", "other", "--json"]).ok("ls --pool");
        assert_eq!(text.lines().count(), 2, "{text}");

        // A pool without a queue stays, and what can't be sent anywhere too; all others go.
        let done = morgue.call(&["replay", "--all", "--pool", "gone"]);
        ends(&done, 1, &["replayed 0", "stays", "no queue for pool 'gone'", "[pool.gone]"]);
        ends(&morgue.call(&["show", "1"]), 0, &["'1' was there 3 times", "invalid_job", "container_lost"]);
        let first = morgue.call(&["show", "1", "--first"]).ok("show --first");
        assert_eq!(first.lines().filter(|line| line.starts_with("kind ")).count(), 1, "{first}");
        ends(&morgue.call(&["show", "none"]), 1, &["no dead letter", "'none'"]);
        let done = morgue.call(&["replay", "1", "none"]);
        ends(&done, 1, &["replayed 2", "its pool isn't known", "'1' was there 3 times", "id 'none'"]);
        assert_eq!(morgue.drain(&morgue.queue("box")).await, ["1", "1"]);
        let left: Vec<String> = order(&morgue.list());
        assert_eq!(left, ["2", "-", "3", "4", "1"]);

        // Deleting all is asked for, and nobody is there to answer.
        ends(&morgue.call(&["purge", "--all", "--pool", "other"]), 2, &["--yes", "of pool other", "in all)"]);
        ends(&morgue.call(&["purge"]), 2, &["ID"]);
        ends(&morgue.call(&["purge", "2", "--all"]), 2, &[]);
        ends(&morgue.call(&["purge", "--pool", "box", "2"]), 2, &["--pool"]);
        morgue.until_ready(&morgue.dead(), 5).await;
        let both = ["purge", "--all", "--pool", "other", "--kind", "no_container", "--yes"];
        ends(&morgue.call(&both), 0, &["purged 1"]);
        ends(&morgue.call(&["purge", "3", "2"]), 0, &["purged 2"]);
        ends(&morgue.call(&["replay", "--all", "--kind", "container_lost"]), 0, &["replayed 1"]);
        assert_eq!(morgue.drain(&morgue.queue("box")).await, ["-"]);
        ends(&morgue.call(&["purge", "--all", "--yes"]), 0, &["purged 1"]);
        morgue.until_ready(&morgue.dead(), 0).await;
        morgue.close().await;
    });
}

/// `kill -9` while it holds a part of the queue.
#[test]
fn looking_loses_nothing_whenever_it_is_killed() {
    run(async |site: &Site| {
        let morgue = Morgue::of(site).await;
        let all: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
        morgue.bury_all(all.iter().map(|id| (Some(id.clone()), "box", "k", b"{}".to_vec()))).await;
        let dead = morgue.dead();
        for args in
            [&["ls"][..], &["show", "2999"], &["purge", "none"], &["replay", "--all", "--pool", "other"]]
        {
            morgue.kill_midway(args, async || (1..2900).contains(&morgue.ready(&dead).await)).await;
            morgue.until_ready(&dead, 3000).await;
        }
        // A signal that the program doesn't handle, as of Ctrl-C (which is ignored in what a shell has put into the background).
        let mut child =
            morgue.stop_midway(&["ls"], async || (1..2900).contains(&morgue.ready(&dead).await)).await;
        signal("TERM", child.0.id());
        signal("CONT", child.0.id());
        assert!(!child.0.wait().unwrap().success());
        morgue.until_ready(&dead, 3000).await;

        let begun = Instant::now();
        let listed = morgue.list();
        println!("3000 listed in {:?}", begun.elapsed());
        assert_eq!(listed.len(), 3000);
        let mut left = morgue.drain(&dead).await;
        left.sort_by_key(|id| id.parse::<u32>().unwrap());
        assert_eq!(left, all, "each once");
        morgue.close().await;
    });
}

#[test]
fn replaying_loses_nothing_whenever_it_is_killed() {
    run(async |site: &Site| {
        let morgue = Morgue::of(site).await;
        let all: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        morgue.bury_all(all.iter().map(|id| (Some(id.clone()), "box", "k", b"{}".to_vec()))).await;
        let (dead, queue) = (morgue.dead(), morgue.queue("box"));
        for most in [100, 400] {
            let before = morgue.ready(&queue).await;
            let midway = async || morgue.ready(&queue).await > before + most;
            morgue.kill_midway(&["replay", "--all"], midway).await;
        }
        let total = async || morgue.ready(&queue).await + morgue.ready(&dead).await;
        eventually("what it held is back", async || (total().await >= 1000).then_some(())).await;
        ends(&morgue.call(&["replay", "--all"]), 0, &["replayed "]);
        morgue.until_ready(&dead, 0).await;
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        for id in morgue.drain(&queue).await {
            *times.entry(id).or_default() += 1;
        }
        assert_eq!(times.len(), all.len(), "none is lost");
        let twice = times.values().filter(|n| **n > 1).count();
        println!("{twice} twice");
        assert!(twice <= 2 && times.values().all(|n| *n <= 2), "at most the one in hand at each kill");
        morgue.close().await;
    });
}

#[test]
fn large_bodies_are_taken_one_by_one() {
    run(async |site: &Site| {
        let morgue = Morgue::of(site).await;
        let big = json!({"stdin": "x".repeat(8 << 20)}).to_string().into_bytes();
        for n in 0..12 {
            morgue.bury(Some(&n.to_string()), "box", "k", big.clone()).await;
        }
        let mut child = morgue.command(&["ls", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            peak = peak.max(kib.unwrap_or(0));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let done = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(done.stdout).unwrap().lines().count(), 12);
        println!("peak {peak} KiB");
        assert!((1..80 * 1024).contains(&peak), "12 of 8 MiB each, and {peak} KiB at once");
        let shown = morgue.call(&["show", "7"]).ok("show");
        assert!(shown.len() < 20_000 && shown.contains("bytes more"), "{}", shown.len());
        let raw = morgue.call(&["show", "7", "--body"]);
        assert_eq!(raw.stdout.len, big.len() as u64);
        ends(&morgue.call(&["replay", "7", "--first"]), 0, &["replayed 1"]);
        assert_eq!(morgue.take(&morgue.queue("box")).await.data, big);
        ends(&morgue.call(&["purge", "--all", "--yes"]), 0, &["purged 11"]);
        morgue.close().await;
    });
}

#[test]
fn what_is_wrong_is_told() {
    run(async |site: &Site| {
        let setup = site.worker().pool("box", "idle = 1");
        let call = |config: &str, args: &[&str]| {
            let mut command = prewarm();
            command.args(["-c", config, "dead"]).args(args);
            support::docker::run(&mut command, None, LIMIT)
        };
        let config = setup.write(nobody(), &broker::url()).display().to_string();
        let words = [&site.broker.dead(), "doesn't exist", "a worker declares it", "broker.prefix"];
        ends(&call(&config, &["ls"]), 4, &words);
        let address = nobody();
        let away = setup.write(nobody(), &format!("amqp://u:hunter2@{address}/%2f")).display().to_string();
        let done = call(&away, &["purge", "x"]);
        ends(&done, 4, &[&address.to_string()]);
        assert!(!done.stderr.to_string().contains("hunter2"), "{}", done.stderr);

        // Somebody who may look at nothing.
        let morgue = Morgue::of(site).await;
        morgue.bury(Some("1"), "box", "k", "{}").await;
        let user = site.name.clone();
        rabbitmqctl(&["add_user", &user, "pw"]);
        let remove = Remove(user.clone());
        let as_user = broker::url().replace("guest:guest@", &format!("{user}:pw@"));
        let config = setup.write(nobody(), &as_user).display().to_string();
        rabbitmqctl(&["set_permissions", &user, "", "", ""]);
        ends(&call(&config, &["ls"]), 4, &[&morgue.dead(), "permission to read"]);
        // Who may read, but send no jobs.
        rabbitmqctl(&["set_permissions", &user, "", "", ".*"]);
        ends(&call(&config, &["ls"]), 0, &["1  in all"]);
        let exchange = format!("{}.jobs", site.name);
        ends(&call(&config, &["replay", "1"]), 4, &["replayed 0", &exchange, "permission to write"]);
        morgue.until_ready(&morgue.dead(), 1).await;
        drop(remove);
        // Without the exchange.
        morgue
            .channel
            .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
        ends(&morgue.call(&["replay", "1"]), 4, &["replayed 0", &exchange, "doesn't exist"]);
        morgue.until_ready(&morgue.dead(), 1).await;
        morgue.close().await;
    });
}

/// A user of the broker, who is removed at the end.
struct Remove(String);

impl Drop for Remove {
    fn drop(&mut self) {
        rabbitmqctl(&["delete_user", &self.0]);
    }
}

/// A job whose containers are lost waits the configured delays, and no others, and is then given up.
#[test]
fn the_configured_delays_are_waited() {
    run(async |site: &Site| {
        let worker = site
            .worker()
            .set("retries = 3")
            .env("PREWARM_BROKER_RETRY_DELAYS", "[\"30ms\", \"2500ms\"]")
            .pool("box", "idle = 1\nconcurrency = 1")
            .ready()
            .await;
        let job = site.broker.submit("box", Job::shell("echo up; sleep 1000")).await;
        let mut waited = Vec::new();
        let mut killed = Instant::now();
        for attempt in 1..=3 {
            let up = |r: &broker::Reply| r.kind == LOG && r.body["attempt"] == attempt;
            let replies = site.broker.until(&job, |replies| replies.iter().any(up)).await;
            waited.push(killed.elapsed());
            let started = replies.iter().find(|r| r.kind == STARTED && r.body["attempt"] == attempt).unwrap();
            // Or the next attempt would wait for a container too.
            worker.until_one(async |pool| pool["idle"] == 1).await;
            killed = Instant::now();
            docker_ok(["kill", started.body["container"].as_str().unwrap()]);
        }
        println!("{waited:?}");
        assert!(waited[1] >= Duration::from_millis(30), "{waited:?}");
        assert!(waited[2] >= Duration::from_millis(2500), "{waited:?}");
        assert!(waited[1] < waited[2], "{waited:?}");
        let dead = site.broker.take(&site.broker.dead()).await;
        assert_eq!(dead.properties.message_id().as_ref().unwrap().as_str(), job.id);
        assert_eq!(dead.header("x-prewarm-kind").as_deref(), Some("container_lost"));
        humantime::parse_rfc3339(&dead.header("x-prewarm-died-at").unwrap()).unwrap();
        assert!(worker.stop().await.success());

        let connection = Connection::connect(&broker::url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        for delay in [30, 2500] {
            let name = format!("{}.retry.{delay}ms", site.name);
            channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
            channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let default = format!("{}.retry.1000ms", site.name);
        let looked = channel.queue_declare(default.as_str().into(), passive, FieldTable::default()).await;
        assert!(looked.is_err(), "a delay that nobody configured has a queue");
        connection.close(200, "OK".into()).await.unwrap();
    });
}
