"""Fits a network to the order of lengths, whatever it is made of: the losses and the loop.

A step is a few lists of prompts. What a list should look like is `lists`' to say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from weir.ranker.light import Array
from weir.ranker.lists import Lists


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fit. drop: share of what is seen in a step that is hidden, and of hidden units."""

    head: str = "listmle"
    steps: int = 1500
    lists: int = 4  # in a step
    size: int = 32  # answers in a list
    mixed: float = 0.4  # share of lists over several sources
    rate: float = 2e-3
    warm: float = 0.0  # share of the steps in which the rate rises
    decay: float = 0.1
    drop: float = 0.3
    seed: int = 0


def listwise(scores: Tensor, lengths: Tensor) -> Tensor:
    """ListMLE (Xia et al. 2008): the likelihood, under Plackett and Luce, of the order from the
    longest answer to the shortest. Of equal answers, any may come first. scores, lengths: [L]."""
    order = (lengths + 1e-3 * torch.rand_like(lengths)).argsort(descending=True)
    ordered = scores[order]
    rest = torch.logcumsumexp(ordered.flip(0), 0).flip(0)
    return (rest - ordered).mean()


def pairwise(scores: Tensor, lengths: Tensor) -> Tensor:
    """The logistic loss of each pair in the wrong order (RankNet)."""
    longer = (lengths[:, None] > lengths[None, :]).float()  # a mask: its size is not waited for
    return (
        functional.softplus(scores[None, :] - scores[:, None]) * longer
    ).sum() / longer.sum().clamp(min=1)


def pointwise(scores: Tensor, lengths: Tensor) -> Tensor:
    """The absolute error of the logarithm of a length."""
    return functional.l1_loss(scores, torch.log1p(lengths))


CLASSES, WIDTH = 82, 100.0


def classes(logits: Tensor, lengths: Tensor) -> Tensor:
    """The class of a length, 100 tokens wide: the paper's best classifier but for the cost."""
    target = (lengths / WIDTH).long().clamp(max=CLASSES - 1)
    return functional.cross_entropy(logits, target)


HEADS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "listmle": listwise,
    "pairwise": pairwise,
    "pointwise": pointwise,
    "classification": classes,
}


def outputs(head: str) -> int:
    """Numbers that a network gives for a prompt."""
    return CLASSES if head == "classification" else 1


def quantiles(scores: Array, tokens: Sequence[float]) -> tuple[Array, Array]:
    """Of scores and of lengths of answers, over the same prompts: float32 [Q] each."""
    at = np.linspace(0, 1, 65)
    return np.quantile(scores, at).astype("f4"), np.quantile(tokens, at).astype("f4")


def fit(net: nn.Module, lists: Lists, recipe: Recipe, watch: Callable[[int], None]) -> None:
    """`net` takes places of prompts, a list of P, and gives [P, outputs]; it is left in the mode of
    evaluation. `watch` is called with the number of each step."""
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, recipe.rate, weight_decay=recipe.decay, fused=weights[0].is_cuda
    )
    warm = max(1.0, recipe.warm * recipe.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.02, 1 - step / recipe.steps))
    )
    loss = HEADS[recipe.head]
    net.train()
    for step in range(recipe.steps):
        drawn = [lists.draw() for _ in range(recipe.lists)]
        together = [answer for one in drawn for answer in one]
        found, counts = net([answer.prompt for answer in together]), [len(one) for one in drawn]
        tokens = torch.tensor([answer.tokens for answer in together], device=found.device)
        parts = zip(torch.split(found, counts), torch.split(tokens, counts), strict=True)
        losses = [loss(scores.squeeze(1), lengths) for scores, lengths in parts]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        watch(step)
    net.eval()
