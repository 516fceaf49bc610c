"""What a model's files say about its tokens, in whatever format."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


@dataclass(slots=True)
class Vocabulary:
    tokenizer: Tokenizer  # complete: special tokens, decoder, and BOS and EOS where they belong
    bos: int | None = None
    eos: list[int] = field(default_factory=list)
    templates: Mapping[str, str] = field(default_factory=dict)  # chat templates by name
    variables: Mapping[str, str] = field(default_factory=dict)  # for templates: bos_token etc.


def numbered(vocab: int) -> Vocabulary:
    """For a model without a tokenizer, such as one of random weights: tokens are written as
    numbers, "7 12" ↔ [7, 12]. A word that is no number below `vocab` is token 0."""
    words = {f"▁{token}": token for token in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="▁0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return Vocabulary(tokenizer)
