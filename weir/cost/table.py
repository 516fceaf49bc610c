"""Predicts the seconds of a step by interpolation between measured steps, in two grids.

One grid has steps of a single prompt chunk, by its length and start; the other steps of decodes, by
their number and context. A mixed step runs its linears once for all tokens, so each part adds only
its time beyond the linears of its own tokens.
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
        """Bilinear interpolation; beyond the edge, extrapolation from the nearest cells."""
        i, right = _place(self.rows, row)
        j, up = _place(self.columns, column)
        low, high = self.seconds[i], self.seconds[i + 1]
        first = low[j] + (low[j + 1] - low[j]) * up
        return first + (high[j] + (high[j + 1] - high[j]) * up - first) * right


class Table(Struct, frozen=True):
    """The profile of one model on one machine."""

    key: dict[str, str]  # model, device, types and version: all must match
    prompts: Grid  # rows: length of a chunk. columns: its start, 0 first
    decodes: Grid  # rows: sequences. columns: context of each

    def seconds(self, work: Work) -> float:
        """Seconds of a step that does `work`; 0 if there is none."""
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
        """Seconds of a step of `tokens` without attention: of a chunk at the start of a prompt,
        less its query-key pairs, each at the price of a pair with earlier tokens."""
        grid = self.prompts
        last = grid.columns[-1]
        bare = grid.at(tokens, 0)
        pair = max(0.0, grid.at(tokens, last) - bare) / (tokens * last)
        return bare - pair * tokens * tokens / 2


def _place(values: Sequence[int], value: float) -> tuple[int, float]:
    """The interval of `values` to use, and the value's position in it as a fraction."""
    at = min(max(bisect_right(values, value) - 1, 0), len(values) - 2)
    return at, (value - values[at]) / (values[at + 1] - values[at])
