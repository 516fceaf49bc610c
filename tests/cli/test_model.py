"""Commands that compute, with the embedded model where it is at hand."""

import io
import json
import os
import re
from pathlib import Path

import pytest

from weir import demo
from weir.bench import startup
from weir.cli import main

SMALL = ["--max-num-seqs", "8", "--kv-cache-memory", "256MiB"]


def test_generate_from_every_source(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "The capital of France is"
    greedy = ["--temperature", "0", "--max-tokens", "4", "--quiet", *SMALL]
    assert main(["generate", str(model), "-p", said, "-p", "One two three", *greedy]) == 0
    first, second = capsys.readouterr().out.rstrip("\n").split("\n", 1)
    assert first.startswith(" Paris")
    (tmp_path / "prompts.txt").write_text(f"{said}\n\nOne two three\n")
    assert main(["generate", str(model), "--file", str(tmp_path / "prompts.txt"), *greedy]) == 0
    assert capsys.readouterr().out == f"{first}\n{second}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{said}\n"))
    assert main(["generate", str(model), "--jsonl", "--n", "2", *greedy]) == 0
    row = json.loads(capsys.readouterr().out)
    assert [choice["text"].strip() for choice in row["outputs"]] == [first.strip()] * 2
    assert row["outputs"][0]["tokens"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--file", "/absent"], "/absent"),
        (["-p", "x", "--file", "y"], "--prompt or --file"),
        (["-p", "x", "--top-p", "7"], "top_p"),
        (["-p", "x", "--ranker", "/absent"], "--ranker"),
        (["-p", "x", "--length-log", "/absent"], "--length-log"),
        (["-p", "x", "--max-model-len", "999999"], "--max-model-len"),
    ],
)
def test_generate_refuses_in_a_line(
    model: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model), *words, "--quiet", *SMALL]) == 1
    assert re.fullmatch(rf"weir generate: .*{said}.*\n", capsys.readouterr().err)


def test_a_tokenizer_that_is_not_there_is_called_one(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model), "-p", "x", "--tokenizer", "absent"]) == 1
    assert capsys.readouterr().err.startswith("weir generate: --tokenizer: there is no model")


@pytest.mark.parametrize("cache", [[], ["--enable-prefix-caching"]])
def test_bench_offline(
    model: Path, cache: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    words = ["--num-prompts", "4", "--random-input-len", "32", "--random-prefix-len", "64"]
    words += ["--random-output-len", "8", "--quiet", "--output-json", str(path), *SMALL, *cache]
    assert main(["bench", "offline", str(model), *words]) == 0
    shown, saved = capsys.readouterr().out, json.loads(path.read_text())
    assert "output tokens/s" in shown
    assert (saved["prompt_tokens"], saved["output_tokens"]) == (4 * 96, 32)
    assert (saved["prefill"] is None) == bool(cache)
    assert (saved["cached_tokens"] > 0) == bool(cache)


def test_bench_startup(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    words = ["--num-iters", "1", "--no-cold", "--output-json", str(path)]
    assert main(["bench", "startup", str(model), *words, "--serve-args=--max-num-seqs 4"]) == 0
    saved = json.loads(path.read_text())
    assert 0 < saved["warm_ready"][0] < saved["warm_total"][0] < 60
    assert "warm ready (s):" in capsys.readouterr().out


def test_forgetting_a_file_does_not_change_it(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(5000))
    before = (tmp_path / "weights").read_bytes()
    startup.forget(tmp_path)
    startup.forget(tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == before


def test_run_batch(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"model": "m", "prompt": "Hi", "max_tokens": 2}
    rows = [{"custom_id": f"r{i}", "url": "/v1/completions", "body": body} for i in range(3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(model), "-i", str(source), "-o", str(target), "--quiet", *SMALL]
    log = tmp_path / "lengths.jsonl"
    words += ["--length-log", str(log)]
    assert main(["run-batch", *words, "--served-model-name", "m"]) == 0
    assert len(log.read_text().splitlines()) == 3
    assert "3 answered, 0 failed" in capsys.readouterr().err
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == ["r0", "r1", "r2"]


@pytest.mark.parametrize("words", [["m"], ["--dtype", "float32"], ["--length-log", "x"]])
def test_run_batch_has_no_settings_for_a_server(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--api-key", "k"]
    assert main(["run-batch", *words, *files, "--url", "http://127.0.0.1:1"]) == 1
    name = words[0] if words[0].startswith("-") else "MODEL"
    assert f"--url: a server has its own settings, leave out {name}" in capsys.readouterr().err


def test_run_batch_counts_what_failed_in_an_earlier_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("no JSON\n[]\n" + '{"custom_id": "1", "url": "/no", "body": {}}\n')
    words = ["-i", str(source), "-o", str(target), "--url", "http://127.0.0.1:1", "--quiet"]
    for said in ("3 failed; invalid_line (2), invalid_url (1)", "3 done by an earlier run (3 fail"):
        assert main(["run-batch", *words]) == 1
        assert said in capsys.readouterr().err


def test_the_demo(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a few of its prompts, to be quick; the rest is as users see it."""
    monkeypatch.setattr(demo, "COUNT", 6)
    monkeypatch.setattr(demo, "ANSWER", 8)
    assert demo.main() == 0
    shown = capsys.readouterr().out
    assert "6 in" in shown
    assert "prefix-cache hit rate" in shown
    assert "from openai import OpenAI" in shown


def test_a_failing_demo_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "MODEL", "/absent")
    assert demo.main() == 1
    assert capsys.readouterr().err.startswith("the demo failed: there is no model '/absent'")
