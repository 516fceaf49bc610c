"""Two small vocabularies, trained here and written as GGUF, and the real ones where present."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.embedded import find
from weir.gguf import GGUF
from weir.text import Text

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and it's 1234567 times that they're doing it.",
    "def add(a: int, b: int) -> int:\n    return a + b  # the sum of a and b\n\n\n",
    "Grüße aus Köln! Ça va? Привет, мир. 漢字かな交じり文。日本語の文章です。🙂👍🏽",
    "   spaces    and\ttabs\t\tand\r\nnewlines\n\n\n and then some more of the same, the same.",
    "aaaa aaaaaaaa abababab banana bananana the there then these those this that",
] * 4

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE of 600 tokens that cuts words as SmolLM's does, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|start|>", "<|end|>", "<|pad|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def parts(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """(tokens by id, merges as "left right")"""
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(vocabulary, key=vocabulary.__getitem__), [" ".join(pair) for pair in merges]


def byte_level_fields(**changes: Any) -> dict[str, Any]:
    tokens, merges = parts(byte_level_tokenizer())
    return {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": [*tokens, "[[mark]]"],
        "token_type": [CONTROL] * 3 + [1] * (len(tokens) - 3) + [USER_DEFINED],
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | changes


def sentencepiece_fields(**changes: Any) -> dict[str, Any]:
    """A SentencePiece BPE: the order of training is the order of the scores."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    pieces, merges = parts(tokenizer)
    joined = [pair.replace(" ", "") for pair in merges]
    letters = [piece for piece in pieces if len(piece) == 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *joined, *letters]
    plain = len(tokens) - 259
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(n) for n in range(plain)],
        "token_type": [2, CONTROL, CONTROL] + [BYTE] * 256 + [1] * plain,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | changes


def write(path: Path, fields: dict[str, Any], templates: dict[str, str] | None = None) -> GGUF:
    """A GGUF file with these `tokenizer.ggml.*` fields; those that are None are left out."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}"
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, source in (templates or {}).items():
        suffix = "" if name == "default" else f".{name}"
        writer.add_string(f"tokenizer.chat_template{suffix}", source)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GGUF.open(path)


Build = Callable[..., Text]


@pytest.fixture
def byte_level_with(tmp_path: Path) -> Build:
    """A byte-level Text with some fields changed."""

    def build(templates: dict[str, str] | None = None, **changes: Any) -> Text:
        return Text.from_gguf(write(tmp_path / "b.gguf", byte_level_fields(**changes), templates))

    return build


@pytest.fixture
def sentencepiece_with(tmp_path: Path) -> Build:
    def build(**changes: Any) -> Text:
        return Text.from_gguf(write(tmp_path / "s.gguf", sentencepiece_fields(**changes)))

    return build


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("byte_level") / "b.gguf"
    return Text.from_gguf(write(path, byte_level_fields(), {"default": CHATML}))


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("sentencepiece") / "s.gguf"
    return Text.from_gguf(write(path, sentencepiece_fields()))


@pytest.fixture(scope="session")
def smollm() -> Text:
    return Text.from_gguf(GGUF.open(find()))


@pytest.fixture(scope="session")
def gemma() -> Text:
    return Text.from_gguf(GGUF.open(find("gemma3-270m")))
