"""Launches Triton kernels in little host time, which limits steps of few tokens.

Triton's own launch specialises kernels on many properties of each argument. Here a kernel is
compiled only for its constants, the types of its tensors and whether they are 16-byte aligned.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

ALIGN = 16  # bytes of a kernel's widest load


def power_of_2(n: int) -> int:
    """The least power of 2 that is at least n. Triton's function takes several microseconds."""
    return 1 << (n - 1).bit_length()


@cache
def dependents(device: int | None) -> bool:
    """Whether a kernel may start before the one it waits for has ended (Hopper and later)."""
    return device is not None and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; an arbitrary number if Triton interprets on a CPU."""
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have; 0 if Triton interprets on a CPU."""
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


class Kernel:
    """A `@triton.jit` function that specialises on none of its numbers (`do_not_specialize`).

    If its last constant is EARLY and the device can, it is launched while the kernel before it
    still runs (programmatic dependent launch). It must call `gdc_wait` before it reads what any
    kernel of the step wrote and before it writes anything; at least one of its programs must call
    it in any case. After that all earlier kernels have ended, since each waited, too. So a kernel
    may let its dependents start before it waits, and they fetch their weights meanwhile.
    """

    def __init__(self, function: Any):
        self.function = function
        self.early = function.arg_names[-1] == "EARLY"
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        *arguments: Tensor | float | None,
        warps: int,
        stages: int = 2,
        **constants: Any,
    ) -> None:
        """Queue `grid` programs. The function takes the arguments, then the constants, in order;
        the first argument is a tensor on the device."""
        device = arguments[0].device.index
        early = self.early and dependents(device)
        if self.early:
            constants["EARLY"] = early
        kinds = [(a.dtype, a.data_ptr() % ALIGN) if isinstance(a, Tensor) else a is None
                 for a in arguments]  # fmt: skip
        key = (device, warps, stages, *constants.values(), *kinds)
        compiled = self.compiled.get(key)
        if compiled is not None:
            compiled[grid](*arguments, *constants.values())
            return
        assert self.function.arg_names[len(arguments) :] == list(constants)
        options = {"num_warps": warps, "num_stages": stages} | (
            {"launch_pdl": True} if early else {}
        )
        launched = self.function[grid](*arguments, **constants, **options)
        if isinstance(self.function, triton.JITFunction):  # the interpreter compiles nothing
            self.compiled[key] = launched


def kernel(*numbers: str) -> Any:
    """Decorator of a kernel; `numbers` are the names of the arguments that are not tensors."""
    return lambda function: Kernel(triton.jit(function, do_not_specialize=numbers))


@triton.jit
def take_turn(EARLY: tl.constexpr):
    """Wait for the kernel before, if this was launched early, and let the next one start."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
