"""Quantised checkpoints, as their makers write them, against the weights that they stand for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.families import Family, error, expected, logits, prompt, save
from weir.errors import ConfigError
from weir.models.base import rebuilt, tensors
from weir.models.load import load
from weir.ops.linear import Codec, linear, takes_codes
from weir.ops.quantize import to_codes, to_fp8

CPU = torch.device("cpu")
needs_bytes = pytest.mark.skipif(not takes_codes(CPU, 4, 64), reason="no byte products")
AWQ = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each nibble, lowest first


def words(codes: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """uint8 [R, 8 m] → int32 [R, m]: each nibble i holds the column `order[i]` of its eight."""
    eights = codes.view(len(codes), -1, 8).long()
    packed = sum(eights[..., column] << 4 * i for i, column in enumerate(order))
    return (packed - (packed >> 31 << 32)).int()


def quantised(family: str, folder: Path, method: dict[str, object], change) -> object:
    """A checkpoint whose layers' linears `change` replaced; the model of what they stand for."""
    theirs = save(family, folder)
    found = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".layers." in name and name.endswith("proj.weight"):
                parts, means = change(found.pop(name))
                parameter.copy_(means)
                layer = name.removesuffix(".weight")
                found |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
    save_file({k: v.contiguous() for k, v in found.items()}, folder / "model.safetensors")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": method}))
    return theirs


def awq(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    codes, scale, zero = _whole(weight)
    parts = {"qweight": words(codes.t().contiguous(), AWQ), "qzeros": words(zero.t(), AWQ)}
    return parts | {"scales": scale.t()}, _means(codes, scale, zero)


def gptq(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    codes, scale, zero = _whole(weight)
    order = torch.arange(weight.shape[1]) // 32
    parts = {"qweight": words(codes).t(), "qzeros": words(zero.t() - 1), "g_idx": order.int()}
    return parts | {"scales": scale.t()}, _means(codes, scale, zero)


def fp8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    found = to_fp8(weight)
    parts = {"weight": found.values, "weight_scale": found.scales[:, None]}
    return parts, found.floats()


def _whole(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 [N, K], scales float16 and zeros uint8 [N, K / 32], the zeros whole from 1."""
    pairs = to_codes(weight, 32).pairs.float()
    zero = (-pairs[..., 1] / pairs[..., 0]).round().clamp(1, 15)
    scale = pairs[..., 0].half()
    groups = weight.view(*scale.shape, 32) / scale.float().unsqueeze(-1)
    codes = (groups + zero.unsqueeze(-1)).round().clamp(0, 15)
    return codes.to(torch.uint8).view(weight.shape), scale, zero.to(torch.uint8)


def _means(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    groups = codes.view(*scale.shape, 32).float() - zero.float().unsqueeze(-1)
    return (groups * scale.float().unsqueeze(-1)).view(codes.shape)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, awq),
        ({"quant_method": "gptq", "bits": 4, "desc_act": False}, gptq),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, fp8),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, fp8),
    ],
    ids=["awq", "gptq", "fp8", "compressed-tensors"],
)
@pytest.mark.parametrize("family", ["llama3", "qwen2"])
def test_a_checkpoint_is_the_model_of_its_weights(family, method, change, tmp_path, caplog):
    theirs = quantised(family, tmp_path, method, change)
    want = expected(theirs, prompt())
    ours = load(tmp_path, dtype=torch.float32, quantization="none")
    assert error(logits(ours, prompt()), want) < 8e-3  # pairs are float16
    kept = load(tmp_path)
    codes = change is not fp8 and takes_codes(CPU, 4, 64)
    assert (kept.layers[0].down.codec is Codec.CODES4) == codes
    assert ("unpacked" in caplog.text) == (not codes)
    assert error(logits(kept, prompt()), want) < 0.05  # inputs are rounded
    stored = method["quant_method"]
    if stored != "fp8":  # which asks for them to be made
        assert load(tmp_path, quantization=stored).stored == kept.stored
    others = {"int4", "awq", "gguf", "compressed-tensors"} - {stored}
    for other in others:
        with pytest.raises(ConfigError, match=f"{other}: .* quantised as {stored}: leave"):
            load(tmp_path, quantization=other)


def test_gptq_with_desc_act_is_refused_by_name(tmp_path):
    quantised("llama3", tmp_path, {"quant_method": "gptq", "bits": 4}, gptq)
    found = load_file(tmp_path / "model.safetensors")
    name = next(name for name in found if name.endswith("g_idx"))
    found[name] = found[name].flip(0)
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="desc_act"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' are not supported; supported: awq"),
        ({"quant_method": "awq", "bits": 8}, "bits 8 is not supported, only 4"),
        ({"quant_method": "gptq", "desc_act": True}, "desc_act True is not supported"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "weight_block_size"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "pack-quantized"),
        ({"bits": 4}, "quant_method"),
        ([], "quantization_config"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(method, says, tmp_path):
    save("llama2", tmp_path)
    file = tmp_path / "config.json"
    method = method or ["awq"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": method}))
    with pytest.raises(ConfigError, match=says):
        load(tmp_path)


@needs_bytes
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_four_bits_at_load(kind, tmp_path):
    """Groups of 64 on the way in, of 32 in the CPU's kernel: the weights are those of FlexGen."""
    theirs = Family(f"{kind}Config", f"{kind}ForCausalLM", {"intermediate_size": 128}).make()
    theirs.save_pretrained(tmp_path)
    plain = expected(theirs, prompt())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".layers." in name and parameter.dim() == 2:
                parameter.copy_(to_codes(parameter).floats())
    want = expected(theirs, prompt())
    ours = load(tmp_path, dtype=torch.float32, quantization="int4")
    assert ours.stored == "float32 and codes4"
    assert error(logits(ours, prompt()), want) < 0.1 < error(plain, want)
    layer = ours.layers[0]
    moved = rebuilt(layer, (tensor.clone() for tensor in tensors(layer)))
    x = torch.randn(3, 128)
    assert torch.equal(linear(x, moved.down), linear(x, layer.down))


@needs_bytes
def test_widths_that_are_no_groups_are_named(tmp_path):
    save("llama3", tmp_path)
    with pytest.raises(ConfigError, match=r"down_proj has 96 inputs, which are no groups of 64"):
        load(tmp_path, quantization="int4")


def test_fp8_on_a_cpu_is_one_sentence(tmp_path):
    save("llama2", tmp_path)
    with pytest.raises(ConfigError, match=r"compute capability 8\.9.* this is a CPU: use --quant"):
        load(tmp_path, quantization="fp8")
    with pytest.raises(ConfigError, match=r"awq: .* are not quantised: leave --quantization at"):
        load(tmp_path, quantization="awq")
    with pytest.raises(ConfigError, match="'int3' is unknown; use one of auto, none, fp8, int4"):
        load(tmp_path, quantization="int3")
