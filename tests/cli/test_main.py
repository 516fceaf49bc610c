"""The command itself: fast, helpful, one line for an error."""

import errno
import subprocess
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest

from tests.settings import reference
from weir import cli
from weir.cli import BENCHMARKS, COMMANDS, RANKING, dashed, main, version
from weir.config import FIELDS, Config
from weir.errors import ConfigError
from weir.options import add_config, config, flags
from weir.peers import MEANT, NEUTRAL, OPPOSITES


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weir.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command_and_imports_nothing() -> None:
    script = (
        "import sys; from weir.cli import main; main(['--help'])\n"
        "ours = {name for name in sys.modules if name.startswith('weir')}\n"
        "assert ours == {'weir', 'weir.cli', 'weir.errors'}, ours\n"
        "assert not {'msgspec', 'asyncio', 'torch'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(f"  {name}" in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ("--help", "torch numpy transformers"),
        ("version", "torch numpy transformers"),
        ("serve --help", "torch numpy transformers"),
        ("top --help", "torch numpy transformers"),
        ("generate --help", "torch transformers"),
        ("bench offline --help", "torch transformers"),
        ("rank eval --help", "torch transformers"),
    ],
)
def test_no_torch_for_a_server_or_a_word_of_help(words: str, absent: str) -> None:
    script = (
        "import sys; from weir.cli import main\n"
        f"try: main({words.split()})\nexcept SystemExit: pass\n"
        f"assert not {set(absent.split())} & sys.modules.keys(), 'was imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)


def test_a_full_disk_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "out.jsonl")

    monkeypatch.setattr(version, "run", full)
    assert main(["version"]) == 1
    assert (
        capsys.readouterr().err == "weir version: [Errno 28] No space left on device: 'out.jsonl'\n"
    )


@pytest.mark.parametrize(
    "name", [*COMMANDS, *(f"bench {n}" for n in BENCHMARKS), *(f"rank {n}" for n in RANKING)]
)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in ("bench", "rank"):
        assert main([name, "--help"]) == 0
    elif name != "version":
        with pytest.raises(SystemExit) as ended:
            main([*name.split(), "--help"])
        assert ended.value.code == 0
    else:
        assert main(["version"]) == 0
    assert "weir" in capsys.readouterr().out


def test_a_wrong_word_is_met_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serv"]) == 2
    assert "did you mean `weir serve`?" in capsys.readouterr().err
    assert main(["bench", "on-line"]) == 2
    assert "weir bench: no such command: on-line" in capsys.readouterr().err
    for words, hint in (
        (["serve", "--max-num-seq", "4"], "did you mean --max-num-seqs?"),
        (["serve", "a", "b"], "unrecognized arguments: b; see `weir serve --help`"),
        (["serve", "-ngl", "99"], "did you mean --offload?"),
        (["serve", "m", "--parallel=4"], "did you mean --max-num-seqs?"),
        (["generate", "--max-new-tokens", "4"], "did you mean --max-tokens?"),
        (["serve", "--max-new-tokens", "4"], "--max-new-tokens; see `weir serve --help`"),
        (["simulate", "m", "--rate", "4"], "did you mean --request-rate?"),
        (["bench", "serve", "--url", "x"], "did you mean --base-url?"),
        (["top", "--base-url", "x"], "did you mean --url?"),
        (["plan", "--model", "m"], "--model; give MODEL without --model"),
        (["serve", "--task", "embed"], "--task; see `weir serve --help`"),
        (["serve", "m", " "], "unrecognized arguments:  ; see `weir serve --help`"),
        (["plan", "m", "--prompt", "0"], "expected a whole number from 1 on, got '0'"),
        (["bench", "serve", "--num-warmups", "x"], "a whole number from 0 on, got 'x'"),
        (["bench", "serve", "--extra-body", "[1]"], "expected a JSON object, got '[1]'"),
        (["route", "http://a", "--max-body-bytes", "lots"], "expected a size such as 8GiB"),
        (["run-batch"], "-o; see `weir run-batch --help`"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert hint in capsys.readouterr().err


def test_what_other_engines_flags_become_is_there() -> None:
    names = "cli.serve", "cli.generate", "cli.simulate", "cli.top", "bench.serve"
    commands = [import_module(f"weir.{name}") for name in names]
    made = [cli.parser(command, "weir") for command in commands]
    options = {
        option for one in made for action in one._actions for option in action.option_strings
    }
    assert set(MEANT.values()) <= options


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("x: [\n")
    assert main(["serve", "--config", str(tmp_path / "bad.yaml")]) == 1
    error = capsys.readouterr().err
    assert "bad.yaml: not a YAML file: while parsing" in error and error.count("\n") == 1
    assert main(["serve", "--block-size", "many"]) == 1
    assert capsys.readouterr().err == "weir serve: --block-size: expected `int`, got 'many'\n"
    assert main(["top", "--url", "http://127.0.0.1:9", "--once"]) == 1
    assert capsys.readouterr().err.startswith("weir top: no server answers at http://127.0.0.1:9")


def test_underscores_are_dashes() -> None:
    assert dashed("--max_num_seqs=4_0") == "--max-num-seqs=4_0"
    assert dashed("model_name") == "model_name"
    assert dashed("-p") == "-p"


def parsed(*words: str) -> Config:
    parser = ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_config(parser)
    return config(parser.parse_args([dashed(word) for word in words]))


def test_every_setting_has_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIR_CONFIG", raising=False)
    assert parsed() == Config()
    assert parsed("m", "--page_size=8", "--tp-size", "1") == Config(model="m", block_size=8)
    assert parsed("--model-path", "m", "--disable-radix-cache").enable_prefix_caching is False
    assert parsed("--disable-cuda-graph").enforce_eager is True
    assert parsed("m", "--cuda-graph-sizes", "1", "8").cuda_graph_sizes == [1, 8]
    with pytest.raises(ConfigError, match="--tensor-parallel-size: only 1"):
        parsed("--tensor-parallel-size", "2")
    with pytest.raises(ConfigError, match="--dp: only 1"):
        parsed("--dp", "2")
    assert parsed("--ctx-size", "512").max_model_len == 512
    assert parsed("m", "--model", "m") == Config(model="m")
    for words in (("m", "--model", "n"), ("--model", "n", "m")):
        with pytest.raises(ConfigError, match="two models are given, m and --model n"):
            parsed(*words)


@pytest.mark.parametrize(
    "words",
    ["m --api-key a b", "--api-key a b --model m", "--api-key a --api-key b", "--api-key a,b"],
)
def test_lists_are_words_flags_or_commas(words: str) -> None:
    assert parsed(*words.split()).api_key == ["a", "b"]


def test_a_list_does_not_swallow_the_model() -> None:
    with pytest.raises(ConfigError, match="--api-key takes every word after it: put MODEL first"):
        parsed("--api-key", "a", "m")
    with pytest.raises(ConfigError, match="must not hold an empty string"):
        parsed("m", "--api-key", "")


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_BLOCK_SIZE", "4")
    assert parsed().block_size == 4
    assert parsed("--block-size", "8").block_size == 8


def test_the_reference_lists_every_flag_once() -> None:
    text = reference()
    for name in FIELDS:
        assert all(text.count(f"`{spelling}`") == 1 for spelling in flags(name))
    assert not any(f"`--{name}`" in text for name in (*OPPOSITES, *NEUTRAL))
