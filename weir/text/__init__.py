"""Text and token ids: tokenizer, incremental detokenizer, chat template, stop strings.

Knows nothing of requests, scheduling or tensors.
"""

from weir.text.detokenize import Detokenizer
from weir.text.stop import StopChecker
from weir.text.tokenizer import Text

__all__ = ["Detokenizer", "StopChecker", "Text"]
