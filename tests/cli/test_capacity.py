"""`weir capacity` on the simulator and against a server."""

import json
from pathlib import Path

import pytest

from weir.cli import main

SAMPLES = Path(__file__).parent.parent / "data" / "workloads"
AZURE = ["--trace", "azure", "--trace-path", str(SAMPLES / "azure_conv.csv.gz")]
WORDS = ["capacity", "llama-3.1-8b", "--max-model-len", "8192", "--num-prompts", "60"]


def test_a_stricter_target_leaves_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for target in ("60ms", "20ms"):
        file = tmp_path / "c.json"
        words = [*WORDS, *AZURE, "--target-tbt-p99", target, "--precision", "0.1"]
        words += ["--first-rate", "16", "--max-num-batched-tokens", "2048"]
        assert main([*words, "--output-json", str(file)]) == 0
        result = json.loads(file.read_text())
        kept = [trial["rate"] for trial in result["trials"] if trial["kept"]]
        assert result["capacity"] == max(kept)
        found.append(result["capacity"])
    assert found[0] > found[1] > 0
    shown = capsys.readouterr().out
    assert "not kept" in shown and f"capacity: {found[1]:.2f} requests/s" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target-tbt-p99", "soon"], "expected a duration such as 50ms"),
        (["--target-tbt-p99", "50ms", "--precision", "0"], "must be above 0"),
        (["--target-tbt-p99", "50ms", "--base-url", "http://127.0.0.1:9"], "127.0.0.1"),
        (["--target-tbt-p99", "0"], "must be above 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *words]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_no_rate_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *AZURE, "--target-tbt-p99", "1ms"]) == 1
    assert "capacity: 0.00 requests/s" in capsys.readouterr().out
