"""Prometheus metrics of ended requests, and the engine's counters.

The server has a registry of its own. Requests are observed once, when they end; the engine's
counters and spreads are read at scrape time. Names are `weir_*`; `Mirror` repeats the metrics that
vLLM also has under vLLM's names.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from weir.client import Assembly, Client
from weir.wire import Stats

SHORT = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)  # between tokens
FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)  # to the first token: vLLM's
WHOLE = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)  # of a request
TOKENS = tuple(float(base * 10**power) for power in range(6) for base in (1, 2, 5))
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)

REQUESTS = {
    "time_to_first_token_seconds": ("Arrival to first token", FIRST),
    "inter_token_latency_seconds": ("Between tokens", SHORT),
    "time_per_output_token_seconds": ("A request's mean time between tokens", SHORT),
    "e2e_request_latency_seconds": ("Arrival to last token", WHOLE),
    "request_queue_time_seconds": ("Arrival to admission", WHOLE),
    "request_inference_time_seconds": ("Admission to last token", WHOLE),
    "request_prefill_time_seconds": ("Admission to first token", WHOLE),
    "request_decode_time_seconds": ("First to last token", WHOLE),
    "request_prompt_tokens": ("Prompt tokens", TOKENS),
    "request_generation_tokens": ("Output tokens", TOKENS),
    "request_params_n": ("The parameter n", CHOICES),
    "request_params_max_tokens": ("The parameter max_tokens, where given", TOKENS),
    "request_preemptions": ("Times a request was preempted", (0.0, 1.0, 2.0, 5.0, 10.0)),
}
"""Histograms over ended requests: help text and buckets."""

SAME = (*REQUESTS, "prompt_tokens", "generation_tokens", "request_success", "admission_rejections")
VLLM = {f"weir_{name}": f"vllm:{name}" for name in SAME if name != "request_preemptions"} | {
    "weir_requests_running": "vllm:num_requests_running",
    "weir_requests_waiting": "vllm:num_requests_waiting",
    "weir_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "weir_prefix_cache_query_tokens": "vllm:prefix_cache_queries",
    "weir_prefix_cache_hit_tokens": "vllm:prefix_cache_hits",
    "weir_preemptions": "vllm:num_preemptions",
    "weir_step_tokens": "vllm:iteration_tokens_total",
    "weir_time_per_output_token_seconds": "vllm:request_time_per_output_token_seconds",
}
"""Metric families that mean the same in vLLM."""

# Creation times would add a gauge per family and double the size of a scrape.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Add an instance to `client.listeners`; `text()` returns a scrape."""

    def __init__(self, client: Client, *, vllm_names: bool = False):
        self.registry = CollectorRegistry()
        self._model = client.model.name
        self._histograms = {
            name: Histogram(
                f"weir_{name}", help, ["model_name"], buckets=buckets, registry=self.registry
            )
            for name, (help, buckets) in REQUESTS.items()
        }
        self._success = self._counter(
            "request_success", "Choices that ended, by why", "finished_reason"
        )
        self._replays = self._counter("request_replays", "Requests given to a restarted engine")
        self._http = self._counter(
            "http_requests", "Answers, by route and status", "route", "status"
        )
        self.registry.register(EngineCollector(client))
        self._mirror = Mirror(self.registry, VLLM if vllm_names else {})

    def __call__(self, finished: Assembly) -> None:
        """Observe a request that has ended. Times are seconds; -1: the event never occurred."""
        timing, usage, gaps = finished.timing, finished.usage, finished.gaps
        for reason in finished.finish_reasons:
            self._success.labels(self._model, reason).inc()
        if finished.replays:
            self._replays.labels(self._model).inc(finished.replays)
        self._observe("request_params_n", len(finished.finish_reasons))
        self._observe("request_prompt_tokens", usage.prompt_tokens)
        self._observe("request_generation_tokens", usage.completion_tokens)
        self._observe("request_preemptions", finished.preempted)
        if finished.params.max_tokens is not None:
            self._observe("request_params_max_tokens", finished.params.max_tokens)
        if gaps:
            self._observe("inter_token_latency_seconds", *gaps)
            self._observe("time_per_output_token_seconds", sum(gaps) / len(gaps))
        for name, start, end in (
            ("request_queue_time_seconds", timing.arrival, timing.started),
            ("time_to_first_token_seconds", timing.arrival, timing.first),
            ("e2e_request_latency_seconds", timing.arrival, timing.last),
            ("request_prefill_time_seconds", timing.started, timing.first),
            ("request_inference_time_seconds", timing.started, timing.last),
            ("request_decode_time_seconds", timing.first, timing.last),
        ):
            if start >= 0 and end >= 0:
                self._observe(name, max(0.0, end - start))

    def _observe(self, name: str, *values: float) -> None:
        histogram = self._histograms[name].labels(self._model)
        for value in values:
            histogram.observe(value)

    def answered(self, route: str, status: int) -> None:
        self._http.labels(self._model, route, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry) + generate_latest(self._mirror)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"weir_{name}", help, ["model_name", *labels], registry=self.registry)


