"""Sends a span for each request to an OpenTelemetry collector.  Imported only if one is configured."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..middleware.request_record import RequestRecord

_SERVER_ERROR = 500


class Traces:
    """Spans made from records, with a child for each stage; sent in the background, and dropped if that fails.

    Args:
        endpoint: The collector's address for traces over HTTP, such as ``http://localhost:4318/v1/traces``.
    """

    def __init__(self, endpoint: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "hybridge"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("hybridge")
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, record: RequestRecord) -> None:
        """Make the spans of a request that has ended."""
        carrier = {"traceparent": record.traceparent} if record.traceparent else {}
        began_ns = int(record.began_at * 1e9)
        span = self._tracer.start_span(
            record.task or "request",
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            {
                "http.response.status_code": record.status,
                "hybridge.model": record.model,
                "hybridge.client": record.client_id,
                "hybridge.request_id": record.request_id,
                "http.request.body.size": record.received_bytes,
                "http.response.body.size": record.sent_bytes,
            },
            start_time=began_ns,
        )
        if record.status >= _SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR))
        parent, at_ns = set_span_in_context(span), began_ns
        for stage, milliseconds in record.milliseconds.items():
            if stage == "total":
                continue
            child = self._tracer.start_span(stage, parent, start_time=at_ns)
            at_ns += int(milliseconds * 1e6)
            child.end(at_ns)
        span.end(began_ns + int(record.milliseconds["total"] * 1e6))

    def close(self) -> None:
        """Send the remaining spans and end."""
        self._provider.shutdown()
