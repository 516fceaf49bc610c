"""Metrics, traces and logs say what happened, and only that."""

import asyncio
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from tests.client.conftest import make_ledger
from tests.server.conftest import CHAT, TEXT, serving
from tests.waiting import CEILING, until
from weir.client import Assembly, Timing, Usage
from weir.params import SamplingParams
from weir.server import logs
from weir.server.logs import LogFormatter, request_id
from weir.server.tracing import Tracer


def scrape(http: httpx.Client) -> dict[str, float]:
    """Every sample but buckets, by name and labels in order, without the model's name."""
    found = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            if sample.name.endswith(("_bucket", "_created")):
                continue
            labels = [v for k, v in sorted(sample.labels.items()) if k != "model_name"]
            found[" ".join([sample.name, *labels])] = sample.value
    return found


@pytest.fixture(scope="module")
def metered():
    with serving(vllm_metric_names=True) as running:
        with httpx.Client(base_url=running.url, timeout=CEILING) as http:
            http.post("/v1/chat/completions", json=CHAT | {"n": 2, "max_tokens": 5})
            http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 9, "user": "end:3"})
            http.post("/v1/completions", json={"prompt": "abc", "user": "fail"})
            http.post("/v1/completions", json={"prompt": "x" * 400})
            http.get("/nowhere/1")
            http.get("/nowhere/2")
            yield scrape(http)


def test_counts_of_tokens_and_requests(metered):
    assert metered["weir_request_success_total length"] == 2
    assert metered["weir_request_success_total stop"] == 1
    assert metered["weir_request_success_total error"] == 1
    assert metered["weir_request_prompt_tokens_sum"] == 12 + 3 + 3
    assert metered["weir_request_generation_tokens_sum"] == 10 + 3
    assert metered["weir_generation_tokens_total"] == 13
    assert metered["weir_request_params_n_sum"] == 2 + 1 + 1
    assert metered["weir_request_params_max_tokens_sum"] == 5 + 9 + 16
    assert metered["weir_admission_rejections_total context_length_exceeded"] == 1
    sources = ("computed", "cache_hit", "cpu", "disk")
    served = [metered[f"weir_prompt_tokens_by_source_total {source}"] for source in sources]
    assert sum(served) == metered["weir_prompt_tokens_total"]
    assert metered["weir_engine_ready"] == 1 and metered["weir_requests_running"] == 0


def test_steps_are_histograms(http):
    """In Prometheus's form: buckets grow, the last one is the count."""
    http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    for part in ("seconds", "host_seconds", "tokens", "prefill_tokens", "decode_tokens"):
        assert families[f"weir_step_{part}"].type == "histogram"
    samples = families["weir_step_requests"].samples
    buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]
    (count,) = (s.value for s in samples if s.name.endswith("_count"))
    assert buckets == sorted(buckets) and buckets[-1] == (float("inf"), count) and count >= 3


def test_times(metered):
    for name in ("time_to_first_token", "e2e_request_latency"):
        assert metered[f"weir_{name}_seconds_count"] == 2, "what failed had no first token"
    assert metered["weir_inter_token_latency_seconds_count"] == 4 + 4 + 2
    assert metered["weir_request_queue_time_seconds_count"] == 2
    for part in ("prefill", "decode", "inference"):
        assert 0 <= metered[f"weir_request_{part}_time_seconds_sum"] < CEILING


def test_answers_are_counted_by_route(metered):
    assert metered["weir_http_requests_total /v1/completions 200"] == 1
    assert metered["weir_http_requests_total /v1/completions 503"] == 1
    assert metered["weir_http_requests_total /v1/completions 400"] == 1
    assert metered["weir_http_requests_total other 404"] == 2, "unknown paths share one series"


def test_vllm_names_mirror_ours(metered):
    pairs = {
        "weir_generation_tokens_total": "vllm:generation_tokens_total 0",
        "weir_requests_waiting": "vllm:num_requests_waiting 0",
        "weir_request_success_total stop": "vllm:request_success_total 0 stop",
        "weir_time_to_first_token_seconds_sum": "vllm:time_to_first_token_seconds_sum 0",
        "weir_cache_usage_ratio": "vllm:kv_cache_usage_perc 0",
        "weir_step_tokens_count": "vllm:iteration_tokens_total_count 0",
    }
    for ours, theirs in pairs.items():
        assert metered[ours] == metered[theirs], (ours, theirs)


def test_no_vllm_names_unless_asked_for(http):
    assert "vllm:" not in http.get("/metrics").text


def finished() -> Assembly:
    now = time.monotonic()
    one = make_ledger(TEXT).admit([1] * 5, SamplingParams(), now=now, request_id="one")
    one.usage, one.preempted, one.choices[0].finish_reason = Usage(5, 7, 2), 1, "stop"
    one.timing = Timing(arrival=now - 4, started=now - 3, first=now - 2, last=now - 1)
    return one


