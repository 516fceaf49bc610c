"""Compiles every kernel for a Hopper GPU, where there is none: what the interpreter lets pass, such
as a name with two types, no compiler does. Run by test_compile.py."""

import re
import subprocess
import tempfile
from dataclasses import replace

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from weir.ops import triton as gpu
from weir.ops.batch import Batch
from weir.ops.fused import Fused
from weir.ops.pages import Paged
from weir.ops.quantize import FP8, Codes, to_tiles
from weir.ops.triton import codes, launch, linear, single, vector
from weir.spec import AttentionSpec

TARGET = GPUTarget("cuda", 90, 32)
SHARED = 232448  # bytes that a program may have
NAMES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1",
    torch.uint8: "*u8", FP8: "*fp8e4nv",
}  # fmt: skip


def compile_only(self, grid, *arguments, warps: int, stages: int = 2, **constants) -> None:
    """In place of Kernel.__call__."""
    if "FAST" in constants:  # assembly, which the interpreter cannot read
        constants["FAST"] = True
    names, signature, values, aligned = self.function.arg_names, {}, {}, {}
    if self.early:
        constants["EARLY"] = True
    for i, (name, argument) in enumerate(
        zip(names, [*arguments, *constants.values()], strict=True)
    ):
        if isinstance(argument, Tensor):
            signature[name], aligned[(i,)] = NAMES[argument.dtype], [["tt.divisibility", 16]]
        elif i < len(arguments) and argument is not None:
            signature[name] = "fp32" if isinstance(argument, float) else "i32"
        else:
            signature[name], values[(i,)] = "constexpr", argument
    source = ASTSource(fn=self.function, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "launch_pdl": self.early}
    compiled = triton.compile(source, target=TARGET, options=options)
    assert compiled.metadata.shared <= SHARED, (self.function.__name__, compiled.metadata.shared)
    assert not overwritten(compiled.asm["cubin"]), f"{self.function.__name__} {constants}"
    print(self.function.__name__, len(compiled.asm["cubin"]))


