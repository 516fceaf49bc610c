"""The light ranker: hashed words through a small network, and beside prompts that it remembers, in
NumPy. A fraction of a millisecond a prompt on one core; the server process can afford it and needs
no PyTorch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weir.ranker import features
from weir.ranker import files as ranker_files
from weir.ranker.features import Features
from weir.ranker.files import Ranker

MOST_ALIKE = 80.0  # an exponent that is still a number; what lies so far out has no height

FORMAT = f"weir light ranker {features.VERSION}"

SHAPE_NEAR = 0.06
"""What a number of the shape, in units of its scale, counts in how near two prompts are."""

Array = NDArray[np.float32]


def product(a: Array, b: Array) -> Any:
    """Rows [P, K] by rows [A, K]: [P, A], for small P, on the caller's thread alone. NumPy's own
    (`@`) wake threads of its BLAS for a row by a few thousand, which then spin on the cores that
    an engine beside them computes with."""
    return np.einsum("pk,ak->pa", a, b)


@dataclass(slots=True)
class Light(Ranker):
    """embedding: of each bucket, float16 [buckets, D]. mean, scale: of the shape, [S].
    hidden, bias: [D + S, H], [H]. output: [H, 1], or [H, C] of classes of lengths.
    anchors, heights: prompts that it remembers, by the first K numbers of their words and their
    shape, [A, K + S], and what one as near as can be adds to a score, [A], times
    exp(-anchor * anchor). None or many."""

    embedding: NDArray[np.float16]
    mean: Array
    scale: Array
    hidden: Array
    bias: Array
    output: Array
    anchors: Array = field(default_factory=lambda: np.zeros((0, features.SHAPE), np.float32))
    heights: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    scores: Array = field(default_factory=lambda: np.zeros(1, np.float32))
    lengths: Array = field(default_factory=lambda: np.zeros(1, np.float32))
    about: str = ""

    def _each(self, prompts: Sequence[str]) -> tuple[Array, Array]:
        """`forward`, prompt by prompt. Lets other threads run between two: reading one takes longer
        than the arithmetic, and holds the interpreter."""
        scores = np.zeros(len(prompts), np.float32)
        near = np.zeros((len(prompts), self.anchors.shape[1]), np.float32)
        for place, prompt in enumerate(prompts):
            scores[place : place + 1], near[place : place + 1] = self.forward(
                features.features([prompt])
            )
            sleep(0)
        return scores, near

    def forward(self, given: Features) -> tuple[Array, Array]:
        """Scores, float32 [P], and where prompts lie among those remembered, [P, K + S]."""
        total = np.add.reduceat(self.embedding[given.grams].astype(np.float32), given.starts)
        words = total / np.sqrt(given.counts.astype(np.float32))[:, None]
        shapes = (given.shapes - self.mean) / self.scale
        inputs = np.concatenate([words, shapes], axis=1)
        inner = np.maximum(product(inputs, self.hidden.T) + self.bias, 0)
        found: Array = product(inner, self.output.T)
        own = self.anchors.shape[1] - features.SHAPE
        near = np.concatenate([words[:, :own], SHAPE_NEAR * shapes], axis=1)
        like = 2 * product(near, self.anchors) - np.square(near).sum(1, keepdims=True)
        found = found + product(np.exp(np.minimum(like, MOST_ALIKE)), self.heights[None])
        one = found[:, 0] if found.shape[1] == 1 else found.argmax(axis=1).astype(np.float32)
        return one, near

    def save(self, path: Path) -> None:
        """Raises `ConfigError`."""
        arrays = {own.name: np.asarray(getattr(self, own.name)) for own in fields(self)}
        arrays["anchors"] = self.anchors.astype(np.float16)
        ranker_files.save(path, FORMAT, arrays)


def restore(arrays: Mapping[str, Any]) -> Light:
    """What was saved. Raises `ValueError` for arrays that are no light ranker."""
    if odd := {own.name for own in fields(Light)} ^ arrays.keys():
        raise ValueError(f"{', '.join(sorted(odd))} missing, or too many")
    made = Light(**{**arrays, "about": str(arrays["about"])})
    made.anchors = made.anchors.astype(np.float32)
    depth, width = made.embedding.shape[-1], made.bias.shape[-1]
    own = made.anchors.shape[-1] - features.SHAPE
    shapes = {
        "embedding": (features.BUCKETS, depth),
        "mean": (features.SHAPE,),
        "scale": (features.SHAPE,),
        "hidden": (depth + features.SHAPE, width),
        "bias": (width,),
        "output": (width, made.output.shape[-1]),
        "anchors": (len(made.heights), features.SHAPE + min(max(0, own), depth)),
        "heights": (len(made.heights),),
    }
    for name, shape in shapes.items():
        found = getattr(made, name)
        if found.shape != shape or found.dtype.kind != "f":
            raise ValueError(f"{name} is {found.dtype} {found.shape}, not numbers of {shape}")
    return made
