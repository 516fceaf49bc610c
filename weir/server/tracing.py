"""OpenTelemetry spans of requests, sent when they end; needs the optional `otel` packages.

One span per prompt, a child of the caller's `traceparent`, with queueing, prefill and decode as
children. Attribute names follow the `gen_ai` conventions, as vLLM's do.
"""

import time
from typing import Any
from urllib.parse import urlsplit

from weir.client import Assembly
from weir.errors import ConfigError


class Tracer:
    """Add an instance to `client.listeners`. Raises `ConfigError` without the packages.

    endpoint: an OTLP/HTTP collector; the default path is `/v1/traces`. `exporter` replaces it.
    """

    def __init__(self, endpoint: str, model: str, *, exporter: Any = None):
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                path = urlsplit(endpoint).path.rstrip("/")
                exporter = OTLPSpanExporter(
                    endpoint if path else endpoint.rstrip("/") + "/v1/traces"
                )
        except ImportError as error:
            raise ConfigError(
                f"tracing needs a package that is not installed ({error.name}): install"
                " opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http"
            ) from None
        self._provider = TracerProvider(resource=Resource.create({"service.name": "weir"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("weir")
        self._extract = TraceContextTextMapPropagator().extract
        self._within = set_span_in_context
        self._model = model
        self._parents: dict[str, str] = {}

    def begin(self, request_id: str, traceparent: str | None) -> None:
        """Remember the parent of this request's span."""
        if traceparent is not None:
            self._parents[request_id] = traceparent

    def __call__(self, finished: Assembly) -> None:
        timing, usage = finished.timing, finished.usage
        epoch = time.time_ns() - time.monotonic_ns()  # ns to add to the monotonic clock

        def at(seconds: float) -> int:
            return epoch + int(seconds * 1e9)

        end = max(timing.last, timing.first, timing.started, timing.arrival)
        traceparent = self._parents.pop(finished.id, None)
        context = self._extract({"traceparent": traceparent}) if traceparent else None
        attributes: dict[str, Any] = {
            "gen_ai.request.id": finished.id,
            "gen_ai.response.model": self._model,
            "gen_ai.request.n": len(finished.finish_reasons),
            "gen_ai.usage.prompt_tokens": usage.prompt_tokens,
            "gen_ai.usage.completion_tokens": usage.completion_tokens,
            "gen_ai.usage.cached_tokens": usage.cached_tokens,
            "gen_ai.response.finish_reasons": finished.finish_reasons,
            "gen_ai.latency.e2e": end - timing.arrival,
            "weir.preempted": finished.preempted,
        }
        if timing.first >= 0:
            attributes["gen_ai.latency.time_to_first_token"] = timing.first - timing.arrival
        if finished.error:
            attributes["error.message"] = finished.error
        span = self._tracer.start_span(
            "llm_request", context, attributes=attributes, start_time=at(timing.arrival)
        )
        inside = self._within(span)
        for name, start, stop in (
            ("queue", timing.arrival, timing.started),
            ("prefill", timing.started, timing.first),
            ("decode", timing.first, timing.last),
        ):
            if 0 <= start <= stop:
                self._tracer.start_span(name, inside, start_time=at(start)).end(at(stop))
        span.end(at(end))

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()
