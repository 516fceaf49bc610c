"""bench/kernels_cpu.py calls ops as they are today; what it times is not looked at here."""

import importlib.util
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench/kernels_cpu.py"


@pytest.mark.parametrize("part", ["bench_linears", "bench_attention", "bench_rows"])
def test_the_benchmark_of_kernels_runs(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("kernels_cpu", BENCH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.COLD = 0
    getattr(bench, part)(bench.Shape("tiny", 64, 96, 4, 2, 64), 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("tiny ") and "weir" in line for line in lines)
