"""The CPU's counterpart of a CUDA graph: calls are recorded once and then replayed.

A step of few decodes is hundreds of calls, each of which costs the host as long as the kernel
itself. Calls of kernels are recorded on tapes, which C++ plays; PyTorch's operators run between
tapes. Recorded calls must not depend on values, and what they read must keep its address.
"""

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weir.ops import native

ALIGN = 64
BLANK = (torch.ops.aten.empty.memory_format, torch.ops.aten.new_empty.default)
"""Operators that only allocate, for the results of kernels."""


class Unrecordable(Exception):
    """The function read a tensor's value on the host."""


class Memory:
    """Memory for the results of all recordings; they share it, as only one is played at a time."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.used = 0

    def take(self, size: int) -> Tensor:
        """A block not taken since `used` was 0; other recordings use the same blocks."""
        if self.used == len(self.blocks) or len(self.blocks[self.used]) < size:
            self.blocks[self.used : self.used + 1] = [torch.empty(size, dtype=torch.uint8)]
        self.used += 1
        return self.blocks[self.used - 1][:size]


class Recording(TorchDispatchMode):
    """Within this context kernels are recorded and not run; `play` runs all that was recorded."""

    def __init__(self, memory: Memory):
        super().__init__()
        library = native.library()
        assert library is not None, "there are no kernels to record"
        self.library = library
        self.memory = memory
        self.kept: list[Any] = []  # results, whose addresses are on the tapes
        self.steps: list[Callable[[], None]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # not used here, and PyTorch would take a second to import it

    def play(self) -> None:
        for step in self.steps:
            step()

    def __enter__(self) -> "Recording":
        self.memory.used = 0
        self._begin()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.library.tape_end()

    def _begin(self) -> None:
        tape = self.library.tape_begin()
        weakref.finalize(self, self.library.tape_free, tape)
        self.steps.append(partial(self.library.tape_play, tape))

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        made = operator(*args, **kwargs)
        if operator in BLANK and made.is_contiguous():
            block = self.memory.take(made.nbytes)
            made = block.view(made.dtype).view(made.shape)
        elif operator._schema.is_mutable:
            self.steps.append(partial(operator, *args, **kwargs))
            self._begin()
        elif not _within(made, (args, [*kwargs.values()])):
            self.steps.append(partial(_again, partial(operator, *args, **kwargs), made))
            self._begin()
        self.kept.append(made)
        return made


def recorded(run: Callable[[], None], memory: Memory) -> Callable[[], None]:
    """→ a function that repeats all that `run` calls; `run` itself if it reads values."""
    recording = Recording(memory)
    try:
        with recording:
            run()
    except Unrecordable:
        return run
    return recording.play


def _within(made: Any, given: Any) -> bool:
    """Whether all results are views of arguments. Raises `Unrecordable` if there is no tensor."""
    places = {x.untyped_storage().data_ptr() for x in _tensors(given)}
    parts = [*_tensors(made)]
    if not parts:
        raise Unrecordable
    return all(x.untyped_storage().data_ptr() in places for x in parts)


def _again(call: Callable[[], Any], made: Any) -> None:
    """Call again and copy the results to where they were before."""
    for old, new in zip(_tensors(made), _tensors(call()), strict=True):
        old.copy_(new)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
