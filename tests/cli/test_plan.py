"""`weir plan`: what it prints, and that it says what is wrong."""

import json
import subprocess
import sys

import msgspec
import pytest

from weir.cli import main
from weir.cost import machine
from weir.cost.offload import Offload

WORDS = ["plan", "opt-30b", "--hardware", "t4"]


def test_the_plan_and_the_choices_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WORDS) == 0
    shown = capsys.readouterr().out
    assert "tokens/s: prompts" in shown and "by hand:" in shown
    assert shown.count("tokens/s  ") == 4


def test_json_can_be_read_back_and_less_memory_is_slower(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = []
    for size in ("16GiB", "8GiB"):
        assert main([*WORDS, "--gpu-memory", size, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        msgspec.convert(answer["planned"]["offload"], Offload)
        found.append(answer["planned"]["predicted"]["throughput"])
    assert found[0] >= found[1] > 0


def test_codes_are_used_only_where_they_are_faster(capsys: pytest.CaptureFixture[str]) -> None:
    """Llama's host takes longer to unpack codes than to read what is wide."""
    used = []
    for model, size in (("llama-3.1-70b", "24GiB"), ("opt-30b", "16GiB")):
        words = ["--hardware", "h200", "--gpu-memory", size, "--weight-bits", "4", "--disk", "0"]
        found = []
        for bits in ("16", "8"):
            assert main(["plan", model, *words, "--cache-bits", bits, "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out)["planned"])
        assert found[1]["predicted"]["throughput"] >= found[0]["predicted"]["throughput"]
        used.append(found[1]["offload"]["cache_bits"])
        assert main(["plan", model, *words, "--cache-bits", "8"]) == 0
        assert ("in 8 bits off the GPU" in capsys.readouterr().out) == (used[-1] == 8)
    assert used == [16, 8]


def test_stdout_is_json_alone_in_a_process_that_never_planned() -> None:
    words = [*WORDS, "--target", "latency", "--disk", "0", "--json"]
    ran = subprocess.run([sys.executable, "-m", "weir", *words], capture_output=True, check=True)
    assert "planned" in json.loads(ran.stdout) and not ran.stderr


def test_a_cpu_has_memory_and_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "disk_rates", lambda _: (1e9, 1e9))
    words = ["--hardware", "cpu", "--measure", ".", "--cpu-memory", "256MiB", "--weight-bits", "4"]
    assert main(["plan", "smollm2-135m", *words, "--prompt", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    here, there, disk = found["planned"]["offload"]["weights"]
    assert there == 0 and here + disk == pytest.approx(1) and found["machine"]["alone"]
    assert found["planned"]["predicted"]["memory"]["main memory"] <= 0.9001 * 2**28
    assert main(["plan", "smollm2-135m", *words, "--prompt", "64"]) == 0
    shown = capsys.readouterr().out
    assert "memory    disk" in shown and "GPU" not in shown
    assert main(["plan", "opt-6.7b", *words, "--disk", "0"]) == 1
    said = capsys.readouterr().err
    assert "0.2 GB of main memory, 0.0 GB of disk" in said and "4-bit" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu-memory", "much"], "--gpu-memory: expected a size such as"),
        (["--prompt", "4000"], "exceed the model's 2048 tokens"),
        (["--hardware", "abacus"], "there are t4, a10g, h100, h200 and cpu"),
        (
            ["--cpu-memory", "1GiB", "--disk", "0"],
            "take 59.2 GB besides 0.7 of embeddings, a request",
        ),
        (
            ["--cpu-memory", "1GiB", "--disk", "0"],
            "1.0 GB of CPU memory, 0.0 GB of disk may be used",
        ),
    ],
)
def test_errors(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *words]) == 1
    assert said in capsys.readouterr().err
