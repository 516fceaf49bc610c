"""What a step's activations take at their peak, on tensors that have no data."""

import weakref
from types import SimpleNamespace
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weir.cost.machine import find
from weir.cost.offload import Job, Offload, predict
from weir.cost.search import CPU, GPU
from weir.models.opt import OPT
from weir.models.weights import Checkpoint, Weights
from weir.runtime.attention import Pending
from weir.runtime.forward import forward
from weir.sim.shapes import shape

META = torch.device("meta")
TOKENS = 1024
WHOLE = shape("opt-6.7b")
SPEC = replace(WHOLE, layers=3, attention=WHOLE.attention[:3])


class Nothing(Checkpoint):
    device, shapes = META, OPT.tensors(SPEC)

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        pass


class Alive(TorchDispatchMode):
    """Adds up the bytes of what was made and is not yet dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(x, Tensor) and (key := x.untyped_storage()._cdata) not in self.sizes:
                self.sizes[key] = x.untyped_storage().nbytes()
                weakref.finalize(x.untyped_storage(), self.sizes.pop, key)
        self.most = max(self.most, sum(self.sizes.values()))
        return made


class Attention:
    """Gives what attention on the lane's own device does."""

    def place(self, layer: int, lane: Any) -> None:
        pass

    def start(self, layer: int, lane: Any, q: Tensor, k: Tensor, v: Tensor) -> Pending:
        result = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        part: Any = SimpleNamespace(queries=None, away=False)
        return Pending(q.shape, q.dtype, q.device, [(part, lambda result=result: result)])


def test_a_layer_holds_little_more_than_its_mlp_and_what_is_priced() -> None:
    with Alive() as alive, torch.inference_mode():
        with Weights(Nothing(), torch.bfloat16, META, 1) as weights:
            model = OPT(SPEC, weights)
        ids = torch.empty(TOKENS, dtype=torch.int64, device=META)
        before = sum(alive.sizes.values())
        lane: Any = SimpleNamespace(ids=ids, pos=ids, keep=ids[:1], kept=1)
        assert forward(model, model.layers, Attention(), [lane])[0].shape == (1, SPEC.hidden)
    row = 2 * SPEC.hidden
    most = (alive.most - before) / TOKENS
    # what comes in, normed, and widened; then what comes in, is wide, and comes out
    assert 6 * row <= most < 6.1 * row

    def priced(requests: int) -> float:
        placed = Offload(batch=requests, batches=1, weights=CPU, cache=CPU, hidden=GPU)
        said = predict(SPEC, Job(prompt=TOKENS, output=1), find("h200"), placed)
        return said.memory["GPU memory"]

    assert most <= (priced(2) - priced(1)) / TOKENS
