"""The light ranker: what it reads, what it learns, what it keeps, and files it must refuse."""

import json
from dataclasses import replace
from itertools import combinations
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weir.errors import ConfigError
from weir.ranker import features, files, light
from weir.ranker.consensus import consensus
from weir.ranker.kendall import tau_b
from weir.ranker.lengths import Answer, Asked, Lengths, family, fold, read
from weir.ranker.train import CLASSES, HEADS, Recipe, classes, listwise, pairwise
from weir.ranker.train_light import NEVER_REST, RIDGE, SHAPE_SHARE, combine, ridge, train

ASKED = ("name", "what is the colour of", "explain", "write an essay about")  # ever longer answers
RECIPE = Recipe(steps=60, drop=0.1, rate=0.01)
SMALL = {"depth": 8, "width": 16}
TOPICS = [f"{a} {b}" for a in ("red", "old", "far", "wet", "shy") for b in ("cat", "sea", "sun")]


def made(count: int, seed: int = 0) -> Lengths:
    """Prompts whose first words decide how long the answer is, for two models of unlike lengths."""
    random, found = Random(seed), Lengths()
    for place in range(count):
        level = random.randrange(4)
        topic = f"{random.choice(TOPICS)} {random.randrange(10**6)}"
        found.prompts.append(f"{ASKED[level]} {topic}")
        found.sources.append("made")
        for model, base in (("terse", 10), ("wordy", 500)):
            tokens = base * 2**level * random.uniform(0.9, 1.1)
            found.answers.setdefault(Asked("made", model), []).append(Answer(place, tokens))
    return found


@pytest.fixture(scope="module")
def trained() -> light.Light:
    return train(made(300), RECIPE, **SMALL)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    """The path of a small ranker's file, and what is in it."""
    path = tmp_path_factory.mktemp("saved") / "r.npz"
    trained.save(path)
    return path, path.read_bytes()


def naive(x: list[int], y: list[int]) -> float:
    pairs = list(combinations(range(len(x)), 2))
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    free = [sum(s[axis] != 0 for s in signs) for axis in (0, 1)]
    agreed = float(sum(a * b for a, b in signs))
    return agreed / (free[0] * free[1]) ** 0.5 if free[0] and free[1] else 0.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40))
def test_tau_b_is_what_its_definition_counts(pairs):
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    assert tau_b(x, y) == pytest.approx(naive(x, y))


def test_tau_b_of_unequal_lists_is_an_error():
    with pytest.raises(ValueError, match="2 values"):
        tau_b([1, 2], [1])


@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
@settings(deadline=None)
def test_any_text_has_features_and_a_batch_is_its_prompts(prompts):
    together = features.features(prompts)
    assert together.shapes.shape == (len(prompts), features.SHAPE)
    assert np.isfinite(together.shapes).all() and (together.counts > 0).all()
    assert together.grams.min() >= 0 and together.grams.max() < features.BUCKETS
    for place, prompt in enumerate(prompts):
        alone, start = features.features([prompt]), together.starts[place]
        assert (together.grams[start : start + len(alone.grams)] == alone.grams).all()
        assert (together.shapes[place] == alone.shapes[0]).all()


def test_a_huge_prompt_is_read_at_its_ends():
    prompt = "first " + "x " * 10**6 + "last"
    grams = set(features.features([prompt]).grams.tolist())
    assert len(grams) < 50
    assert set(features.features(["first"]).grams.tolist()) & grams


def test_an_order_is_learned_across_models_of_unlike_lengths(trained):
    unseen = made(80, seed=7)
    scores = trained.score(unseen.prompts).tolist()
    for answers in unseen.answers.values():
        assert tau_b([scores[a.prompt] for a in answers], [a.tokens for a in answers]) > 0.6


