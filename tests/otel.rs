//! Spans for a collector (`cargo test --features otel --test otel`): that they come, and are linked.
#![cfg(feature = "otel")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use support::broker::Job;
use support::worker::{Site, eventually, run};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[derive(Clone, Debug, Default, PartialEq)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    begin: u64,
    end: u64,
}

/// The fields of a protobuf message: number, and bytes or number.
fn fields(mut rest: &[u8]) -> Vec<(u64, Vec<u8>, u64)> {
    fn varint(rest: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = rest[0];
            *rest = &rest[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut all = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest);
        let (bytes, number) = match key & 7 {
            0 => (Vec::new(), varint(&mut rest)),
            kind @ (1 | 2 | 5) => {
                let len = match kind {
                    1 => 8,
                    5 => 4,
                    _ => usize::try_from(varint(&mut rest)).unwrap(),
                };
                let (bytes, after) = rest.split_at(len);
                rest = after;
                let mut number = [0; 8];
                number[..len.min(8)].copy_from_slice(&bytes[..len.min(8)]);
                (bytes.to_vec(), u64::from_le_bytes(number))
            }
            other => panic!("wire type {other}"),
        };
        all.push((key >> 3, bytes, number));
    }
    all
}

fn inner(message: &[u8], number: u64) -> Vec<Vec<u8>> {
    fields(message).into_iter().filter(|(n, ..)| *n == number).map(|(_, bytes, _)| bytes).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// opentelemetry-proto: ExportTraceServiceRequest 1 → ResourceSpans 2 → ScopeSpans 2 → Span.
fn spans(request: &[u8]) -> Vec<Span> {
    let of =
        |messages: Vec<Vec<u8>>, number| messages.iter().flat_map(|m| inner(m, number)).collect::<Vec<_>>();
    let all = of(of(inner(request, 1), 2), 2);
    let span = |bytes: &Vec<u8>| {
        let mut span = Span::default();
        for (number, bytes, value) in fields(bytes) {
            match number {
                1 => span.trace = hex(&bytes),
                2 => span.id = hex(&bytes),
                4 => span.parent = hex(&bytes),
                5 => span.name = String::from_utf8(bytes).unwrap(),
                7 => span.begin = value,
                8 => span.end = value,
                _ => {}
            }
        }
        span
    };
    all.iter().map(span).collect()
}

/// A collector that takes what comes.
fn collector() -> (String, Arc<Mutex<Vec<Span>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let taken = Arc::new(Mutex::new(Vec::new()));
    let into = taken.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_ok() {
                into.lock().unwrap().extend(spans(&body));
                let _ =
                    (&stream).write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    (url, taken)
}

#[test]
fn a_job_s_spans_are_below_its_publisher_s_and_the_job_s_own_below_them() {
    run(async |site: &Site| {
        let (url, taken) = collector();
        let setup =
            site.worker().env("OTEL_EXPORTER_OTLP_ENDPOINT", &url).env("OTEL_BSP_SCHEDULE_DELAY", "100");
        // Spans don't depend on what is logged.
        let worker = setup.env("PREWARM_LOG", "warn").pool("box", "idle = 1\nconcurrency = 1").ready().await;
        let traceparent = format!("00-{TRACE}-{PARENT}-01");
        let job = Job::shell("echo $TRACEPARENT").header("traceparent", &traceparent);
        let attempt = site.broker.run("box", job).await.succeeded();
        let told = String::from_utf8(attempt.stdout.clone()).unwrap();
        let spans = eventually("the spans come", async || {
            let spans = taken.lock().unwrap().clone();
            (spans.len() >= 6).then_some(spans)
        })
        .await;
        assert!(spans.iter().all(|span| span.trace == TRACE && span.begin <= span.end), "{spans:#?}");
        let named: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.name.as_str(), span)).collect();
        let names: Vec<&str> = named.keys().copied().collect();
        assert_eq!(names, ["job", "lease", "publish", "received", "run", "start"]);
        let root = named["job"];
        assert_eq!(root.parent, PARENT);
        for (name, span) in &named {
            assert!(*name == "job" || span.parent == root.id, "{span:?}");
            assert!(
                root.begin <= span.begin + 1_000_000 && span.end <= root.end + 1_000_000,
                "{span:?} {root:?}"
            );
        }
        assert_eq!(told.trim(), format!("00-{TRACE}-{}-01", root.id));
        // The publisher's own comes back to it.
        assert_eq!(attempt.replies[0].header("traceparent"), Some(traceparent));

        // One that is not sampled is not exported, and the last spans are sent at the end.
        let unsampled = Job::shell("true").header("traceparent", &format!("00-{TRACE}-{PARENT}-00"));
        site.broker.run("box", unsampled).await.succeeded();
        site.broker.run("box", Job::shell("true")).await.succeeded();
        assert!(worker.stop().await.success());
        let spans = taken.lock().unwrap().clone();
        assert_eq!(spans.len(), 12, "{spans:#?}");
        let last = spans.iter().rfind(|span| span.name == "job").unwrap();
        assert!(last.trace != TRACE && last.parent.is_empty(), "{last:?}");
    });
}

#[test]
fn a_collector_that_is_not_there_is_in_nobody_s_way() {
    run(async |site: &Site| {
        let setup = site.worker().env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
        let worker = setup.pool("box", "idle = 1\nconcurrency = 1").ready().await;
        for _ in 0..5 {
            site.broker.run("box", Job::shell("true")).await.succeeded();
        }
        assert!(worker.stop().await.success());
    });
}
