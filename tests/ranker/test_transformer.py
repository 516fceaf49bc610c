"""The transformer behind the ranker's interface: its layers are the model's, and it learns.

Skipped unless the embedded SmolLM2 is here (`weir pull`).
"""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.embedded import find
from tests.ranker.test_light import made
from weir.errors import ConfigError
from weir.models.load import load, opened
from weir.ranker import files, train_light, transformer
from weir.ranker.adapt import Adapted
from weir.ranker.backbone import NARROW, RIDGE, Backbone, Kernel, scaled
from weir.ranker.features import SHAPE
from weir.ranker.kendall import tau_b
from weir.ranker.log import Answered
from weir.ranker.train_light import WAYS, combine, taught
from weir.ranker.train_transformer import RECIPE, ridge, train
from weir.ranker.transformer import HEAD, TAIL, Transformer

LEARN = replace(RECIPE, steps=12, lists=1, size=24, mixed=0.0, rate=1e-3, head="pairwise")


@pytest.fixture(scope="module")
def model() -> Path:
    return find()


@pytest.fixture(scope="module")
def trained(model) -> Transformer:
    return train(made(60), LEARN, model=str(model), layers=2)


@torch.no_grad()
def test_its_layers_are_those_of_the_model(model):
    spec, checkpoint = opened(model)
    backbone, engine = Backbone(spec, 3, 64), load(model, dtype=torch.float32)
    backbone.read(checkpoint)
    ids, pos = torch.arange(1000, 1700, 13), torch.arange(54)
    x, y = engine.embed(ids, pos), backbone.embedding(ids)[None]
    for theirs, ours in zip(engine.layers, backbone.layers, strict=False):
        q, k, v = (t.transpose(0, 1)[None] for t in engine.qkv(theirs, x, pos))
        o = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = engine.out(theirs, x, o[0].transpose(0, 1))
        y = ours(y, backbone.get_buffer("table")[:54])
    assert float((y[0] - x).norm() / x.norm()) < 1e-4


def test_a_batch_is_its_prompts(trained):
    prompts = ["hi", "what is the colour of the sea", "x " * 2000, "", "é\ud800"]
    together = trained.score(prompts)
    alone = [trained.score([prompt])[0] for prompt in prompts]
    assert np.allclose(together, alone, atol=0.05 * np.ptp(together) + 1e-3)  # in bfloat16
    assert trained.score([]).shape == (0,)
    assert len(trained.tokens("x " * 2000)) == HEAD + TAIL


def test_it_learns_and_is_kept(trained, tmp_path):
    unseen = made(60, seed=7)
    tokens = trained.read(unseen.prompts).expected
    for answers in unseen.answers.values():
        assert tau_b([tokens[a.prompt] for a in answers], [a.tokens for a in answers]) > 0.5
    trained.about = "made of nothing"
    trained.save(tmp_path / "t.npz")
    again = files.load(tmp_path / "t.npz")
    assert again.about == trained.about
    assert tau_b(again.read(unseen.prompts).expected, tokens) > 0.9  # weights are kept in 16 bits


@pytest.fixture(scope="module")
def frozen(model) -> Transformer:
    return ridge(made(60), model=str(model), layers=2)


def test_frozen_layers_rank_too_and_only_the_head_is_kept(frozen, tmp_path):
    unseen, path = made(60, seed=7), tmp_path / "t.npz"
    tokens = frozen.read(unseen.prompts).expected
    for answers in unseen.answers.values():
        assert tau_b([tokens[a.prompt] for a in answers], [a.tokens for a in answers]) > 0.5
    frozen.save(path)
    with np.load(path) as kept:
        assert not [name for name in kept if "layers." in name or "embedding" in name]
        arrays = dict(kept)
    assert tau_b(files.load(path).read(unseen.prompts).expected, tokens) > 0.9
    for name in ("weight.head.mean", "weight.head.anchors"):
        np.savez(path, **arrays | {name: arrays[name][:-1]})
        with pytest.raises(ConfigError, match=r"damaged: .*head"):
            files.load(path)


