"""Tokenizers built from GGUF files give exactly the ids of the models' own."""

import heapq
import json
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.embedded import find
from tests.text.conftest import (
    CORPUS,
    Build,
    byte_level_fields,
    byte_level_tokenizer,
    sentencepiece_fields,
    write,
)
from weir.errors import BadRequest, ConfigError
from weir.gguf import GGUF
from weir.text import Text
from weir.text.pretokenize import PRETOKENIZERS

GOLDEN = json.loads((Path(__file__).parent.parent / "data/tokenizer_golden.json").read_text())
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
FAMILIAR = st.lists(st.sampled_from([*" \n\taeinrst.,'12é漢🙂ab", "the", "  "])).map("".join)


@pytest.mark.parametrize("model", ["smollm", "gemma"])
def test_llama_cpp_agrees(model: str, request: pytest.FixtureRequest):
    name = {"smollm": "smollm2-135m", "gemma": "gemma3-270m"}[model]
    text: Text = request.getfixturevalue(model)
    for source, ids in zip(GOLDEN["texts"], GOLDEN["ids"][name], strict=True):
        assert text.encode(source) == ids, source


@cache
def scored(gguf: GGUF) -> tuple[dict[str, int], list[float]]:
    """Ids by token, and scores by id."""
    ids = {token: n for n, token in enumerate(gguf.metadata["tokenizer.ggml.tokens"])}
    return ids, gguf.metadata["tokenizer.ggml.scores"]


def merged(text: str, gguf: GGUF) -> list[int]:
    """SentencePiece's BPE, step by step: join the best-scored neighbours, leftmost first."""
    ids, scores = scored(gguf)
    symbols: list[str | None] = list(text)
    left = [n - 1 for n in range(len(text))]
    right = [n + 1 for n in range(len(text))]
    queue: list[tuple[float, int, int, str]] = []

    def offer(a: int, b: int) -> None:
        if a >= 0 and b < len(symbols) and (token := f"{symbols[a]}{symbols[b]}") in ids:
            heapq.heappush(queue, (-scores[ids[token]], a, b, token))

    for n in range(len(text) - 1):
        offer(n, n + 1)
    while queue:
        _, a, b, token = heapq.heappop(queue)
        if symbols[a] is None or symbols[b] is None or f"{symbols[a]}{symbols[b]}" != token:
            continue
        symbols[a], symbols[b] = token, None
        right[a] = right[b]
        if right[b] < len(symbols):
            left[right[b]] = a
        offer(left[a], a)
        offer(a, right[a])
    found: list[int] = []
    for symbol in filter(None, symbols):
        known = ids.get(symbol)
        found += [known] if known is not None else (ids[f"<0x{b:02X}>"] for b in symbol.encode())
    return found


@given(source=st.one_of(ANY_TEXT, FAMILIAR))
def test_sentencepiece_merges_by_score(sentencepiece: Text, small: GGUF, source: str):
    expected = merged("▁" + source.replace(" ", "▁"), small) if source else []
    assert sentencepiece.encode(source, add_special_tokens=False) == expected


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> GGUF:
    return write(tmp_path_factory.mktemp("small") / "s.gguf", sentencepiece_fields())


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(
    source=st.one_of(
        FAMILIAR,
        st.text("ab", max_size=40),
        st.text("no na", max_size=40),
        st.text("=-*#._/", max_size=40),
    )
)
def test_gemma_merges_by_score_even_where_halves_overlap(gemma: Text, gguf: GGUF, source: str):
    # Tabs, newlines and the like are cut out as tokens of their own before merging.
    source = re.sub(r"\s+", " ", source)
    assert gemma.encode(source, add_special_tokens=False) == merged(source.replace(" ", "▁"), gguf)


@pytest.fixture(scope="module")
def gguf() -> GGUF:
    return GGUF.open(find("gemma3-270m"))


@given(source=st.one_of(ANY_TEXT, FAMILIAR))
def test_a_folder_and_a_file_give_the_same(byte_level: Text, folder: Text, source: str):
    assert folder.encode(source) == byte_level.encode(source)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("folder")
    byte_level_tokenizer().save(str(path / "tokenizer.json"))
    return Text.from_folder(path)


@given(source=ANY_TEXT)
def test_round_trip(byte_level: Text, sentencepiece: Text, source: str):
    assert byte_level.decode(byte_level.encode(source)) == source
    assert sentencepiece.decode(sentencepiece.encode(source)) == source


def test_every_pretokenizer_loses_nothing(byte_level_with: Build):
    for name in PRETOKENIZERS:
        text = byte_level_with(pre=name, add_bos_token=False)
        for source in CORPUS[:5]:
            assert text.decode(text.encode(source)) == source, name