class EngineCollector(Collector):
    """Exports the engine's latest `Stats` and the client's rejections as metrics."""

    def __init__(self, client: Client):
        self._client = client

    def collect(self) -> Iterator[Metric]:
        stats = self._client.stats
        yield from self._state(stats)
        yield from self._steps(stats)
        yield from self._totals(stats)

    def _state(self, stats: Stats) -> Iterator[Metric]:
        pages = stats.pages_total or 1
        for name, help, value in (
            ("engine_ready", "1 while the engine takes requests", self._client.health == "ready"),
            ("requests_running", "Requests that hold KV pages", stats.running),
            ("requests_waiting", "Requests that wait for admission", stats.waiting),
            ("cache_usage_ratio", "KV pages held by requests, of all", stats.pages_used / pages),
            ("cache_cached_ratio", "KV pages only cached, of all", stats.pages_cached / pages),
            ("cache_pages", "KV pages", stats.pages_total),
            ("cache_pinned_pages", "KV pages of pinned prefixes", stats.pages_pinned),
            ("ranking_degraded", "1 once a ranker failed: requests are FCFS", bool(stats.degraded)),
            ("cache_cold_pages", "KV pages cached on colder tiers", stats.pages_cold),
            ("step_target_seconds", "Time that steps aim at; 0: none", stats.target_seconds),
        ):
            yield self._family(GaugeMetricFamily, name, help, {(): value})
        yield self._family(
            GaugeMetricFamily,
            "ranking_tau",
            "Kendall's tau-b of predicted lengths, over the answers learned from",
            {(name,): tau for name, tau in self._client.ranking.items()},
            "predictor",
        )

    def _steps(self, stats: Stats) -> Iterator[Metric]:
        for name, help, spread in (
            ("step_seconds", "Time of the device for a step", stats.step_seconds),
            ("step_predicted_seconds", "Expected of it, under a target", stats.predicted_seconds),
            ("step_host_seconds", "To plan a step and settle another", stats.host_seconds),
            ("step_requests", "Requests in a step", stats.step_requests),
            ("step_tokens", "Tokens computed in a step", stats.step_tokens),
            ("step_prefill_tokens", "Prompt tokens among them", stats.step_prefill),
            ("step_decode_tokens", "The others: one for each decode", stats.step_decode),
        ):
            family = HistogramMetricFamily(f"weir_{name}", help, labels=["model_name"])
            bounds = [*map(str, spread.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(spread.counts), strict=True))
            family.add_metric([self._client.model.name], buckets, spread.sum)
            yield family

    def _totals(self, stats: Stats) -> Iterator[Metric]:
        computed = max(0, stats.prompt_tokens - stats.hit_tokens)
        for name, help, value in (
            ("steps", "Steps of the engine", stats.step),
            ("prompt_tokens", "Prompt tokens served", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated", stats.generated_tokens),
            ("prefix_cache_query_tokens", "Prompt tokens looked up", stats.prompt_tokens),
            ("prefix_cache_hit_tokens", "Prompt tokens found in the cache", stats.hit_tokens),
            ("cache_loaded_tokens", "Tokens whose KV came from a colder tier", stats.loaded_tokens),
            ("cache_saved_tokens", "Tokens whose KV went to a colder tier", stats.saved_tokens),
            ("preemptions", "Requests set back to waiting", stats.preemptions),
            ("recomputed_tokens", "Tokens computed again for that", stats.recomputed_tokens),
        ):
            yield self._family(CounterMetricFamily, name, help, {(): value})
        yield self._family(
            CounterMetricFamily,
            "prompt_tokens_by_source",
            "Prompt tokens served, by where their KV came from",
            {
                ("computed",): computed,
                ("cache_hit",): stats.hit_tokens - stats.cpu_hit_tokens - stats.disk_hit_tokens,
                ("cpu",): stats.cpu_hit_tokens,
                ("disk",): stats.disk_hit_tokens,
            },
            "source",
        )
        yield self._family(
            CounterMetricFamily,
            "admission_rejections",
            "Requests turned away, by reason",
            {(reason,): count for reason, count in self._client.rejected.items()},
            "reason",
        )

    def _family(
        self,
        kind: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        help: str,
        values: Mapping[tuple[str, ...], float],
        *labels: str,
    ) -> Metric:
        family = kind(f"weir_{name}", help, labels=["model_name", *labels])
        for key, value in values.items():
            family.add_metric([self._client.model.name, *key], float(value))
        return family


class Mirror(Collector):
    """Repeats the families of a registry that `names` lists under their other names."""

    def __init__(self, registry: CollectorRegistry, names: Mapping[str, str]):
        self._registry = registry
        self._names = names

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            other = self._names.get(metric.name)
            if other is None:
                continue
            copy = Metric(other, metric.documentation, metric.type)
            copy.samples = [
                Sample(other + s.name[len(metric.name) :], s.labels | {"engine": "0"}, s.value)
                for s in metric.samples
            ]
            yield copy
