"""Every family gives the logits of transformers, from safetensors and from GGUF."""

import gguf
import pytest
import torch

from tests.models.families import FAMILIES, error, expected, logits, prompt, save
from tests.models.write_gguf import write_gguf
from weir.models.base import rebuilt, tensors
from weir.models.load import load
from weir.ops.linear import linear, takes_codes

FLOAT32 = 1e-4
IN_GGUF = [name for name, family in FAMILIES.items() if family.gguf]


@pytest.mark.parametrize("family", FAMILIES)
def test_safetensors(family, tmp_path):
    theirs = save(family, tmp_path)
    ours = load(tmp_path, dtype=torch.float32)
    assert error(logits(ours, prompt()), expected(theirs, prompt())) < FLOAT32


@pytest.mark.parametrize("family", IN_GGUF)
def test_gguf(family, tmp_path):
    theirs = FAMILIES[family].make()
    write_gguf(theirs, FAMILIES[family].gguf, tmp_path / "m.gguf")
    ours = load(tmp_path / "m.gguf", dtype=torch.float32)
    assert error(logits(ours, prompt()), expected(theirs, prompt())) < FLOAT32
    assert ours.spec.eos == [7, 5]


@pytest.mark.parametrize("family", ["llama3", "qwen2-tied", "gemma3"])
def test_quantised_gguf_is_the_model_of_its_dequantised_weights(family, tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    theirs = FAMILIES[family].make()
    write_gguf(theirs, FAMILIES[family].gguf, tmp_path / "m.gguf", kind)
    ours = load(tmp_path / "m.gguf", dtype=torch.float32)
    with torch.no_grad():  # a block is 32 values of a row, so the order of rows does not matter
        for parameter in theirs.parameters():
            if parameter.dim() == 2:
                packed = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    assert error(logits(ours, prompt()), expected(theirs, prompt())) < FLOAT32


@pytest.mark.parametrize("family", ["llama3", "qwen2-tied"])  # without and with biases
def test_types_of_a_gguf_may_differ_within_a_layer(family, tmp_path):
    kinds = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
    architecture = FAMILIES[family].gguf
    write_gguf(FAMILIES[family].make(), architecture, tmp_path / "m.gguf", *kinds)
    plain, ours = load(tmp_path / "m.gguf", dtype=torch.float32), load(tmp_path / "m.gguf")
    layer = ours.layers[0]
    x = torch.randn(3, layer.qkv.k)
    got = linear(x, layer.qkv)
    assert error(got, linear(x, plain.layers[0].qkv)) < 0.01  # inputs are rounded
    if not takes_codes(torch.device("cpu"), 4, 64):
        return
    assert ours.stored == "symmetric4 and symmetric8"
    moved = rebuilt(layer, (tensor.clone() for tensor in tensors(layer)))
    assert len(moved.qkv.parts) == 2 and torch.equal(linear(x, moved.qkv), got)


def test_the_windows_and_scalings_tested_here_matter(tmp_path):
    """Guards the tests above: without its window or scaling a model gives other logits."""
    for family, key in (("mistral", "sliding_window"), ("llama3", "rope_parameters")):
        model = FAMILIES[family].make()
        plain = type(model)(type(model.config)(**model.config.to_dict() | {key: None})).eval()
        plain.load_state_dict(model.state_dict())
        assert error(expected(plain, prompt()), expected(model, prompt())) > 100 * FLOAT32


@pytest.mark.parametrize("family", ["llama3", "llama-tied", "opt-350m"])
def test_sharded(family, tmp_path):
    theirs = save(family, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = load(tmp_path, dtype=torch.float32, threads=3)
    assert error(logits(ours, prompt()), expected(theirs, prompt())) < FLOAT32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights(dtype, tmp_path):
    theirs = save("qwen3", tmp_path)
    ours = load(tmp_path, dtype=dtype)
    if ours.embedding.record is None:  # packed for a CPU, float16 becomes float32
        assert ours.embedding.weight.dtype == dtype
    got = logits(ours, prompt())
    assert got.dtype == torch.float32
    assert error(got, expected(theirs.to(dtype), prompt())) < 0.05


def test_hidden_is_the_final_state(tmp_path):
    for family in ("llama2", "gemma3", "opt-350m"):
        theirs = save(family, tmp_path / family)
        ours = load(tmp_path / family, dtype=torch.float32)
        head = theirs.get_output_embeddings().weight
        states = torch.randn(3, ours.spec.hidden)
        with torch.inference_mode():
            want = ours.hidden(states) @ head.T
            if cap := ours.spec.logit_softcap:
                want = torch.tanh(want / cap) * cap
            assert error(ours.logits(states), want) < FLOAT32
