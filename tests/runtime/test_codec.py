"""What a codec gives back is as near as it says, in as many bytes as it says."""

import numpy as np
import pytest
import torch

from weir.errors import ConfigError
from weir.runtime.codec import Codec
from weir.runtime.disk import Disk

CASES = {torch.int8: (0.008, 1.93), torch.int4: (0.095, 3.55)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", CASES)
def test_the_error_and_the_size_are_as_stated(kind, dtype):
    error, smaller = CASES[kind]
    x = torch.randn(64 * 600, generator=torch.Generator().manual_seed(1)) * 3
    x = x.to(dtype)
    record = x.view(torch.uint8).numpy()
    codec = Codec(kind, len(record), dtype)
    coded = codec.encode(record)
    assert coded.shape == (codec.size,)
    assert len(record) / codec.size > smaller * dtype.itemsize / 2
    got = torch.from_numpy(codec.decode(coded)).view(dtype)
    assert 0.5 * error < (got.float() - x.float()).norm() / x.float().norm() < error


@pytest.mark.parametrize("kind", CASES)
def test_constants_and_zeros_come_back(kind):
    x = torch.cat([torch.zeros(64), torch.full((64,), 2.0), torch.full((64,), -0.5)])
    codec = Codec(kind, 4 * len(x), torch.float32)
    got = torch.from_numpy(codec.decode(codec.encode(x.view(torch.uint8).numpy())))
    assert torch.allclose(got.view(torch.float32), x, rtol=2**-8, atol=0)
    with pytest.raises(ConfigError, match="--block-size"):
        Codec(kind, 100, torch.float32)


def test_a_disk_keeps_what_its_codec_makes_of_records(tmp_path):
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    codec = Codec(torch.int4, 512, torch.bfloat16)
    disk = Disk(tmp_path, "me", 4, 512, codec)
    disk.write([1, 3, 0], x.view(torch.uint8).numpy())
    disk.save([1, 3, 0], b"words")
    disk.close()
    assert (tmp_path / "kv.pages").stat().st_size == 4 * codec.size
    again = Disk(tmp_path, "me", 4, 512, codec)
    assert again.kept == b"words"
    want = np.stack([codec.decode(codec.encode(row)) for row in x.view(torch.uint8).numpy()])
    assert (again.read([1, 3, 0]) == want).all()
    again.close()
