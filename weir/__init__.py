"""Weir: an LLM inference and serving engine."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "weir.llm.offline": "LLM",
    "weir.llm.online": "AsyncLLM",
    "weir.params": "SamplingParams StructuredOutputs",
    "weir.lang.backend.anthropic": "Anthropic",
    "weir.lang.backend.choose": "flush_cache set_default_backend",
    "weir.lang.backend.endpoint": "RuntimeEndpoint",
    "weir.lang.backend.openai": "OpenAI",
    "weir.lang.backend.runtime": "Runtime",
    "weir.lang.program": "Program function",
    "weir.lang.state": "Group State",
    "weir.lang.stream": "ProgramError",
    "weir.lang.words": (
        "assistant assistant_begin assistant_end gen gen_int gen_string greedy_token_selection "
        "image select separate_reasoning system system_begin system_end token_length_normalized "
        "unconditional_likelihood_normalized user user_begin user_end"
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import weir` and `weir --help` start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'weir' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
