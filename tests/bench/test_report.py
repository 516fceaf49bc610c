"""The report's arithmetic, and the block of text that scripts parse."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.sim.report import Distribution, Record, block, flat, measure


def record(start: float, *arrivals: float, **more) -> Record:
    return Record(start, list(arrivals), arrivals[-1], **more)


TWO = [
    record(0.0, 0.5, 0.6, 0.8, prompt_tokens=100, output_tokens=3, cached_tokens=50),
    record(1.0, 1.2, 1.3, prompt_tokens=60, output_tokens=2, cached_tokens=30),
]


def test_metrics_are_the_fields_own() -> None:
    report = measure(TWO, 2.0)
    assert report.metrics["ttft"].sorted == pytest.approx([200, 500])
    assert report.metrics["itl"].sorted == pytest.approx([100, 100, 200])
    assert report.metrics["tpot"].sorted == pytest.approx([100, 150])
    assert report.metrics["e2el"].sorted == pytest.approx([300, 800])
    assert report.request_throughput == 1.0
    assert report.output_throughput == 2.5
    assert report.total_throughput == 82.5
    assert report.hit_rate == 0.5
    assert report.peak_concurrent == 1
    assert report.peak_output == 3
    assert report.goodput is None


def test_goodput_counts_requests_within_every_limit() -> None:
    assert measure(TWO, 2.0, {"ttft": 600, "tpot": 120}).goodput == 0.5
    assert measure(TWO, 2.0, {"ttft": 600, "tpot": 160}).goodput == 1.0
    assert measure(TWO, 2.0, {"e2el": 100}).goodput == 0.0


def test_failures_count_for_nothing_else() -> None:
    failed = Record(0.0, [0.1], 9.0, prompt_tokens=999, output_tokens=999, error="x")
    report = measure([*TWO, failed], 2.0)
    assert (report.completed, report.failed) == (2, 1)
    assert report.output_tokens == 5
    assert report.peak_concurrent == 2


def test_nothing_at_all_is_still_a_report() -> None:
    text = block(measure([], 0.0))
    assert "Successful requests:                     0" in text


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.integers(1, 99))
def test_percentiles_agree_with_the_standard_library(values: list[float], percent: int) -> None:
    got = Distribution.of(values)
    doubled = [*values, values[0]] if len(values) == 1 else values
    cuts = statistics.quantiles(doubled, n=100, method="inclusive")
    assert got.percentile(percent) == pytest.approx(1000 * cuts[percent - 1], abs=1e-6)
    assert got.percentile(0) == pytest.approx(1000 * min(values))
    assert got.percentile(100) == pytest.approx(1000 * max(values))


def test_the_block_is_the_conventional_one() -> None:
    text = block(
        measure(TWO, 2.0, {"ttft": 600}),
        rate=4.0,
        concurrency=8,
        metrics=["ttft", "tpot", "itl", "e2el"],
        percentiles=[50, 99.9],
    )
    assert text.splitlines() == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     2         ",
        "Failed requests:                         0         ",
        "Maximum request concurrency:             8         ",
        "Request rate configured (RPS):           4.00      ",
        "Benchmark duration (s):                  2.00      ",
        "Total input tokens:                      160       ",
        "Total generated tokens:                  5         ",
        "Request throughput (req/s):              1.00      ",
        "Request goodput (req/s):                 1.00      ",
        "Output token throughput (tok/s):         2.50      ",
        "Peak output token throughput (tok/s):    3.00      ",
        "Peak concurrent requests:                1.00      ",
        "Total token throughput (tok/s):          82.50     ",
        "---------------Time to First Token----------------",
        "Mean TTFT (ms):                          350.00    ",
        "Median TTFT (ms):                        350.00    ",
        "P50 TTFT (ms):                           350.00    ",
        "P99.9 TTFT (ms):                         499.70    ",
        "-----Time per Output Token (excl. 1st token)------",
        "Mean TPOT (ms):                          125.00    ",
        "Median TPOT (ms):                        125.00    ",
        "P50 TPOT (ms):                           125.00    ",
        "P99.9 TPOT (ms):                         149.95    ",
        "---------------Inter-token Latency----------------",
        "Mean ITL (ms):                           133.33    ",
        "Median ITL (ms):                         100.00    ",
        "P50 ITL (ms):                            100.00    ",
        "P99.9 ITL (ms):                          199.80    ",
        "----------------End-to-end Latency----------------",
        "Mean E2EL (ms):                          550.00    ",
        "Median E2EL (ms):                        550.00    ",
        "P50 E2EL (ms):                           550.00    ",
        "P99.9 E2EL (ms):                         799.50    ",
        "-------------------Prefix Cache-------------------",
        "Prefix cache hit rate (%):               50.00     ",
        "==================================================",
    ]


def test_json_keys() -> None:
    keys = flat(measure(TWO, 2.0), percentiles=[99])
    expected = (
        "completed total_input_tokens total_output_tokens request_throughput output_throughput"
    )
    expected += " request_goodput total_token_throughput mean_ttft_ms median_tpot_ms std_itl_ms"
    assert set(expected.split()) <= keys.keys()
    assert keys["p99_ttft_ms"] == pytest.approx(497)
