"""A vocabulary for models that have none, such as random weights made from a config alone: every
token is written as its number."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from weir.text.vocabulary import Vocabulary


def numbered(vocab: int) -> Vocabulary:
    """ "7 12" ↔ [7, 12]; a word that is no number below `vocab` is token 0."""
    words = {f"▁{token}": token for token in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="▁0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return Vocabulary(tokenizer)
