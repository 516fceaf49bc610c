"""Weir: an LLM inference and serving engine."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {"LLM": "weir.llm", "AsyncLLM": "weir.llm", "SamplingParams": "weir.params"}
_HOMES |= dict.fromkeys(
    (
        "Anthropic OpenAI ProgramError Runtime RuntimeEndpoint assistant assistant_begin "
        "assistant_end flush_cache function gen gen_int gen_string greedy_token_selection image "
        "select set_default_backend system system_begin system_end token_length_normalized "
        "unconditional_likelihood_normalized user user_begin user_end"
    ).split(),
    "weir.lang",
)
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import weir` and `weir --help` start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'weir' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
