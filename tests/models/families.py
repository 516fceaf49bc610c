"""Two-layer random checkpoints written by transformers, and the dense forward they are held to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from weir.models.base import Model
from weir.ops.attention import attend, write
from weir.ops.batch import Batch, Place

PAGE = 4
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500000.0,
}


@dataclass(frozen=True)
class Family:
    """A config class, what it is made with beyond SIZES, and its name in GGUF, if it has one."""

    config: str
    model: str
    options: dict[str, Any]
    gguf: str | None = None

    def make(self) -> transformers.PreTrainedModel:
        config = getattr(transformers, self.config)(**SIZES | self.options)
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases as well, or they go untested
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.2))
        return model


def _llama(**options: Any) -> Family:
    return Family("LlamaConfig", "LlamaForCausalLM", options, "llama")


def _opt(**options: Any) -> Family:
    return Family("OPTConfig", "OPTForCausalLM", {"ffn_dim": 96} | options)


FAMILIES: dict[str, Family] = {
    "llama2": _llama(num_key_value_heads=4),
    "llama3": _llama(rope_parameters=LLAMA3),
    "llama-tied": _llama(tie_word_embeddings=True, head_dim=32),
    "llama-biased": _llama(attention_bias=True, mlp_bias=True),
    "llama-linear": _llama(rope_parameters={"rope_type": "linear", "factor": 4.0}),
    "llama-yarn": _llama(
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 10000.0,
        }
    ),
    "mistral": Family("MistralConfig", "MistralForCausalLM", {"sliding_window": 8}, "llama"),
    "qwen2": Family(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen2-tied": Family("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}, "qwen2"),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}, "qwen3"),
    "opt": _opt(),
    "opt-350m": _opt(do_layer_norm_before=False, word_embed_proj_dim=32),
    "opt-plain": _opt(enable_bias=False, tie_word_embeddings=False),
    "gemma3": Family(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 30.0,
        },
        "gemma3",
    ),
    "gemma3-linear": Family(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 32,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
}


def prompt(length: int = 40, vocab: int = SIZES["vocab_size"]) -> Tensor:
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def expected(model: transformers.PreTrainedModel, ids: Tensor, last: int = 0) -> Tensor:
    """The logits [T, V] that transformers computes, or those of the `last` positions."""
    return model(ids[None], use_cache=False, logits_to_keep=last).logits[0].float()


@torch.inference_mode()
def logits(
    model: Model, ids: Tensor, last: int = 0, cut: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The same from our model and paged attention, on the device of `ids`; keys and values are of
    `dtype`. With a `cut` the tokens from there on come in a step of their own, and only their
    logits are returned."""
    spec, device = model.spec, ids.device
    pages = -(-len(ids) // PAGE)
    table = torch.randperm(pages, generator=torch.Generator().manual_seed(2)).int().to(device)
    shape = (pages, 2, spec.kv_heads, PAGE, spec.head_dim)
    store = [torch.zeros(shape, dtype=dtype, device=device) for _ in model.layers]
    for start, end in ((0, cut), (cut, len(ids))) if cut else ((0, len(ids)),):
        pos = torch.arange(start, end, device=device)
        batch = Batch(
            q_start=torch.tensor([0, end - start], dtype=torch.int32, device=device),
            kv_len=torch.tensor([end], dtype=torch.int32, device=device),
            table=table[None],
            slots=table[pos // PAGE].long() * PAGE + pos % PAGE,
        )
        x = model.embed(ids[start:end], pos)
        for i, (layer, kv) in enumerate(zip(model.layers, store, strict=True)):
            q, k, v = model.qkv(layer, x, pos, Place(kv, batch.slots) if ids.is_cuda else None)
            if k is not None:
                write(kv, k, v, batch.slots)
            o, _ = attend(q, kv, batch, spec.attention[i])
            x = model.out(layer, x, o)
    return model.logits(x[-last:])


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def save(family: str, folder: Path, **options: Any) -> transformers.PreTrainedModel:
    model = FAMILIES[family].make()
    model.save_pretrained(folder, **options)
    return model
