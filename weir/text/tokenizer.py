"""`Text`: all that the engine's frontends know about a model's tokens."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from weir.errors import BadRequest
from weir.gguf import GGUF
from weir.params import check_ids
from weir.text.detokenize import Detokenizer, Spelling
from weir.text.folder import read_folder
from weir.text.ggml import read_gguf
from weir.text.template import ChatTemplate, read_template
from weir.text.vocabulary import Vocabulary


class Text:
    """The tokenizer, chat template and special tokens of one model.

    vocab: the number of token ids. bos: the id that begins a text. eos: the ids that end one.
    special: ids that are hidden from readers of the output. Thread-safe.
    """

    def __init__(self, vocabulary: Vocabulary, chat_template: str | None = None):
        """chat_template: a jinja file or a template itself, instead of the model's own."""
        self.tokenizer: Tokenizer = vocabulary.tokenizer
        self.bos = vocabulary.bos
        self.eos = vocabulary.eos
        self.special = frozenset(
            token
            for token, added in self.tokenizer.get_added_tokens_decoder().items()
            if added.special
        )
        self._spelling = Spelling.of(self.tokenizer)
        self.strips = self._spelling.strips
        templates: Mapping[str, str] = vocabulary.templates
        if chat_template is not None:
            templates = {"default": read_template(chat_template)}
        self._template = ChatTemplate(templates, vocabulary.variables)

    @classmethod
    def from_folder(cls, path: str | Path, chat_template: str | None = None) -> Self:
        """The tokenizer of a Hugging Face folder. Raises `ConfigError`."""
        return cls(read_folder(Path(path)), chat_template)

    @classmethod
    def from_gguf(cls, gguf: GGUF, chat_template: str | None = None) -> Self:
        """The tokenizer inside a GGUF file. Raises `ConfigError`."""
        return cls(read_gguf(gguf), chat_template)

    @cached_property
    def _all_pieces(self) -> list[bytes]:
        return self._spelling.pieces(self.tokenizer)

    @cached_property
    def _shown_pieces(self) -> list[bytes]:
        return [b"" if n in self.special else piece for n, piece in enumerate(self._all_pieces)]

    def pieces(self, skip_special_tokens: bool) -> list[bytes]:
        """The bytes of each token id; skipped ones have none. Callers must not change the list."""
        return self._shown_pieces if skip_special_tokens else self._all_pieces

    @cached_property
    def vocab(self) -> int:
        return len(self._all_pieces)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Names of special tokens in it become these tokens. Raises
        `BadRequest` for text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"the text is not valid Unicode: {error}") from error
        [encoded] = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded.ids
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`, which begin a text. U+FFFD stands for bytes that are no character.
        Raises `BadRequest` for ids that do not exist."""
        ids = list(ids)
        check_ids(ids, self.vocab, "tokens")
        detokenizer = Detokenizer(self.pieces(skip_special_tokens), self.strips)
        return detokenizer.push(ids) + detokenizer.finish()

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty beyond the vocabulary."""
        return self._all_pieces[token] if 0 <= token < self.vocab else b""

    def token(self, token: int) -> str:
        """One token as text, special ones by name; U+FFFD for a part of a character."""
        return self.token_bytes(token).decode("utf-8", "replace")

    @property
    def special_names(self) -> dict[str, str]:
        """The model's special tokens by the names bos_token, eos_token and so on."""
        ends = {"bos_token": self.bos, "eos_token": self.eos[0] if self.eos else None}
        known = {name: self.token(token) for name, token in ends.items() if token is not None}
        return known | dict(self._template.variables)

    @property
    def chat_template(self) -> str | None:
        """The jinja source of the default template; None: the model has none."""
        return self._template.sources.get("default")

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for a conversation, to be encoded with `add_special_tokens=False`.

        kwargs: further template variables. template: jinja source to use instead of the model's
        own. Raises `BadRequest`, also if the model has no template.
        """
        return self._template.render(
            messages, tools, add_generation_prompt, continue_final_message, template, kwargs
        )
