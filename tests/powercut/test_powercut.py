"""Power cuts of a real kernel: some on each medium, and a proof that things do get lost.

Skipped where there is no QEMU; ``apt-get install qemu-system-x86 debootstrap``, or
PMARRAY_POWERCUT_INSTALL=1, changes that. The first run builds a Debian, which takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._records import Recording
from benchmarks.guest import measure, tables
from pmarray.testing import State, Workload
from tests.powercut.__main__ import main
from tests.powercut.campaign import Campaign
from tests.powercut.guest import Guest, GuestError
from tests.powercut.host import CannotRunError, scratch
from tests.powercut.media import MEDIA, Medium
from tests.powercut.replay import replay
from tests.powercut.rig import Rig
from tests.powercut.states import from_json, to_json
from tests.powercut.verdict import Found, judge


@pytest.fixture(scope="module")
def rig() -> Rig:
    try:
        return Rig()
    except CannotRunError as error:
        pytest.skip(str(error))


@pytest.fixture
def place() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


@pytest.mark.parametrize("medium", MEDIA.values(), ids=lambda medium: medium.name)
def test_a_power_cut_leaves_a_committed_state(
    rig: Rig, medium: Medium, place: Path, tmp_path: Path
) -> None:
    """Few cuts: ``make powercut`` has many. The seed has some during recovery, and early ones."""
    campaign = Campaign(rig, medium, seed=131, scratch=place, evidence=tmp_path)
    cuts = list(campaign.run(3))
    assert not [cut.violation for cut in cuts if cut.violation]
    assert max(cut.committed for cut in cuts) > 0


@pytest.mark.parametrize("medium", [m for m in MEDIA.values() if m.is_disk], ids=lambda m: m.name)
def test_what_a_disk_had_in_its_cache_may_be_lost(rig: Rig, medium: Medium, place: Path) -> None:
    result = replay(rig, medium, seed=5, cuts=6, length=12, scratch=place)
    assert result.cuts == 6
    assert not result.violations


def test_a_library_without_barriers_is_caught(rig: Rig, place: Path) -> None:
    result = replay(rig, MEDIA["disk"], seed=7, cuts=3, length=12, scratch=place, deaf=True)
    assert result.violations


_UNSYNCED = """
import mmap, os
def new(path, synced):
    with open(path, "wb") as file:
        file.write(b"x" * 8192)
        file.flush()
        if synced:
            os.fsync(file.fileno())
new("/disk/kept", True)
new("/pmem/kept", True)
with open("/pmem/kept", "r+b") as file:
    with mmap.mmap(file.fileno(), 8192, flags=0x80003) as stored:  # MAP_SYNC: only DAX has it
        stored[:1] = b"y"
# Last, since any fsync would have made these names durable too.
new("/disk/lost", False)
new("/pmem/lost", False)
print("written")
"""


def test_a_cut_loses_what_was_not_synced_and_only_that(rig: Rig, place: Path) -> None:
    """It is the rig that is tried here, and the emulated NVDIMM."""
    dax = MEDIA["memmap-ext4"]
    rig.fresh(dax, place)
    mount = f"{MEDIA['disk'].mount}; {dax.mount}"
    with rig.start(place) as guest:
        guest.do("shell", script=f"{MEDIA['disk'].format}; {mount}")
        guest.order("python", program=_UNSYNCED, arguments=[])
        assert next(guest.replies("printed", "done")).value == "written"
        guest.pull_the_plug()
    with rig.start(place) as guest:
        listed = guest.do(
            "shell", script=f"{mount}; head -c 1 /disk/kept /pmem/kept; echo; ls /disk /pmem"
        )
    assert "lost\n" not in listed
    assert "==> /disk/kept <==\nx\n" in listed
    assert "==> /pmem/kept <==\ny\n" in listed


_SET_APART = """
import pmarray
from pmarray._upkeep.doctor import examine
from pmarray.errors import URLError

try:
    pmarray.open_group("shelf:/dev/dax0.0")
except URLError as error:
    print(error)
print(examine("/dev/dax0.0").durability)
with pmarray.open_group("dram:?device=/dev/dax0.0") as group:
    x = group.create("x", (1 << 20,), "uint8")
    assert not x[...].any()
    x[...] = 7
    print(int(x[...].sum(dtype=int)) == 7 << 20)
"""
_AS_A_SHELF = """
import warnings
import pmarray
from pmarray.errors import PersistenceWarning

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    group = pmarray.open_group("shelf:/dev/dax0.0?volatile=1", mode="w")
print([warning.category is PersistenceWarning for warning in told])
with group.transaction():
    group.create("x", (3,))[...] = 1
