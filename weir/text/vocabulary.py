"""What a model's files say about its tokens, whatever files they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


@dataclass(slots=True)
class Vocabulary:
    tokenizer: Tokenizer  # complete: special tokens, decoder, and BOS and EOS where they belong
    bos: int | None = None
    eos: list[int] = field(default_factory=list)
    templates: Mapping[str, str] = field(default_factory=dict)  # chat templates by name
    variables: Mapping[str, str] = field(default_factory=dict)  # bos_token and so on, for them


def numbered(vocab: int) -> Vocabulary:
    """Of a model without a tokenizer, such as one of random weights: tokens are written as numbers,
    "7 12" ↔ [7, 12]; a word that is no number below `vocab` is token 0."""
    words = {f"▁{token}": token for token in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="▁0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return Vocabulary(tokenizer)
