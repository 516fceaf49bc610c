"""Weights that do not fit are named; random ones are sane, and the same for the same seed."""

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.families import FAMILIES, error, expected, logits, prompt, save
from tests.models.write_gguf import write_gguf
from weir.errors import ConfigError
from weir.models.base import rebuilt, tensors
from weir.models.checkpoint import Dummy
from weir.models.load import load
from weir.models.weights import SLICE, Weights

CPU = torch.device("cpu")


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder, **options):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


def test_tensors_that_do_not_fit_are_named(tmp_path):
    save("llama2", tmp_path)

    def spoil(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.mlp.experts"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(63)

    change_weights(tmp_path, spoil)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    for part in (
        "1 missing: layers.1.mlp.up_proj.weight",
        "1 unexpected: layers.0.mlp.experts",
        "1 mis-shaped: norm.weight is [63] instead of [64]",
    ):
        assert part in str(caught.value)


def test_more_layers_than_weights(tmp_path):
    save("llama2", tmp_path)
    change_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(ConfigError, match=r"9 missing: layers\.2\..*…"):
        load(tmp_path)


def test_tied_weights_may_be_stored_twice_and_vision_ignored(tmp_path):
    theirs = save("llama-tied", tmp_path)

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        tensors["vision_tower.patch.weight"] = torch.zeros(4)

    change_weights(tmp_path, add)
    ours = load(tmp_path, dtype=torch.float32)
    assert error(logits(ours, prompt()), expected(theirs, prompt())) < 1e-4


@pytest.mark.parametrize("prefix", ["", "language_model.model.", "model.language_model."])
def test_prefixes(prefix, tmp_path):
    theirs = save("gemma3", tmp_path)

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace("model.", prefix, 1)] = tensors.pop(name)

    change_weights(tmp_path, rename)
    ours = load(tmp_path, dtype=torch.float32)
    assert error(logits(ours, prompt()), expected(theirs, prompt())) < 1e-4


def test_unusable_safetensors(tmp_path):
    save("qwen3", tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    raw = shard.read_bytes()
    shard.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ConfigError, match=shard.name):
        load(tmp_path)
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigError, match="git lfs pull"):
        load(tmp_path)
    shard.unlink()
    with pytest.raises(ConfigError, match=f"lacks {shard.name}"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"index\.json"):
        load(tmp_path)
    for file in [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.index.json")]:
        file.unlink()
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        load(tmp_path)


def test_integer_weights_are_refused(tmp_path):
    save("llama2", tmp_path)
    change_weights(tmp_path, lambda t: t.update({"model.norm.weight": torch.ones(64).int()}))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight holds I32"):
        load(tmp_path)


def test_gguf_with_a_tensor_that_is_unknown_or_absent(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(FAMILIES["llama2"].make(), "llama", path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "missing: layers.1.mlp.up_proj.weight" in str(caught.value)
    assert "unexpected: blk.1.ffn_xx.weight" in str(caught.value)
    path.write_bytes(raw.replace(b"llama.block_count", b"llama.block_xxxxx"))
    with pytest.raises(ConfigError, match=r"llama\.block_count"):
        load(path)


def test_gguf_of_another_architecture(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"mamba.*gemma3, llama, qwen2, qwen3"):
        load(tmp_path / "m.gguf")


def test_formats_that_contradict_the_file(tmp_path):
    save("llama2", tmp_path)
    with pytest.raises(ConfigError, match="not of format gguf"):
        load(tmp_path, format="gguf")
    with pytest.raises(ConfigError, match="unknown"):
        load(tmp_path, format="pickle")


def test_context_may_be_shortened_only(tmp_path):
    theirs = save("llama3", tmp_path)
    ours = load(tmp_path, dtype=torch.float32, context=40)
    assert ours.spec.context == len(ours.ropes.tables[0]) == 40
    assert error(logits(ours, prompt()), expected(theirs, prompt())) < 1e-4
    for wrong in (0, 129):
        with pytest.raises(ConfigError, match="1 to the model's 128"):
            load(tmp_path, context=wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_dummy_weights(family, tmp_path):
    """From config.json alone: logits neither flat nor exploding, the same for the same seed."""
    FAMILIES[family].make().config.save_pretrained(tmp_path)
    first, again, other = (
        logits(load(tmp_path, dtype=torch.float32, format="dummy", seed=s), prompt())
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.isfinite(first).all()
    assert 0.3 < first.std() < 5
    assert len(first.argmax(dim=-1).unique()) > 5


def test_dummy_rows_differ_and_slices_agree():
    rows = 3 * SLICE // 2
    dummy = Dummy({"embed_tokens.weight": (rows, 1024)}, CPU, seed=0)
    with Weights(dummy, torch.float32, CPU, threads=2) as weights:
        sliced = weights.matrix("embed_tokens.weight")
    whole = torch.empty(rows, 1024)
    dummy.read("embed_tokens.weight", whole)
    assert torch.equal(sliced, whole)
    assert len(whole.sum(dim=1).unique()) > 0.99 * rows
    assert whole.std() * 32 == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("family", ["qwen2", "opt", "gemma3"])
def test_a_layer_on_other_memory_computes_the_same(family, tmp_path):
    save(family, tmp_path)
    model = load(tmp_path)
    before = logits(model, prompt())
    for i, layer in enumerate(model.layers):
        here = list(tensors(layer))
        model.layers[i] = rebuilt(layer, (x.clone() for x in here))
        assert not {x.data_ptr() for x in here} & {x.data_ptr() for x in tensors(model.layers[i])}
        for x in here:
            x.fill_(77)
    assert torch.equal(logits(model, prompt()), before)
