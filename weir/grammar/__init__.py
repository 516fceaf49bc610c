"""Grammars that a model's answer must follow: compiled once, then a table a step.

No PyTorch, no tokenizer, no engine: what goes in is a pattern or a schema and a vocabulary of
bytes, what comes out is a mask of tokens.
"""
