"""Pages keep their content through any moves."""

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.drive import CPU
from weir.core import Move, Page
from weir.errors import ConfigError
from weir.ops.coded import BYTES, decode, encode, row_bytes
from weir.runtime import pinned
from weir.runtime.disk import Disk
from weir.runtime.store import Store, page_bytes
from weir.spec import AttentionSpec

LAYERS = [
    AttentionSpec(4, 2, 8, scale=1.0),
    AttentionSpec(4, 1, 16, scale=1.0, window=3),
    AttentionSpec(4, 4, 4, scale=1.0),
]
WIDE = [AttentionSpec(4, 2, 64, scale=1.0), AttentionSpec(4, 1, 128, scale=1.0)]
SIZES = {0: 3, 1: 4, 2: 2}
PAGES = [Page(tier, index) for tier, size in SIZES.items() for index in range(size)]


def store(dtype=torch.float32) -> Store:
    return Store(LAYERS, 4, SIZES, dict.fromkeys(SIZES, CPU), dtype)


def test_layers_share_one_allocation_of_the_size_asked_for():
    made = store(torch.bfloat16)
    assert page_bytes(LAYERS, 4, torch.bfloat16) == 2 * 2 * 4 * (16 + 16 + 16)
    for tier, size in SIZES.items():
        kv = made.kv[tier]
        assert [t.shape[1:] for t in kv] == [(2, 2, 4, 8), (2, 1, 4, 16), (2, 4, 4, 4)]
        size += 1  # one that is nobody's
        assert all(len(t) == size and t.is_contiguous() and not t.any() for t in kv)
        assert len({t.untyped_storage().data_ptr() for t in kv}) == 1
        assert kv[0].untyped_storage().nbytes() == size * page_bytes(LAYERS, 4, torch.bfloat16)
        for i, t in enumerate(kv):
            t.fill_(i + 1)
        assert [int(t.float().mean()) for t in kv] == [1, 2, 3]


@given(st.lists(st.tuples(st.sampled_from(PAGES), st.sampled_from(PAGES)), max_size=12))
def test_moves_follow_one_another(pairs):
    made, want = store(), {page: n + 1 for n, page in enumerate(PAGES)}
    for page, mark in want.items():
        for kv in made.kv[page.tier]:
            kv[page.index] = mark
    for src, dst in pairs:
        want[dst] = want[src]
    made.move([Move(src, dst) for src, dst in pairs])
    for page, mark in want.items():
        assert all((kv[page.index] == mark).all() for kv in made.kv[page.tier])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cold", BYTES)
def test_pages_are_coded_once_however_often_they_move(tmp_path, cold, dtype):
    """To main memory, to disk and back: as far off as one coding is."""
    disk = Disk(tmp_path, "me", SIZES[2], page_bytes(WIDE, 4, cold))
    made = Store(WIDE, 4, SIZES, {0: CPU, 1: CPU}, dtype, disk, cold=cold)
    assert made.record == page_bytes(WIDE, 4, cold) < page_bytes(WIDE, 4, dtype)
    assert made.kv[1][0].shape == (5, 2, 2, 4, row_bytes(cold, 64))
    generator = torch.Generator().manual_seed(4)
    first = [torch.randn(kv[0].shape, generator=generator).to(dtype) for kv in made.kv[0]]
    for kv, x in zip(made.kv[0], first, strict=True):
        kv[1] = x
    for _ in range(4):
        made.move([Move(Page(0, 1), Page(1, 3)), Move(Page(1, 3), Page(2, 0))])
        made.move([Move(Page(2, 0), Page(1, 0)), Move(Page(1, 0), Page(0, 1))])
        for home, away, x in zip(made.kv[0], made.kv[1], first, strict=True):
            assert torch.equal(away[0], encode(x, cold))
            assert torch.equal(home[1], decode(away[0], cold, dtype))
            error = (home[1].float() - x.float()).norm() / x.float().norm()
            assert error < {torch.int8: 0.0065, torch.int4: 0.095}[cold]
    disk.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cold", BYTES)
def test_codes_of_what_codes_became_are_the_same(cold, dtype):
    """But for one int4 group in thousands, of rounded numbers, and then once."""
    generator = torch.Generator().manual_seed(5)
    far = 3 * torch.randn(4000, 1, generator=generator)  # from zero, as keys often are
    codes = encode((torch.randn(4000, 64, generator=generator) + far).to(dtype), cold)
    again = encode(decode(codes, cold, dtype), cold)
    assert (again != codes).any(1).sum() <= (4 if cold == torch.int4 else 0)
    assert torch.equal(encode(decode(again, cold, dtype), cold), again)


@given(
    st.sampled_from([*BYTES]),
    st.lists(st.tuples(st.sampled_from(PAGES), st.sampled_from(PAGES)), max_size=12),
)
def test_coded_moves_follow_one_another(cold, pairs):
    """Only those from and to the hottest tier change anything."""
    made = Store(WIDE, 1, SIZES, dict.fromkeys(SIZES, CPU), torch.float32, cold=cold)
    generator, want = torch.Generator().manual_seed(6), {}
    for page in PAGES:
        for kv, layer in zip(made.kv[page.tier], WIDE, strict=True):
            x = torch.randn(2, layer.kv_heads, 1, layer.head_dim, generator=generator)
            kv[page.index] = x if page.tier == 0 else encode(x, cold)
        want[page] = [kv[page.index].clone() for kv in made.kv[page.tier]]
    pairs = [(src, dst) for src, dst in pairs if src.tier != dst.tier]
    for src, dst in pairs:
        kept = want[src]
        if (src.tier == 0) != (dst.tier == 0):
            kept = [encode(x, cold) if src.tier == 0 else decode(x, cold) for x in kept]
        want[dst] = kept
    made.move([Move(src, dst) for src, dst in pairs])
    for page, kept in want.items():
        assert all(
            torch.equal(kv[page.index], x) for kv, x in zip(made.kv[page.tier], kept, strict=True)
        )


@pytest.mark.parametrize("refused", [False, True])
def test_memory_that_cannot_be_locked_is_plain_memory_with_one_warning(
    monkeypatch, caplog, refused
):
    locked: list[int] = []

    class Runtime:
        def cudaHostRegister(self, address: int, length: int, flags: int) -> int:
            assert length <= pinned.PART
            locked.append(address)
            return 2 if refused and len(locked) == 3 else 0

        def cudaHostUnregister(self, address: int) -> None:
            locked.remove(address)

    def check(code: int) -> None:
        if code:
            raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(pinned, "PART", 1 << 16)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "check_error", check)
    monkeypatch.setattr(pinned, "_forget_error", lambda: None)
    memory = pinned.host_zeros(5 << 16, pinned=True)
    assert not memory.any() and len(memory) == 5 << 16
    assert [record.getMessage().count("out of memory") for record in caplog.records] == [
        1
    ] * refused
    assert len(locked) == (1 if refused else 5)  # the one that was refused
    memory.fill_(7)
    del memory
    gc.collect()
    assert len(locked) == refused


def test_memory_that_is_not_there_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"GiB of main memory cannot be had .*--kv-cache-memory"):
        pinned.host_zeros(2**62)