print(pmarray.open("shelf:/dev/dax0.0?volatile=1#x", mode="r")[...], flush=True)
print("stored", flush=True)
input()
"""
_AFTERWARDS = """
import pmarray
pmarray.open("shelf:/dev/dax0.0?volatile=1#x", mode="r")
"""


def test_memory_that_is_set_apart_is_no_persistent_memory(rig: Rig, place: Path) -> None:
    """A device of the kernel's driver for such memory, and what a power cut leaves in it."""
    rig.fresh(MEDIA["devdax"], place)
    appear = "modprobe dax_hmem; until test -c /dev/dax0.0; do sleep 0.1; done"
    with rig.start_with_memory_set_apart(place) as guest:
        guest.do("shell", script=appear)
        guest.order("python", program=_SET_APART, arguments=[])
        refused, durability, filled = _printed(guest)
        guest.order("python", program=_AS_A_SHELF, arguments=[])
        warned, *_, stored = _printed(guest, until="stored")
        guest.pull_the_plug()
    assert "hmem" in refused
    assert "forgets everything at power-off" in refused
    assert "none beyond a reboot" in durability
    assert filled == "True"
    assert warned == "[True]"
    assert stored == "[1. 1. 1.]"
    with rig.start_with_memory_set_apart(place) as guest:
        guest.do("shell", script=appear)
        guest.order("python", program=_AFTERWARDS, arguments=[])
        assert "NotFoundError" in _printed(guest)[-1]


def _printed(guest: Guest, until: str = "") -> list[str]:
    """What a program prints until it prints a certain line, or ends."""
    said = []
    for reply in guest.replies("printed", "done"):
        if reply.word == "done" or reply.value == until:
            break
        said.append(reply.value)
    return said


def test_machines_from_one_snapshot_draw_different_random_numbers(rig: Rig, place: Path) -> None:
    drawn = set()
    for name in ("one", "two"):
        rig.fresh(MEDIA["disk"], place / name)
        with rig.start(place / name) as guest:
            drawn.add(guest.do("shell", script="head -c 16 /dev/urandom | od -x"))
    assert len(drawn) == 2


def test_an_error_in_the_guest_is_one_here(rig: Rig, place: Path) -> None:
    rig.fresh(MEDIA["disk"], place)
    with rig.start(place) as guest:
        with pytest.raises(GuestError, match="no such place"):
            guest.do("shell", script="echo no such place; exit 3")
        guest.pull_the_plug()
        with pytest.raises(GuestError, match=r"died|gone"):
            guest.do("shell", script="true")


_HALF_DONE = """
import sys, pmarray
with pmarray.open_group(sys.argv[1]) as group:
    group.create("x", (3,))
    with group.transaction():
        group["x"][:] = 7
    print("committed", flush=True)
    input()
"""
_LOOK = """
import sys, pmarray
print(pmarray.open(sys.argv[1] + "#x", mode="r")[...])
"""


def test_a_program_is_cut_and_another_looks(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, program in (("half.py", _HALF_DONE), ("look.py", _LOOK)):
        (tmp_path / name).write_text(program)
    disks = str(tmp_path / "disks")
    run = ["run", "--medium", "memmap-xfs"]
    write = [*run, "--cut-at", "comm", "--keep", disks, str(tmp_path / "half.py"), "{url}"]
    assert main(write) == 0
    assert main([*run, "--disks", disks, str(tmp_path / "look.py"), "{url}"]) == 0
    assert capsys.readouterr().out == "committed\n[7. 7. 7.]\n"
    assert main([*run, str(tmp_path / "look.py"), "{url}"]) == 1
    assert "GroupNotFoundError" in capsys.readouterr().out


def test_the_verdict_knows_early_late_wrong_and_damaged_states() -> None:
    workload = Workload(1, 6)

    def found(step: int, *damage: str) -> Found:
        return {"state": to_json(workload.states[step]), "damage": list(damage)}

    assert judge(workload, 3, 4, found(3), found(3)) == ""
    assert "transaction 2 is the last" in judge(workload, 3, 4, found(2))
    assert "transaction 5 is the last" in judge(workload, 3, 4, found(5))
    assert "different states" in judge(workload, 3, 4, found(3), found(4))
    assert "torn" in judge(workload, 3, 4, found(3, "torn"))
    mixed = State(workload.states[2].arrays, workload.states[4].attrs)
    assert "not the state" in judge(workload, 3, 4, {"state": to_json(mixed), "damage": []})
    assert from_json(to_json(mixed)) == mixed


def test_the_benchmark_in_the_machine_times_the_medium_beside_memory(
    rig: Rig, tmp_path: Path
) -> None:
    found = Recording({"parameters": {"rows": 5000}})
    measure(found, rows=5000, columns=3, rounds=2, media=["devdax"], directory=tmp_path)
    assert [one["name"] for one in found.of("column")] == ["dram:", "medium"] * 2
    assert all(one["seconds"] > 0 for one in found.of("column"))
    (table,) = tables(found)
    assert "Dev-DAX" in table.rows[0][0]
