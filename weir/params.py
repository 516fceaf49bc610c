"""The parameters of a request, with vLLM's names, checked once where it arrives.

`SamplingParams` is what users write; `Sampling` (core) is what the engine reads. Stop strings, `n`
and everything else about text stay on this side.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict

from weir.core import Sampling
from weir.errors import BadRequest

SMALL = 2**31 - 1  # every integer that reaches the engine fits 32 bits, a seed 64
STOPS = 64  # strings at most, and tokens

Count = Annotated[int, Meta(ge=0, le=SMALL)]
TokenId = Annotated[int, Meta(ge=0, le=SMALL)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Temperature = Annotated[float, Meta(ge=0, le=100)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=SMALL)]
MinP = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(ge=0.01, le=10)]  # less, and logits overflow
Bias = Annotated[float, Meta(ge=-100, le=100)]
Allowed = Annotated[list[TokenId], Meta(min_length=1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
StopStrings = Annotated[list[StopString], Meta(max_length=STOPS)]
Stop = StopString | StopStrings
StopTokens = Annotated[list[TokenId], Meta(max_length=STOPS)]
Logprobs = Annotated[int, Meta(ge=0, le=100)]
Pin = Annotated[str, Meta(max_length=256)]


class StructuredOutputs(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The constraint on an answer: exactly one of these."""

    json: dict[str, Any] | bool | str | None = None  # a JSON Schema, or one as text
    json_object: bool = False  # any JSON object
    regex: str | None = None  # that the whole answer matches
    choice: list[str] | None = None
    grammar: str | None = None  # Lark, or EBNF as in GBNF

    @property
    def field(self) -> str:
        """The name of the constraint that is given."""
        given = [
            name for name in self.__struct_fields__ if getattr(self, name) not in (None, False)
        ]
        return given[0] if given else "json"

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema asked for. Raises `BadRequest` for a text that holds none."""
        found = {"type": "object"} if self.json_object else self.json
        if isinstance(found, str):
            try:
                found = msgspec.json.decode(found, type=dict[str, Any] | bool)
            except msgspec.DecodeError as error:
                why = f"the JSON Schema is not valid JSON: {error}"
                raise BadRequest(why, param="json") from None
        if isinstance(found, bool):
            return {} if found else {"enum": []}
        return found

    def check(self) -> None:
        """Raise `BadRequest` unless exactly one constraint is given, without empty choices."""
        given = [self.json is not None, self.json_object, self.regex is not None]
        why = ""
        if sum([*given, self.choice is not None, self.grammar is not None]) != 1:
            why = "structured outputs take exactly one of json, json_object, regex, choice, grammar"
        elif self.choice is not None and not all(self.choice or [""]):
            why = "choice must hold texts, none of them empty"
        if why:
            raise BadRequest(why, param="structured_outputs", code="invalid_grammar")


class SamplingParams(Struct, kw_only=True, forbid_unknown_fields=True):
    n: Choices = 1
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0  # 0 or -1: off
    min_p: MinP = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Repetition = 1.0
    logit_bias: dict[TokenId, Bias] = {}
    allowed_token_ids: Allowed | None = None
    seed: Seed | None = None
    stop: Stop = []
    stop_token_ids: StopTokens = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: Count | None = 16  # None: as many as fit
    min_tokens: Count = 0
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    score_from: Count = 0  # first prompt position whose logprob is wanted
    skip_special_tokens: bool = True
    detokenize: bool = True
    structured_outputs: StructuredOutputs | None = None
    pin: Pin = ""  # keep the prompt cached under this name; empty: do not

    def __post_init__(self) -> None:
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            raise BadRequest(
                f"structured_outputs must be StructuredOutputs, got {self.structured_outputs!r}",
                param="structured_outputs",
            )

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def check(self, vocab: int) -> None:
        """Raise `BadRequest` for the first invalid field. vocab: size of the vocabulary."""
        convert({name: _number(value) for name, value in asdict(self).items()})
        for param in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            check_ids(getattr(self, param) or (), vocab, param)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise BadRequest(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})",
                param="min_tokens",
            )
        if self.structured_outputs is not None:
            self.structured_outputs.check()

    def sampling(
        self, *, index: int, seed: int, eos: list[int], max_tokens: int, pool: str | None = None
    ) -> Sampling:
        """What the engine reads, for choice `index` of n. seed: the request's. eos: token ids that
        end an answer. max_tokens: at most what fits the context. pool: see `Sampling`."""
        stops = list(self.stop_token_ids) if self.ignore_eos else [*self.stop_token_ids, *eos]
        return Sampling(
            temperature=self.temperature,
            top_k=max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            allowed=self.allowed_token_ids,
            seed=(seed + index * 0x9E3779B97F4A7C15) & (2**63 - 1),
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            stops=sorted(set(stops)),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs if index == 0 else None,
            score_from=self.score_from,
            pool=pool,
            pin=self.pin if index == 0 else "",
        )


def convert(data: dict[str, Any]) -> SamplingParams:
    """A plain dict as SamplingParams; an unknown or ill-typed field is a `BadRequest` naming it."""
    try:
        return msgspec.convert(data, SamplingParams)
    except msgspec.ValidationError as error:
        if found := re.match(r"(.*) - at (`key` in )?`\$\.(\w+)", str(error)):
            name, rule = found[3], found[1].removeprefix("Expected ").partition(", got")[0]
            subject = f"a key of {name}" if found[2] else name
            message = f"{subject} must be {rule}, got {repr(data[name])[:100]}"
            raise BadRequest(message, param=name) from None
        raise BadRequest(str(error)) from None


def _number(value: Any) -> Any:
    """A NumPy scalar as a Python number; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def check_ids(ids: Iterable[int], vocab: int, param: str) -> None:
    """Raise `BadRequest` for the first id outside a vocabulary of that size."""
    if (bad := next((token for token in ids if not 0 <= token < vocab), None)) is not None:
        raise BadRequest(
            f"{param} holds {bad}, but token ids of this model run from 0 to {vocab - 1}",
            param=param,
        )
