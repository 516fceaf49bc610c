"""The embedded models against transformers' own classes, given the same dequantised weights."""

import time

import gguf
import numpy as np
import pytest
import torch
import transformers

from tests.embedded import find
from tests.models.families import error, expected, logits
from weir.gguf import GGUF
from weir.models.load import load

PROMPTS = [
    [504, 3575, 282, 4649, 314],
    [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018],
    list(range(1000, 1700, 11)),
]
LAST = 5  # positions compared; a vocabulary has 262,144
LONG = list(range(2, 1202, 2))  # past the sliding window of Gemma


def filled(config: transformers.PreTrainedConfig, file: GGUF, arch: gguf.MODEL_ARCH):
    """transformers' model with the weights of `file`, unpacked and named by the gguf package."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    state = {}
    for name in model.state_dict():
        if name == "lm_head.weight":
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        info = file.tensors[written]
        raw = np.frombuffer(file.data(written), np.uint8).reshape(info.shape[0], -1)
        value = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(info.type))
        value = value.reshape(info.shape)
        if arch == gguf.MODEL_ARCH.LLAMA and (layer := name.split(".")[-2]) in heads:
            pairs = value.reshape(heads[layer], -1, 2, value.shape[-1])
            value = pairs.swapaxes(1, 2).reshape(value.shape)
        if arch == gguf.MODEL_ARCH.GEMMA3 and name.endswith("norm.weight"):
            value = value - 1
        state[name] = torch.from_numpy(np.array(value, np.float32))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(state)
    return model.float().eval()


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG], ids=len)
def test_smollm2(prompt, smollm2):
    ours, theirs = smollm2
    ids = torch.tensor(prompt)
    assert error(logits(ours, ids, LAST), expected(theirs, ids, LAST)) < 1e-4


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG], ids=len)
def test_gemma3(prompt, gemma3):
    ours, theirs = gemma3
    ids = torch.tensor(prompt)
    assert error(logits(ours, ids, LAST), expected(theirs, ids, LAST)) < 1e-4


@pytest.mark.slow  # of what an idle machine takes
def test_smollm2_is_ready_soon():
    path = find()
    load(path)  # brings the file into memory
    begin = time.perf_counter()
    load(path)
    assert time.perf_counter() - begin < 3.0  # a third of it on two idle cores


@pytest.fixture(scope="module")
def smollm2():
    path = find()
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    theirs = filled(config, GGUF.open(path), gguf.MODEL_ARCH.LLAMA)
    return load(path, dtype=torch.float32), theirs


@pytest.fixture(scope="module")
def gemma3():
    path = find("gemma3-270m")
    config = transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=32768,
        query_pre_attn_scalar=256,
        sliding_window=512,
    )
    theirs = filled(config, GGUF.open(path), gguf.MODEL_ARCH.GEMMA3)
    return load(path, dtype=torch.float32), theirs
