"""The words of the language: functions that make nodes, in SGLang's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weir.errors import BadRequest
from weir.lang import ir
from weir.params import StructuredOutputs

_PATTERNS = {
    int: r"[-+]?[0-9]+[ \n]*",
    float: r"[-+]?[0-9]*\.?[0-9]+[ \n]*",
    bool: r"(True|False)",
    str: r"\"[\w\d\s]*\"",
}
"""What a value of each type looks like. A number may go on with a blank, which then stops it: else
a model that wants to go on would have to add digits."""
_BLANKS = [" ", "\n"]

token_length_normalized = "token_length_normalized"
greedy_token_selection = "greedy_token_selection"
unconditional_likelihood_normalized = "unconditional_likelihood_normalized"


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | list[str] | None = None,
    stop_token_ids: list[int] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    repetition_penalty: float | None = None,
    logit_bias: dict[int, float] | None = None,
    seed: int | None = None,
    ignore_eos: bool | None = None,
    logprobs: int | None = None,
    return_logprob: bool | None = None,
    top_logprobs_num: int | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: str = token_length_normalized,
    regex: str | None = None,
    json_schema: str | dict[str, Any] | bool | None = None,
) -> ir.Node:
    """Text the model writes, kept as the variable `name`.

    What is None is as the program was started with. `dtype` (int, float, bool or str), `regex` and
    `json_schema` shape the text; `choices` makes it a `select`. Raises BadRequest if more than one
    of these is given, and for a schema that is no JSON.
    """
    shapes = {"dtype": dtype, "choices": choices, "regex": regex, "json_schema": json_schema}
    given = [shape for shape, value in shapes.items() if value is not None]
    if len(given) > 1:
        raise BadRequest(f"gen takes one of {', '.join(given)}", param=given[1])
    if choices is not None:
        return select(name, choices, choices_method=choices_method)
    if return_logprob and logprobs is None:
        logprobs = top_logprobs_num or 0
    if isinstance(json_schema, str):
        json_schema = StructuredOutputs(json=json_schema).schema
    if dtype is not None:
        regex = pattern(dtype)
        if dtype in (int, float, "int", "float"):
            stop = [*([stop] if isinstance(stop, str) else stop or []), *_BLANKS]
    settings = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "n": n,
        "stop": stop,
        "stop_token_ids": stop_token_ids,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "repetition_penalty": repetition_penalty,
        "logit_bias": logit_bias,
        "seed": seed,
        "ignore_eos": ignore_eos,
        "logprobs": logprobs,
        "regex": regex,
        "json_schema": json_schema,
    }
    return ir.Gen(name, {key: value for key, value in settings.items() if value is not None})


def pattern(dtype: type | str) -> str:
    """The regular expression of a value of type `dtype`. Raises BadRequest."""
    named = {kind.__name__: kind for kind in _PATTERNS}
    kind = named.get(dtype) if isinstance(dtype, str) else dtype
    if kind not in _PATTERNS:
        raise BadRequest(f"dtype must be one of {', '.join(named)}, not {dtype!r}", param="dtype")
    return _PATTERNS[kind]


def gen_int(name: str | None = None, **settings: Any) -> ir.Node:
    return gen(name, dtype=int, **settings)


def gen_string(name: str | None = None, **settings: Any) -> ir.Node:
    return gen(name, dtype=str, **settings)


def select(
    name: str | None = None,
    choices: Sequence[str] = (),
    *,
    choices_method: str = token_length_normalized,
    temperature: float = 0.0,
) -> ir.Select:
    """The most likely of `choices`, kept as the variable `name`.

    choices_method: "token_length_normalized" (mean logprob of a choice's tokens),
    "greedy_token_selection" (token by token, as greedy decoding would go) or
    "unconditional_likelihood_normalized" (how much the prompt raises a choice's likelihood).
    `temperature` is there for SGLang's programs and must be 0. Raises BadRequest.
    """
    if choices_method not in ir.SCORERS:
        known = ", ".join(ir.SCORERS)
        raise BadRequest(
            f"choices_method must be one of {known}, not {choices_method!r}", param="choices_method"
        )
    if temperature:
        raise BadRequest("select does not sample: temperature must be 0", param="temperature")
    return ir.Select(name, ir.choices_of(choices), choices_method)


def system(value: Any) -> ir.Node:
    return ir.turn("system", value)


def user(value: Any) -> ir.Node:
    return ir.turn("user", value)


def assistant(value: Any) -> ir.Node:
    return ir.turn("assistant", value)


def system_begin() -> ir.Node:
    return ir.Open("system")


def system_end() -> ir.Node:
    return ir.Close("system")


def user_begin() -> ir.Node:
    return ir.Open("user")


def user_end() -> ir.Node:
    return ir.Close("user")


def assistant_begin() -> ir.Node:
    return ir.Open("assistant")


def assistant_end() -> ir.Node:
    return ir.Close("assistant")


def image(source: str | bytes) -> ir.Node:
    """A picture: a path, a URL, or the bytes of an image file."""
    return ir.Image(source)