def test_the_light_one_is_taught_what_the_layers_see(model, tmp_path):
    known, unseen = made(120), made(60, seed=7)
    read: list[int] = []
    ranker = taught(known, RECIPE, read.append, str(model), 2)
    assert read == list(range(120)) and ranker.anchors.shape == (120, WAYS + SHAPE)
    both = combine([ranker, train_light.ridge(known, RECIPE)], known, RECIPE)
    both.save(tmp_path / "l.npz")
    for one in (ranker, files.load(tmp_path / "l.npz")):
        tokens = one.read(unseen.prompts).expected
        for answers in unseen.answers.values():
            assert tau_b([tokens[a.prompt] for a in answers], [a.tokens for a in answers]) > 0.5
    few = taught(made(2), RECIPE, read.append, str(model), 1)
    assert np.isfinite(few.read(unseen.prompts).expected).all()


@torch.no_grad()
def test_any_transformer_learns_from_answers_where_its_own_states_lie(frozen, trained):
    """Answers turn out the other way round. What it was fitted with is found again in what it
    reads, so that prompts are as alike to one part as to the other."""
    known, unseen = made(128, seed=3), made(60, seed=7)
    told = [
        Answered(known.prompts[a.prompt], 9e3 / a.tokens) for a in known.answers["made", "terse"]
    ]
    for ranker in (frozen, trained):
        adapted = Adapted(ranker)
        adapted.learn(told)
        tokens = adapted.predict(unseen.prompts)
        for answers in unseen.answers.values():
            assert tau_b([tokens[a.prompt] for a in answers], [a.tokens for a in answers]) < -0.5
    states, kernel = torch.from_numpy(frozen.read(unseen.prompts).states), frozen.backbone.head
    apart = torch.cdist(states, scaled(kernel.anchors.cpu()))
    scores = (apart.square().neg().exp() @ kernel.weight.cpu())[:, 0]
    assert np.allclose(scores.numpy(), frozen.score(unseen.prompts), atol=1e-3)


@torch.no_grad()
def test_the_kernel_is_ridge_regression_in_its_own_space():
    """With every weight alike it is the textbook's formula; whoever counts more is met closer."""
    torch.manual_seed(0)
    x, y, share = torch.randn(40, 6), torch.randn(40), torch.ones(40)
    kernel = Kernel.fitted(x, y, share)
    z = ((x - x.mean(0)) / (x.std(0) + 1e-4)).double()
    like = torch.exp(-NARROW / 6 * (z[:, None] - z[None]).square().sum(-1))
    expected = like @ torch.linalg.solve(like + RIDGE * torch.eye(40), (y - y.mean()).double())
    assert torch.allclose(kernel(x)[:, 0].double(), expected, atol=1e-4)
    share[0] = 20.0
    error = y - (share * y).sum() / share.sum()
    closer = Kernel.fitted(x, y, share)(x)[:, 0]
    assert abs(closer[0] - error[0]) < 0.2 * abs(expected[0] - (y - y.mean())[0])


def test_files_that_are_damaged_are_refused(trained, tmp_path, monkeypatch):
    path = tmp_path / "t.npz"
    trained.save(path)
    with np.load(path) as kept:
        arrays = dict(kept)
    for name, value, said in (
        ("weight.head.weight", None, "damaged"),
        ("layers", 3, "damaged: .*layers.2"),
        ("weight.norm.weight", 1.0, "damaged: .*norm.weight"),
        ("weight.norm.weight", np.full(1152, np.nan), "not a number"),
        ("lengths", np.ones(3), "damaged: scores and lengths"),
        ("model", "no-such-model", "no-such-model"),
        ("sample", arrays["sample"][:-1], "trained on another"),
        ("sample", arrays["sample"][::-1], "trained on another"),
    ):
        wrong = {k: v for k, v in arrays.items() if k != name or value is not None}
        np.savez(path, **wrong | ({name: value} if value is not None else {}))
        with pytest.raises(ConfigError, match=said) as raised:
            files.load(path)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(transformer, "FORMAT", "weir transformer ranker 9")
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match="train it again"):
        files.load(path)


def test_a_model_that_cannot_be_one_is_refused(model):
    with pytest.raises(ConfigError, match="from 1 to the model's 30"):
        Transformer.pretrained(str(model), 31)
    spec, _ = opened(model)
    with pytest.raises(ConfigError, match="take a Llama"):
        Backbone(msgspec.structs.replace(spec, architecture="opt"), 1, 8)
