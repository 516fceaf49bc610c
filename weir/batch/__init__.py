"""OpenAI batch files: one JSON request a line in, one JSON answer a line out; see `run`."""

from weir.batch.run import Summary, process, run_batch

__all__ = ["Summary", "process", "run_batch"]