@pytest.mark.parametrize(
    ("pre", "source", "words"),
    [
        ("gpt-2", "it's 1234  go", ["it", "'s", " 1234", " ", " go"]),
        ("smollm", "it's 12\n 3", ["it", "'s", " ", "1", "2", "\n ", "3"]),
        (
            "llama-bpe",
            "IT'S 12345  go\n\n x",
            ["IT", "'S", " ", "123", "45", " ", " go", "\n\n", " x"],
        ),
        ("qwen2", "IT'S 123!\n x", ["IT", "'S", " ", "1", "2", "3", "!\n", " x"]),
        ("tekken", "camelCase it's/\n", ["camel", "Case", " it", "'s", "/\n"]),
        ("gpt-4o", "camelCase it's 1234", ["camel", "Case", " it's", " ", "123", "4"]),
        ("falcon", "a, 1234=b", ["a", ",", " ", "123", "4", "=", "b"]),
        ("deepseek-v3", "x=12345漢字です", ["x", "=", "123", "45", "漢字です"]),
        ("seed-coder", "a!\n b", ["a", "!", "\n", " b"]),
    ],
)
def test_words(byte_level_with: Build, pre: str, source: str, words: list[str]):
    steps = byte_level_with(pre=pre, add_bos_token=False).tokenizer.pre_tokenizer
    cut = [source[begin:end] for _, (begin, end) in steps.pre_tokenize_str(source)]
    assert cut == words


def test_bytes_without_a_token_are_lost_and_nothing_merges_across(byte_level_with: Build):
    fields = byte_level_fields()
    gone = fields["tokens"].index("Ĕ")  # byte 0x14
    fields["tokens"][gone] = "never"
    text = byte_level_with(**fields)
    left, right = next(merge for merge in fields["merges"] if merge.isascii()).split()
    assert len(text.encode(left + right)) == 1
    assert text.encode(f"{left}\x14{right}") == text.encode(left) + text.encode(right)


def test_special_tokens_in_text_are_tokens(byte_level: Text):
    ids = byte_level.encode("<|start|>the[[mark]]<|end|>")
    assert ids[0] == 0 and ids[-1] == 1 and ids[-2] == byte_level.vocab - 1
    assert byte_level.special == {0, 1, 2}
    assert byte_level.decode(ids) == "the[[mark]]"
    assert byte_level.decode(ids, skip_special_tokens=False) == "<|start|>the[[mark]]<|end|>"


def test_bos_and_eos_go_where_the_file_says(byte_level_with: Build, sentencepiece_with: Build):
    plain = byte_level_with().encode("the")
    assert byte_level_with(add_bos_token=True).encode("the") == [0, *plain]
    assert byte_level_with(add_bos_token=True, add_eos_token=True).encode("the") == [0, *plain, 1]
    assert byte_level_with(pre="llama-bpe").encode("the")[0] == 0  # by default
    text = sentencepiece_with()
    assert text.encode("the") == [1, *text.encode("the", add_special_tokens=False)]
    assert sentencepiece_with(add_bos_token=False).encode("") == []


def test_ends_of_turn_are_found_by_name(byte_level_with: Build):
    tokens = byte_level_fields()["tokens"]
    text = byte_level_with(tokens=["<s>", "</s>", "<|im_end|>", *tokens[3:]], eot_token_id=1)
    assert (text.bos, text.eos) == (0, [1, 2])


def test_tokens_by_id(byte_level: Text, sentencepiece: Text):
    assert byte_level.token(0) == "<|start|>" and byte_level.token_bytes(1) == b"<|end|>"
    [euro] = {n for n in range(byte_level.vocab) if byte_level.token_bytes(n) == b"\xe2"}
    assert byte_level.token(euro) == "\ufffd"
    assert byte_level.token_bytes(byte_level.vocab) == b"" == byte_level.token_bytes(-1)
    assert sentencepiece.token_bytes(3 + 0x0A) == b"\n"
    assert len(byte_level.pieces(False)) == byte_level.vocab == len(byte_level_fields()["tokens"])


def test_bad_input(byte_level: Text):
    with pytest.raises(BadRequest, match="not valid Unicode"):
        byte_level.encode("a\ud800b")
    for bad in (-1, byte_level.vocab):
        with pytest.raises(BadRequest, match=f"holds {bad},"):
            byte_level.decode([5, bad])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre": "unheard-of"}, "pre-tokenizer 'unheard-of' is not known"),
        ({"model": "bert"}, "tokenizer 'bert' is not supported"),
        ({"model": None}, "tokenizer '' is not supported"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": ["a", "a"]}, "same text"),
        ({"tokens": [1, 2]}, "does not hold str values"),
        ({"token_type": [1]}, "only 1 token types"),
        ({"merges": None}, "merges is missing"),
        ({"merges": [1.5]}, "does not hold str values"),
        ({"merges": ["t h e"]}, "not a pair"),
        ({"merges": ["xyz zyx"]}, "out of vocabulary"),
        ({"add_bos_token": True, "bos_token_id": None}, "wants a BOS token"),
        ({"add_eos_token": True, "eos_token_id": 10**6}, "wants a EOS token"),
        ({"add_bos_token": "yes"}, "not a bool"),
    ],
)
def test_broken_files_get_a_clear_reason(byte_level_with: Build, changes: dict, reason: str):
    with pytest.raises(ConfigError, match=reason):
        byte_level_with(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"), [({"scores": None}, "missing"), ({"scores": [1.0]}, "only 1 scores")]
)
def test_sentencepiece_needs_scores(sentencepiece_with: Build, changes: dict, reason: str):
    with pytest.raises(ConfigError, match=reason):
        sentencepiece_with(**changes)
