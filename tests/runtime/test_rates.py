"""What is timed to know how fast the host attends."""

import pytest
import torch

from weir.runtime import rates
from weir.spec import AttentionSpec


@pytest.mark.parametrize("pages", [1, 50, 64 * 8, 64 * 9])
def test_turns_read_other_pages_while_there_are_any(
    pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv, spec = torch.zeros(pages, 2, 2, 16, 32), AttentionSpec(4, 2, 32, 1.0)
    seen: list[set[int]] = []

    def attend(q, kv, batch, spec):
        seen.append(set(batch.table.flatten().tolist()))
        assert (batch.kv_len == batch.table.shape[1] * 16).all()

    monkeypatch.setattr(rates, "attend", attend)
    monkeypatch.setattr(rates, "READ", 128 * kv[0].nbytes)
    assert rates.attention(kv, spec, torch.float32) > 0
    each = min(pages, 128)
    assert [len(found) for found in seen] == [each] * 4
    assert len(set.union(*seen)) == min(pages, 4 * each)
