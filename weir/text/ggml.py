"""Builds the tokenizer that a GGUF file describes: byte-level BPE ("gpt2") or SentencePiece
("llama"). llama.cpp's src/llama-vocab.cpp defines the meaning of the metadata.
"""

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from weir.errors import ConfigError
from weir.gguf import GGUF
from weir.text.detokenize import byte_alphabet
from weir.text.pretokenize import PRETOKENIZERS, Pretokenizer
from weir.text.vocabulary import Vocabulary

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type
_ENDINGS = re.compile(
    r"<\|eot_id\|>|<\|im_end\|>|<\|end\|>|<end_of_turn>|<\|endoftext\|>|<\|end_of_text\|>"
    r"|<\|eom_id\|>|<EOT>|<\uff5cend▁of▁sentence\uff5c>"
)
"""Control tokens that end a turn even if the file does not say so; converters often omit it."""


def read_gguf(gguf: GGUF) -> Vocabulary:
    """Raises `ConfigError` for a tokenizer that is broken or cannot be built exactly."""
    fields = _Fields(gguf)
    kind = fields.get("model", str, "")
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(fields), fields.pretokenizer.add_bos
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(fields), True
    else:
        raise ConfigError(
            f"{gguf.path}: tokenizer {kind!r} is not supported, only 'gpt2' (byte-level BPE) and "
            "'llama' (SentencePiece); give a Hugging Face tokenizer folder with --tokenizer"
        )
    _add_special_tokens(tokenizer, fields)
    _add_ends(tokenizer, fields, add_bos)
    return Vocabulary(
        tokenizer=tokenizer,
        bos=fields.token("bos"),
        eos=fields.eos,
        templates=fields.templates,
        variables=fields.variables,
    )


class _Fields:
    """The `tokenizer.*` metadata, checked as they are read."""

    def __init__(self, gguf: GGUF):
        self.path = gguf.path
        self.metadata = gguf.metadata
        self.tokens: list[str] = [
            token or f"[EMPTY_{n}]" for n, token in enumerate(self.array("tokens", str))
        ]
        self.ids = {token: n for n, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise self.bad("two tokens have the same text")
        types = self.array("token_type", int, [1] * len(self.tokens))
        if len(types) < len(self.tokens):
            raise self.bad(f"{len(self.tokens)} tokens, but only {len(types)} token types")
        self.types: list[int] = types

    def bad(self, what: str) -> ConfigError:
        return ConfigError(f"{self.path}: the tokenizer in this file is broken: {what}")

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, kind):
            raise self.bad(f"tokenizer.ggml.{name} is missing or not a {kind.__name__}")
        return value

    def array(self, name: str, of: type, default: Any = None) -> list[Any]:
        """An array of `of`. Checks the first element, whose type all of a GGUF array have."""
        value: list[Any] = self.get(name, list, default)
        if value and not isinstance(value[0], of):
            raise self.bad(f"tokenizer.ggml.{name} does not hold {of.__name__} values")
        return value

    def token(self, name: str) -> int | None:
        token = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return token if isinstance(token, int) and 0 <= token < len(self.tokens) else None

    def of_type(self, *types: int) -> list[str]:
        return [t for t, kind in zip(self.tokens, self.types, strict=False) if kind in types]

    @property
    def pretokenizer(self) -> Pretokenizer:
        name = self.get("pre", str, "default")
        if name not in PRETOKENIZERS:
            raise ConfigError(
                f"{self.path}: pre-tokenizer {name!r} is not known; give the model's Hugging Face "
                "tokenizer folder with --tokenizer"
            )
        return PRETOKENIZERS[name]

    @property
    def eos(self) -> list[int]:
        named = [self.token(name) for name in ("eos", "eot", "eom")]
        control = (self.ids[t] for t in self.of_type(_CONTROL) if _ENDINGS.fullmatch(t))
        return list(dict.fromkeys(t for t in (*named, *control) if t is not None))

    @property
    def templates(self) -> dict[str, str]:
        """tokenizer.chat_template as "default", and tokenizer.chat_template.<name> by name."""
        key = "tokenizer.chat_template"
        found = {
            "default" if k == key else k[len(key) + 1 :]: v
            for k, v in self.metadata.items()
            if k == key or k.startswith(key + ".")
        }
        return {name: source for name, source in found.items() if isinstance(source, str)}

    @property
    def variables(self) -> dict[str, str]:
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}
        ids = {f"{name}_token": self.token(field) for name, field in names.items()}
        return {name: self.tokens[n] for name, n in ids.items() if n is not None}


def _bpe(fields: _Fields, merges: Sequence[tuple[str, str]], **options: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(fields.ids, merges, **options))
    except Exception as error:  # the library's only error type
        raise fields.bad(str(error)) from error


def _byte_level(fields: _Fields) -> Tokenizer:
    how = fields.pretokenizer
    merges = [tuple(merge.split(" ")) for merge in fields.array("merges", str)]
    if any(len(pair) != 2 for pair in merges):
        raise fields.bad("a merge is not a pair of tokens")
    tokenizer = _bpe(fields, merges, ignore_merges=how.ignore_merges)
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Split(Regex(p), "isolated") for p in how.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    # Some vocabularies have no token for rare bytes. These are dropped, but nothing merges across.
    if lost := "".join(c for c in byte_alphabet().values() if c not in fields.ids):
        steps.append(pre_tokenizers.Split(Regex(f"[{re.escape(lost)}]"), "removed"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: _Fields) -> Tokenizer:
    """SentencePiece's BPE repeatedly joins the neighbours whose union has the best score.

    That equals BPE by merge rank, where each way to split a token in two is a merge, ranked by the
    token's score (Kudo and Richardson 2018). Only if two splits of one token overlap in a text may
    they differ: SentencePiece takes the leftmost, merge ranks the first listed. In real
    vocabularies this does not occur.
    """
    ids = fields.ids
    scores = fields.array("scores", float)
    if len(scores) < len(ids):
        raise fields.bad(f"{len(ids)} tokens, but only {len(scores)} scores")
    merges = []
    for n in sorted(range(len(ids)), key=lambda n: -scores[n]):
        token = fields.tokens[n]
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in ids:
                right = token[cut:]
                if right in ids:
                    merges.append((left, right))
    unknown = fields.token("unknown")
    tokenizer = _bpe(
        fields,
        merges,
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else fields.tokens[unknown],
    )
    prefix = fields.get("add_space_prefix", bool, True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return tokenizer


def _add_special_tokens(tokenizer: Tokenizer, fields: _Fields) -> None:
    """Add the tokens whose names are found in a text before anything else is done with it."""
    tokenizer.add_special_tokens(
        [
            AddedToken(name, special=True, normalized=False)
            for name in fields.of_type(_UNKNOWN, _CONTROL)
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False) for name in fields.of_type(_USER_DEFINED)]
    )


def _add_ends(tokenizer: Tokenizer, fields: _Fields, add_bos: bool) -> None:
    """Make the tokenizer add BOS and EOS to a text, if the file says so."""
    ends: dict[str, int] = {}
    parts = []
    for name, wanted in (("bos", add_bos), (None, True), ("eos", False)):
        if name is None:
            parts.append("$A")
        elif fields.get(f"add_{name}_token", bool, wanted):
            token = fields.token(name)
            if token is None:
                raise fields.bad(f"it wants a {name.upper()} token but does not say which")
            ends[fields.tokens[token]] = token
            parts.append(fields.tokens[token])
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=parts, pair=[*parts, "$B"], special_tokens=list(ends.items())
        )
