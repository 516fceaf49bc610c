"""The machine as a container leaves it to us."""

import os

from weir.linux import cores, memory


def test_memory_is_what_a_container_leaves(tmp_path) -> None:
    def says(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    says("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert memory(tmp_path)[1] == 8000 * 1024
    assert memory(tmp_path)[0] == 9000 * 1024
    says("proc/self/cgroup", "1:name=systemd:/x\n0::/pod/engine\n")
    assert memory(tmp_path)[1] == 8000 * 1024  # the controls are not there
    for group, limit, used in (("pod", "4000000", 1000000), ("pod/engine", "max", 900000)):
        says(f"sys/fs/cgroup/{group}/memory.max", limit)
        says(f"sys/fs/cgroup/{group}/memory.current", str(used))
        says(f"sys/fs/cgroup/{group}/memory.stat", "anon 5\ninactive_file 200000\n")
    assert memory(tmp_path)[1] == 4000000 - 1000000 + 200000
    says("sys/fs/cgroup/pod/engine/memory.max", "800000")  # less than it has
    assert memory(tmp_path)[1] == 100000
    says("sys/fs/cgroup/pod/engine/memory.max", "500000")
    assert memory(tmp_path) == (500000, 0)


def test_cores_are_those_that_a_container_may_keep_busy(tmp_path) -> None:
    def says(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    ours = len(os.sched_getaffinity(0))
    assert cores(tmp_path) == ours
    says("proc/self/cgroup", "0::/pod/engine\n")
    says("sys/fs/cgroup/pod/engine/cpu.max", "max 100000\n")
    assert cores(tmp_path) == ours
    says("sys/fs/cgroup/pod/cpu.max", "190000 100000\n")
    assert cores(tmp_path) == 1
    says("sys/fs/cgroup/pod/engine/cpu.max", "50000 100000\n")
    assert cores(tmp_path) == 1
    says("sys/fs/cgroup/pod/engine/cpu.max", "900000000 100000\n")
    says("sys/fs/cgroup/pod/cpu.max", "max 100000\n")
    assert cores(tmp_path) == ours