@pytest.mark.parametrize("head", [name for name in HEADS if name != "listmle"])
def test_every_head_learns(head):
    recipe = replace(RECIPE, head=head)
    known, unseen = made(300), made(80, seed=7)
    if head == "classification":  # of the other model, all lengths are of one class
        known, unseen = known.without(["terse"]), unseen.without(["terse"])
    scores = train(known, recipe, **SMALL).score(unseen.prompts).tolist()
    for answers in unseen.answers.values():
        assert tau_b([scores[a.prompt] for a in answers], [a.tokens for a in answers]) > 0.4


def test_ridge_is_the_closed_form_and_averages_like_a_network(trained):
    known, unseen = made(300), made(80, seed=7)
    fitted = ridge(known, RECIPE)
    scores = combine([trained, fitted], known, RECIPE).score(unseen.prompts).tolist()
    for answers in unseen.answers.values():
        assert tau_b([scores[a.prompt] for a in answers], [a.tokens for a in answers]) > 0.6
    # the same from the normal equations, over the columns that are not empty
    given, lists = features.features(known.prompts), consensus(known).answers[Asked("made", "")]
    inputs = np.zeros((300, features.BUCKETS + features.SHAPE))
    inputs[np.repeat(np.arange(300), given.counts), given.grams] = 1
    inputs /= np.sqrt(given.counts)[:, None]
    inputs[:, features.BUCKETS :] = SHAPE_SHARE * (given.shapes - fitted.mean) / fitted.scale
    used = np.abs(inputs).sum(0) > 0
    x, y = inputs[:, used], np.log1p([a.tokens for a in lists])
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(used.sum()), x.T @ (y - y.mean()))
    assert np.allclose(fitted.forward(given)[0] - NEVER_REST, x @ weights, atol=2e-3)


def test_networks_side_by_side_are_their_mean(trained):
    known, prompts = made(300), made(40, seed=3).prompts
    other = train(known, replace(RECIPE, head="pointwise"), width=8, depth=4)
    both = combine([trained, other], known, RECIPE)
    spread = [float(np.ptp(part.scores[8:-8])) for part in (trained, other)]
    expected = sum(
        part.score(prompts) / s for part, s in zip((trained, other), spread, strict=True)
    )
    assert np.allclose(both.score(prompts), expected, rtol=1e-3, atol=1e-3)
    tokens = both.read(prompts).expected.tolist()
    assert all(5 < value < 5000 for value in tokens) and len(set(tokens)) > 20


def remembering(ranker: light.Light, own: int = 3) -> light.Light:
    """The same, with a few prompts that it remembers by `own` numbers of their words."""
    random = np.random.default_rng(0)
    anchors = random.normal(0, 0.3, (5, own + features.SHAPE)).astype(np.float16)
    heights = random.normal(0, 1, 5).astype(np.float32)
    return replace(ranker, anchors=anchors.astype(np.float32), heights=heights)


def test_prompts_near_a_remembered_one_are_scored_alike(trained, tmp_path):
    prompts, more = made(20, seed=5).prompts, remembering(trained)
    given = features.features(prompts)
    words = np.stack([trained.embedding[features.features([p]).grams].sum(0) for p in prompts])
    near = (words / np.sqrt(given.counts)[:, None])[:, :3]
    near = np.hstack([near, light.SHAPE_NEAR * (given.shapes - trained.mean) / trained.scale])
    apart = np.square(near[:, None] - more.anchors[None]).sum(-1)
    heights = more.heights * np.exp(np.square(more.anchors).sum(1))
    expected = trained.forward(given)[0] + np.exp(-apart) @ heights
    assert np.allclose(more.forward(given)[0], expected, rtol=1e-2, atol=1e-2)
    more.save(tmp_path / "r.npz")
    again = files.load(tmp_path / "r.npz")
    assert np.array_equal(again.read(prompts).expected, more.read(prompts).expected)


def test_what_it_remembers_counts_as_much_as_all_networks(trained):
    known, prompts = made(300), made(40, seed=3).prompts
    silent = replace(trained, output=0 * trained.output)
    parts = [remembering(silent), trained, train(known, replace(RECIPE, seed=1), **SMALL)]
    units = [float(np.ptp(part.scores[8:-8])) for part in parts]
    scored = [part.score(prompts) / unit for part, unit in zip(parts, units, strict=True)]
    expected = 2 * scored[0] + scored[1] + scored[2]
    together = combine(parts, known, RECIPE)
    assert np.allclose(together.score(prompts), expected, rtol=1e-2, atol=1e-2)


