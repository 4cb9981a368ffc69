"""How much memory may be used: what others use counts, and what the page cache holds does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmarray._available import available_memory_bytes
from tests.limited import run_with_memory

MIB = 1 << 20
REPOSITORY = Path(__file__).parents[2]

MEMINFO = """MemTotal:       24684084 kB
MemFree:          606396 kB
MemAvailable:   24212608 kB
"""
STAT = f"""anon {300 * MIB}
file {700 * MIB}
inactive_file {400 * MIB}
active_file {300 * MIB}
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def told(tmp_path: Path, groups: str = "") -> int:
    write(tmp_path / "proc/meminfo", MEMINFO)
    write(tmp_path / "proc/self/cgroup", groups)
    return available_memory_bytes(f"{tmp_path}/proc", f"{tmp_path}/cgroup")


def test_what_the_page_cache_holds_is_free(tmp_path: Path) -> None:
    assert told(tmp_path) == 24212608 << 10


def test_of_this_machine() -> None:
    assert MIB < available_memory_bytes() <= _all_of_it()


def test_a_system_that_does_not_tell_has_all_of_its_memory(tmp_path: Path) -> None:
    assert available_memory_bytes(str(tmp_path), str(tmp_path)) == _all_of_it()


def _all_of_it() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("where", ["user.slice/job", "user.slice", ""])
@pytest.mark.parametrize("mount", ["", "unified"])
def test_limits_of_a_group_and_of_those_above_it(tmp_path: Path, where: str, mount: str) -> None:
    group = tmp_path / "cgroup" / mount / where
    write(group / "memory.max", f"{1024 * MIB}\n")
    write(group / "memory.current", f"{1000 * MIB}\n")
    write(group / "memory.stat", STAT)
    inner = tmp_path / "cgroup" / mount / "user.slice/job/task"
    write(inner / "memory.max", "max\n")
    assert told(tmp_path, "0::/user.slice/job/task\n") == 724 * MIB


@pytest.mark.parametrize("where", ["memory/docker/1234", "memory", "memory,cpu/docker"])
def test_groups_of_the_first_version(tmp_path: Path, where: str) -> None:
    group = tmp_path / "cgroup" / where
    write(group / "memory.limit_in_bytes", f"{1024 * MIB}\n")
    write(group / "memory.usage_in_bytes", f"{1000 * MIB}\n")
    write(group / "memory.stat", "".join(f"total_{line}\n" for line in STAT.splitlines()))
    kinds = where.split("/", 1)[0]
    assert told(tmp_path, f"9:name=systemd:/\n4:{kinds}:/docker/1234\n0::/\n") == 724 * MIB


@pytest.mark.parametrize("limit", ["max", str((1 << 63) - 4096), "", "?"])
def test_no_limit(tmp_path: Path, limit: str) -> None:
    write(tmp_path / "cgroup/memory.max", limit)
    write(tmp_path / "cgroup/memory.current", f"{1000 * MIB}")
    write(tmp_path / "cgroup/memory/memory.limit_in_bytes", limit)
    assert told(tmp_path, "4:memory:/\n0::/\n") == 24212608 << 10


def test_more_used_than_there_may_be(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/memory.max", f"{100 * MIB}")
    write(tmp_path / "cgroup/memory.current", f"{200 * MIB}")
    assert told(tmp_path, "0::/\n") == 0


READ = """
import pmarray
place, mib = sys.argv[1], 1 << 20
with pmarray.open(f"memmap:{place}", (1100 * mib,), "uint8", mode="w") as a:
    a[: 400 * mib] = 1
    for file in pathlib.Path(place).rglob("*.npy"):
        with file.open("rb", buffering=0) as open_file:
            while open_file.read(mib):  # the page cache has all that the group may hold
                pass
    print(a[: 200 * mib].sum(dtype=int))
    try:
        a[:]
    except pmarray.errors.BudgetError as error:
        print(error)
"""


def test_a_group_whose_page_cache_is_full(tmp_path: Path) -> None:
    done = run_with_memory(1000 * MIB, READ, str(tmp_path / "a"))
    assert done.returncode == 0, (done.returncode, done.stderr)
    total, refused = done.stdout.splitlines()
    assert int(total) == 200 * MIB
    assert refused.startswith("the result would take 1.07 GiB of memory")


GROW = """
import numpy as np, pmarray
rows, group = 4 << 20, pmarray.open_group("dram:")
a = group.create("a", (rows, 0), "float32", layout="col")
try:
    for j in range(100):
        with group.transaction():
            a.append(np.full((rows, 1), j, "float32"))
except pmarray.errors.BudgetError as error:
    print(error)
count = a.shape[1]
print(count, np.array_equal(a[::1000, :].mean(axis=0), np.arange(count)))
a.resize((rows, 2))
a.append(np.full((rows, 1), 7, "float32"))
print(a.shape[1], a[-1, 2])
"""


def test_an_array_in_memory_grows_no_further_than_there_is_memory() -> None:
    done = run_with_memory(700 * MIB, GROW)
    assert done.returncode == 0, (done.returncode, done.stderr)
    refused, there, after = done.stdout.splitlines()
    assert "cannot grow by 16 MiB" in refused
    count, is_right = there.split()
    assert 10 < int(count) < 40
    assert is_right == "True"
    assert after == "3 7.0"


VIEWED = """
import resource, sys
import numpy as np, pmarray
if sys.argv[1] == "counted":
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
rows = 4 << 20
a = pmarray.open("dram:", (rows, 0), "float32", layout="col")
try:
    for j in range(100):
        view = np.asarray(a, copy=False)
        a.append(np.full((rows, 1), j, "float32"))
        assert view.shape == (rows, j) and (j == 0 or view[-1, -1] == j - 1)
except pmarray.errors.BudgetError as error:
    print(error)
print(a.shape[1], np.array_equal(a[::1000, :].mean(axis=0), np.arange(a.shape[1])))
"""


@pytest.mark.parametrize(
    ("addresses", "most", "refusal"),
    [("free", 38, "cannot grow by 16 MiB"), ("counted", 34, "let the view go")],
)
def test_an_array_of_which_somebody_has_a_view_grows_no_further_either(
    addresses: str, most: int, refusal: str
) -> None:
    done = run_with_memory(1050 * MIB, VIEWED, addresses)
    assert done.returncode == 0, (done.returncode, done.stderr)
    refused, there = done.stdout.splitlines()
    assert refusal in refused
    count, is_right = there.split()
    assert most - 5 < int(count) < most + 5
    assert is_right == "True"


COUNTED = """
import pathlib, resource
import numpy as np, pmarray
rows, limit = 4 << 20, 1 << 30
a, one = pmarray.open("dram:", (rows, 0), "float32", layout="col"), np.ones((rows, 1), "float32")
a.append(one)
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
try:
    while True:
        a.append(one)
except pmarray.errors.BudgetError as error:
    print(error)
print(a.shape[1] * one.nbytes / limit)
"""


def test_an_array_in_memory_takes_what_it_needs_where_the_system_counts_it_all() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, share = done.stdout.splitlines()
    assert refused.startswith("cannot allocate")
    assert float(share) > 0.9
