"""What a model's files say about its tokens, whatever files they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenizers import Tokenizer


@dataclass(slots=True)
class Vocabulary:
    tokenizer: Tokenizer  # complete: special tokens, decoder, and BOS and EOS where they belong
    bos: int | None = None
    eos: list[int] = field(default_factory=list)
    templates: Mapping[str, str] = field(default_factory=dict)  # chat templates by name
    variables: Mapping[str, str] = field(default_factory=dict)  # bos_token and so on, for them