def test_training_is_repeatable():
    recipe = Recipe(steps=5)
    one, two = train(made(50), recipe, **SMALL), train(made(50), recipe, **SMALL)
    assert (one.embedding == two.embedding).all() and (one.output == two.output).all()


def test_a_score_becomes_tokens_in_the_same_order(trained):
    prompts = made(40, seed=3).prompts
    scores, tokens = trained.score(prompts).tolist(), trained.read(prompts).expected.tolist()
    ranked = sorted(range(40), key=scores.__getitem__)
    assert [tokens[i] for i in ranked] == sorted(tokens)
    assert all(5 < value < 5000 for value in tokens)


def test_batches_change_nothing(trained):
    prompts = made(20, seed=5).prompts
    alone = [trained.score([prompt])[0] for prompt in prompts]
    together, _ = trained.forward(features.features(prompts))
    assert np.allclose(alone, together, atol=1e-5)


def test_a_list_in_order_has_the_least_loss():
    lengths = torch.tensor([100.0, 50.0, 10.0])
    right, wrong = torch.tensor([2.0, 0.0, -2.0]), torch.tensor([-2.0, 0.0, 2.0])
    for loss in (listwise, pairwise):
        assert loss(right, lengths) < loss(torch.zeros(3), lengths) < loss(wrong, lengths)
    # Plackett-Luce of three equal scores: 1/3 * 1/2 * 1
    assert float(listwise(torch.zeros(3), lengths)) == pytest.approx(np.log(6) / 3)
    logits = torch.full((1, CLASSES), -9.0)
    logits[0, 9] = 9.0
    assert classes(logits, torch.tensor([900.0])) < 1e-3 < classes(logits, torch.tensor([9000.0]))


def test_a_saved_ranker_is_the_same(trained, tmp_path):
    trained.about = "made of nothing"
    trained.save(tmp_path / "r.npz")
    again = files.load(tmp_path / "r.npz")
    prompts = made(10, seed=9).prompts
    assert again.about == trained.about
    assert np.array_equal(again.read(prompts).expected, trained.read(prompts).expected)


def test_files_that_are_no_ranker_are_refused(trained, tmp_path):
    path = tmp_path / "r.npz"
    with pytest.raises(ConfigError, match="cannot be read"):
        files.load(path)
    for content in (b"", b"no archive", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="not a ranker"):
            files.load(path)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(ConfigError, match="not a ranker"):
        files.load(path)


NONE = np.array([np.nan], np.float32)
DAMAGED = {
    "an array missing": {"output": None},
    "one too many": {"more": NONE},
    "no quantiles": {"scores": None},
    "another width": {"bias": np.zeros(3, np.float32)},
    "more remembered than can be told apart": {"anchors": np.zeros((0, 999), np.float32)},
    "less remembered than a shape": {"anchors": np.zeros((0, 3), np.float32)},
    "heights of nothing": {"heights": np.ones(2, np.float32)},
    "text": {"hidden": np.array(["x"])},
    "no dimension": {"embedding": np.float32(1)},
    "not a number": {"bias": NONE},
    "infinite": {"lengths": np.array([1, np.inf], np.float32)},
    "quantiles that fall": {"scores": -np.arange(65.0), "lengths": np.arange(65.0)},
    "no quantile": {"scores": NONE[:0], "lengths": NONE[:0]},
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_arrays_that_are_damaged_are_refused(trained, tmp_path, change):
    path = tmp_path / "r.npz"
    trained.save(path)
    with np.load(path) as kept:
        arrays = {**kept, **change}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ConfigError, match=r"r\.npz: damaged: .") as raised:
        files.load(path)
    assert "\n" not in str(raised.value)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_file_cut_short_or_changed_is_refused_or_harmless(saved, where, change):
    """A changed byte may lie where nobody looks; whatever is read is finite."""
    path, whole = saved
    place = int(where * len(whole))
    changed = bytes([whole[place] ^ change]) + whole[place + 1 :]
    path.write_bytes(whole[:place] + (changed if change else b""))
    try:
        found = files.load(path).read(["write a poem"]).expected.tolist()
    except ConfigError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert np.isfinite(found).all()


