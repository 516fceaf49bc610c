"""What is played from a tape is what calling would give."""

import subprocess
import sys

import pytest
import torch

from weir.ops import native
from weir.ops.linear import linear, normed_linear, pack
from weir.ops.norm import rms_norm
from weir.runtime.tape import Memory, recorded

pytestmark = pytest.mark.skipif(native.library() is None, reason="there are no kernels to record")


class Block:
    """Kernels, with operators of PyTorch between them, from `x` to `y`, both where they were."""

    def __init__(self, rows: int, seed: int = 0):
        draw = torch.Generator().manual_seed(seed)
        self.up = pack(torch.randn(40, 24, generator=draw), torch.randn(40, generator=draw))
        self.down = pack(torch.randn(24, 40, generator=draw))
        self.norm = torch.rand(24, generator=draw)
        self.x, self.y = torch.zeros(rows, 24), torch.zeros(rows, 24)
        self.ids = torch.zeros(rows, dtype=torch.int64)

    def run(self) -> None:
        x = normed_linear(self.x, self.norm, 1e-5, self.up)
        left, right = x.split(20, dim=1)
        torch.where(self.ids < 0, self.ids + len(x), self.ids, out=self.ids)
        x = torch.cat([left.sigmoid() * 2, right[self.ids]], dim=1)
        x.add_(1.0)
        self.y.copy_(linear(x, self.down, self.x.clone()))

    def given(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.x.copy_(torch.randn(self.x.shape, generator=draw))
        self.ids.copy_(torch.randint(-len(self.ids), len(self.ids), self.ids.shape, generator=draw))


@torch.inference_mode()
def test_playing_gives_what_calling_gives_whatever_was_played_before():
    memory, blocks = Memory(), [Block(rows, rows) for rows in (7, 4, 1)]
    plays = [recorded(block.run, memory) for block in blocks]
    assert not any(play == block.run for play, block in zip(plays, blocks, strict=True))
    for seed in range(12):
        play, block = plays[seed % 3], blocks[seed % 3]
        block.given(seed)
        block.run()
        want, at = block.y.clone(), block.ids.clone()
        block.given(seed)
        block.y.zero_()
        play()
        assert torch.equal(block.y, want) and torch.equal(block.ids, at)


@torch.inference_mode()
def test_nothing_runs_while_it_is_recorded():
    x, weight, out = torch.rand(3, 24), torch.rand(24), torch.full((3, 24), 7.0)
    places = x.data_ptr(), weight.data_ptr(), 3, 24, 1e-5, out.data_ptr()
    play = recorded(lambda: native.library().rms_norm(*places), Memory())
    assert (out == 7.0).all()
    play()
    assert torch.equal(out, rms_norm(x, weight, 1e-5))


@torch.inference_mode()
def test_what_looks_at_values_is_called_and_what_raises_ends_the_recording():
    seen = []
    assert recorded(looks := lambda: seen.append(torch.ones(2).sum().item()), Memory()) is looks
    with pytest.raises(ZeroDivisionError):
        recorded(lambda: seen.append(1 // 0), Memory())
    block = Block(2)
    block.given(3)
    block.run()
    assert block.y.any()  # kernels run again


@torch.inference_mode()
def test_recordings_share_memory():
    memory = Memory()
    recorded(Block(9).run, memory)
    places = [block.data_ptr() for block in memory.blocks]
    recorded(Block(5).run, memory)
    assert places and [block.data_ptr() for block in memory.blocks] == places


def test_recording_does_not_import_a_compiler():
    """PyTorch would import its own, which takes a second, for any mode that does not say no."""
    code = """
import sys
import torch
from weir.runtime.tape import Memory, recorded

x = torch.ones(2)
recorded(lambda: x.add_(1), Memory())()
assert x.tolist() == [3, 3] and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
