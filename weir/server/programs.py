"""Usage of programs that make many calls, counted by the `program` that requests name."""

from collections import OrderedDict

from msgspec import Struct

from weir.client import Assembly

KEPT = 1000


class ProgramUsage(Struct):
    """Usage of one program, over its calls that have ended."""

    program: str
    calls: int = 0
    failed: int = 0
    branches: int = 0  # that made calls
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # from the arrival of its first call to its latest token


class ProgramList(Struct):
    """The programs with the most recent calls, latest first."""

    programs: list[ProgramUsage]


class Programs:
    """Add an instance to `client.listeners`."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, ProgramUsage] = OrderedDict()
        self._began: dict[str, float] = {}
        self._branches: dict[str, set[str]] = {}

    def __call__(self, finished: Assembly) -> None:
        name, _, branch = finished.program.partition("/")
        if not name:
            return
        usage = self._known.setdefault(name, ProgramUsage(name))
        self._known.move_to_end(name)
        usage.calls += 1
        usage.failed += "error" in finished.finish_reasons
        usage.prompt_tokens += finished.usage.prompt_tokens
        usage.cached_tokens += finished.usage.cached_tokens
        usage.completion_tokens += finished.usage.completion_tokens
        branches = self._branches.setdefault(name, set())
        branches.add(branch)
        usage.branches = len(branches)
        began = min(self._began.get(name, finished.timing.arrival), finished.timing.arrival)
        self._began[name] = began
        usage.seconds = max(usage.seconds, finished.timing.last - began)
        if len(self._known) > KEPT:
            oldest, _ = self._known.popitem(last=False)
            del self._began[oldest], self._branches[oldest]

    def usage(self) -> ProgramList:
        return ProgramList(list(reversed(self._known.values())))
