"""What a caller may ask of one request, in vLLM's names, checked once at the edge.

`SamplingParams` is what users write; `Sampling` (core) is what the engine reads. Stop strings, `n`
and everything else about text stay on this side.
"""

from typing import Any

import msgspec
from msgspec import Struct

from weir.core import Sampling
from weir.errors import BadRequest

MAX_LOGPROBS = 100
MAX_STOPS = 64
MAX_N = 128
MAX_BIAS = 100.0
RANGES = {
    "n": (1, MAX_N),
    "temperature": (0, 100),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 10),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
"""Least and most of numbers, where they are given."""


class StructuredOutputs(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an answer must follow: exactly one of these."""

    json: dict[str, Any] | bool | str | None = None  # a JSON Schema, or one as text
    json_object: bool = False  # any JSON object
    regex: str | None = None  # that the whole answer matches
    choice: list[str] | None = None
    grammar: str | None = None  # Lark, or EBNF as in GBNF

    @property
    def field(self) -> str:
        """The one that is given."""
        given = [
            name for name in self.__struct_fields__ if getattr(self, name) not in (None, False)
        ]
        return given[0] if given else "json"

    @property
    def schema(self) -> dict[str, Any] | bool | None:
        """The JSON Schema asked for. Raises `BadRequest` for a text that holds none."""
        if self.json_object:
            return {"type": "object"}
        if not isinstance(self.json, str):
            return self.json
        try:
            return msgspec.json.decode(self.json, type=dict[str, Any] | bool)
        except msgspec.DecodeError as error:
            raise BadRequest(f"the JSON Schema is not valid JSON: {error}", param="json") from None

    def check(self) -> None:
        """Raise `BadRequest` unless exactly one is given, and it can be meant."""
        given = [self.json is not None, self.json_object, self.regex is not None]
        why = ""
        if sum([*given, self.choice is not None, self.grammar is not None]) != 1:
            why = "structured outputs take exactly one of json, json_object, regex, choice, grammar"
        elif self.choice is not None and not all(self.choice or [""]):
            why = "choice must hold texts, none of them empty"
        if why:
            raise BadRequest(why, param="structured_outputs", code="invalid_grammar")


class SamplingParams(Struct, kw_only=True, forbid_unknown_fields=True):
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    seed: int | None = None
    stop: list[str] | str = []
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16  # None: as many as fit
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    score_from: int = 0
    skip_special_tokens: bool = True
    detokenize: bool = True
    structured_outputs: StructuredOutputs | None = None
    pin: str = ""  # keep the prompt cached under this name

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def check(self, vocab: int) -> None:
        """Raise `BadRequest` naming the first field out of range; `vocab` is the model's."""

        def need(ok: bool, param: str, rule: str) -> None:
            if not ok:
                raise BadRequest(
                    f"{param} must be {rule}, got {getattr(self, param)!r}", param=param
                )

        for param, (low, high) in RANGES.items():
            value = getattr(self, param)
            need(value is None or low <= value <= high, param, f"between {low:g} and {high:g}")
        need(0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1")
        need(-1 <= self.top_k, "top_k", "-1, 0 or positive")
        need(self.seed is None or -(2**63) <= self.seed < 2**63, "seed", "a 64-bit integer")
        need(self.max_tokens is None or self.max_tokens >= 0, "max_tokens", "0 or positive")
        need(self.min_tokens >= 0, "min_tokens", "0 or positive")
        need(self.score_from >= 0, "score_from", "0 or positive")
        need(len(self.pin) <= 256, "pin", "at most 256 characters long")
        for param in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            bad = next((t for t in getattr(self, param) or () if not 0 <= t < vocab), None)
            if bad is not None:
                raise BadRequest(
                    f"{param} holds {bad}, but token ids of this model run from 0 to {vocab - 1}",
                    param=param,
                )
        if not all(-MAX_BIAS <= bias <= MAX_BIAS for bias in self.logit_bias.values()):
            raise BadRequest(
                f"logit_bias values must be between {-MAX_BIAS:g} and {MAX_BIAS:g}",
                param="logit_bias",
            )
        if self.allowed_token_ids == []:
            raise BadRequest("allowed_token_ids must not be empty", param="allowed_token_ids")
        if len(self.stops) > MAX_STOPS or len(self.stop_token_ids) > MAX_STOPS:
            raise BadRequest(
                f"at most {MAX_STOPS} stop strings and {MAX_STOPS} stop_token_ids are allowed",
                param="stop",
            )
        if any(not s or len(s) > 1024 for s in self.stops):
            raise BadRequest("stop strings must have 1 to 1024 characters", param="stop")
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
        """The engine's half of choice `index`. `seed`: the request's; `max_tokens`: what fits."""
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


def convert(data: dict[str, object]) -> SamplingParams:
    """A plain dict as SamplingParams; an unknown or ill-typed field is a `BadRequest` naming it."""
    try:
        return msgspec.convert(data, SamplingParams)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None
