"""`weir rank` from data to a ranker, its table, and a server's answers to data."""

import json

import pytest

from tests.embedded import find
from tests.server.conftest import serving
from weir.cli import main
from weir.ranker import files
from weir.ranker.lengths import fold


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
    model, out = find(), tmp_path / "t.npz"
    train = ["rank", "train", str(data), "-o", str(out), "--backbone", str(model), "--quiet"]
    for head in (["--head", "listmle", "--steps", "2"], []):
        assert main([*train, "--layers", "1", *head]) == 0
    capsys.readouterr()
    assert main(["rank", "eval", str(data), "--ranker", str(out), "--together", "made"]) == 0
    assert "| t |" in capsys.readouterr().out
    assert main([*train, "--head", "listmle", "pairwise"]) == 1
    assert "give one loss" in capsys.readouterr().err
    assert main([*train, "--head", "taught"]) == 1
    assert "taught is for light rankers" in capsys.readouterr().err


def test_words_that_make_no_sense_are_one_line(data, tmp_path, capsys):
    few, ids, out = tmp_path / "few.jsonl", tmp_path / "ids.jsonl", tmp_path / "c"
    lines = data.read_text().splitlines()
    few.write_text("\n".join(line for line in lines if fold(json.loads(line)["prompt"])))
    ids.write_text('{"prompt": [1, 2]}')
    kept = tmp_path / "kept.jsonl"
    kept.write_text("\n".join(line for line in lines if not fold(json.loads(line)["prompt"])))
    for words, said in (
        (["train", tmp_path / "no", "-o", out], "cannot be read"),
        (["train", data, "-o", tmp_path / "no" / "r"], "cannot be written"),
        (["train", data, "-o", tmp_path], "cannot be written"),
        (["train", kept, "-o", out, "--quiet"], "nothing to rank"),
        (["train", data, "-o", out, "--hold", "one", "two", "--quiet"], "nothing to rank"),
        (["eval", data, "--ranker", data], "not a ranker"),
        (["eval", data, "--hold", "three"], "no answers of three"),
        (["eval", few], "none of its prompts was kept aside"),
        (["collect", data, "-o", out], "--url"),
        (["collect", data, "-o", data, "--url", "http://localhost:1"], "give another file"),
        (["collect", data, "-o", out, "--url", "localhost:1"], "is no address"),
        (["collect", ids, "-o", out, "--url", "http://localhost:1"], "token ids: give text"),
    ):
        assert main(["rank", *map(str, words)]) == 1
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert main(["rank", "tran"]) == 2
    assert "did you mean `weir rank train`" in capsys.readouterr().err


def test_few_answers_are_no_table(data, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(data.read_text().splitlines()[:20]))
    assert main(["rank", "eval", str(few), "--all-prompts"]) == 1
    assert "no model answered 20 of the prompts" in capsys.readouterr().err


def test_collect_counts_the_answers_of_a_file_once(tmp_path, capsys):
    shares, out = tmp_path / "s.json", tmp_path / "c.jsonl"
    talk = [{"value": "Tell me a story about a fox"}, {"value": "There was a fox and a hen."}]
    shares.write_text(json.dumps([{"conversations": talk}]))
    words = ["rank", "collect", str(shares), "-o", str(out)]
    words += ["--model", str(find())]
    for count in ("1 counted, 0 failed, 0 known", "0 counted, 0 failed, 1 known"):
        assert main(words) == 0
        assert count in capsys.readouterr().err
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["prompt"] == talk[0]["value"] and 5 < row["output_tokens"] < 12


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
        refused = ["rank", "collect", str(prompts), "-o", str(tmp_path / "no"), "--model", "none"]
        assert main([*refused, "--url", server.url, "--quiet"]) == 1
        error = capsys.readouterr().err
        assert "3 asked, 3 failed" in error and error.count("'none' is not served") == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["prompt"] for row in rows) == ["one", "three", "two"]
    assert {row["output_tokens"] for row in rows} == {6} and {row["model"] for row in rows} == {
        "fake"
    }