def test_spans():
    exporter = InMemorySpanExporter()
    tracer = Tracer("unused", "model", exporter=exporter)
    tracer.begin("one", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    began = time.time()
    tracer(finished())
    ended = time.time()
    tracer.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert list(spans) == ["queue", "prefill", "decode", "llm_request"]
    root = spans["llm_request"]
    assert f"{root.context.trace_id:x}" == "af7651916cd43dd8448eb211c80319c"
    assert f"{root.parent.span_id:x}" == "b7ad6b7169203331"
    assert all(spans[n].parent.span_id == root.context.span_id for n in list(spans)[:3])
    assert all(0.9e9 < span.end_time - span.start_time < 3.1e9 for span in spans.values())
    assert began - 0.1 < root.end_time / 1e9 + 1 < ended + 0.1
    assert root.attributes["gen_ai.usage.completion_tokens"] == 7
    assert root.attributes["gen_ai.latency.time_to_first_token"] == pytest.approx(2)


def test_a_span_without_a_parent_or_a_first_token():
    exporter = InMemorySpanExporter()
    tracer = Tracer("unused", "model", exporter=exporter)
    tracer.begin("one", "nonsense")
    ended = finished()
    ended.timing, ended.error = Timing(arrival=time.monotonic()), "lost"
    tracer(ended)
    tracer.close()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None and span.attributes["error.message"] == "lost"


def test_the_server_passes_the_traceparent_on(monkeypatch):
    exporter = InMemorySpanExporter()
    made: list[Tracer] = []

    def tracer(endpoint: str, model: str) -> Tracer:
        made.append(Tracer(endpoint, model, exporter=exporter))
        return made[0]

    monkeypatch.setattr("weir.server.app.Tracer", tracer)
    with serving(otlp_traces_endpoint="http://127.0.0.1:9") as running:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        body = {"prompt": ["a", "b"], "max_tokens": 2}
        httpx.post(
            running.url + "/v1/completions",
            json=body,
            headers={"traceparent": parent},
            timeout=CEILING,
        )
    made[0].close()
    roots = [s for s in exporter.get_finished_spans() if s.name == "llm_request"]
    assert [f"{s.context.trace_id:x}"[:6] for s in roots] == ["af7651"] * 2
    assert len({s.attributes["gen_ai.request.id"] for s in roots}) == 2


def record(message: str = "it is %s", **extra) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "args": ("so",), "levelname": "INFO"} | extra)
    made.name = "weir.test"
    return made


def test_log_lines_carry_the_request_and_extras():
    token = request_id.set("r-1")
    try:
        line = json.loads(LogFormatter(as_json=True).format(record(tokens=5, odd={1})))
        assert line["message"] == "it is so" and line["request_id"] == "r-1"
        assert line["tokens"] == 5 and line["level"] == "info"
        assert line["time"].endswith("Z")
        text = LogFormatter(as_json=False).format(record("two\nlines %s", tokens=5))
        assert text.endswith("INFO two\\nlines so request_id=r-1 tokens=5")
    finally:
        request_id.reset(token)


def test_an_unforeseen_failure_is_logged_with_its_request_and_hidden_from_the_client(
    monkeypatch, caplog
):
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("the secret of our insides")

    with caplog.at_level(logging.INFO), serving(enable_log_requests=True) as running:
        monkeypatch.setattr(running.client, "submit", explode)
        for stream in (False, True):
            answer = httpx.post(
                running.url + "/v1/completions",
                json={"prompt": "a", "stream": stream},
                headers={"X-Request-Id": "find-me"},
                timeout=CEILING,
            )
            assert answer.status_code == 500 and "secret" not in answer.text
            assert answer.json()["error"]["type"] == "internal_error"
            assert answer.headers["x-request-id"] == "find-me"
    assert "the secret of our insides" in caplog.text
    assert [r.getMessage()[:25] for r in caplog.records if r.name == "weir.access"] == [
        "POST /v1/completions 500 "
    ] * 2


def test_requests_are_logged_at_their_end(caplog):
    with caplog.at_level(logging.INFO), serving(enable_log_requests=True) as running:
        body = {"prompt": "abc", "max_tokens": 4}
        httpx.post(running.url + "/v1/completions", json=body, timeout=CEILING)
    (ended,) = [r for r in caplog.records if r.name == "weir.requests"]
    assert (ended.prompt_tokens, ended.completion_tokens, ended.finish) == (3, 4, "length")
    assert 0 <= ended.queue_s <= ended.ttft_s <= ended.e2e_s and not hasattr(ended, "error")


def test_one_that_is_aborted_while_it_waits_has_an_end_and_no_beginning(caplog, tmp_path):
    with caplog.at_level(logging.INFO), serving(enable_log_requests=True) as running:
        hang = {"prompt": "abc", "user": f"hang:{tmp_path / 'go'}", "request_id": "it"}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                httpx.post, running.url + "/v1/completions", json=hang, timeout=CEILING
            )
            until(lambda: running.client._ledger.live)
            httpx.post(running.url + "/abort_request", json={"rid": "it"}, timeout=CEILING)
            (tmp_path / "go").touch()
            assert asked.result().json()["choices"][0]["finish_reason"] == "abort"
    (ended,) = [r for r in caplog.records if r.name == "weir.requests"]
    assert (ended.id, ended.user, ended.finish) == ("it", hang["user"], "abort")
    assert ended.e2e_s >= 0 and not hasattr(ended, "queue_s") and not hasattr(ended, "ttft_s")


def test_what_a_server_did_is_logged_while_it_does_something(caplog, monkeypatch):
    monkeypatch.setattr(logs, "PULSE", 0.01)
    with serving() as running, caplog.at_level(logging.INFO, "weir.server.logs"):
        telling = asyncio.run_coroutine_threadsafe(logs.pulse(running.client), running.loop)
        httpx.post(
            running.url + "/v1/completions", json={"prompt": "abc", "max_tokens": 4},
            timeout=CEILING,
        )  # fmt: skip
        until(lambda: sum(r.completion_tokens_s for r in caplog.records) >= 4 / 0.01)
        telling.cancel()
    assert sum(r.prompt_tokens_s for r in caplog.records) == 3 / 0.01
    assert {r.getMessage() for r in caplog.records} == {"the last 0.01 s"}
