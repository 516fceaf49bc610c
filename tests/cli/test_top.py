"""The live view: what two scrapes of /metrics come to."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from rich.console import Console

from tests.bench.fake_server import Fake
from weir.cli import main
from weir.cli.top import View, frame, graph, parse, percentile

BUCKETS = (0.1, 0.2, 0.5, 1.0)


SECONDS = st.floats(0, 1.0)


@given(st.lists(SECONDS, max_size=30), st.lists(SECONDS, min_size=1, max_size=30))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(old, new) -> None:
    def cumulative(values: list[float]) -> dict[float, float]:
        return {b: float(sum(v <= b for v in values)) for b in (*BUCKETS, math.inf)}

    before, after = cumulative(old), cumulative(old + new)
    for share in (0.5, 0.99):
        true = sorted(new)[math.ceil(share * len(new)) - 1]
        low = max((b for b in (0.0, *BUCKETS) if b < true), default=0.0)
        high = min(b for b in BUCKETS if b >= true)
        assert low - 1e-9 <= percentile(before, after, share) <= high + 1e-9


def test_nothing_new_has_no_percentile() -> None:
    assert math.isnan(percentile({1.0: 3.0}, {1.0: 3.0}, 0.5))
    assert math.isnan(percentile({}, {}, 0.5))


def metrics(scale: float) -> str:
    """What a server publishes after `scale` seconds of a steady load."""
    registry = CollectorRegistry()
    labels = {"labelnames": ["model_name"], "registry": registry}

    def counter(name: str, value: float) -> None:
        Counter(f"weir_{name}", "x", **labels).labels('a "model"').inc(value)

    Gauge("weir_requests_running", "x", **labels).labels('a "model"').set(7)
    Gauge("weir_requests_waiting", "x", **labels).labels('a "model"').set(3)
    Gauge("weir_cache_usage_ratio", "x", **labels).labels('a "model"').set(0.25)
    step = Histogram("weir_step_seconds", "x", buckets=BUCKETS, **labels)
    prefill = Histogram("weir_step_prefill_tokens", "x", **labels)
    decode = Histogram("weir_step_decode_tokens", "x", **labels)
    for _ in range(int(10 * scale)):
        step.labels("a").observe(0.15)
        prefill.labels("a").observe(100)
        decode.labels("a").observe(7)
    counter("generation_tokens", 1000 * scale)
    counter("prompt_tokens", 4000 * scale)
    counter("prefix_cache_query_tokens", 4000 * scale)
    counter("prefix_cache_hit_tokens", 3000 * scale)
    counter("preemptions", 2)
    ttft = Histogram("weir_time_to_first_token_seconds", "x", buckets=BUCKETS, **labels)
    for _ in range(int(10 * scale)):
        ttft.labels("a").observe(0.15)
    return generate_latest(registry).decode()


def test_a_view_is_what_happened_in_between() -> None:
    now = View(parse(metrics(1.0), 100.0), parse(metrics(3.0), 102.0))
    assert (now.rate("prompt_tokens"), now.rate("generation_tokens")) == (4000, 1000)
    assert now.ratio("prefix_cache_hit_tokens", "prefix_cache_query_tokens") == 0.75
    assert now.after["preemptions"] == 2
    for name in ("time_to_first_token_seconds", "step_seconds"):
        assert 0.1 < now.quantile(name, 0.5) < now.quantile(name, 0.99) <= 0.2
    assert math.isnan(now.quantile("inter_token_latency_seconds", 0.5))
    assert now.ratio("step_prefill_tokens_sum", "step_prefill_tokens_count") == 100
    assert math.isnan(now.ratio("step_requests_sum", "step_requests_count"))


def test_a_frame_shows_the_mean_step() -> None:
    console = Console(width=80, record=True)
    now = View(parse(metrics(1.0), 100.0), parse(metrics(3.0), 102.0))
    console.print(frame(now, "t", []))
    shown = console.export_text()
    assert "100.0 prompt" in shown and "7.0 output" in shown and "150.0 ms" in shown
    assert "7 running" in shown and "3 waiting" in shown and "25% in use" in shown
    assert "hit rate 75%" in shown and "host -" in shown and "2 preempted" in shown


def test_a_restarted_server_counts_from_zero() -> None:
    now = View(parse(metrics(9.0), 0.0), parse(metrics(1.0), 1.0))
    assert now.rate("generation_tokens") == 1000
    assert 0.1 < now.quantile("time_to_first_token_seconds", 0.5) <= 0.2


def test_a_server_that_publishes_nothing_is_shown_as_idle() -> None:
    console = Console(width=60, record=True)
    console.print(frame(View(parse("", 0.0), parse("# x\nrubbish\n", 1.0)), "t", [0.0, 1.0]))
    assert "0 running" in console.export_text()
    assert graph([0, 1, 2]) == " ▄█"


def test_one_frame_of_a_server(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    server.metrics = metrics(2.0)
    assert main(["top", "--url", server.url, "--once", "--interval", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert "fake · cpu · bfloat16" in shown
    assert "7 running" in shown
    assert "3 waiting" in shown
    assert "p50 -" in shown, "nothing happened between the two looks"
