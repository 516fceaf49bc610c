"""However tokens arrive, their text is the same, and no character comes in halves."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.text.conftest import CORPUS, Build
from weir.errors import ConfigError
from weir.text import Detokenizer, Text
from weir.text.detokenize import Spelling

KINDS = ["byte_level", "sentencepiece"]
VALID = st.text(  # SentencePiece writes a space as U+2581, so that one does not come back
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd\u2581"), max_size=30
)


def pushed(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> str:
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return "".join(detokenizer.push(ids[a:b]) for a, b in pairwise(edges)) + detokenizer.finish()


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), skip=st.booleans(), cuts=st.lists(st.integers(0, 100)))
def test_pushes_join_to_the_whole(
    kind: str, request: pytest.FixtureRequest, data: st.DataObject, skip: bool, cuts: list[int]
):
    text: Text = request.getfixturevalue(kind)
    ids = data.draw(st.lists(st.integers(0, text.vocab - 1), max_size=60))
    whole = text.decode(ids, skip_special_tokens=skip)
    assert pushed(Detokenizer(text.pieces(skip), text.strips), ids, cuts) == whole
    joined = b"".join(text.pieces(skip)[n] for n in ids).decode("utf-8", "replace")
    assert pushed(Detokenizer(text.pieces(skip)), ids, cuts) == joined


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=VALID)
def test_never_half_a_character(kind: str, request: pytest.FixtureRequest, source: str):
    text: Text = request.getfixturevalue(kind)
    detokenizer = Detokenizer(text.pieces(True), text.strips)
    seen = ""
    for token in text.encode(source):
        seen += detokenizer.push([token])
        assert source.startswith(seen)
    assert seen == source and detokenizer.finish() == ""


def test_real_text_one_token_at_a_time(smollm: Text):
    source = "".join(CORPUS)
    detokenizer = Detokenizer(smollm.pieces(True))
    assert "".join(detokenizer.push([n]) for n in smollm.encode(source)) == source


def of_bytes(text: Text, raw: bytes) -> list[int]:
    ids = {piece: n for n, piece in enumerate(text.pieces(False)) if len(piece) == 1}
    return [ids[bytes([byte])] for byte in raw]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_no_character(kind: str, request: pytest.FixtureRequest):
    text: Text = request.getfixturevalue(kind)
    detokenizer = Detokenizer(text.pieces(True))
    told = [detokenizer.push([n]) for n in of_bytes(text, b"\xffa\xe2\x82b\xf0\x9f\x99")]
    assert told == ["\ufffd", "a", "", "", "\ufffdb", "", "", ""]
    assert detokenizer.finish() == "\ufffd"


def test_a_leading_space_belongs_to_what_was_before(sentencepiece: Text):
    ids = sentencepiece.encode("the dog", add_special_tokens=False)
    assert sentencepiece.decode(ids) == "the dog"
    assert sentencepiece.decode([1, *ids]) == "the dog"
    assert Detokenizer(sentencepiece.pieces(True)).push(ids) == " the dog"
    assert Detokenizer(sentencepiece.pieces(True), sentencepiece.strips).push(ids) == "the dog"


def test_no_space_is_dropped_where_none_was_put(sentencepiece_with: Build):
    text = sentencepiece_with(add_space_prefix=False)
    assert text.decode(text.encode(" the")) == " the"


def test_ids_beyond_the_vocabulary_have_no_text(byte_level: Text):
    assert Detokenizer(byte_level.pieces(True)).push([byte_level.vocab + 5, -1]) == ""


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.ByteLevel(),
        decoders.Metaspace(),
        decoders.Metaspace(prepend_scheme="never"),
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    ],
)
def test_spelling_agrees_with_the_tokenizers_library(decoder: decoders.Decoder):
    tokens = ["▁the", "ĠÃ©", "▁", "a", "<0x0A>", "<0xE2>", "<0x82>", "<0xAC>", "Ċ", "漢"]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, []))
    tokenizer.decoder = decoder
    spelling = Spelling.of(tokenizer)
    for ids in ([0, 3, 0], [2, 0, 1], [3, 5, 6, 7, 3], [4, 8, 9], [1, 2, 2, 3]):
        raw = b"".join(spelling.spell(tokens[n]) for n in ids)
        ours = raw.removeprefix(b" ") if spelling.strips else raw
        assert ours.decode() == tokenizer.decode(ids)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.BPEDecoder()])
def test_other_decoders_are_refused(decoder: decoders.Decoder | None):
    tokenizer = Tokenizer(models.BPE())
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(ConfigError, match="decoder"):
        Spelling.of(tokenizer)
