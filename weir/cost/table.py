"""Seconds of a step from steps that were measured: two grids, and what lies between them.

One grid holds steps of a single prompt chunk, by its length and where it starts; the other steps of
decodes, by how many and what context each reads. A mixed step runs its linears once for all tokens,
so every part adds only what it took beyond the linears of its own tokens.
"""

from bisect import bisect_right
from collections.abc import Sequence

from msgspec import Struct

from weir.cost.work import Work


class Grid(Struct, frozen=True):
    """seconds[i][j] at (rows[i], columns[j]); both ascend and have at least two values."""

    rows: list[int]
    columns: list[int]
    seconds: list[list[float]]

    def at(self, row: float, column: float) -> float:
        """Bilinear; beyond the edge the nearest cells go on."""
        i, right = _place(self.rows, row)
        j, up = _place(self.columns, column)
        low, high = self.seconds[i], self.seconds[i + 1]
        first = low[j] + (low[j + 1] - low[j]) * up
        return first + (high[j] + (high[j + 1] - high[j]) * up - first) * right


class Table(Struct, frozen=True):
    """What a profile of one model on one machine found, and where it holds."""

    key: dict[str, str]  # model, device, types and version: all must match
    prompts: Grid  # rows: length of a chunk. columns: its start, 0 first
    decodes: Grid  # rows: sequences. columns: context of each

    def seconds(self, work: Work) -> float:
        """Of a step that does `work`; 0 of no work."""
        count, tokens = len(work.contexts), work.tokens
        if not tokens:
            return 0.0
        alone = count + len(work.prompts) == 1 or not work.prompts
        total = 0.0 if alone else self.linears(tokens)
        for length, start in work.prompts:
            total += self.prompts.at(length, start) - (0.0 if alone else self.linears(length))
        if count:
            mean = sum(work.contexts) / count
            total += self.decodes.at(count, mean) - (0.0 if alone else self.linears(count))
        return max(total, self.decodes.seconds[0][0] / 2)

    def linears(self, tokens: int) -> float:
        """Of a step of so many tokens, without attention: what a chunk takes at the start of a
        prompt, less the pairs within it at the price that pairs with earlier tokens have."""
        grid = self.prompts
        last = grid.columns[-1]
        bare = grid.at(tokens, 0)
        pair = max(0.0, grid.at(tokens, last) - bare) / (tokens * last)
        return bare - pair * tokens * tokens / 2


def _place(values: Sequence[int], value: float) -> tuple[int, float]:
    """The interval of `values` to use, and how far into it the value lies."""
    at = min(max(bisect_right(values, value) - 1, 0), len(values) - 2)
    return at, (value - values[at]) / (values[at + 1] - values[at])
