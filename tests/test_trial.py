"""Steps of a model are timed apart: what its layers take, attention, and the rest."""

import torch

from tests.embedded import find
from weir.cost.machine import processor
from weir.cost.work import layer_weights
from weir.models.base import tensors
from weir.models.load import load
from weir.models.shape import read_spec
from weir.trial import ROWS, TOKENS, timed

CPU, KV = torch.device("cpu"), torch.bfloat16


def test_a_model_is_timed_by_its_first_layers(monkeypatch) -> None:
    monkeypatch.setattr("weir.trial.COLD", 3 * 3538944)
    monkeypatch.setattr("weir.trial.REPEATS", 1)
    path = find()
    model = load(path, layers=3)
    assert len(model.layers) == len(model.spec.attention) == len(model.spec.rope) == 3
    spec = read_spec(path)
    found = timed(processor(), spec, lambda n: load(path, layers=n), CPU, KV)
    held = sum(tensor.nbytes for tensor in tensors(model.layers[0]))
    assert found.layer_bytes == held > layer_weights(model.spec) / 2
    assert [rows for rows, _ in found.layer] == [*ROWS, *TOKENS]
    assert [rows for rows, _ in found.rest] == [*ROWS]
    seconds = [*found.layer, *found.rest]
    assert all(value > 0 for _, value in seconds)
    assert found.gpu_cache > 0 and found.prompt_attention > 0
    one = timed(processor(), load(path, layers=1).spec, lambda n: load(path, layers=n), CPU, KV)
    assert all(value > 0 for _, value in [*one.layer, *one.rest])
