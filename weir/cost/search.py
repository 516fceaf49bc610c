"""Finds the best placement of a model over GPU, CPU and disk: FlexGen's linear program inside an
enumeration of batch and block sizes. Also prices placements chosen by hand, for comparison.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from weir.cost.machine import Machine
from weir.cost.offload import Costs, Job, Offload, Prediction, Shares, predict
from weir.errors import ConfigError
from weir.spec import Spec

Target = Literal["throughput", "latency"]

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 20)
"""Batches of a block: the more, the less often weights are copied."""
SIZES = (1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
"""Requests of a batch."""
FAR = np.array([0.0, 1.0, 2.0] * 3 + [0.0] * 3)
"""How far from the GPU each share is, for places that take the same time."""
SAME = 1e-9
"""Times whose relative difference is this or less are equal."""
SLACK = 1.001
"""Factor on bounds of throughput, far above the solver's tolerance."""
GPU, CPU, DISK = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
ANYWHERE, BOTH = (1.0, 1.0, 1.0), (1.0, 1.0, 0.0)


def runnable(machine: Machine, kernels: bool = True, **more: Any) -> list[Offload]:
    """The placements that the engine can run, as bases of a search: activations on the GPU, KV on
    the GPU or, with `kernels` for attention on the CPU, also in CPU memory or on both. more: fields
    of `Offload`."""
    most = BATCHES[-1]
    base = Offload(batch=1, batches=most, lanes=most, weights=ANYWHERE, cache=GPU, hidden=GPU)
    base = replace(base, cpu_attention=False, **more)
    if machine.alone:
        return [replace(base, weights=(1.0, 0.0, 1.0))]
    return [base] + [replace(base, cache=c, cpu_attention=True) for c in (CPU, BOTH) if kernels]


class Planned(Struct, frozen=True, kw_only=True):
    """A placement and its prediction."""

    name: str
    offload: Offload
    predicted: Prediction


class Report(Struct, frozen=True, kw_only=True):
    """The result of `weir plan`, which `--offload` accepts."""

    model: str
    machine: Machine
    job: Job
    planned: Planned
    by_hand: list[Planned] = []


def search(
    spec: Spec,
    job: Job,
    machine: Machine,
    bases: Iterable[Offload],
    target: Target = "throughput",
) -> Planned:
    """The best placement, of any batch and block size, that one of `bases` allows; bits, overlap
    and attention are the base's. target: most tokens per second, or the least latency of one
    request. Raises `ConfigError` if the model does not fit, or the solver is not installed."""
    found: list[Program] = []
    for choice in (choice for base in bases for choice in _choices(base, job, target)):
        if (program := fastest(Costs(spec, job, machine, choice))) is not None:
            found.append(program)
    if not found:
        raise ConfigError(_too_large(Costs(spec, job, machine, choice)))
    best: Planned | None = None
    for program in sorted(found, key=lambda program: program.bound, reverse=True):
        if best is not None and program.bound < best.predicted.throughput:
            break
        placed = program.nearest()
        if best is None or placed.predicted.throughput > best.predicted.throughput:
            best = placed
    assert best is not None
    return best


def _too_large(costs: Costs) -> str:
    """An error message that says what the model needs, and what there is."""
    job, layers = costs.job, costs.spec.layers
    tokens = job.prompt + job.output
    rooms = ", ".join(
        f"{room / 1e9:.1f} GB of {name}"
        for name, (_, room) in costs.memory.items()
        if not (costs.machine.alone and name == "CPU memory")
    )
    fewer = ", or 4-bit weights" if costs.choice.weight_bits > 4 else ""
    return (
        f"the model does not fit on {costs.machine.name}: its weights take "
        f"{costs.layer * layers / 1e9:.1f} GB besides {costs.head / 1e9:.1f} of embeddings, a "
        f"request of {tokens} tokens {costs.kv * layers * tokens / 1e9:.2f}, and {rooms} may be "
        f"used: give it more memory or disk{fewer}"
    )


def _choices(base: Offload, job: Job, target: Target) -> Iterator[Offload]:
    """All batch and block sizes, with prompts in steps of one batch and of `base.lanes` batches. If
    requests replace each other, also a block whose every step has as many prompts."""
    counts = {*BATCHES, job.output} if job.requests else BATCHES
    for size in SIZES if target == "throughput" else (1,):
        for batches in sorted(counts) if target == "throughput" else (1,):
            for lanes in sorted({1, min(base.lanes, batches)}):
                yield replace(base, batch=size, batches=batches, lanes=lanes)


class Program(Struct, frozen=True):
    """The linear program for one choice of sizes and allowed places, and a solution.

    There are twelve unknowns: nine shares, and the time of a layer over the prompts, over one
    decode and over a step with both, each of which is at least that of every resource. `weight` @
    unknowns is the time of a layer for the whole job, in units of `unit` seconds."""

    costs: Costs
    unit: float
    weight: np.ndarray
    rows: np.ndarray  # rows @ unknowns ≥ least
    least: np.ndarray
    most: np.ndarray  # 0 ≤ unknowns ≤ most
    values: np.ndarray  # unknowns of the least time

    @property
    def bound(self) -> float:
        """At least the throughput that is predicted of any solution, in tokens per second."""
        costs, (_, decodes, mixed) = self.costs, self.costs.counts
        layer = self.unit * float(self.weight @ self.values) - costs.answers * (decodes + mixed)
        return SLACK * costs.requests * costs.job.output / (layer * costs.spec.layers)

    def nearest(self) -> Planned:
        """Of the solutions of the least time, the one nearest to the GPU."""
        costs, values = self.costs, self.values
        rows = np.vstack([self.rows, -self.weight / (self.weight @ values)])
        nearest = _minimise(FAR, rows, np.append(self.least, -1.0 - SAME), self.most)
        values = values if nearest is None else nearest
        weights, cache, hidden = (_shares(values[first : first + 3]) for first in (0, 3, 6))
        placed = replace(costs.choice, weights=weights, cache=cache, hidden=hidden)
        # less memory, and no answers of the CPU, if KV is on one tier
        predicted = predict(costs.spec, costs.job, costs.machine, placed)
        return Planned(name="planned", offload=placed, predicted=predicted)


