"""Writes a transformers model as GGUF, with the names, keys and permutation of llama.cpp.

Names come from the `gguf` package, so that ours are checked against theirs.
"""

import math
from pathlib import Path

import gguf
import numpy as np
import transformers

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Halves of each head → pairs: how llama.cpp stores queries and keys of this architecture."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    model: transformers.PreTrainedModel,
    architecture: str,
    path: Path,
    quantisation: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    values: gguf.GGMLQuantizationType | None = None,
) -> None:
    """One file; matrices of type `quantisation`, of `values` those of v, vectors in float32."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_eos_token_id(7)
    writer.add_eot_token_id(5)
    divisors = _rope(writer, config, head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
        if architecture == "gemma3":
            writer.add_sliding_window_pattern(
                [t == "sliding_attention" for t in config.layer_types]
            )
    if cap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(cap)
    _tensors(writer, model, architecture, quantisation, values or quantisation)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(
    writer: gguf.GGUFWriter,
    model: transformers.PreTrainedModel,
    architecture: str,
    quantisation: gguf.GGMLQuantizationType,
    values: gguf.GGMLQuantizationType,
) -> None:
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], model.config.num_hidden_layers)
    heads = {
        "q_proj": model.config.num_attention_heads,
        "k_proj": model.config.num_key_value_heads,
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        value = tensor.float().numpy()
        if architecture == "llama" and (layer := name.split(".")[-2]) in heads:
            value = interleave(value, heads[layer])
        if architecture == "gemma3" and name.endswith("norm.weight"):
            value = value + 1
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert written is not None, name
        kind = gguf.GGMLQuantizationType.F32
        if value.ndim == 2:
            kind = values if ".v_proj." in name else quantisation
        writer.add_tensor(written, gguf.quants.quantize(value, kind), raw_dtype=kind)


def _rope(
    writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig, head_dim: int
) -> np.ndarray | None:
    """Write the rope's keys; its divisors where they are a tensor, as those of Llama 3."""
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "llama3":
        powers = rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * powers)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return (1 / (keep + (1 - keep) / rope["factor"])).astype(np.float32)
    if rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if trained := rope.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(trained)
    return None
