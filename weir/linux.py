"""CPU features, cores and main memory, as Linux reports them and as far as the limits of cgroups
(version 2), and so of a container, allow.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path


def cpu_info() -> list[dict[str, str]]:
    """The fields of each logical CPU in /proc/cpuinfo; none on other systems."""
    try:
        blocks = Path("/proc/cpuinfo").read_text().strip().split("\n\n")
    except OSError:
        return []
    pairs = [[line.partition(":") for line in block.splitlines()] for block in blocks]
    return [{key.strip(): value.strip() for key, _, value in one} for one in pairs]


def instructions() -> list[str]:
    """Instruction set extensions of the CPU, by the kernel's names."""
    known = next(iter(cpu_info()), {})
    return known.get("flags", known.get("Features", platform.processor())).split()


def cores(root: Path = Path("/")) -> int:
    """How many threads of this process can compute at once, by its affinity and CPU quota. With
    more, a container would be throttled: all its threads stop for the rest of each period."""
    least = float(len(os.sched_getaffinity(0)))
    for group in _groups(root):
        with contextlib.suppress(OSError, ValueError):  # "max", or no such control
            quota, period = map(int, (group / "cpu.max").read_text().split())
            least = min(least, quota / period)
    return max(1, int(least))


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of main memory in all and available, within the limits of cgroups."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    total, free = (int(sizes[name][0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, left in _limits(root):
        total, free = min(total, limit), min(free, left)
    return total, free


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Bytes that each cgroup with a memory limit may use, and has left. Inactive pages of files do
    not count as used."""
    for group in _groups(root):
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max", or no such control
            limit, used = (
                int((group / f"memory.{name}").read_text()) for name in ("max", "current")
            )
            stat = (group / "memory.stat").read_text().splitlines()
            idle = int(dict(line.split() for line in stat)["inactive_file"])
            yield limit, max(0, limit - used + idle)


def _groups(root: Path) -> list[Path]:
    """The cgroups (version 2) of this process, the innermost first."""
    try:
        names = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    top = root / "sys/fs/cgroup"
    found = [top / name[4:] for name in names if name.startswith("0::/")]
    return [one for own in found for one in (own, *own.parents) if one.is_relative_to(top)]


def free_memory() -> int:
    """Bytes of main memory that are available."""
    return memory()[1]
