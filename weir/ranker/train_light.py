"""Fits the light ranker: networks in PyTorch, what a transformer teaches it, and both in NumPy."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from weir.ranker import features
from weir.ranker.backbone import regression
from weir.ranker.lengths import FOLDS, Lengths
from weir.ranker.light import SHAPE_NEAR, Light
from weir.ranker.lists import Lists
from weir.ranker.train import Recipe, fit, outputs, quantiles
from weir.ranker.train_transformer import LAYERS, MOST, states
from weir.ranker.transformer import Transformer

DEPTH, WIDTH = 32, 64

RIDGE, ROUNDS = 0.5, 60
SHAPE_SHARE = 0.1  # what a number of the shape counts beside a word
TEACHER = "smollm2-135m"
WAYS = 64  # directions of its states that words are taught
NEAR = 1.5  # the square of how far prompts are from their middle, by their words
TINY = 1e-30
NEVER_REST = 64.0  # more than any score is below zero


class Net(nn.Module):
    """What `Light` computes, with what training hides."""

    def __init__(self, given: features.Features, recipe: Recipe, depth: int, width: int):
        super().__init__()
        self.drop = recipe.drop
        self.grams = torch.split(torch.from_numpy(given.grams), given.counts.tolist())
        self.shapes = torch.from_numpy(given.shapes)
        self.mean, self.scale = self.shapes.mean(0), self.shapes.std(0) + 1e-3
        self.embedding = nn.Embedding(features.BUCKETS, depth)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.hidden = nn.Linear(depth + features.SHAPE, width)
        self.output = nn.Linear(width, outputs(recipe.head), bias=False)

    def forward(self, places: list[int]) -> Tensor:
        """[P, outputs]."""
        grams = [self.grams[place] for place in places]
        if self.training:
            grams = [g[torch.rand(len(g)) >= self.drop] for g in grams]
        counts = torch.tensor([max(1, len(g)) for g in grams])
        starts = torch.tensor([0, *(len(g) for g in grams[:-1])]).cumsum(0)
        total = functional.embedding_bag(
            torch.cat(grams), self.embedding.weight, starts, mode="sum"
        )
        shapes = (self.shapes[places] - self.mean) / self.scale
        inputs = torch.cat([total / counts.sqrt()[:, None], shapes], 1)
        hidden = functional.dropout(self.hidden(inputs).relu(), self.drop, self.training)
        found: Tensor = self.output(hidden)
        return found


def train(
    lengths: Lengths,
    recipe: Recipe,
    watch: Callable[[int], None] = lambda step: None,
    depth: int = DEPTH,
    width: int = WIDTH,
) -> Light:
    """A ranker fitted to all of `lengths`; the same for the same arguments. Raises `ConfigError` if
    there is nothing to rank."""
    torch.manual_seed(recipe.seed)
    lists = Lists.of(lengths, Random(recipe.seed), recipe.mixed, recipe.size)
    net = Net(features.features(lengths.prompts), recipe, depth, width)
    fit(net, lists, recipe, watch)
    return _frozen(net, lists, lengths.prompts)


def ridge(
    lengths: Lengths, recipe: Recipe, watch: Callable[[int], None] = lambda step: None
) -> Light:
    """Ridge regression of log(1 + tokens) on the same inputs, in closed form: a network of one
    number a word and one unit that never rests. Raises `ConfigError`."""
    lists = Lists.of(lengths, Random(recipe.seed), recipe.mixed, recipe.size)
    given = features.features(lengths.prompts)
    net = Net(given, recipe, depth=1, width=1)
    every = lists.every()
    places = torch.tensor([answer.prompt for answer, _ in every])
    weight = torch.tensor([share for _, share in every], dtype=torch.float64)
    tokens = torch.tensor([answer.tokens for answer, _ in every], dtype=torch.float64)
    inputs = _inputs(given, SHAPE_SHARE * (net.shapes - net.mean) / net.scale)
    inputs = inputs.index_select(0, places).coalesce()
    found = _solved(inputs, tokens.log1p()[:, None], weight)[:, 0]
    with torch.no_grad():
        net.embedding.weight.copy_(found[: features.BUCKETS, None])
        net.hidden.weight.copy_(torch.cat([torch.ones(1), SHAPE_SHARE * found[features.BUCKETS :]]))
        net.hidden.bias.fill_(NEVER_REST)
        net.output.weight.fill_(1.0)
    return _frozen(net, lists, lengths.prompts)


def taught(
    lengths: Lengths,
    recipe: Recipe,
    watch: Callable[[int], None] = lambda step: None,
    model: str = TEACHER,
    layers: int = LAYERS,
) -> Light:
    """Kernel ridge regression on states that a transformer has, as far as words tell them: a number
    a word for each of their WAYS main directions, and how near that brings a prompt to those
    trained on. These stand where they would have been told to, had they not been among those that
    taught the words. `watch` is called with the number of each prompt that `model` reads. Raises
    `ConfigError`."""
    lists = Lists.of(lengths, Random(recipe.seed), recipe.mixed, recipe.size)
    every = lists.every(MOST)
    prompts = [lengths.prompts[answer.prompt] for answer, _ in every]
    aims = _main(states(Transformer.pretrained(model, layers), prompts, watch))
    whole = Net(features.features(lengths.prompts), recipe, depth=1, width=1)
    shapes = ((whole.shapes - whole.mean) / whole.scale)[[answer.prompt for answer, _ in every]]
    words = _inputs(features.features(prompts), shapes[:, :0])
    told, parts = torch.empty_like(aims), torch.arange(len(every)) % FOLDS
    for part in range(min(FOLDS, len(every))):
        own, others = (parts == part).nonzero()[:, 0], (parts != part).nonzero()[:, 0]
        found = _solved(words.index_select(0, others).coalesce(), aims[others])
        told[own] = (words.index_select(0, own) @ found.double()).float()
    near = (NEAR / told.square().sum(1).mean().clamp(min=1.0)).sqrt()
    anchors = torch.cat([near * told, SHAPE_NEAR * shapes], 1)
    tokens = torch.tensor([answer.tokens for answer, _ in every])
    share = torch.tensor([share for _, share in every])
    heights = regression(torch.cdist(anchors, anchors).square().neg().exp(), tokens.log1p(), share)
    light = Light(
        embedding=(near * _solved(words, aims)).numpy().astype(np.float16),
        mean=whole.mean.numpy(),
        scale=whole.scale.numpy(),
        hidden=np.zeros((WAYS + features.SHAPE, 0), np.float32),
        bias=np.zeros(0, np.float32),
        output=np.zeros((0, 1), np.float32),
        anchors=anchors.numpy(),
        heights=(heights * anchors.square().sum(1).neg().exp()).numpy(),
    )
    return _calibrated(light, lists, lengths.prompts)


def _main(found: Tensor) -> Tensor:
    """States [P, K] along the WAYS directions in which they differ most: float32 [P, WAYS]."""
    found = ((found - found.mean(0)) / (found.std(0) + 1e-4)).cpu()
    _, ways = torch.linalg.eigh(found.T @ found)
    main: Tensor = found @ ways[:, -WAYS:]
    return main


def _inputs(given: features.Features, shapes: Tensor) -> Tensor:
    """What the hidden layer of a network reads if its words have a number each: sparse float64
    [P, buckets + S], of shapes [P, S]."""
    counts = torch.from_numpy(given.counts)
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    words = counts.rsqrt().double()[rows]
    row, column = torch.ones_like(shapes).nonzero(as_tuple=True)
    places = torch.stack(
        [
            torch.cat([rows, row]),
            torch.cat([torch.from_numpy(given.grams), column + features.BUCKETS]),
        ]
    )
    size = (len(counts), features.BUCKETS + shapes.shape[1])
    values = torch.cat([words, shapes.double().flatten()])
    return torch.sparse_coo_tensor(places, values, size, check_invariants=False)


def _solved(inputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The weights float32 [C, K] of least squared error, weighted [P], from targets [P, K] less
    their mean, plus RIDGE times their own square, by conjugate gradients."""
    across = inputs.t().coalesce()
    weight = torch.ones(len(target), 1) if weight is None else weight[:, None]
    target = target.double() - (weight * target).sum(0) / weight.sum()
    found = torch.zeros(inputs.shape[1], target.shape[1], dtype=torch.float64)
    rest = across @ (weight * target)
    way, size = rest.clone(), rest.square().sum(0)
    for _ in range(ROUNDS):
        turned = across @ (weight * (inputs @ way)) + RIDGE * way
        step = size / (way * turned).sum(0).clamp(min=TINY)  # what is solved stays
        found += step * way
        rest -= step * turned
        before, size = size, rest.square().sum(0)
        way = rest + size / before.clamp(min=TINY) * way
    return found.float()


