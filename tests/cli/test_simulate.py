"""`weir simulate` from its flags to its files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from weir.cli import main

SAMPLES = Path(__file__).parent.parent / "data" / "workloads"
AZURE = ["--trace", "azure", "--trace-path", str(SAMPLES / "azure_conv.csv.gz")]


def simulate(*words: str) -> int:
    return main(["simulate", "llama-3.1-8b", "--max-model-len", "8192", *words])


def saved(path: Path, *words: str) -> dict[str, float]:
    assert simulate(*words, "--output-json", str(path)) == 0
    return json.loads(path.read_text())


def test_block_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*AZURE, "--num-prompts", "20", "--request-rate", "8", "--goodput", "tpot:50"]
    result = saved(tmp_path / "r.json", *words, "--percentile-metrics", "ttft,itl,delay")
    shown = capsys.readouterr()
    assert "Successful requests:                     20 " in shown.out
    assert "P99 delay (ms):" in shown.out and "times as fast" in shown.err
    assert result["completed"] == 20 and result["request_goodput"] > 0
    assert 6 < result["median_itl_ms"] < 12


def test_faster_hardware_more_replicas_and_prefixes_help(tmp_path: Path) -> None:
    mooncake = ["--trace", "mooncake", "--trace-path", str(SAMPLES / "mooncake.jsonl.gz")]
    words = [*mooncake, "--trace-scale", "8", "--num-prompts", "30", "--request-rate", "20"]
    path = tmp_path / "r.json"
    slow = saved(path, *words, "--hardware", "a10g")
    fast = saved(path, *words, "--hardware", "h200")
    many = saved(path, *words, "--hardware", "a10g", "--replicas", "4", "--router", "least-loaded")
    cold = saved(path, *words, "--hardware", "a10g", "--no-enable-prefix-caching")
    assert fast["mean_itl_ms"] < slow["mean_itl_ms"]
    assert many["mean_ttft_ms"] < slow["mean_ttft_ms"]
    assert slow["prefix_cache_hit_rate"] > 0 == cold["prefix_cache_hit_rate"]


def test_a_plot_or_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.png"
    status = simulate(*AZURE, "--num-prompts", "5", "--plot", str(path))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert status == 1 and "weir-llm[plot]" in capsys.readouterr().err
    else:
        assert status == 0 and path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hardware", "abacus"], "no hardware 'abacus'"),
        (["--hardware", "t4"], "nothing is left for the KV cache"),
        (["--trace", "azure"], "needs --dataset-path"),
        (["--trace", "servegen", "--trace-path", str(SAMPLES / "mt_bench.jsonl")], "ServeGen"),
        (["--trace", "mt_bench", "--trace-path", str(SAMPLES / "mt_bench.jsonl")], "tokens"),
        (["--percentile-metrics", "speed"], "got 'speed'"),
        (["--request-rate", "0"], "must be above 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(*words) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["simulate", "plan"])
def test_an_unknown_model_brings_the_known_shapes_to_mind(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "Llama-3.1-8B"]) == 1
    assert "shapes known without files: llama-2-7b, llama-3.1-8b, " in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from weir.cli import main; "
        "sys.exit(main(['simulate', 'llama-3.1-8b', '--num-prompts', '2']))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
