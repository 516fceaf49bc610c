"""The cost of a placement of weights, KV and activations over GPU, CPU and disk (FlexGen section
4.3 and appendix A), also for grouped queries, gated MLPs, 4-bit codes and attention on the CPU.

A block of requests goes through the model layer by layer; each layer's weights are copied to the
GPU once a step, for all its lanes. All times and sizes are linear in the nine shares of a
placement. So the same rows price a given placement here and are minimised over by the linear
program of `weir.cost.search`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from weir.cost.machine import Machine, at
from weir.cost.transfer import slot_bytes
from weir.cost.work import cache_bytes, head_weights, layer_weights
from weir.spec import Spec

Row = NDArray[np.float64]
"""Coefficients of the nine shares (weights, cache, hidden; each GPU, CPU, disk), and a constant."""
Shares = tuple[float, float, float]
"""On GPU, CPU and disk; they add up to one."""
Overlap = Literal["none", "copies", "lanes"]
"""What runs concurrently: nothing; copies and computing; also the CPU's attention for one batch of
the block and the GPU's work for another."""

MARGIN = 0.9
"""The share of each memory that may be used."""
ROUNDED = 1 + 1e-5
"""Tolerance of the solver in what fits."""
LAYER_SLOTS = 3
"""Layers with streamed weights on the GPU at once: one whose attention runs, the next one, and one
being loaded. A CPU has one more, so that reading from disk goes on while a layer computes."""
RELAYS = 2
"""Pinned buffers for layers on their way from disk to a GPU."""
PAGE = 16
"""Tokens of KV that move at once between GPU and CPU."""
BYTES = {16: 2.0, 8: 66 / 64, 4: 36 / 64}
"""Bits of a number → bytes, including the 16-bit scale of its group of 64 and, for 4 bits, its
minimum."""
ANSWER = 100e-6
"""Latency from the queries leaving the GPU to the CPU's answer, besides the attention itself."""
QUERY = 0.36
"""CPU time for one query and a coded key, relative to unpacking the key (docs/offload.md)."""


SHOWN = 1 / 3
"""The share of a batch's attention on the CPU that still costs time beside the GPU's work for
another batch, and the reverse (measured, docs/offload.md)."""


class Job(Struct, frozen=True, kw_only=True):
    """Requests of `prompt` tokens that generate `output` each."""

    prompt: int = 512
    output: int = 32
    requests: int = 0  # of the whole job, where each that ends is replaced; 0: one block


class Offload(Struct, frozen=True, kw_only=True):
    """A placement. Shares of weights are by layer, the others by request. A search only reads where
    shares are not 0: it may place something there."""

    batch: int  # requests whose prompts are computed at once
    batches: int  # of a block
    lanes: int = 1  # batches of prompts in a step, which share one copy of the weights
    decode_lanes: int = 1  # parts in which a step's decodes are computed
    weights: Shares
    cache: Shares
    hidden: Shares
    cpu_attention: bool = True  # of decodes, for KV that is not on the GPU
    weight_bits: int = 16
    cache_bits: int = 16  # of KV off the GPU, which keeps 16
    overlap: Overlap = "copies"

    @property
    def block(self) -> int:
        return self.batch * self.batches

    @property
    def shares(self) -> Row:
        return np.array([*self.weights, *self.cache, *self.hidden, 1.0])


class Prediction(Struct, frozen=True, kw_only=True):
    prefill: float  # seconds of a block's prompts
    decode: float  # seconds of all its other tokens
    cycle: float = 0.0  # seconds in which every request of a block ends and is replaced
    throughput: float  # tokens generated per second
    prompt_limit: str  # the resource that limits the prompts
    decode_limit: str
    memory: dict[str, float]  # peak bytes used of each memory
    fits: bool


Phase = dict[str, Row]
"""Resource → seconds that it is busy with one layer for a whole block."""


def row(
    weights: Sequence[float] = (0, 0, 0),
    cache: Sequence[float] = (0, 0, 0),
    hidden: Sequence[float] = (0, 0, 0),
    fixed: float = 0.0,
) -> Row:
    return np.array([*weights, *cache, *hidden, fixed], np.float64)


