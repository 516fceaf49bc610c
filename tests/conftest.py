"""Settings of the whole suite: the same examples every time, and Triton's interpreter.

HYPOTHESIS_PROFILE=explore draws new ones. Without a GPU Triton interprets its kernels, which must
be said before they are imported. Idle OpenMP threads sleep: beside a busy process their spinning
makes the small operations here three times slower.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when PyTorch is loaded

import torch
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
