"""Offline use: a model as a Python object, `LLM` for batches and `AsyncLLM` for streams.

Outputs have vLLM's names, so a script can be moved here by changing its import.
"""
