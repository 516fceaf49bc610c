"""Converts weights of 4 and 8 bits to 16-bit floats in registers, for the tensor cores.

An instruction converts two codes at once, after their bits became the lowest of 16-bit floats.
Knows bits, scales and offsets; of a weight's layout only the block of 64 columns.
"""

import torch
import triton
import triton.language as tl

# The fields of an e4m3 number, moved to a bfloat16's, are a number 2^120 times smaller. Four bytes
# become two registers of two numbers, in half the time of a conversion through float16.
WIDEN = tl.constexpr("""{
.reg .b32 a, b, c, d, scale, zero;
mov.b32 scale, 0x7b807b80;
mov.b32 zero, 0x80008000;
prmt.b32 a, $2, 0, 0x1404;
prmt.b32 b, $2, 0, 0x3424;
shr.b32 c, a, 4;
shr.b32 d, b, 4;
and.b32 c, c, 0x07f007f0;
and.b32 d, d, 0x07f007f0;
lop3.b32 c, a, 0x80008000, c, 0xea;
lop3.b32 d, b, 0x80008000, d, 0xea;
fma.rn.bf16x2 $0, c, scale, zero;
fma.rn.bf16x2 $1, d, scale, zero;
}""")


@triton.jit
def widened(a):
    """e4m3 to bfloat16, exactly."""
    return tl.inline_asm_elementwise(
        WIDEN, "=r,=r,r", [a.to(tl.uint8, bitcast=True)], dtype=tl.bfloat16, is_pure=True, pack=4
    )


@triton.jit
def numbers(
    packed, pair, block, kind: tl.constexpr, GROUP: tl.constexpr, FAST: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """Bytes [rows, 32] of a block → its weights of columns 0 to 31, and those of 32 to 63."""
    first = tl.load(pair + block * 64 // GROUP * 64)[:, None]
    second = tl.load(pair + (block * 64 // GROUP + 1) * 64)[:, None] if GROUP == 32 else first
    if FAST:
        return unpack(packed, first, second, KIND)
    else:
        low = (packed & 15).to(tl.float32) * scale_of(first, KIND) + offset_of(first, KIND)
        high = (packed >> 4).to(tl.float32) * scale_of(second, KIND) + offset_of(second, KIND)
        return low.to(kind), high.to(kind)


@triton.jit
def scale_of(pair, KIND: tl.constexpr):
    return (pair & 0xFFFF).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)


@triton.jit
def offset_of(pair, KIND: tl.constexpr):
    return (pair >> 16).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)


# Four bytes become two registers of two numbers for their low halves, then two for the high ones. A
# code in bits 0 to 3 of a bfloat16 has the value code * 2^-133, one in bits 4 to 7 code * 2^-129,
# subnormal or not. A code in the last bits of float16's 1024 makes it 1024 + code, from which 1024
# is subtracted exactly.
BFLOAT16 = tl.constexpr("""{
.reg .b32 a, b, c, d;
prmt.b32 a, $4, 0, 0x4140;
prmt.b32 b, $4, 0, 0x4342;
and.b32 c, a, 0x000f000f;
and.b32 d, b, 0x000f000f;
fma.rn.bf16x2 $0, c, $5, $9;
fma.rn.bf16x2 $1, d, $7, $11;
and.b32 c, a, 0x00f000f0;
and.b32 d, b, 0x00f000f0;
fma.rn.bf16x2 $2, c, $13, $17;
fma.rn.bf16x2 $3, d, $15, $19;
}""")
FLOAT16 = tl.constexpr("""{
.reg .b32 a, b, c, d, one, less;
mov.b32 one, 0x3c003c00;
mov.b32 less, 0xe400e400;
prmt.b32 a, $4, 0, 0x4140;
prmt.b32 b, $4, 0, 0x4342;
lop3.b32 c, a, 0x000f000f, 0x64006400, 0xea;
lop3.b32 d, b, 0x000f000f, 0x64006400, 0xea;
fma.rn.f16x2 c, c, one, less;
fma.rn.f16x2 d, d, one, less;
fma.rn.f16x2 $0, c, $5, $9;
fma.rn.f16x2 $1, d, $7, $11;
shr.b32 a, a, 4;
shr.b32 b, b, 4;
lop3.b32 c, a, 0x000f000f, 0x64006400, 0xea;
lop3.b32 d, b, 0x000f000f, 0x64006400, 0xea;
fma.rn.f16x2 c, c, one, less;
fma.rn.f16x2 d, d, one, less;
fma.rn.f16x2 $2, c, $13, $17;
fma.rn.f16x2 $3, d, $15, $19;
}""")
SHRUNK = tl.constexpr(2.0**-12)
REGISTERS = tl.constexpr("=r,=r,=r,=r" + ",r" * 17)
KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def unpack(packed, first, second, KIND: tl.constexpr):
    """scale * code + offset: of the low four bits with the pair `first`, of the high four with
    `second`. In bfloat16 the result is multiplied by SHRUNK, so that no scale overflows.

    The two numbers of a register are of one row and group, so scale and offset are repeated."""
    if KIND == tl.bfloat16:
        return tl.inline_asm_elementwise(
            BFLOAT16,
            REGISTERS,
            [
                packed,
                tl.broadcast_to(twice((first << 16), 2.0**121), packed.shape),
                tl.broadcast_to(twice((first & -65536), 2.0**-12), packed.shape),
                tl.broadcast_to(twice((second << 16), 2.0**117), packed.shape),
                tl.broadcast_to(twice((second & -65536), 2.0**-12), packed.shape),
            ],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        return tl.inline_asm_elementwise(
            FLOAT16,
            REGISTERS,
            [
                packed,
                tl.broadcast_to((first & 0xFFFF) | (first << 16), packed.shape),
                tl.broadcast_to(((first >> 16) & 0xFFFF) | (first & -65536), packed.shape),
                tl.broadcast_to((second & 0xFFFF) | (second << 16), packed.shape),
                tl.broadcast_to(((second >> 16) & 0xFFFF) | (second & -65536), packed.shape),
            ],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )


@triton.jit
def twice(bits, factor: tl.constexpr):
    """A bfloat16, in the upper half of an int32, times a power of two → in both halves."""
    bits = (bits.to(tl.float32, bitcast=True) * factor).to(tl.int32, bitcast=True)
    return (bits & -65536) | ((bits >> 16) & 0xFFFF)
