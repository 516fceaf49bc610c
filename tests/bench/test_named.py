"""The named workloads are what they are compared as, and run on a model that is a config alone."""

import json
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import pytest

import weir
from weir import connect
from weir.bench import datasets, named
from weir.cli import main
from weir.config import Config
from weir.errors import ConfigError

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2500,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bench").mkdir()
    lengths = {"nano_256": [[30, 4], [7, 9], [12, 1]]}
    (tmp_path / "bench" / "workloads.json").write_text(json.dumps(lengths))
    monkeypatch.setenv("WEIR_DATA", str(tmp_path))
    return tmp_path


def test_shared_prefixes_are_shared_in_groups_and_mixed() -> None:
    items = named.make("gsp", 32000).items
    assert len(items) == 1024 and {item.output for item in items} == {64}
    heads = Counter(tuple(item.prompt[:2048]) for item in items)
    assert len(heads) == 64 and set(heads.values()) == {16}
    assert len({tuple(item.prompt) for item in items}) == 1024
    assert {len(item.prompt) for item in items} == {2176}
    assert len({tuple(item.prompt[:2048]) for item in items[:16]}) > 8


def test_lengths_come_from_the_file_and_tokens_from_the_seed(data: Path) -> None:
    made = named.make("nano_256", 5000)
    assert [(len(item.prompt), item.output) for item in made.items] == [(30, 4), (7, 9), (12, 1)]
    assert made == named.make("nano_256", 5000) != named.make("nano_256", 5000, seed=2)
    assert all(1000 <= token < 4000 for item in made.items for token in item.prompt)
    fixed = named.make("fixed:3", 5000).items
    assert [(len(item.prompt), item.output) for item in fixed] == [(512, 256)] * 3


@pytest.mark.parametrize("name", ["fixed", "fixed:0", "fixed:x", "nano", "azure_conv_1000"])
def test_what_there_is_not_is_refused(data: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="workload"):
        named.make(name, 5000)


def test_a_table_and_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = data / "llama-3.1-8b.json"
    shape.write_text(json.dumps(SHAPE))
    words = ["bench", "offline", str(shape), "--load-format", "dummy", "--device", "cpu", "--quiet"]
    words += ["--kv-cache-memory", "16MiB", "--workload", "nano_256", "fixed:1", "--repeat", "2"]
    assert main([*words, "--output-json", str(data / "out.json")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[2:]] == ["nano_256"] * 2 + ["fixed:1"] * 2
    name, seconds, *counts, _, peer, best, floor, share = shown[2].split()
    assert (name, counts, peer, best, floor) == (
        "nano_256",
        ["49", "14"],
        "16.91",
        "15.20",
        "13.20",
    )
    runs = json.loads((data / "out.json").read_text())["runs"]
    assert seconds == f"{runs[0]['seconds']:.2f}" and share == f"{13.2 / runs[0]['seconds']:.0%}"
    assert [(run["output_tokens"], run["cached_tokens"]) for run in runs] == [(14, 0)] * 2 + [
        (256, 0)
    ] * 2


def test_latency_under_load_beside_what_others_reached(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = {"azure_conv_1000": [[30, 4], [7, 9], [12, 1], [5, 5], [9, 2]]}
    (data / "bench" / "workloads.json").write_text(json.dumps(lengths))
    shape = data / "llama-3.1-8b.json"
    shape.write_text(json.dumps(SHAPE))
    words = ["bench", "online", str(shape), "--rate", "4", "16", "--seconds", "1", "--quiet"]
    words += ["--serve-args", "--load-format dummy --device cpu --kv-cache-memory 16MiB"]
    assert main([*words, "--output-json", str(data / "out.json")]) == 0
    slow, fast = capsys.readouterr().out.splitlines()[2:]
    assert slow.split()[:2] == ["4", "4"] and "(" not in slow  # nobody was measured there
    assert fast.split()[:2] == ["16", "5"] and fast.split()[-1] == "(80)"
    for run in json.loads((data / "out.json").read_text())["runs"]:
        first, last, p50, p99, worst = run["latency"]
        assert run["failed"] == 0 and 0 < first <= last and 0 <= p50 <= p99 <= worst


def test_a_server_can_be_given_the_recorded_lengths(data: Path) -> None:
    parser = ArgumentParser()
    datasets.add_arguments(parser, 2)
    options = parser.parse_args(["--dataset-name", "nano_256"])
    shape = data / "config.json"
    shape.write_text(json.dumps(SHAPE))
    made = datasets.make(options, lambda: datasets.tokenizer(str(data)), 7)
    assert made.items == named.make("nano_256", 2500).items[:2]


def test_numbers_are_text_where_a_model_has_none(tmp_path: Path) -> None:
    shape = tmp_path / "config.json"
    shape.write_text(json.dumps(SHAPE))
    text = connect.text(Config(model=str(tmp_path), load_format="dummy"))
    assert text.vocab == 2500
    assert text.encode("7 2499 x") == [7, 2499, 0]
    assert text.decode([7, 12]) == "7 12"


def test_what_is_missing_is_said_before_an_engine_is_made(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(**settings: object) -> None:
        raise AssertionError("an engine was made")

    monkeypatch.setattr(weir, "LLM", made)
    (data / "config.json").write_text(json.dumps(SHAPE))
    words = ["bench", "offline", str(data), "--load-format", "dummy", "--device", "cpu"]
    assert main([*words, "--workload", "fixed:1", "nano"]) == 1
    assert "there is no workload nano" in capsys.readouterr().err
    assert main([*words, "--dataset-name", "sharegpt"]) == 1
    assert "--dataset-name sharegpt needs --dataset-path" in capsys.readouterr().err
    monkeypatch.delenv("WEIR_DATA")
    assert main([*words, "--workload", "nano_256"]) == 1
    assert "WEIR_DATA is not set" in capsys.readouterr().err
