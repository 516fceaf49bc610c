"""Which decodes of a batch are found to share a prefix."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weir.ops import prefix
from weir.ops.prefix import LEAST, MEMBERS, Prefixes

PAGE = 16


def find(table: np.ndarray, keys: np.ndarray, page: int, saved: int = 512) -> Prefixes | None:
    """Of rows that lie anywhere among others, in batches so small that 512 keys pay."""
    rows = np.random.default_rng(0).permutation(2 * len(table))[: len(table)]
    among = np.full((2 * len(table), table.shape[1]), 7, np.int32)
    among[rows] = table
    return prefix.find(among, rows, keys, page, saved)


def table_of(prompts: list[tuple[int, int]], width: int = 40) -> np.ndarray:
    """Rows of pages; (group, common): the first `common` pages are those of the group."""
    pages = np.arange(len(prompts) * width, dtype=np.int32).reshape(-1, width) + 10_000
    for s, (group, common) in enumerate(prompts):
        pages[s, :common] = group * width + np.arange(common)
    return pages


def test_requests_of_one_prompt_make_a_tile() -> None:
    table = table_of([(0, 20), (1, 30), (0, 20), (0, 22), (0, 20), (1, 30)])
    found = find(table, np.full(6, 39 * PAGE), PAGE)
    assert found is not None and found.keys.tolist() == [20 * PAGE, 30 * PAGE]
    assert found.member[:, :5].tolist() == [[0, 2, 3, 4, -1], [1, 5, -1, -1, -1]]
    assert found.skip.tolist() == [320, 480, 320, 320, 320, 480]


def test_a_large_group_takes_several_tiles() -> None:
    found = find(table_of([(0, 20)] * (MEMBERS + 3)), np.full(MEMBERS + 3, 600), PAGE)
    assert found is not None and found.keys.tolist() == [320, 320]
    assert (found.member >= 0).sum(1).tolist() == [MEMBERS, 3]


def test_short_prefixes_and_small_groups_do_not_pay() -> None:
    short = LEAST // PAGE - 1
    assert find(table_of([(0, short)] * 80), np.full(80, 600), PAGE) is None
    assert find(table_of([(s, 30) for s in range(50)]), np.full(50, 600), PAGE) is None
    two = table_of([(0, 30)] * 2)
    assert find(two, np.full(2, 480), PAGE) is None
    assert find(two, np.full(2, 480), PAGE, 480) is not None
    assert find(two[:0], np.full(0, 480), PAGE) is None


def test_what_must_not_be_shared_is_not() -> None:
    keys = np.array([600, 0, 600, 290, 600, 600])
    found = find(table_of([(0, 30)] * 6), keys, PAGE)
    assert found is not None and found.skip.tolist() == [288, 0, 288, 288, 288, 288]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=60),
    st.sampled_from([1, 16]),
)
def test_tiles_share_pages_and_skip_says_what_they_take(
    prompts: list[tuple[int, int]], page: int
) -> None:
    table = table_of(prompts)
    keys = np.array([31 * page + s % 7 for s in range(len(prompts))])
    found = find(table, keys, page)
    if found is None:
        return
    taken = np.zeros(len(prompts), np.int32)
    assert sum(((found.member >= 0).sum(1) - 1) * found.keys) > 0
    for members, shared in zip(found.member, found.keys, strict=True):
        rows = members[members >= 0]
        assert len(rows) and members[0] >= 0 and shared >= LEAST and shared % page == 0
        assert (table[rows, : shared // page] == table[rows[0], : shared // page]).all()
        assert (shared <= keys[rows]).all() and not taken[rows].any()
        taken[rows] = shared
    assert (taken == found.skip).all()
