"""Fit the light ranker to lengths. The only file of rankers that needs PyTorch.

A batch is a few lists; a list holds answers of one model, since the lengths of two models say
nothing about the order of prompts: of one source, or of several, as the queue of a server is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from weir.errors import ConfigError
from weir.ranker import features
from weir.ranker.lengths import Answer, Lengths
from weir.ranker.light import Light

QUANTILES = np.linspace(0, 1, 65)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fit. drop: share of a prompt's words hidden in a step, and of hidden units."""

    head: str = "listmle"
    steps: int = 1500
    lists: int = 4
    size: int = 32  # answers in a list
    mixed: float = 0.4  # share of lists over several sources
    depth: int = 32
    width: int = 64
    rate: float = 2e-3
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
    longer = lengths[:, None] > lengths[None, :]
    return functional.softplus(scores[None, :] - scores[:, None])[longer].mean()


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


class Net(nn.Module):
    """What `Light` computes, with what training hides."""

    def __init__(self, recipe: Recipe, shapes: Tensor):
        super().__init__()
        self.drop = recipe.drop
        self.mean, self.scale = shapes.mean(0), shapes.std(0) + 1e-3
        self.embedding = nn.Embedding(features.BUCKETS, recipe.depth)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.hidden = nn.Linear(recipe.depth + features.SHAPE, recipe.width)
        outputs = CLASSES if recipe.head == "classification" else 1
        self.output = nn.Linear(recipe.width, outputs, bias=False)

    def forward(self, grams: Sequence[Tensor], shapes: Tensor) -> Tensor:
        """[P, outputs] of prompts with these buckets and shapes."""
        if self.training:
            grams = [g[torch.rand(len(g)) >= self.drop] for g in grams]
        counts = torch.tensor([max(1, len(g)) for g in grams])
        starts = torch.tensor([0, *(len(g) for g in grams[:-1])]).cumsum(0)
        total = functional.embedding_bag(
            torch.cat(list(grams)), self.embedding.weight, starts, mode="sum"
        )
        inputs = torch.cat([total / counts.sqrt()[:, None], (shapes - self.mean) / self.scale], 1)
        hidden = functional.dropout(self.hidden(inputs).relu(), self.drop, self.training)
        found: Tensor = self.output(hidden)
        return found


@dataclass(slots=True)
class Lists:
    """Draws the lists of a batch: half the sources' weight goes with the root of their size."""

    lengths: Lengths
    recipe: Recipe
    random: Random
    sources: dict[str, list[list[Answer]]] = field(default_factory=dict)  # a list for each model
    families: list[dict[str, list[Answer]]] = field(default_factory=list)  # by source

    def __post_init__(self) -> None:
        by_source: dict[str, list[list[Answer]]] = defaultdict(list)
        for asked, answers in self.lengths.answers.items():
            if len(answers) > 1:
                by_source[asked.source].append(answers)
        if not by_source:
            raise ConfigError("there are no two prompts that one model answered: nothing to rank")
        self.sources = dict(by_source)
        for answers in self.lengths.families().values():
            parts: dict[str, list[Answer]] = defaultdict(list)
            for answer in answers:
                parts[self.lengths.sources[answer.prompt]].append(answer)
            if len(parts) > 1:
                self.families.append(dict(parts))

    def draw(self) -> list[Answer]:
        size, random = self.recipe.size, self.random
        if self.families and random.random() < self.recipe.mixed:
            parts = random.choice(self.families)
            weights = [len(part) ** 0.5 for part in parts.values()]
            chosen = random.choices(list(parts.values()), weights, k=size)
            return [random.choice(part) for part in chosen]
        weights = [max(map(len, models)) ** 0.5 for models in self.sources.values()]
        models = random.choices(list(self.sources.values()), weights)[0]
        answers = random.choice(models)
        return random.sample(answers, min(size, len(answers)))


def train(
    lengths: Lengths, recipe: Recipe, watch: Callable[[int], None] = lambda step: None
) -> Light:
    """A ranker fitted to all of `lengths`; the same for the same arguments. `watch` is called with
    the number of each step. Raises `ConfigError` if there is nothing to rank."""
    torch.manual_seed(recipe.seed)
    lists = Lists(lengths, recipe, Random(recipe.seed))
    given = features.features(lengths.prompts)
    grams = torch.split(torch.from_numpy(given.grams), given.counts.tolist())
    shapes = torch.from_numpy(given.shapes)
    net, loss = Net(recipe, shapes), HEADS[recipe.head]
    optimizer = torch.optim.AdamW(net.parameters(), recipe.rate, weight_decay=recipe.decay)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, recipe.steps)
    for step in range(recipe.steps):
        drawn = [lists.draw() for _ in range(recipe.lists)]
        places = [answer.prompt for one in drawn for answer in one]
        found = net([grams[place] for place in places], shapes[places])
        total = torch.zeros(())
        for one, scores in zip(drawn, torch.split(found, [len(one) for one in drawn]), strict=True):
            tokens = torch.tensor([answer.tokens for answer in one])
            total = total + loss(scores.squeeze(1), tokens)
        optimizer.zero_grad()
        (total / recipe.lists).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        slower.step()
        watch(step)
    return _frozen(net, lists)


def combine(parts: Sequence[Light], lengths: Lengths, recipe: Recipe) -> Light:
    """One ranker whose score is the mean of theirs, each in units of its own spread: networks side
    by side are a network. All must have been trained on `lengths`, without classes."""
    depth, width = (sum(np.shape(p.hidden)[axis] for p in parts) for axis in (0, 1))
    depth -= features.SHAPE * len(parts)
    hidden = np.zeros((depth + features.SHAPE, width), np.float32)
    row = column = 0
    for part in parts:
        own, columns = part.embedding.shape[1], slice(column, column + len(part.bias))
        hidden[row : row + own, columns] = part.hidden[:own]
        hidden[depth:, columns] = part.hidden[own:]
        row, column = row + own, columns.stop
    together = replace(
        parts[0],
        embedding=np.concatenate([part.embedding for part in parts], axis=1),
        hidden=hidden,
        bias=np.concatenate([part.bias for part in parts]),
        output=np.concatenate([part.output / np.ptp(part.scores[8:-8]) for part in parts]),
    )
    _calibrate(together, Lists(lengths, recipe, Random(recipe.seed)))
    return together


def _frozen(net: Net, lists: Lists) -> Light:
    """The network as arrays."""

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().numpy().copy()

    light = Light(
        embedding=array(net.embedding.weight).astype(np.float16),
        mean=array(net.mean),
        scale=array(net.scale),
        hidden=array(net.hidden.weight.T),
        bias=array(net.hidden.bias),
        output=array(net.output.weight.T),
        scores=np.zeros(1, np.float32),
        lengths=np.zeros(1, np.float32),
    )
    _calibrate(light, lists)
    return light


def _calibrate(light: Light, lists: Lists) -> None:
    """Put the quantiles of its scores beside those of the lengths, over a sample of lists."""
    prompts = lists.lengths.prompts
    sample = [answer for _ in range(200) for answer in lists.draw()]
    scores = light.forward(features.features([prompts[a.prompt] for a in sample]))
    light.scores = np.quantile(scores, QUANTILES).astype(np.float32)
    light.lengths = np.quantile([a.tokens for a in sample], QUANTILES).astype(np.float32)
