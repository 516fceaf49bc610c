"""Predicting how long answers will be, to serve the shortest first (arXiv 2408.15792).

`light` predicts with NumPy alone, in a server; `train`, the only file that needs PyTorch, fits it
to `lengths`; `kendall` and `evaluate` say how well prompts are ranked. Knows no request, no engine.
"""
