"""The functions of the language, which make nodes; their names are SGLang's."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from weir.errors import BadRequest
from weir.lang import ir
from weir.lang.scorers import SCORERS
from weir.params import StructuredOutputs

_PATTERNS = {
    int: r"[-+]?[0-9]+[ \n]*",
    float: r"[-+]?[0-9]*\.?[0-9]+[ \n]*",
    bool: r"(True|False)",
    str: r"\"[\w\d\s]*\"",
}
"""The form of a value of each type. A number may be followed by a space or newline, which ends it;
otherwise a model that wants to write more could only add digits."""
_BLANKS = [" ", "\n"]

token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized = SCORERS

_THINKING = {"deepseek-r1": True, "deepseek-v3": False, "qwen3": False, "qwen3-thinking": True}
"""Families that reason between <think> and </think> → whether all answers begin with it."""

_NO_SETTINGS = frozenset(
    "name dtype choices choices_method return_logprob top_logprobs_num".split()
)
"""Arguments of `gen` that are not fields of a request."""


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
    """Text that the model writes, kept as the variable `name`.

    None means the setting that the program was started with. `dtype` (int, float, bool or str),
    `regex` and `json_schema` constrain the text; `choices` makes it a `select`. Raises BadRequest
    if more than one of these is given, and for a schema that is not JSON.
    """
    given: dict[str, Any] = {key: value for key, value in locals().items() if value is not None}
    shapes = [one for one in ("dtype", "choices", "regex", "json_schema") if one in given]
    if len(shapes) > 1:
        raise BadRequest(f"gen takes one of {', '.join(shapes)}", param=shapes[1])
    if choices is not None:
        return select(name, choices, choices_method=choices_method)
    if return_logprob:
        given.setdefault("logprobs", top_logprobs_num or 0)
    if isinstance(json_schema, str):
        given["json_schema"] = StructuredOutputs(json=json_schema).schema
    if dtype is not None:
        given["regex"] = pattern(dtype)
        if dtype in (int, float, "int", "float"):
            given["stop"] = [*([stop] if isinstance(stop, str) else stop or []), *_BLANKS]
    return ir.Gen(name, {key: value for key, value in given.items() if key not in _NO_SETTINGS})


def pattern(dtype: type | str) -> str:
    """The regular expression of a value of type `dtype`. Raises BadRequest."""
    named = {kind.__name__: kind for kind in _PATTERNS}
    kind = named.get(dtype) if isinstance(dtype, str) else dtype
    if kind not in _PATTERNS:
        raise BadRequest(f"dtype must be one of {', '.join(named)}, not {dtype!r}", param="dtype")
    return _PATTERNS[kind]


gen_int = partial(gen, dtype=int)
gen_string = partial(gen, dtype=str)


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
    temperature: only for compatibility with SGLang's programs; must be 0. Raises BadRequest.
    """
    if choices_method not in SCORERS:
        known = ", ".join(SCORERS)
        raise BadRequest(
            f"choices_method must be one of {known}, not {choices_method!r}", param="choices_method"
        )
    if temperature:
        raise BadRequest("select does not sample: temperature must be 0", param="temperature")
    found = list(choices) if isinstance(choices, list | tuple) else []
    if not found:
        raise BadRequest("select needs a list of at least one choice", param="choices")
    for choice in found:
        if not isinstance(choice, str) or not choice:
            raise BadRequest(f"choices must be texts, not {choice!r}", param="choices")
    if len(set(found)) != len(found):
        raise BadRequest("select was given the same choice twice", param="choices")
    return ir.Select(name, found, choices_method)


def separate_reasoning(expr: ir.Node, model_type: str | None = None) -> ir.Node:
    """`expr`, with the reasoning that the model first writes between `<think>` and `</think>` taken
    out of the text. For a `gen` called "x" it becomes the variable "x_reasoning_content".

    model_type: SGLang's name of the model's family; some begin to reason without a tag. Raises
    BadRequest for a family with other tags, and if no `gen` has a name.
    """
    if model_type is not None and model_type not in _THINKING:
        known = ", ".join(_THINKING)
        raise BadRequest(f"model_type must be one of {known}, not {model_type!r}")
    thinks = model_type is not None and _THINKING[model_type]
    nodes, found = [], False
    for node in ir.parts(expr):
        if isinstance(node, ir.Gen) and node.name is not None:
            found, thought = True, f"{node.name}_reasoning_content"
            node = replace(node, thought=thought, thinks=thinks)
        nodes.append(node)
    if not found:
        raise BadRequest("separate_reasoning needs a gen with a name")
    return ir.Many(nodes)


# a whole turn, and its two ends
system, user, assistant = (partial(ir.turn, role) for role in ir.ROLES)
system_begin, user_begin, assistant_begin = (partial(ir.Open, role) for role in ir.ROLES)
system_end, user_end, assistant_end = (partial(ir.Close, role) for role in ir.ROLES)
image = ir.Image
