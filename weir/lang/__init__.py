"""Programs of many generation calls: the frontend language (SGLang, arXiv 2312.07104, section 2).

A program is a function of a state `s`. What it appends runs in order, one state beside the other,
and nothing waits until a value is read. Programs are clients of an engine: this package knows text
and requests, no pages and no plans.
"""

from weir.lang.backend.anthropic import Anthropic
from weir.lang.backend.choose import flush_cache, set_default_backend
from weir.lang.backend.endpoint import RuntimeEndpoint
from weir.lang.backend.openai import OpenAI
from weir.lang.backend.runtime import Runtime
from weir.lang.program import Program, function
from weir.lang.state import Group, State
from weir.lang.stream import ProgramError
from weir.lang.words import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    greedy_token_selection,
    image,
    select,
    system,
    system_begin,
    system_end,
    token_length_normalized,
    unconditional_likelihood_normalized,
    user,
    user_begin,
    user_end,
)

__all__ = [
    "Anthropic",
    "Group",
    "OpenAI",
    "Program",
    "ProgramError",
    "Runtime",
    "RuntimeEndpoint",
    "State",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "greedy_token_selection",
    "image",
    "select",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
]
