"""What a configuration means, in every dialect, and what is said of one that cannot be served."""

import json
import math

import msgspec
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.families import FAMILIES, LLAMA3, SIZES
from tests.models.write_gguf import write_gguf
from weir.errors import ConfigError
from weir.gguf import GGUF
from weir.models.config import CONFIGS, from_config
from weir.models.metadata import from_gguf
from weir.models.shape import read_spec, recommended
from weir.params import SamplingParams
from weir.spec import Spec

LLAMA = SIZES | {"model_type": "llama"}
QWEN = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}


def config(kind: str, **options: object) -> dict[str, object]:
    return SIZES | {"model_type": kind} | options


def test_old_and_new_dialects_agree():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    new = {"rope_type": "llama3", "rope_theta": 500000.0, **scaling}
    old = {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", **scaling}}
    got = from_config(LLAMA | old | {"torch_dtype": "bfloat16"})
    assert got == from_config(LLAMA | {"rope_parameters": new, "dtype": "bfloat16"})
    assert got.rope[0].theta == 500000.0
    assert got.rope[0].scaling["rope_type"] == "llama3"


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.gguf])
def test_gguf_and_config_give_one_spec(family, tmp_path):
    model = FAMILIES[family].make()
    model.config.save_pretrained(tmp_path)
    write_gguf(model, FAMILIES[family].gguf, tmp_path / "m.gguf")
    ours, theirs = read_spec(tmp_path), read_spec(tmp_path / "m.gguf")
    same = {"vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "context", "tied"}
    same |= {"activation", "attention", "qkv_bias", "out_bias", "mlp_bias", "qk_norm"}
    same |= {"embed_scale", "logit_softcap"}
    for field in same:
        assert getattr(ours, field) == getattr(theirs, field), field
    assert theirs.eps == pytest.approx(ours.eps)
    assert [r.theta for r in theirs.rope] == pytest.approx([r.theta for r in ours.rope])


def test_a_generation_config_says_how_to_sample(tmp_path):
    assert recommended(tmp_path) == SamplingParams()
    said = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": None, "pad_token_id": 0}
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(said))
    assert recommended(tmp_path) == SamplingParams(temperature=0.6, top_k=20)
    assert recommended(tmp_path / "config.json") == recommended(tmp_path)


@pytest.mark.parametrize("said", ['{"temperature": -1}', '{"top_p": "much"}', "[]", "{"])
def test_one_that_makes_no_sense_is_refused(tmp_path, said):
    (tmp_path / "generation_config.json").write_text(said)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        recommended(tmp_path)


def test_eos_comes_from_the_generation_config_first():
    assert from_config(LLAMA | {"eos_token_id": 2}).eos == [2]
    assert from_config(LLAMA | {"eos_token_id": 2}, {"eos_token_id": [3, 4]}).eos == [3, 4]
    assert from_config(LLAMA | {"eos_token_id": 0}, {"eos_token_id": None}).eos == [0]
    assert from_config(LLAMA | {"eos_token_id": None}).eos == []
    assert from_config(LLAMA | {"eos_token_id": 2}, {"eos_token_id": 0}).eos == [0]


def windows(kind: str, **options: object) -> list[int | None]:
    return [a.window for a in from_config(config(kind, num_hidden_layers=4, **options)).attention]


def test_windows():
    assert windows("llama", sliding_window=8) == [None] * 4
    assert windows("mistral", sliding_window=8) == [8] * 4
    assert windows("mistral", sliding_window=None) == [None] * 4
    assert windows("mistral") == [4096] * 4
    assert windows("qwen2", sliding_window=8, max_window_layers=2) == [None] * 4
    on = {"use_sliding_window": True, "sliding_window": 8}
    assert windows("qwen2", **on, max_window_layers=2) == [None, None, 8, 8]
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows("qwen3", **on, layer_types=kinds) == [8, None, 8, None]
    assert windows("gemma3_text", sliding_window=8, sliding_window_pattern=2) == [8, None, 8, None]


