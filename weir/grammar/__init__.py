"""Grammars that constrain a model's answer: compiled once, then one table look-up per step.

Imports no PyTorch, tokenizer or engine. The input is a pattern or a schema and a vocabulary of
bytes; the output is a mask of allowed tokens.
"""
