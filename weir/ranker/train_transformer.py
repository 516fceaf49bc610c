"""Fine-tunes a pretrained transformer to rank prompts (arXiv 2408.15792 section 4)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from weir.ranker.lengths import Lengths
from weir.ranker.lists import Lists
from weir.ranker.train import QUANTILES, Recipe, fit, outputs
from weir.ranker.transformer import Transformer, device

RECIPE = Recipe(steps=400, rate=1e-4, warm=0.1, decay=0.01)
LAYERS = 16


class Net(nn.Module):
    """The backbone, by places of prompts."""

    def __init__(self, ranker: Transformer, prompts: list[str]):
        super().__init__()
        self.backbone = ranker.backbone
        self.tokens = [ranker.tokens(prompt) for prompt in prompts]

    def forward(self, places: list[int]) -> Tensor:
        found: Tensor = self.backbone([self.tokens[place] for place in places])
        return found


def train(
    lengths: Lengths,
    recipe: Recipe = RECIPE,
    watch: Callable[[int], None] = lambda step: None,
    model: str = "smollm2-135m",
    layers: int = LAYERS,
) -> Transformer:
    """`model`, its first `layers`, fitted to all of `lengths` on the GPU if there is one. Raises
    `ConfigError`, also if there is nothing to rank."""
    torch.manual_seed(recipe.seed)
    lists = Lists.of(lengths, Random(recipe.seed), recipe.mixed, recipe.size)
    ranker = Transformer.pretrained(model, layers, outputs(recipe.head))
    ranker.backbone.to(device())
    fit(Net(ranker, lengths.prompts), lists, recipe, watch)
    sample = [answer for _ in range(40) for answer in lists.draw()]
    scores = ranker.score([lengths.prompts[answer.prompt] for answer in sample])
    ranker.scores = np.quantile(scores, QUANTILES).astype(np.float32)
    ranker.lengths = np.quantile([a.tokens for a in sample], QUANTILES).astype(np.float32)
    return ranker