def test_gemma3_published_files_leave_out_the_defaults():
    """Multimodal files hold a text_config of a few keys; the rest are the defaults of the class."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    spec = from_config({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    theirs = transformers.Gemma3TextConfig(**text)
    assert (spec.vocab, spec.heads, spec.kv_heads, spec.head_dim) == (262208, 8, 4, 256)
    assert spec.tied and spec.context == 131072 and spec.activation == "gelu_tanh"
    assert spec.embed_scale == math.sqrt(2560)
    for rope, attention, kind in zip(spec.rope, spec.attention, theirs.layer_types, strict=True):
        want = theirs.rope_parameters[kind]
        assert (rope.theta, rope.scaling["rope_type"]) == (want["rope_theta"], want["rope_type"])
        assert attention.window == (1024 if kind == "sliding_attention" else None)
        assert attention.scale == 256**-0.5


def test_context_is_stretched_where_the_scaling_does_it():
    linear = {"rope_type": "linear", "factor": 4.0}
    assert from_config(LLAMA | {"rope_scaling": linear}).context == 512
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert from_config(LLAMA | {"rope_scaling": yarn}).context == 512
    extended = LLAMA | {"max_position_embeddings": 512}
    assert from_config(extended | {"rope_scaling": yarn}).context == 512
    assert from_config(LLAMA | {"rope_parameters": LLAMA3}).context == 128


def test_partial_rotation():
    rope = from_config(LLAMA | {"partial_rotary_factor": 0.5}).rope[0]
    assert rope.dim == 8
    assert from_config(LLAMA).rope[0].dim == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gpt2"}, "gpt2.*gemma3.*llama.*mistral.*opt.*qwen2.*qwen3"),
        ({"model_type": None}, "not supported; supported"),
        ({"model_type": ["llama"]}, "not supported; supported"),
        ({"hidden_size": "64"}, r"hidden_size"),
        ({"num_attention_heads": 0}, r"num_attention_heads"),
        ({"rope_theta": -1.0}, r"rope_theta"),
        ({"hidden_act": "gelu"}, "activation 'gelu'.*silu"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor of a rope must be a number, not None"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": "1"}}, "low_freq_factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "must list 8 numbers"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "aqlm.*GGUF"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]},
            "1",
        ),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional"),
        ({"head_dim": 15}, "cannot rotate 15 of the 15"),
    ],
)
def test_refusals_name_what_is_wrong(change, says):
    with pytest.raises(ConfigError, match=says):
        from_config(LLAMA | change)


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match="vocab_size"):
        from_config({k: v for k, v in LLAMA.items() if k != "vocab_size"})


def test_specs_survive_the_wire(tmp_path):
    FAMILIES["gemma3"].make().config.save_pretrained(tmp_path)
    spec = read_spec(tmp_path)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)) == spec


def test_files_that_are_not_there_or_not_json(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read_spec(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="JSON object"):
        read_spec(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read"):
        read_spec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_spec(tmp_path / "config.json") == read_spec(tmp_path)


ROPE = st.dictionaries(
    st.sampled_from(
        ["type", "rope_type", "rope_theta", "factor", "short_factor", "full_attention"]
    ),
    st.sampled_from(
        ["linear", "yarn", "longrope", None, 0, -1, 8.0, float("nan"), [], [1.0] * 8, {}]
    ),
)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.integers(0, 64),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", 1, None]), max_size=3),
    ROPE,
)
KEYS = sorted(
    {field.encode_name for kind in CONFIGS.values() for field in msgspec.structs.fields(kind)}
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.dictionaries(st.sampled_from([*KEYS, "text_config"]), ANYTHING, max_size=4),
    st.one_of(st.none(), st.dictionaries(st.just("eos_token_id"), ANYTHING)),
)
def test_any_config_is_a_spec_or_a_config_error(kind, change, generation):
    whole = config(kind, ffn_dim=96) | change
    try:
        spec = from_config(whole, generation)
    except ConfigError as error:
        assert len(str(error)) > 10
    else:
        assert isinstance(spec, Spec)
        assert len(spec.attention) == spec.layers
        assert spec.heads % spec.kv_heads == 0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(FAMILIES["gemma3"].make(), "gemma3", path)
    return GGUF.open(path)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_metadata_is_a_spec_or_a_config_error(written, data):
    keys = [*written.metadata, "gemma3.rope.scaling.type", "gemma3.rope.scaling.factor"]
    change = data.draw(st.dictionaries(st.sampled_from(keys), ANYTHING, max_size=4))
    view = memoryview(b"")
    forged = GGUF(written.path, view, written.metadata | change, written.tensors)
    try:
        spec = from_gguf(forged)
    except ConfigError as error:
        assert len(str(error)) > 10
    else:
        assert isinstance(spec, Spec)
        assert len(spec.attention) == spec.layers
