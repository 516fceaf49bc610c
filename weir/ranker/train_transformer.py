"""Makes a pretrained transformer a ranker: fine-tuned (arXiv 2408.15792 section 4), or frozen."""

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

from weir.ranker.backbone import Kernel
from weir.ranker.lengths import Lengths
from weir.ranker.lists import Lists
from weir.ranker.train import Recipe, fit, outputs, quantiles
from weir.ranker.transformer import Transformer, device

RECIPE = Recipe(steps=400, rate=1e-4, warm=0.1, decay=0.01)
LAYERS = 16

MOST = 8192
"""Prompts that a ranker with frozen layers remembers."""

BATCH = 64


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
    ranker.scores, ranker.lengths = quantiles(scores, [answer.tokens for answer in sample])
    return ranker


def ridge(
    lengths: Lengths,
    recipe: Recipe = RECIPE,
    watch: Callable[[int], None] = lambda step: None,
    model: str = "smollm2-135m",
    layers: int = LAYERS,
) -> Transformer:
    """The same with layers as they are: kernel ridge regression of log(1 + tokens) on the states of
    at most MOST prompts, in closed form. `watch` is called with each prompt's number."""
    lists = Lists.of(lengths, Random(recipe.seed), recipe.mixed, recipe.size)
    ranker = Transformer.pretrained(model, layers)
    backbone = ranker.backbone
    every = lists.every(MOST)
    together = states(ranker, [lengths.prompts[answer.prompt] for answer, _ in every], watch)
    with torch.inference_mode():
        tokens = together.new_tensor([answer.tokens for answer, _ in every])
        share = together.new_tensor([share for _, share in every])
        backbone.head = Kernel.fitted(together, tokens.log1p(), share)
        scores = backbone.head(together)[:, 0].cpu().numpy()
    ranker.scores, ranker.lengths = quantiles(scores, tokens.tolist())
    return ranker


@torch.inference_mode()
def states(ranker: Transformer, prompts: list[str], watch: Callable[[int], None]) -> Tensor:
    """Of its layers as they are, float32 [P, 2 H], on the GPU if there is one. `watch` is called
    with each prompt's number."""
    backbone = ranker.backbone.eval().to(device())
    found = []
    for start in range(0, len(prompts), BATCH):
        asked = prompts[start : start + BATCH]
        found.append(backbone.states([ranker.tokens(prompt) for prompt in asked]))
        for place in range(start, start + len(asked)):
            watch(place)
    return torch.cat(found)
