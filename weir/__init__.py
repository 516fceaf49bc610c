"""Weir: an LLM inference and serving engine."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]

_HOMES = {"LLM": "weir.llm", "AsyncLLM": "weir.llm", "SamplingParams": "weir.params"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import weir` and `weir --help` start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'weir' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
