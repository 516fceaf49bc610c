"""Sources of weights: safetensors, a GGUF file, or random numbers.

Each class converts its format's names and conventions to those of `weights.Checkpoint`.
"""

import contextlib
import json
import math
import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weir.errors import ConfigError
from weir.gguf import GGUF
from weir.models import codes
from weir.models.base import Shapes
from weir.models.dequant import PLAIN, dequantize
from weir.models.weights import Checkpoint
from weir.ops.linear import NATIVE_GROUP
from weir.ops.quantize import Codes, Scaled
from weir.spec import Spec

FLOATS = {"F64", "F32", "F16", "BF16"}
PREFIX = re.compile(r"^(model\.|language_model\.|decoder\.)+")
UNUSED = re.compile(r"rotary_emb\.inv_freq$|^(vision_tower|multi_modal_projector)\.")


class Safetensors(Checkpoint):
    """The `*.safetensors` of a folder, memory-mapped: one file, or all that the index names."""

    types = FLOATS

    def __init__(self, folder: Path, spec: Spec):
        self.unit_offset = spec.architecture == "gemma3"  # norms are stored less 1
        self.shapes: Shapes = {}
        self.sources: dict[str, tuple[Any, str]] = {}
        for file in _shards(folder):
            try:
                shard = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"cannot read {file}: {error}; {_advice(file)}") from None
            for key in shard.keys():
                self._add(shard, key, spec)

    def _add(self, shard: Any, key: str, spec: Spec) -> None:
        name = PREFIX.sub("", key)
        if UNUSED.search(name) or (name == "lm_head.weight" and spec.tied):
            return
        view = shard.get_slice(key)
        if view.get_dtype() not in self.types:
            supported = ", ".join(sorted(self.types))
            raise ConfigError(f"tensor {key} holds {view.get_dtype()}; supported: {supported}")
        self.shapes[name] = tuple(view.get_shape())
        self.sources[name] = shard, key

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        shard, key = self.sources[name]
        out.copy_(shard.get_slice(key)[row : row + len(out)])
        if self.unit_offset and name.endswith("norm.weight"):
            out.add_(1.0)


def _advice(file: Path) -> str:
    """How to mend a file that cannot be read."""
    with contextlib.suppress(OSError), open(file, "rb") as content:
        if content.read(16) == b"version https://":
            return "it only stands for the weights: `git lfs pull` brings them"
    return "download it again"


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"cannot read {index}: {error!r}") from None
        files = [folder / name for name in names]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"{folder} has no *.safetensors: convert its weights to that format first"
        )
    if absent := [file.name for file in files if not file.is_file()]:
        raise ConfigError(f"{folder} lacks {', '.join(absent)}, which its index names")
    return files


NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of tensors → ours."""
GEMMA3_NAMES = NAMES | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPES = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


class GGUFCheckpoint(Checkpoint):
    """The tensors of a GGUF file; `read` unpacks them."""

    stored = "gguf"

    def __init__(self, gguf: GGUF, spec: Spec):
        self.gguf = gguf
        names = GEMMA3_NAMES if spec.architecture == "gemma3" else NAMES
        self.sources = {_ours(key, names): key for key in gguf.tensors if key not in ROPES}
        self.shapes: Shapes = {name: gguf.tensors[key].shape for name, key in self.sources.items()}
        with warnings.catch_warnings():  # torch has no read-only tensors; nothing writes to these
            warnings.simplefilter("ignore", UserWarning)
            self.bytes = {
                name: torch.frombuffer(gguf.data(key), dtype=torch.uint8)
                for name, key in self.sources.items()
            }
        # files of this architecture interleave the two halves of each query and key head
        self.interleaved = spec.architecture == "llama"
        self.heads = {"self_attn.q_proj": spec.heads, "self_attn.k_proj": spec.kv_heads}

    def kept(self, name: str) -> Codes | Scaled | None:
        """The quantised weight as codes; None for plain floats, vectors and partial groups."""
        kind, shape = self.gguf.tensors[self.sources[name]].type, self.shapes[name]
        if kind in PLAIN or len(shape) != 2 or shape[1] % NATIVE_GROUP:
            return None
        found = codes.read(kind, self.bytes[name], *shape)
        heads = self._heads(name)
        return found.shuffle(_halved(torch.arange(shape[0]), heads)) if heads else found

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        data, rows = self.bytes[name], self.shapes[name][0]
        part = data.view(rows, -1)[row : row + len(out)] if len(out) != rows else data
        kind = self.gguf.tensors[self.sources[name]].type
        heads = self._heads(name)
        if not heads:
            dequantize(kind, part.reshape(-1), out)
            return
        mixed = torch.empty_like(out)
        dequantize(kind, part, mixed)
        out.copy_(_halved(mixed, heads))

    def _heads(self, name: str) -> int:
        """The number of heads of a tensor that is interleaved; 0 if it is not."""
        part = name.removesuffix(".weight").removesuffix(".bias").split(".", 2)[-1]
        return self.heads.get(part, 0) if self.interleaved else 0


def _halved(x: Tensor, heads: int) -> Tensor:
    """The rows of x [heads · D, …], reordered so that each head's halves rotate, not neighbours."""
    return x.view(heads, len(x) // heads // 2, 2, -1).transpose(1, 2).reshape(x.shape)


def _ours(key: str, names: dict[str, str]) -> str:
    """ "blk.3.attn_q.weight" → "layers.3.self_attn.q_proj.weight"; unknown names stay."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", key)
    if found is None or found[2] not in names:
        return key
    at = f"layers.{found[1]}." if found[1] is not None else ""
    return f"{at}{names[found[2]]}.{found[3]}"


class Dummy(Checkpoint):
    """Random weights of the right shapes and realistic scale: norms 1, biases 0, rows of unit gain.

    All come from one pool of numbers, whose length is prime so that no two rows are equal. The same
    seed gives the same model, however it is sliced.
    """

    POOL = 4194301

    def __init__(self, shapes: Shapes, device: torch.device, seed: int):
        self.shapes = shapes
        self.device = device
        generator = torch.Generator(device).manual_seed(seed)
        self.pool = torch.rand(self.POOL, device=device, generator=generator).mul_(2).sub_(1)

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        if len(self.shapes[name]) == 1:
            out.fill_(0.0 if name.endswith("bias") else 1.0)
            return
        columns = self.shapes[name][1]
        start = (zlib.crc32(name.encode()) + row * columns) % self.POOL
        gain = math.sqrt(3 / columns)  # uniform on ±gain has variance 1 / columns
        flat = out.view(-1)
        while len(flat):
            length = min(len(flat), self.POOL - start)
            torch.mul(self.pool[start : start + length], gain, out=flat[:length])
            flat, start = flat[length:], 0
