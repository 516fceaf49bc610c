"""Offline use: a model as a Python object, `LLM` for batches and `AsyncLLM` for streams.

Outputs have vLLM's names, so that a script moves here by changing its import.
"""

from weir.llm.offline import LLM
from weir.llm.online import AsyncLLM
from weir.llm.outputs import CompletionOutput, RequestOutput

__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "RequestOutput"]
