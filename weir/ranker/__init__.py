"""Predicting how long answers will be, to serve the shortest first (arXiv 2408.15792).

`light` predicts with NumPy alone, in a server, `transformer` with PyTorch; `files` keeps both, and
`adapt` lets either learn from the answers of the model served.
`train_light` and `train_transformer` fit them to the `consensus` on `lengths`, by the losses of
`train`; `kendall` and `evaluate` say how well prompts are ranked. Knows no request, no engine.
"""