class Costs:
    """Rows for one model, job and machine, and for a placement except its shares."""

    def __init__(self, spec: Spec, job: Job, machine: Machine, choice: Offload):
        self.spec, self.job, self.machine, self.choice = spec, job, machine, choice
        size = BYTES[4] if choice.weight_bits == 4 else choice.weight_bits / 8
        self.layer = machine.layer_bytes or layer_weights(spec) * size
        self.kv = cache_bytes(spec, BYTES[choice.cache_bits]) / spec.layers  # per token and layer
        self.wide_kv = cache_bytes(spec, 2.0) / spec.layers
        self.here = self.kv if machine.alone else self.wide_kv  # on the GPU, or on a CPU alone
        self.state = 2.0 * spec.hidden  # a token's activations between layers
        self.head = 2.0 * head_weights(spec) * (1 if spec.tied else 2)
        away = choice.cpu_attention and choice.cache[1] > 0 and not machine.alone
        self.answers = ANSWER if away else 0.0  # seconds per layer of a decode step
        prompt, decode = self._prompt(), self._decode()
        self.prompt, self.decode = self._limits(prompt), self._limits(decode)
        self.mixed = self._limits(self._mixed(prompt, decode), apart=True)
        self.memory = self._memory()

    # -- time ----------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """With prompts, for a block."""
        return -(-self.choice.batches // self.choice.lanes)

    @property
    def counts(self) -> tuple[float, float, float]:
        """How often the job takes the time of a block's prompts, of a decode of all, and of a step
        in which a part of the requests is replaced.

        A request ends after `output` steps and its place is taken at once. So steps with prompts
        come in the same order again in each cycle, and decodes alone fill the rest of it."""
        output = self.job.output
        cycles = max(0.0, self.job.requests / self.choice.block - 1)
        return 1.0, output - 1 + cycles * max(0, output - self.steps), cycles * self.steps

    @property
    def requests(self) -> int:
        return self.job.requests or self.choice.block

    def _mixed(self, prompt: Phase, decode: Phase) -> Phase:
        """One layer over the prompts of one step and the decodes beside them, which share one copy
        of the weights."""
        running = (min(self.steps, self.job.output) - 1) / self.steps
        beside = row((0, 0, 0), (1, 1, 1), (1, 1, 1), 1.0) * running
        return {name: part / self.steps + beside * decode[name] for name, part in prompt.items()}

    def _prompt(self) -> Phase:
        """One layer over all prompts of a block; KV is computed on the GPU and copied home."""
        m, job, tokens = self.machine, self.job, self.choice.block * self.job.prompt
        kv, state = self.kv * tokens, self.state * tokens
        pairs = self.choice.block * job.prompt * (job.prompt + 1) / 2
        attention = 4 * self.spec.heads * self.spec.head_dim * pairs / m.prompt_attention
        steps = self.steps
        head = self._head_seconds(self.choice.block / steps) * steps / self.spec.layers
        gpu = self._linears(tokens, self.choice.batches, m.prompt_matrix) + attention + head
        gpu += m.vectors * state / m.gpu_weights
        leaves = kv / m.cache_to_cpu
        brought = self.layer * steps
        return self._phase(
            to_gpu=row((0, brought, brought), hidden=(0, state, state)) / m.to_gpu,
            to_cpu=row(cache=(0, leaves, leaves)) + row(hidden=(0, state, state)) / m.to_cpu,
            link=row((0, brought, brought), (0, kv, kv), (0, 2 * state, 2 * state)),
            read=row((0, 0, brought), hidden=(0, 0, state)),
            write=row(cache=(0, 0, kv), hidden=(0, 0, state)),
            gpu=row(fixed=gpu),
            cpu=row(),
            touched=row(),
        )

    def _decode(self) -> Phase:
        """One layer over one token of each request, at the mean length. Either the CPU attends to
        KV that is away from the GPU, so that queries and outputs are copied, or the KV is."""
        m, job, spec, block = self.machine, self.job, self.spec, self.choice.block
        tokens, new = block * (job.prompt + job.output / 2), self.kv * block
        kv, wide, here = self.kv * tokens, self.wide_kv * tokens, self.here * tokens
        state = self.state * block
        inner = 2.0 * spec.heads * spec.head_dim * block  # queries, or outputs
        there = self.choice.cpu_attention
        sent = inner if there else kv
        back = inner + new if there else new
        codes = self.choice.cache_bits < 16
        on_gpu = here / m.gpu_cache
        brought = max(kv / m.gpu_cache, wide / m.gpu_codes if codes else 0.0)
        unpacked = wide * (1 + QUERY * spec.heads / spec.kv_heads)
        on_cpu = max(kv / m.cpu_cache, unpacked / m.cpu_codes if codes else 0.0)
        gpu = row(
            cache=(on_gpu, 0, 0) if there else (on_gpu, brought, brought),
            fixed=self._linears(block, self.choice.decode_lanes, m.decode_matrix)
            + self._head_seconds(block) / spec.layers
            + self.answers,
        )
        moved = row((0, self.layer, self.layer), (0, sent, sent), (0, state, state))
        return self._phase(
            to_gpu=moved / m.to_gpu,
            to_cpu=row(cache=(0, back, back), hidden=(0, state, state)) / m.to_cpu,
            link=moved + row(cache=(0, back, back), hidden=(0, state, state)),
            read=row((0, 0, self.layer), (0, 0, kv), (0, 0, state)),
            write=row(cache=(0, 0, new), hidden=(0, 0, state)),
            gpu=gpu,
            cpu=row(cache=(0, on_cpu, on_cpu)) if there else row(),
            touched=row(cache=(0, kv, kv)) if there else row(),
        )

    def _phase(
        self,
        *,
        to_gpu: Row,
        to_cpu: Row,
        link: Row,
        read: Row,
        write: Row,
        gpu: Row,
        cpu: Row,
        touched: Row,
    ) -> Phase:
        """to_gpu, to_cpu, gpu, cpu: seconds; the others bytes. touched: read by the CPU itself. All
        that crosses a link or goes to disk also passes through the CPU's memory."""
        m = self.machine
        return {
            "copies to the GPU": to_gpu,
            "copies to the CPU": to_cpu,
            "the link both ways": link / m.both_ways,
            "disk reads": read / m.disk_read,
            "disk writes": write / m.disk_write,
            "CPU memory": (link + read + write + touched) / m.cpu_read,
            "the GPU": gpu,
            "attention on the CPU": cpu,
        }

    def _limits(self, phase: Phase, apart: bool = False) -> Phase:
        """What a phase waits for, given what overlaps. apart: prompts and decodes are batches of
        their own, so that one is computed while the CPU attends for the other."""
        rest = dict(phase)
        gpu, cpu = rest.pop("the GPU"), rest.pop("attention on the CPU")
        if self.choice.overlap == "lanes":
            return phase
        if self.choice.overlap == "none":
            copies = ("copies to the GPU", "copies to the CPU", "disk reads", "disk writes")
            parts = [gpu, cpu, *(phase[name] for name in copies)]
            return rest | {"everything in turn": np.sum(parts, axis=0)}
        if apart:
            both = {"the GPU": gpu + SHOWN * cpu, "attention on the CPU": cpu + SHOWN * gpu}
            return rest | both
        return rest | {"computing": gpu + cpu}

    def _linears(self, tokens: int, lanes: int, rate: float) -> float:
        """GPU seconds of a layer's linears over a block's tokens. Each lane reads the weights."""
        m, weights = self.machine, layer_weights(self.spec)
        if m.layer:
            return lanes * at(m.layer, tokens / lanes)
        read = self.layer / m.gpu_weights
        multiply = 2 * weights * tokens / lanes / rate
        unpack = 2.0 * weights / m.gpu_codes if self._unpacks(tokens / lanes) else 0.0
        return lanes * (unpack + max(read, multiply) + m.layer_seconds)

    def _unpacks(self, tokens: float) -> bool:
        """Whether a lane of `tokens` tokens unpacks 4-bit weights before multiplying."""
        return self.choice.weight_bits == 4 and tokens > self.machine.code_rows

    def _head_seconds(self, rows: float) -> float:
        """Seconds of a step outside the layers, if `rows` rows sample."""
        m, weights = self.machine, head_weights(self.spec)
        if m.rest:
            return at(m.rest, rows)
        multiply = 2 * weights * rows / m.decode_matrix
        return max(2.0 * weights / m.gpu_weights, multiply)

    # -- memory --------------------------------------------------------------------------------

    def _memory(self) -> dict[str, tuple[list[Row], float]]:
        """For each memory, the peaks in bytes of both phases, and the bytes that may be used."""
        m, spec, job, choice = self.machine, self.spec, self.job, self.choice
        layers, block, batch = spec.layers, choice.block, choice.batch
        held, tokens = self.layer * layers, (job.prompt + job.output) * block * layers
        kv, here = self.kv * tokens, self.here * tokens
        one = self.kv * (job.prompt + job.output) * batch  # KV of a batch in a layer
        q, kv_row = 2.0 * spec.heads * spec.head_dim, 4.0 * spec.kv_heads * spec.head_dim
        wide = 2.0 * spec.ffn * (1 if spec.architecture == "opt" else 2)
        attending = q + kv_row + q  # with its output
        if choice.cache[1] > 0 and not m.alone:  # copies of pages in main memory, and what is sent
            attending += kv_row + (q + kv_row if choice.cache_bits == 16 else kv_row / 2)
        working = 2 * self.state + max(attending, q + self.state + wide)  # per token, in a layer
        unpacked = spec.hidden * max(wide, q + kv_row) if self._unpacks(batch * job.prompt) else 0.0
        travels = 0.0 if choice.cpu_attention else 2 * one  # KV of decodes
        record = int(self.kv * layers * PAGE)
        mixed = choice.cache[0] > 0 and choice.cache[1] > 0
        ring = (LAYER_SLOTS + m.alone) * self.layer
        slots = slot_bytes(record, int(kv / record)) if mixed else 0

        def on_gpu(computed: int, waiting: int, cached: float) -> Row:
            """computed, waiting: tokens at once and between layers. cached: other KV, in bytes."""
            away = 2 * self.state * computed
            return row(
                (held, ring, ring),
                (here, cached, cached),
                ((self.state + q) * waiting, away, away),
                self.head + working * computed + slots + unpacked + m.gpu_taken,
            )

        def on_cpu(computed: int, waiting: int) -> Row:
            passing = 2 * one  # KV between disk and attention
            return row(
                (0, held, RELAYS * self.layer),
                (0, kv, passing),
                (0, self.state * waiting, 2 * self.state * computed),
            )

        prompts = batch * job.prompt, min(batch * choice.lanes, block) * job.prompt
        disk = row((0, 0, held), (0, 0, kv), (0, 0, self.state * prompts[1]))
        return {
            "main memory" if m.alone else "GPU memory": (
                [on_gpu(*prompts, 0), on_gpu(block, block, travels)],
                MARGIN * m.gpu_memory,
            ),
            "CPU memory": ([on_cpu(*prompts), on_cpu(block, block)], MARGIN * m.cpu_memory),
            "disk": ([disk], MARGIN * m.disk),
        }

    # -- a placement given ---------------------------------------------------------------------

    def predict(self, placed: Offload) -> Prediction:
        """The prediction for `placed`, which may differ from the choice only in shares."""
        shares, layers = placed.shares, self.spec.layers
        prompt, prompt_limit = _longest(self.prompt, shares)
        decode, decode_limit = _longest(self.decode, shares)
        memory = {
            name: max(float(peak @ shares) for peak in peaks)
            for name, (peaks, _) in self.memory.items()
        }
        mixed, _ = _longest(self.mixed, shares)
        job, steps = self.job, self.steps
        seconds = layers * float(np.dot(self.counts, (prompt, decode, mixed)))
        return Prediction(
            prefill=layers * prompt,
            decode=layers * decode * (job.output - 1),
            cycle=layers * (steps * mixed + max(0, job.output - steps) * decode),
            throughput=self.requests * job.output / seconds,
            prompt_limit=prompt_limit,
            decode_limit=decode_limit,
            memory=memory,
            fits=all(memory[name] <= room * ROUNDED for name, (_, room) in self.memory.items()),
        )


def predict(spec: Spec, job: Job, machine: Machine, placed: Offload) -> Prediction:
    """The prediction for a placement on a machine, whether it fits or not."""
    return Costs(spec, job, machine, placed).predict(placed)


def _longest(phase: Phase, shares: Row) -> tuple[float, str]:
    seconds = {name: float(part @ shares) for name, part in phase.items()}
    name = max(seconds, key=seconds.__getitem__)
    return seconds[name], name