def fastest(costs: Costs) -> Program | None:
    """The program with a solution that takes the least time; None if nothing fits."""
    rows: list[np.ndarray] = []
    least: list[float] = []
    phases = [(9, costs.prompt), (10, costs.decode)]
    phases += [(11, costs.mixed)] if costs.job.requests else []
    unit = max(float(part[9]) for _, phase in phases for part in phase.values())
    for at, phase in phases:
        for part in phase.values():  # relative to the unit: the solver's tolerance is absolute
            line = np.zeros(12)
            line[:9], line[at] = -part[:9] / unit, 1.0
            rows.append(line)
            least.append(float(part[9]) / unit)
    for peaks, room in costs.memory.values():
        for peak in peaks:  # relative to the room: bytes beside seconds would be ill-conditioned
            rows.append(np.append(-peak[:9] / max(room, 1.0), (0.0,) * 3))
            least.append(float(peak[9] / max(room, 1.0) - (room > 0)))
    for first in (0, 3, 6):
        line = np.zeros(12)
        line[first : first + 3] = 1.0
        rows += [line, -line]
        least += [1.0, -1.0]
    weight = np.zeros(12)
    weight[9:] = costs.counts
    most = np.append(np.where(costs.choice.shares[:9] > 0, np.inf, 0.0), (np.inf,) * 3)
    table, bounds = np.array(rows), np.array(least)
    values = _minimise(weight, table, bounds, most)
    return None if values is None else Program(costs, unit, weight, table, bounds, most, values)


def _shares(values: Any) -> Shares:
    kept = np.clip(np.round(values, 9), 0.0, 1.0) + 0.0  # no -0
    return float(kept[0]), float(kept[1]), float(kept[2])


def _minimise(weight: Any, rows: Any, least: Any, most: Any) -> Any:
    """The x that minimises weight·x with 0 ≤ x ≤ most and rows·x ≥ least; None if there is none.
    Raises `ConfigError` if HiGHS is not installed."""
    try:
        import highspy
    except ImportError:
        raise ConfigError("planning needs the HiGHS solver: pip install 'weir-llm[plan]'") from None
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(weight), len(rows)
    program.col_cost_ = weight
    program.col_lower_, program.col_upper_ = np.zeros(len(weight)), most
    program.row_lower_, program.row_upper_ = least, np.full(len(rows), np.inf)
    matrix = program.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    kept = [np.flatnonzero(line) for line in rows]
    matrix.start_ = np.cumsum([0, *(len(columns) for columns in kept)])
    matrix.index_ = np.concatenate(kept)
    matrix.value_ = rows[rows != 0]
    make: Any = highspy.Highs
    _greeted(make)
    solver = make()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.passModel(program)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return np.array(solver.getSolution().col_value)


@cache
def _greeted(make: Any) -> None:
    """Suppress what HiGHS prints when a process makes its first solver, before it takes options."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there is no stdout
            kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            os.dup2(nowhere, 1)
            os.close(nowhere)
        make()


def naive(spec: Spec, job: Job, machine: Machine, base: Offload) -> list[Planned]:
    """Placements as chosen by hand, each with the largest single batch that fits."""
    there = replace(base, batches=1, lanes=1, cpu_attention=True, cache=CPU, hidden=GPU)
    here = replace(there, cpu_attention=False, cache=GPU)
    hands = {
        "weights where they fit, the rest on the GPU": replace(
            here, weights=_fill(spec, job, machine, here)
        ),
        "weights on the CPU, the rest on the GPU": replace(here, weights=CPU),
        "everything on the CPU": replace(there, weights=CPU),
        "weights on disk, KV on the CPU": replace(there, weights=DISK),
    }
    if machine.alone:
        one = replace(base, batches=1, lanes=1)
        places = {"in memory": GPU, "on disk": DISK}
        hands = {f"weights {at}": replace(one, weights=w) for at, w in places.items()}
    found = []
    for name, choice in hands.items():
        sizes = (replace(choice, batch=size) for size in SIZES)
        pairs = [(placed, predict(spec, job, machine, placed)) for placed in sizes]
        if fitting := [pair for pair in pairs if pair[1].fits]:
            placed, predicted = fitting[-1]
            found.append(Planned(name=name, offload=placed, predicted=predicted))
    return found


def _fill(spec: Spec, job: Job, machine: Machine, base: Offload) -> Shares:
    """Weights on up to half of the GPU, then on up to 80 % of the CPU, then on disk."""
    held = Costs(spec, job, machine, replace(base, batch=1)).layer * spec.layers
    gpu = min(1.0, 0.5 * machine.gpu_memory / held)
    cpu = min(1.0 - gpu, 0.8 * machine.cpu_memory / held)
    return gpu, cpu, max(0.0, 1.0 - gpu - cpu)