def test_a_ranker_of_another_version_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(light, "FORMAT", "weir light ranker 0")
    trained.save(tmp_path / "old.npz")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="train it again"):
        files.load(tmp_path / "old.npz")


def test_prompts_are_split_and_models_held(tmp_path):
    data = made(200)
    known, tests = data.without(["wordy"]).split()
    (trained_on,), (tested_on,) = known.answers.values(), tests.answers.values()
    assert {asked.model for asked in known.answers} == {"terse"}
    assert {a.prompt for a in trained_on} | {a.prompt for a in tested_on} == set(range(200))
    assert {fold(data.prompts[a.prompt]) for a in tested_on} == {0}
    assert {fold(data.prompts[a.prompt]) for a in trained_on} == {1, 2, 3, 4}


def test_versions_of_a_model_are_one_family():
    assert family("gpt-4-0613") == family("gpt-4 (2023)") == family("gpt-4-1106-preview") == "gpt-4"
    assert family("Meta-Llama-3_1-8B") == family("Meta-Llama-3.1-8B@somewhere")
    assert family("gpt-4o-2024-05-13") == "gpt-4o" != family("gpt-4o-mini-2024-07-18")


def test_both_forms_of_data_are_read(tmp_path):
    rows = [{"prompt_id": "a-1", "source": "a", "prompt": "hi"}]
    rows += [{"prompt_id": "b-1", "source": "b", "prompt": "no"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = "prompt_id,model,output_tokens\na-1,m,10\na-1,m,20\nb-1,m,5\n"
    (tmp_path / "output_lengths.csv").write_text(table)
    data = read(tmp_path, exclude=["b"])
    assert (data.prompts, data.answers) == (["hi"], {Asked("a", "m"): [Answer(0, 15.0)]})
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "hi", "output_tokens": 7}\n')
    assert read(lines).answers == {Asked("", ""): [Answer(0, 7.0)]}


def test_data_that_makes_no_sense_is_refused(tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text("")
    with pytest.raises(ConfigError, match="no lengths"):
        read(lines)
    for row in ('{"prompt": "hi"}', '{"prompt": [1], "output_tokens": 3}', '{"output_tokens": 3}'):
        lines.write_text(row)
        with pytest.raises(ConfigError, match="line 1"):
            read(lines)
    lines.write_text('{"prompt": "hi", "output_tokens": 7}\n')
    with pytest.raises(ConfigError, match="nothing to rank"):
        train(read(lines), Recipe(steps=1))


class Watched(np.ndarray):
    """Refuses what NumPy leaves to its BLAS, and so does what is made of it."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        assert ufunc is not np.matmul
        plain = [x.view(np.ndarray) if isinstance(x, Watched) else x for x in inputs]
        found = getattr(ufunc, method)(*plain, **options)
        return found.view(Watched) if isinstance(found, np.ndarray) else found

    def __array_function__(self, function, types, inputs, options):
        assert function not in (np.dot, np.tensordot, np.inner)
        return super().__array_function__(function, types, inputs, options)


def test_a_prediction_keeps_to_its_own_thread():
    """Threads of NumPy's BLAS would spin on the cores that an engine computes with."""
    ranker = files.shipped()
    want = ranker.score(["Name three rivers."])
    for name in ("embedding", "mean", "scale", "hidden", "bias", "output", "anchors", "heights"):
        setattr(ranker, name, getattr(ranker, name).view(Watched))
    assert np.array_equal(ranker.score(["Name three rivers."]), want)
    with pytest.raises(AssertionError):
        np.ones((1, len(ranker.hidden))) @ ranker.hidden