def overwritten(cubin: bytes) -> bool:
    """Whether a turn of a loop writes to registers that a product of the turn before may still be
    reading (triton-lang/triton#9433), as far as loops without others in them tell."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.nvdisasm.path
        said = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True)
    labels: dict[str, int] = {}
    done: list[tuple[str, list[str]]] = []  # instructions and their operands
    for line in said.stdout.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(done)
        if found := re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?) *;", line):
            done.append((found[1], found[2].split(", ")))
        back = re.search(r"BRA `\((\.L_x_\d+)\)", line)
        if back and back[1] in labels and _clash(done[labels[back[1]] :]):
            return True
    return False


def _clash(turn: list[tuple[str, list[str]]]) -> bool:
    waits = [i for i, (name, _) in enumerate(turn) if name.startswith("WARPGROUP.DEPBAR")]
    after = turn[waits[-1] if waits else 0 :]
    products = [operands[1] for name, operands in after if name.startswith("HGMMA")]
    reads = {int(one[1:]) + i for one in products if re.fullmatch(r"R\d+", one) for i in range(4)}
    before = turn[: waits[0]] if waits else turn
    writes = [re.fullmatch(r"R(\d+)(\.64)?", operands[0]) for _, operands in before]
    return any(one is not None and int(one[1]) in reads for one in writes)


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def rows_and_heads() -> None:
    x, norm = half(3, 4096), torch.ones(4096)
    gpu.rms_norm(x, norm, 1e-5)
    gpu.layer_norm(x, norm, norm, 1e-5)
    for act in ("silu", "gelu_tanh", "relu"):
        gpu.gated(x, act)
    fused, kv = half(3, 48, 128), half(4, 2, 8, 16, 128)
    q, k, v = fused.split((32, 8, 8), dim=1)
    at, table, each = torch.zeros(3, dtype=torch.int64), torch.zeros(64, 128), torch.ones(128)
    for norms in ((None, None), (each, each)):
        gpu.rope_(q, k, v, at, table, *norms, 1e-5, kv, at)
        gpu.rope_(q, k, None, at, table[:, :64], *norms, 1e-5, None, None)
    gpu.write(kv, k, v, at)
    for bits, row in ((4, 72), (8, 132)):
        coded = torch.zeros(3, 8, row, dtype=torch.uint8)
        gpu.encode_groups(k, coded, bits)
        gpu.decode_groups(coded, half(3, 8, 128), bits)
        words = [torch.zeros(4, 2, 8, 16, row // 4, dtype=torch.int32)]
        words += [coded.view(torch.int32)] * 2
        gpu.write(*words, at)
    memory = torch.zeros(35 << 14, dtype=torch.uint8)
    paged = Paged(memory, [1 << 16, 3 << 14], 5, torch.device("cpu"))
    for packs in (True, False):
        gpu.copy_pages(paged, at, memory[: 3 * paged.record].view(3, -1), packs, 16)


def attention() -> None:
    q, kv, one = half(3, 32, 128), half(9, 2, 8, 16, 128), torch.ones(3, dtype=torch.int32)
    table, start = torch.zeros(3, 99, dtype=torch.int32), torch.arange(4, dtype=torch.int32)
    for window, softcap in ((None, None), (100, 5.0)):
        spec = AttentionSpec(32, 8, 128, 0.1, window, softcap)
        for lengths in ((1, 1), (1, 2), (2, 2)):
            gpu.attend(q, kv, Batch(start, one, table, one.long(), lengths=lengths), spec)


def linears() -> None:
    for m in (1, linear.SOME):
        for n, k in ((4096, 1024), (1000, 2100)):
            tile, norm = linear.tile_for(m, n, k), torch.ones(k)
            more = Fused(residual=half(m, n))
            linear.product(half(m, k), half(n, k), None, tile, more)
            linear.product(half(m, k), half(n, k), None, tile, Fused(norm, 1e-5))
            linear.product(half(m, 2 * k), half(n, k), None, tile, replace(more, act="silu"))
    for m, n, k in ((1, 4096, 1024), (2, 1024, 3072)):
        vector.vector_product(half(m, k), half(n, k), Fused(torch.ones(k), 1e-5))
        more = Fused(act="silu", residual=half(m, n))
        vector.vector_product(half(m, 2 * k), half(n, k), more)


def quantised() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for n, k, group in ((4096, 1024, 64), (1000, 2112, 32)):
            some = Codes(torch.zeros(n, k, dtype=torch.uint8), torch.zeros(n, k // group, 2), 4)
            tiles, pairs = to_tiles(some, 64, dtype)
            gpu.unpacked(tiles, pairs, n, dtype)
            for m in (1, 64, 128, 256):
                x, tile = half(m, 2 * k).to(dtype), codes.tile_for_codes(m, n, k)
                normed = Fused(torch.ones(k), 1e-5)
                codes.product_of_codes(x[:, :k], tiles, pairs, n, tile, normed)
                gated = Fused(act="silu", bias=half(n), residual=half(m, n))
                codes.product_of_codes(x, tiles, pairs, n, tile, gated)
                codes.product_of_codes(x[:, :k], tiles, pairs, n, tile, Fused(bias=half(n)))
    for k in (1024, 14336):
        some = Codes(torch.zeros(64, k, dtype=torch.uint8), torch.zeros(64, k // 32, 2), 4)
        for dtype in (torch.bfloat16, torch.float16):
            tiles, pairs = to_tiles(some, 64, dtype)
            more = Fused(residual=half(1, 64).to(dtype))
            single.single_of_codes(half(1, k).to(dtype), tiles, pairs, 64, more)
        weight, each = torch.zeros(64, k, dtype=FP8), torch.ones(64)
        single.single_of_bytes(half(1, k), weight, each, Fused(bias=half(64), residual=half(1, 64)))
    x, norm = half(16, 2 * 4096), torch.ones(4096)
    weight, tile = torch.zeros(4096, 4096, dtype=FP8), linear.tile_for_fp8(16, 4096, 4096)
    linear.product(x[:, :4096], weight, norm, tile, Fused(norm, 1e-5, bias=norm))
    linear.product(x, weight, norm, tile, Fused(act="silu", residual=half(16, 4096)))
    gpu.quantized(x, Fused(act="silu"))
    gpu.quantized(x[:, :4096], Fused(norm, 1e-5))


def sampling() -> None:
    heat, u = torch.ones(2), torch.zeros(2, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float32):
        logits, masks = torch.zeros(2, 128256, dtype=dtype), torch.zeros(2, 16032).byte()
        gpu.restrict(logits, u.long(), u.long(), masks)
        gpu.choose(logits, heat, u)
        gpu.choose(logits, heat, u, (u.long(), u, u))


if __name__ == "__main__":
    launch.Kernel.__call__ = compile_only
    for part in (rows_and_heads, attention, linears, quantised, sampling):
        part()
