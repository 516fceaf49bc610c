"""A model whose layers are read from disk as they are needed is the model that was saved."""

import pytest
import torch

from tests.models.families import FAMILIES, logits, prompt
from weir.models.load import load
from weir.runtime.streamed import Streamed


@pytest.mark.parametrize("family", ["llama3", "qwen2", "opt", "gemma3"])
def test_a_loaded_model_gives_the_same_logits_from_disk(tmp_path, family):
    made = next(name for name in FAMILIES if name.startswith(family))
    FAMILIES[made].make().save_pretrained(tmp_path / "model")
    for dtype in (torch.float32, torch.bfloat16):
        whole = load(tmp_path / "model", dtype=dtype)
        spilled = load(
            tmp_path / "model",
            dtype=dtype,
            layer_store=lambda n: Streamed(
                n, (0.0, 0.0, 1.0), torch.device("cpu"), tmp_path / "spill"
            ),
        )
        assert spilled.layers.spill.size > 0
        for _ in range(2):
            assert torch.equal(logits(spilled, prompt()), logits(whole, prompt()))
