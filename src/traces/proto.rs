//! Jobs in the words of OpenTelemetry: OTLP's messages, and names by its semantic conventions (1.39: general, messaging with
//! RabbitMQ, HTTP, generative AI). What has no name there begins with `embeddings.`.

use super::Setup;
use super::job::{Job, Source};
use crate::clock::Moment;
use crate::job::request::Encoding;
use crate::logic::event::Outcome;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

/// Which edition of the conventions the names are of.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.39.0";
/// Flags of a span: it is known whether its parent is of another process, and it is (`trace.proto`, `SpanFlags`).
const HAS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Who tells: the process.
pub(super) fn resource(setup: &Setup) -> Resource {
    let instance = format!("{}@{}.{}", setup.unit, setup.host, std::process::id());
    let attributes = vec![
        text("service.name", "embeddings"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", &instance),
        text("host.name", &setup.host),
        whole("process.pid", std::process::id()),
    ];
    Resource {
        attributes,
        ..Resource::default()
    }
}

/// A request that tells of these jobs, encoded.
pub(super) fn request(resource: &Resource, jobs: &[Job]) -> Vec<u8> {
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    };
    let scope_spans = ScopeSpans {
        scope: Some(scope),
        spans: jobs.iter().flat_map(spans).collect(),
        schema_url: SCHEMA.into(),
    };
    let resource_spans = ResourceSpans {
        resource: Some(resource.clone()),
        scope_spans: vec![scope_spans],
        schema_url: SCHEMA.into(),
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![resource_spans],
    };
    request.encode_to_vec()
}

/// The job's own span, and one below it for each stage.
fn spans(job: &Job) -> Vec<Span> {
    let ends = job.steps.iter().skip(1).map(|(_, at)| *at).chain([job.ended]);
    let stages = job.steps.iter().zip(ends).map(|((stage, began), ended)| Span {
        span_id: id(rand::random::<u64>().max(1)),
        parent_span_id: id(job.place.span),
        flags: u32::from(job.place.flags) | HAS_REMOTE,
        name: stage.name().into(),
        kind: SpanKind::Internal.into(),
        ..span(job, *began, ended)
    });
    let mut all = vec![whole_job(job)];
    all.extend(stages);
    all
}

fn whole_job(job: &Job) -> Span {
    let (kind, name, mut attributes) = match &job.source {
        Source::Queue { name, .. } => (SpanKind::Consumer, format!("process {name}"), of_message(job)),
        Source::Http => (SpanKind::Server, "POST /v1/embeddings".into(), of_request(job)),
    };
    attributes.extend(of_work(job));
    let error = job.error();
    if let Some(error) = error {
        attributes.push(text("error.type", error));
    }
    let status = error.map(|error| {
        let field = job.refused.as_ref().and_then(|(_, field)| field.as_ref());
        Status {
            message: field.map_or(error.to_owned(), |field| format!("{error}: {field}")),
            code: StatusCode::Error.into(),
        }
    });
    let remote = job.place.parent.map_or(0, |_| IS_REMOTE);
    Span {
        span_id: id(job.place.span),
        parent_span_id: job.place.parent.map(id).unwrap_or_default(),
        flags: u32::from(job.place.flags) | HAS_REMOTE | remote,
        name,
        kind: kind.into(),
        attributes,
        status,
        ..span(job, job.came, job.ended)
    }
}

fn span(job: &Job, began: Moment, ended: Moment) -> Span {
    let unix_ns = |at: Moment| {
        let since = u64::try_from(at.since(job.came).as_nanos()).unwrap_or(u64::MAX);
        job.came_unix_ms.saturating_mul(1_000_000).saturating_add(since)
    };
    Span {
        trace_id: job.place.trace.to_be_bytes().into(),
        start_time_unix_nano: unix_ns(began),
        end_time_unix_nano: unix_ns(ended),
        ..Span::default()
    }
}

fn of_message(job: &Job) -> Vec<KeyValue> {
    let Source::Queue {
        name,
        correlation_id,
        bytes,
    } = &job.source
    else {
        return Vec::new();
    };
    let mut attributes = vec![
        text("messaging.system", "rabbitmq"),
        text("messaging.operation.name", "process"),
        text("messaging.operation.type", "process"),
        text("messaging.destination.name", name),
        text("messaging.message.id", &job.id),
        whole("messaging.message.body.size", *bytes as u64),
    ];
    let conversation = correlation_id.iter();
    attributes.extend(conversation.map(|id| text("messaging.message.conversation_id", id)));
    attributes
}

fn of_request(job: &Job) -> Vec<KeyValue> {
    let status = match &job.refused {
        Some((error, _)) => Some(error.code()),
        None => (job.outcome == Outcome::Answered).then_some(200),
    };
    let mut attributes = vec![
        text("http.request.method", "POST"),
        text("http.route", "/v1/embeddings"),
        text("url.path", "/v1/embeddings"),
        text("url.scheme", "http"),
        text("embeddings.request.id", &job.id),
    ];
    attributes.extend(status.map(|status| whole("http.response.status_code", status)));
    attributes
}

fn of_work(job: &Job) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("gen_ai.operation.name", "embeddings"),
        text("gen_ai.provider.name", "embeddings"),
        text("embeddings.lane", job.lane.name()),
        text("embeddings.outcome", job.outcome.name()),
        whole("embeddings.attempt", job.attempt),
    ];
    if let Some(asked) = &job.asked {
        let format = match asked.encoding {
            Encoding::Float => "float",
            Encoding::Base64 => "base64",
        };
        attributes.extend([
            text("gen_ai.request.model", &asked.model),
            list("gen_ai.request.encoding_formats", format),
            whole("gen_ai.embeddings.dimension.count", asked.dimensions as u64),
            whole("embeddings.inputs", asked.inputs as u64),
        ]);
        if asked.tokens > 0 {
            attributes.push(whole("gen_ai.usage.input_tokens", asked.tokens));
        }
    }
    attributes
}

fn id(id: u64) -> Vec<u8> {
    id.to_be_bytes().into()
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn whole(key: &str, value: impl Into<u64>) -> KeyValue {
    attribute(
        key,
        Value::IntValue(i64::try_from(value.into()).unwrap_or(i64::MAX)),
    )
}

fn list(key: &str, only: &str) -> KeyValue {
    let values = vec![AnyValue {
        value: Some(Value::StringValue(only.into())),
    }];
    attribute(key, Value::ArrayValue(ArrayValue { values }))
}
