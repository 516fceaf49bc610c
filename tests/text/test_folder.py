"""A Hugging Face folder is read as its files mean it."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from tests.text.conftest import byte_level_tokenizer
from weir.errors import BadRequest, ConfigError
from weir.text import Text

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def put(folder: Path, name: str, value: object) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_special_tokens(folder: Path):
    assert (Text.from_folder(folder).bos, Text.from_folder(folder).eos) == (None, [])
    put(folder, "special_tokens_map.json", {"bos_token": "<|pad|>", "eos_token": "<|pad|>"})
    put(
        folder,
        "tokenizer_config.json",
        {"bos_token": "<|start|>", "eos_token": {"content": "<|end|>"}, "unk_token": None},
    )
    put(folder, "config.json", {"eos_token_id": 9})
    text = Text.from_folder(folder)
    assert (text.bos, text.eos) == (0, [1, 9])
    put(folder, "generation_config.json", {"eos_token_id": [2, 1]})
    assert Text.from_folder(folder).eos == [1, 2]


def test_templates_and_which_wins(folder: Path):
    with pytest.raises(BadRequest, match="no chat template"):
        Text.from_folder(folder).chat(HI)
    put(folder, "tokenizer_config.json", {"chat_template": "config", "bos_token": "<|start|>"})
    assert Text.from_folder(folder).chat(HI) == "config"
    put(folder, "chat_template.json", {"chat_template": "json"})
    assert Text.from_folder(folder).chat(HI) == "json"
    put(folder, "chat_template.jinja", "{{ bos_token }}jinja")
    put(folder, "additional_chat_templates/tool_use.jinja", "tools")
    text = Text.from_folder(folder)
    assert text.chat(HI) == "<|start|>jinja" and text.chat(HI, tools=[{}]) == "tools"
    assert Text.from_folder(folder, chat_template="{{ 'flag' }}").chat(HI) == "flag"


def test_a_list_of_templates(folder: Path):
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    put(folder, "tokenizer_config.json", {"chat_template": named})
    text = Text.from_folder(folder)
    assert text.chat(HI) == "d" and text.chat(HI, tools=[{}]) == "t"


def test_prompts_are_never_cut_or_padded(folder: Path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    text = Text.from_folder(folder)
    ids = text.encode("the quick brown fox jumps")
    assert ids[0] == 0 and text.decode(ids) == "the quick brown fox jumps"
    assert text.encode("the", add_special_tokens=False) == text.encode("the")[1:]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_broken_files_are_named(folder: Path, name: str, content: str):
    put(folder, name, content)
    with pytest.raises(ConfigError, match=name):
        Text.from_folder(folder)


def test_older_formats_go_through_transformers(folder: Path):
    pytest.importorskip("transformers")
    saved = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    put(folder, "vocab.json", saved["vocab"])
    put(folder, "merges.txt", "#version: 0.2\n" + "\n".join(map(" ".join, saved["merges"])))
    put(
        folder,
        "tokenizer_config.json",
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|start|>", "eos_token": "<|end|>"},
    )
    text = Text.from_folder(folder)
    assert (text.bos, text.eos) == (0, [1])
    ids = text.encode("the quick 漢<|end|>", add_special_tokens=False)
    assert ids[-1] == 1 and text.decode(ids) == "the quick 漢"


def test_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no config\.json .*: name a model folder"):
        Text.from_folder(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path):
    put(tmp_path, "config.json", {})
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        Text.from_folder(tmp_path)
