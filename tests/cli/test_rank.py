"""`weir rank` from data to a ranker, its table, and a server's answers to data."""

from __future__ import annotations

import json

import pytest

from tests.models.test_real import find
from tests.server.conftest import serving
from weir.cli import main
from weir.ranker import files


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "lengths.jsonl"
    rows = []
    for place in range(120):
        longer = place % 2
        prompt = f"{'write an essay about' if longer else 'name'} number {place}"
        for model, base in (("one", 10), ("two", 40)):
            tokens = base * (1 + 3 * longer) + place % 5
            row = {"prompt": prompt, "output_tokens": tokens, "model": model, "source": "made"}
            rows.append(json.dumps(row))
    path.write_text("\n".join(rows))
    return path


def test_train_and_eval(data, tmp_path, capsys):
    out = tmp_path / "r.npz"
    train = ["rank", "train", str(data), "-o", str(out), "--steps", "40", "--quiet"]
    assert main([*train, "--hold", "two"]) == 0
    assert "without two" in files.load(out).about
    capsys.readouterr()
    assert main(["rank", "eval", str(data), "--ranker", str(out), "--hold", "two"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert "prompt length" in head and "| r |" in head
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "made" and float(cells[4]) > 0.3


def test_a_transformer_is_trained_and_judged_alike(data, tmp_path, capsys):
    model, out = find("SmolLM2-135M-Instruct.Q4_1.gguf"), tmp_path / "t.npz"
    train = ["rank", "train", str(data), "-o", str(out), "--backbone", str(model), "--quiet"]
    assert main([*train, "--layers", "1", "--steps", "2"]) == 0
    capsys.readouterr()
    assert main(["rank", "eval", str(data), "--ranker", str(out), "--together", "made"]) == 0
    assert "| t |" in capsys.readouterr().out
    assert main([*train, "--head", "listmle", "pairwise"]) == 1
    assert "give one loss" in capsys.readouterr().err


def test_words_that_make_no_sense_are_one_line(data, tmp_path, capsys):
    for words, said in (
        (["rank", "train", str(tmp_path / "no"), "-o", str(tmp_path / "r")], "cannot be read"),
        (["rank", "eval", str(data), "--ranker", str(data)], "not a ranker"),
        (["rank", "eval", str(data), "--hold", "three"], "no answers of three"),
        (["rank", "collect", str(data), "-o", str(tmp_path / "c")], "--url"),
    ):
        assert main(words) == 1
        assert said in capsys.readouterr().err
    assert main(["rank", "tran"]) == 2
    assert "did you mean `weir rank train`" in capsys.readouterr().err


def test_collect_asks_a_server_and_goes_on_where_it_was(tmp_path, capsys):
    prompts, out = tmp_path / "p.jsonl", tmp_path / "c.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": p}) for p in ("one", "two", "three")))
    with serving() as server:
        words = ["rank", "collect", str(prompts), "-o", str(out), "--url", server.url, "--quiet"]
        words += ["--max-tokens", "6"]
        assert main([*words, "--num-prompts", "2"]) == 0
        assert "2 asked, 0 failed, 0 known" in capsys.readouterr().err
        assert main(words) == 0
        assert "1 asked, 0 failed, 2 known" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["prompt"] for row in rows) == ["one", "three", "two"]
    assert {row["output_tokens"] for row in rows} == {6} and {row["model"] for row in rows} == {
        "fake"
    }
