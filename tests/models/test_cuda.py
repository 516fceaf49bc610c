"""Every family gives the logits of transformers on a GPU, too."""

import pytest
import torch

pytest.importorskip("transformers")

from tests.models.families import FAMILIES, expected, logits, prompt, save
from weir.models.load import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_on_a_gpu(family, dtype, tmp_path) -> None:
    """Of a prompt at once, and of its last token in a step of its own. Transformers computes in
    float32 on the CPU, with weights rounded as ours are. Some of these random models multiply the
    rounding of activations: then ours may be twice as far off as transformers is in the same type,
    since either of two that round is by chance the luckier."""
    theirs = save(family, tmp_path).to(dtype)
    rounded = expected(theirs, prompt())[-1]
    want = expected(theirs.float(), prompt())[-1]
    limit = max(TOLERANCE[dtype], 2 * distance(rounded, want))
    ours = load(tmp_path, dtype=dtype, device=torch.device("cuda"))
    for cut in (0, len(prompt()) - 1):
        got = logits(ours, prompt().cuda(), last=1, cut=cut, dtype=dtype)[0].float().cpu()
        assert distance(got, want) < limit
