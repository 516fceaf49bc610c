"""Streamed layers are the layers they were made of, wherever they lie and whatever breaks off."""

import errno
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import Tiny, generate
from tests.runtime.drive import Drive, runner
from weir.core import Sampling
from weir.errors import ConfigError
from weir.models.base import rebuilt, tensors
from weir.runtime import pinned, streamed
from weir.runtime.spill import ALIGN, CHUNK, Spill
from weir.runtime.streamed import Deal, Streamed

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
)
SHARES = [(0.0, 0.0, 1.0), (0.4, 0.0, 0.6), (0.9, 0.1, 0.0), (0.3, 0.4, 0.3), (0.0, 1.0, 0.0)]


def put(model: Tiny, shares, folder: Path, device: str = "cpu") -> Streamed:
    """The layers of `model` in a layer store, and the store in their place."""
    model.to(torch.device(device))
    layer_store = Streamed(len(model.layers), shares, torch.device(device), folder)
    for layer in model.layers:
        layer_store.add(layer)
    model.layers = layer_store.done()
    return layer_store


def same(one, other) -> bool:
    pairs = zip(tensors(one), tensors(other), strict=True)
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=60),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda p: (p[0], (1 - p[0]) * p[1])),
)
def test_each_memory_has_its_share_at_every_moment(sizes, two):
    shares = (*two, 1 - sum(two))
    deal = Deal(shares)
    for size in sizes:
        deal.next(size)
        for share, taken in zip(shares, deal.given, strict=True):
            assert abs(taken - share * sum(deal.given)) <= 2 * max(sizes)
            assert share or not taken


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("layers", [1, 2, 3, 7])
@pytest.mark.parametrize("shares", SHARES)
def test_every_step_gets_the_layers_that_were_put_in(tmp_path, device, layers, shares):
    model, whole = Tiny(layers=layers), Tiny(layers=layers).to(torch.device(device))
    layer_store = put(model, shares, tmp_path, device)
    for step in range(4):
        before = None
        for i, layer in enumerate(layer_store):
            assert same(layer, whole.layers[i])
            assert i == 0 or same(before, whole.layers[i - 1])  # its attention is under way
            before = layer
            if step == 1 and i == layers // 2:
                break  # a step that breaks off
        else:
            assert i == layers - 1 and same(before, whole.layers[-1])
    layer_store.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("shares", SHARES)
def test_streamed_tokens_are_those_of_the_whole_model(tmp_path, device, shares):
    rng, model = random.Random(3), Tiny(layers=5)
    texts = [[rng.randrange(61) for _ in range(rng.randrange(3, 20))] for _ in range(4)]
    want = [generate(model, text, 6) for text in texts]
    put(model, shares, tmp_path, device)
    drive = Drive(runner(model, pages={0: 64}, device=torch.device(device)))
    greedy = Sampling(temperature=0.0)
    got: list[list[int]] = [[] for _ in texts]
    for step in range(6):
        chunks = [
            drive.chunk(
                uid, len(text) + step - 1 if step else 0, [] if step else text, sample=greedy
            )
            for uid, text in enumerate(texts)
        ]
        result = drive.go(*([chunks] if step % 2 else [chunks[:2], chunks[2:]]))
        for uid, tokens in result.tokens.items():
            got[uid] += [tokens]
    assert got == want


def test_a_part_is_rebuilt_with_its_own_strides():
    layer = Tiny(layers=1).layers[0]
    layer.o = layer.o.t()
    layer_store = Streamed(1, (0.0, 1.0, 0.0), torch.device("cpu"))
    copy = rebuilt(layer, (t.clone() for t in tensors(layer)))
    layer_store.add(layer)
    assert same(next(iter(layer_store.done())), copy)


def test_the_file_takes_and_gives_back_what_it_was_given(tmp_path):
    spill = Spill(tmp_path)
    data = torch.randint(0, 256, (3 * CHUNK + 5 * ALIGN,), dtype=torch.uint8)
    whole = pinned.host_zeros(len(data))
    whole.copy_(data)
    assert spill.append(whole[:ALIGN]) == 0
    assert spill.append(whole) == ALIGN
    whole.zero_()
    for read in spill.read(ALIGN, whole):
        read.result()
    assert torch.equal(whole, data)
    os.truncate(spill.file, 2 * ALIGN)
    with pytest.raises(OSError, match="cut short"):
        for read in spill.read(ALIGN, whole):
            read.result()
    spill.close()
    spill.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    model = Tiny(layers=3)
    with pytest.raises(ConfigError, match=r"GiB in --offload-dir, where .* free"):
        monkeypatch.setattr(streamed.shutil, "disk_usage", lambda _: type("Free", (), {"free": 9}))
        put(model, (0.0, 0.0, 1.0), tmp_path)
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ConfigError, match=r"No space left on device after 0\.0 GiB"):
        put(model, (0.0, 0.0, 1.0), tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--offload-dir .*Not a directory"):
        Spill(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="add --offload-dir FOLDER"):
        Streamed(1, (0.0, 0.0, 1.0), torch.device("cpu"))


def test_too_little_main_memory_is_one_sentence(monkeypatch):
    layer = Tiny(layers=1).layers[0]
    layer_store = Streamed(4, (0.0, 1.0, 0.0), torch.device("cpu"), room=1000)
    with pytest.raises(ConfigError, match="GiB of main memory, of which"):
        layer_store.add(layer)

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(pinned, "Memory", refuse)
    layer_store.room = None
    with pytest.raises(ConfigError, match=r"main memory cannot be had .*Cannot allocate memory"):
        layer_store.add(layer)


def test_a_driver_that_refuses_to_pin_is_asked_once(monkeypatch):
    asked, model = [], Tiny(layers=3)
    monkeypatch.setattr(
        streamed, "host_zeros", lambda n, pinned=False, part=0: asked.append(pinned) or raw(n)
    )
    layer_store = Streamed(3, (0.0, 1.0, 0.0), torch.device("cpu"))
    layer_store.pinned = True  # as beside a GPU
    for layer in model.layers:
        layer_store.add(layer)
    assert asked == [True, False, False]
    assert all(same(a, b) for a, b in zip(layer_store.done(), Tiny(layers=3).layers, strict=True))


def raw(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), max_size=5), st.integers(2, 5))
def test_steps_that_break_off_anywhere_leave_the_next_whole(cuts, slots):
    model, whole = Tiny(layers=6), Tiny(layers=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "LAYER_SLOTS", slots)
        layer_store = put(model, (0.2, 0.8, 0.0), Path())
    for cut in [*cuts, 6]:
        for i, layer in enumerate(layer_store):
            if i == cut:
                break
            assert same(layer, whole.layers[i])
