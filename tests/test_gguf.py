"""The GGUF reader agrees with the `gguf` package, and no file, however broken, gets past it."""

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weir.errors import ConfigError
from weir.gguf import FORMATS, GGUF

gguf = pytest.importorskip("gguf")
numpy = pytest.importorskip("numpy")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file with every kind of metadata and several tensor types, from the gguf package."""
    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60000)
    writer.add_int32("a.i32", -70000)
    writer.add_uint64("a.u64", 2**63)
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "naïve 漢字 🙂")
    writer.add_array("a.words", ["", "Ġthe", "漢", "x" * 300])
    writer.add_array("a.floats", [0.0, -1.5])
    writer.add_array("a.flags", [True, False])
    writer.add_array("a.nested", [[1, 2], [3]])
    random = numpy.random.default_rng(0)
    writer.add_tensor("plain", random.standard_normal((3, 5)).astype(numpy.float32))
    writer.add_tensor("half", random.standard_normal((2, 3, 4)).astype(numpy.float16))
    blocks = gguf.quantize(
        random.standard_normal((4, 64)).astype(numpy.float32), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("packed", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_of_every_type(sample: Path):
    metadata = GGUF.open(sample).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["a.u8"] == 200 and metadata["a.i8"] == -3 and metadata["a.u16"] == 60000
    assert metadata["a.i32"] == -70000 and metadata["a.u64"] == 2**63
    assert metadata["a.f32"] == 0.5 and metadata["a.f64"] == 1e300 and metadata["a.bool"] is True
    assert metadata["a.text"] == "naïve 漢字 🙂"
    assert metadata["a.words"] == ["", "Ġthe", "漢", "x" * 300]
    assert metadata["a.floats"] == [0.0, -1.5] and metadata["a.flags"] == [True, False]
    assert metadata["a.nested"] == [[1, 2], [3]]


def test_tensors_agree_with_the_gguf_package(sample: Path):
    ours = GGUF.open(sample)
    theirs = {t.name: t for t in gguf.GGUFReader(sample).tensors}
    assert ours.tensors.keys() == theirs.keys() == {"plain", "half", "packed"}
    for name, tensor in theirs.items():
        info = ours.tensors[name]
        assert info.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert (info.type, info.offset) == (tensor.tensor_type, tensor.data_offset)
        assert bytes(ours.data(name)) == tensor.data.tobytes()


def test_data_is_read_only_and_outlives_the_file_object(sample: Path):
    view = GGUF.open(sample).data("plain")
    assert view.nbytes == 60
    with pytest.raises(TypeError):
        view[0] = 1


def test_block_sizes_are_ggmls():
    # Q8_1 never reaches a file, and releases of the gguf package disagree with ggml about it.
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":
            assert FORMATS[int(kind)] == (kind.name, block, size)


def test_every_truncation_is_refused(sample: Path, tmp_path: Path):
    whole = sample.read_bytes()
    path = tmp_path / "cut.gguf"
    last = max(t.offset + t.nbytes for t in GGUF.open(sample).tensors.values())
    for length in [*range(0, 1200), *range(1200, last, 37), last - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"cut\.gguf"):
            GGUF.open(path)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 1500), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    )
)
def test_corruption_never_crashes(sample: Path, tmp_path: Path, edits: list[tuple[int, bytes]]):
    """Any damage is either refused with ConfigError or leaves every tensor inside the file."""
    content = bytearray(sample.read_bytes())
    for at, replacement in edits:
        content[at : at + len(replacement)] = replacement
    path = tmp_path / "corrupt.gguf"
    path.write_bytes(content)
    try:
        opened = GGUF.open(path)
    except ConfigError:
        return
    for name, info in opened.tensors.items():
        assert opened.data(name).nbytes == info.nbytes
        assert info.offset + info.nbytes <= len(content)


def forged(body: bytes, tensors: int = 0, entries: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + body + bytes(256)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


KEY = text("k")
TENSOR = struct.pack("<I", 1) + struct.pack("<Q", 4)  # one dimension of four


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGML" + bytes(64), "letters GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "claims"),
        (forged(struct.pack("<Q", 1 << 62)), "in the middle"),
        (forged(KEY + struct.pack("<IQ", 8, 1 << 62)), "in the middle"),
        (forged(KEY + struct.pack("<IIQ", 9, 0, 1 << 40)), "elements"),
        (forged(KEY + struct.pack("<IIQ", 9, 8, 1 << 20)), "in the middle"),
        (forged(KEY + struct.pack("<IIQ", 9, 12, 1 << 20)), "in the middle"),
        (forged(KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9), "unknown type"),
        (forged(KEY + struct.pack("<I", 77)), "unknown type 77"),
        (forged((KEY + struct.pack("<IB", 0, 1)) * 2, entries=2), "twice"),
        (forged(text("general.alignment") + struct.pack("<II", 4, 3)), "power of two"),
        (forged(text("general.alignment") + struct.pack("<II", 4, 0)), "power of two"),
        (forged(text("t") + struct.pack("<I", 5), 1, 0), "dimensions"),
        (forged(text("t") + TENSOR + struct.pack("<IQ", 5, 0), 1, 0), "unknown type 5"),
        (forged(text("t") + TENSOR + struct.pack("<IQ", 2, 0), 1, 0), "shape"),
        (forged(text("t") + TENSOR + struct.pack("<IQ", 0, 7), 1, 0), "shape"),
        (forged(text("t") + TENSOR + struct.pack("<IQ", 0, 1 << 40), 1, 0), "ends at"),
        (forged((text("t") + TENSOR + struct.pack("<IQ", 0, 0)) * 2, 2, 0), "twice"),
        (forged(text("split.count") + struct.pack("<IH", 2, 3)), "llama-gguf-split"),
    ],
)
def test_forged_files_get_a_clear_reason(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "forged.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        GGUF.open(path)


def test_missing_and_empty_files(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read"):
        GGUF.open(tmp_path / "absent.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ConfigError, match="cannot read"):
        GGUF.open(tmp_path / "empty.gguf")
