//! With the feature: OTLP over HTTP, from a thread of its own.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::contract::event::Status;
use crate::contract::topology::TRACEPARENT_HEADER;

/// Of the whole process; none if nothing is exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// How long the last spans may take at the end.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends spans while it lives. Waiting ones are bounded in number (`OTEL_BSP_MAX_QUEUE_SIZE`).
pub struct Exporter {
    provider: Option<SdkTracerProvider>,
}

impl Exporter {
    /// Starts it if OpenTelemetry's variables name a collector. Not on a tokio runtime.
    ///
    /// # Errors
    /// Says what is wrong with the variables.
    pub fn start(worker: &str) -> Result<Exporter, String> {
        if !super::is_wanted() {
            return Ok(Exporter { provider: None });
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .build()
            .map_err(|error| format!("{}: {error}", super::ENDPOINTS[0]))?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
        }
        let instance = KeyValue::new("service.instance.id", worker.to_owned());
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.with_attribute(instance).build())
            .build();
        // Set once: there is one worker in a process.
        let _ = TRACER.set(provider.tracer(env!("CARGO_PKG_NAME")));
        Ok(Exporter { provider: Some(provider) })
    }

    /// Sends what is left, for a bounded time.
    pub fn stop(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(PATIENCE)
        {
            tracing::warn!("the last spans were not sent: {error}");
        }
    }
}

/// One attempt's trace. It ends when it is dropped.
pub struct Trace {
    job: Option<(&'static SdkTracer, Context)>,
}

impl Trace {
    /// Begins with a delivery, below what the message says of its own trace.
    pub fn begin(traceparent: Option<&str>, received: Instant, id: &str, pool: &str, attempt: u32) -> Trace {
        let Some(tracer) = TRACER.get() else { return Trace { job: None } };
        let carrier: HashMap<String, String> =
            traceparent.map(|value| (TRACEPARENT_HEADER.to_owned(), value.to_owned())).into_iter().collect();
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
        let span = SpanBuilder::from_name("job")
            .with_kind(SpanKind::Consumer)
            .with_start_time(wall(received))
            .with_attributes([
                KeyValue::new("messaging.system", "rabbitmq"),
                KeyValue::new("messaging.message.id", id.to_owned()),
                KeyValue::new("prewarm.pool", pool.to_owned()),
                KeyValue::new("prewarm.attempt", i64::from(attempt)),
            ])
            .start_with_context(tracer, &parent);
        Trace { job: Some((tracer, parent.with_span(span))) }
    }

    /// For what the job itself does: below this.
    pub fn traceparent(&self) -> Option<String> {
        let (_, context) = self.job.as_ref()?;
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(context, &mut carrier);
        carrier.remove(TRACEPARENT_HEADER)
    }

    /// A part of it that is over.
    pub fn step(&self, name: &'static str, from: Instant, to: Instant) {
        if let Some((tracer, context)) = &self.job {
            let builder = SpanBuilder::from_name(name).with_start_time(wall(from));
            builder.start_with_context(*tracer, context).end_with_timestamp(wall(to));
        }
    }

    /// How the attempt ended.
    pub fn outcome(&self, status: Status) {
        if let Some((_, context)) = &self.job {
            let span = context.span();
            span.set_attribute(KeyValue::new("prewarm.status", status.as_str()));
            if !matches!(status, Status::Succeeded | Status::Cancelled) {
                span.set_status(opentelemetry::trace::Status::error(status.as_str()));
            }
        }
    }
}

fn wall(at: Instant) -> SystemTime {
    SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
}