def combine(parts: Sequence[Light], lengths: Lengths, recipe: Recipe) -> Light:
    """One ranker whose score is the mean of theirs, each in units of its own spread: networks side
    by side are a network. All must have been trained on `lengths`, without classes; only the first
    may remember prompts, and then counts as much as all others."""
    units = [np.ptp(part.scores[8:-8]) for part in parts]
    units[0] /= len(parts) - 1 if len(parts[0].anchors) else 1
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
        output=np.concatenate([p.output / unit for p, unit in zip(parts, units, strict=True)]),
        heights=parts[0].heights / units[0],
    )
    lists = Lists.of(lengths, Random(recipe.seed), recipe.mixed, recipe.size)
    return _calibrated(together, lists, lengths.prompts)


def _frozen(net: Net, lists: Lists, prompts: list[str]) -> Light:
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
    )
    return _calibrated(light, lists, prompts)


def _calibrated(light: Light, lists: Lists, prompts: list[str]) -> Light:
    """With the quantiles of its scores beside those of the lengths, over a sample of lists."""
    sample = [answer for _ in range(200) for answer in lists.draw()]
    scores, _ = light.forward(features.features([prompts[a.prompt] for a in sample]))
    light.scores, light.lengths = quantiles(scores, [a.tokens for a in sample])
    return light
