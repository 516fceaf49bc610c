"""`weir bench serve` from its flags to its files."""

import json
from pathlib import Path

import pytest

from tests.bench.fake_server import Fake
from weir.cli import main
from weir.http import HttpError

SAMPLES = Path(__file__).parent.parent / "data" / "workloads"


def bench(server: Fake, *words: str) -> int:
    quiet = ["--num-warmups", "1", "--disable-tqdm"]
    return main(["bench", "serve", "--base-url", server.url, *quiet, *words])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "a prompt number {i}"}}\n' for i in range(10)))
    return path


def test_block_and_json(
    server: Fake, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset-name", "custom", "--dataset-path", str(prompts), "--output-len", "6"]
    words += ["--num-prompts", "8", "--max-concurrency", "3", "--request-rate", "500"]
    words += ["--goodput", "ttft:60000", "e2el:60000", "--metric-percentiles", "50,99"]
    words += ["--save-detailed", "--result-dir", str(tmp_path / "r"), "--result-filename", "x.json"]
    assert bench(server, *words, "--metadata", "commit=abc", "--ignore-eos") == 0
    shown = capsys.readouterr().out
    assert "Successful requests:                     8 " in shown
    assert "Maximum request concurrency:             3 " in shown
    assert "Total generated tokens:                  48 " in shown
    saved = json.loads((tmp_path / "r" / "x.json").read_text())
    assert (saved["completed"], saved["total_output_tokens"]) == (8, 48)
    assert saved["request_goodput"] == pytest.approx(saved["request_throughput"])
    assert (saved["commit"], saved["model_id"]) == ("abc", "fake")
    assert saved["request_rate"] == 500
    assert [len(itl) for itl in saved["itls"]] == [5] * 8
    assert server.bodies[1]["ignore_eos"] is True
    assert server.most_running <= 3


def test_conversations(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset-name", "mt_bench", "--dataset-path", str(SAMPLES / "mt_bench.jsonl")]
    words += ["--num-prompts", "3", "--output-len", "2", "--backend", "openai-chat"]
    assert bench(server, *words) == 0
    assert "Successful requests:                     6 " in capsys.readouterr().out
    assert max(len(body["messages"]) for body in server.bodies) == 3


def test_a_failure_is_told_but_does_not_end_the_run(
    server: Fake, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with prompts.open("a") as file:
        file.write(json.dumps({"prompt": json.dumps({"fail_after": 1})}) + "\n")
    words = ["--dataset-name", "custom", "--dataset-path", str(prompts), "--output-len", "3"]
    assert bench(server, *words) == 0
    shown = capsys.readouterr()
    assert "Failed requests:                         1 " in shown.out
    assert "told to fail" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset-name", "custom", "--dataset-path", "/absent"], "cannot be read"),
        (["--goodput", "itl:3"], "--goodput takes"),
        (["--goodput", "ttft:soon"], "--goodput takes"),
        (["--percentile-metrics", "ttft,x"], "--percentile-metrics are"),
        (["--metric-percentiles", "101"], "--metric-percentiles must be"),
        (["--metadata", "x"], "KEY=VALUE"),
        (["--random-range-ratio", "1"], "--random-range-ratio"),
        (["--request-rate", "0"], "--request-rate"),
    ],
)
def test_flags_that_make_no_sense(
    server: Fake, prompts: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--dataset-name", "custom", "--dataset-path", str(prompts)]
    assert bench(server, *given, *words) == 1
    assert said in capsys.readouterr().err


def test_a_data_set_needs_its_file(server: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, "--dataset-name", "sharegpt") == 1
    assert "--dataset-name sharegpt needs --dataset-path" in capsys.readouterr().err


def test_a_model_of_an_unknown_name_needs_a_tokenizer(
    server: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, "--model", "mine") == 1
    assert "give --tokenizer: there is no model 'mine'" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--port", "9"]) == 1
    assert "no server answers" in capsys.readouterr().err
    assert issubclass(HttpError, Exception)
