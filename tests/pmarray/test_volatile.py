"""DAX devices that forget everything at power-off: told apart, and used as memory."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pmarray
from pmarray._upkeep.doctor import examine
from pmarray.backends.shelf import devices
from pmarray.backends.shelf.memory import device_memory
from pmarray.errors import GroupLockedError, PersistenceWarning, StorageError, URLError
from tests.persistent import MEMORY, pretend_devices

UNIT = 2 << 20

# Where such devices hang in the sysfs of Linux 6.12, and what each directory's subsystem is.
KINDS = {
    "nvdimm": (
        "LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region0/dax0.0/dax0.0",
        {"ndbus0": "nd", "region0": "nd", "dax0.0": "nd"},
        None,
    ),
    "legacy": ("platform/e820_pmem/ndbus0/region0/dax0.0/dax0.0", {"ndbus0": "nd"}, None),
    "cxl": (
        "platform/ACPI0017:00/root0/decoder0.0/region0/dax_region0/dax0.0",
        {"root0": "cxl", "decoder0.0": "cxl", "region0": "cxl", "dax_region0": "cxl"},
        "CXL",
    ),
    "cxl-pmem": (
        "platform/ACPI0017:00/root0/nvdimm-bridge0/ndbus1/region1/dax1.0/dax0.0",
        {"root0": "cxl", "nvdimm-bridge0": "cxl", "ndbus1": "nd", "region1": "nd"},
        None,
    ),
    "hmem": ("platform/hmem.0/dax0.0", {"hmem.0": "platform"}, "set apart"),
    "unknown": ("virtual/dax/dax0.0", {}, "not call persistent"),
}


def _sysfs(root: Path, kind: str) -> None:
    """Make the part of a sysfs that describes a DAX device with the numbers of /dev/null."""
    path, buses, _ = KINDS[kind]
    place = root / "devices"
    for name in Path(path).parts:
        place = place / name
        place.mkdir(parents=True)
        bus = buses.get(name)
        if bus is not None:
            (root / "bus" / bus).mkdir(parents=True, exist_ok=True)
            (place / "subsystem").symlink_to(root / "bus" / bus)
    (root / "bus" / "dax").mkdir(parents=True, exist_ok=True)
    (place / "subsystem").unlink(missing_ok=True)
    (place / "subsystem").symlink_to(root / "bus" / "dax")
    (place / "size").write_text(f"{1 << 30}\n")
    (place / "align").write_text(f"{UNIT}\n")
    number = os.stat("/dev/null").st_rdev
    (root / "dev" / "char").mkdir(parents=True)
    (root / "dev" / "char" / f"{os.major(number)}:{os.minor(number)}").symlink_to(place)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_bus_tells_what_a_device_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sysfs(tmp_path, kind)
    monkeypatch.setattr(devices, "_SYSFS_ROOT", str(tmp_path))
    monkeypatch.setattr(devices, "_SYSFS", f"{tmp_path}/dev/char")
    device = devices.find_device("/dev/null")
    assert device is not None
    assert device.nbytes == 1 << 30
    expected = KINDS[kind][2]
    if expected is None:
        assert device.volatile is None
        return
    assert device.volatile is not None
    assert expected in device.volatile
    with pytest.raises(URLError, match=r"dram:\?device=/dev/null"):
        pmarray.open_group("shelf:/dev/null")
    found = examine("/dev/null")
    assert found.url == "dram:?device=/dev/null"
    assert "none beyond a reboot" in found.durability
    assert expected in found.facts["kind"]


@pytest.fixture
def device() -> Iterator[Path]:
    """A volatile device of 32 MiB, full of junk."""
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-volatile-", dir=MEMORY) as directory,
        pretend_devices(volatile="CXL memory (RAM)"),
    ):
        path = Path(directory) / "dax0.0"
        path.write_bytes(b"\xa5" * (16 * UNIT))
        yield path


def test_a_volatile_device_as_a_shelf(device: Path) -> None:
    with pytest.raises(URLError, match="forgets everything at power-off"):
        pmarray.open_group(f"shelf:{device}")
    url = f"shelf:{device}?volatile=1"
    with pytest.warns(PersistenceWarning, match=r"CXL memory .* not a power cut"):
        group = pmarray.open_group(url, mode="w")
    with group:
        group.create("x", (3,))[:] = 1
        with group.transaction():
            group["x"][:] = 2
    with pytest.warns(PersistenceWarning):
        group = pmarray.open_group(url, mode="r")
    with group:
        assert group["x"][...].tolist() == [2, 2, 2]


def test_persistent_memory_is_not_taken_for_memory() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="pmarray-volatile-", dir=MEMORY) as directory,
        pretend_devices(),
    ):
        path = Path(directory) / "dax0.0"
        path.write_bytes(bytes(16 * UNIT))
        with pytest.raises(URLError, match="would be overwritten"):
            pmarray.open_group(f"dram:?device={path}")
        with pytest.raises(URLError, match="no DAX device"):
            pmarray.open_group(f"dram:?device={directory}/nothing")


def test_arrays_grow_and_go_on_a_device(device: Path) -> None:
    memory = device_memory(str(device))
    with pmarray.open_group(f"dram:?device={device}") as group:
        x = group.create("x", (0, UNIT), "uint8")
        y = group.create("y", (10,), "float64")
        assert y[...].tolist() == [0] * 10
        for i in range(4):
            x.append(np.full((1, UNIT), i + 1, "uint8"))
            y.append(np.full(1000, float(i)))
        view = np.asarray(x)
        assert view[:, 5].tolist() == [1, 2, 3, 4]
        tensor_like = y[...]
        assert tensor_like[10:].tolist() == [float(i) for i in range(4) for _ in range(1000)]
        with pytest.raises(StorageError, match="cannot reserve"):
            x.resize((20, UNIT))
        assert x.shape == (4, UNIT)
        with group.transaction():
            x[0] = 9
        # What a view still shows is given to nobody else.
        del group["x"]
        group.flush()
        group.create("z", (8, UNIT), "uint8")[...] = 7
        assert view[:, 5].tolist() == [9, 2, 3, 4]
        free = memory.free_units
        del x, view
        gc.collect()
        assert memory.free_units >= free + 4
        assert group["z"][...].sum() == 7 * 8 * UNIT
    del group, y
    gc.collect()
    assert memory.free_units == 16
    assert device.read_bytes()[: 16 * UNIT] != b"\xa5" * (16 * UNIT)  # it is the device's memory


def test_a_named_group_and_another_process(device: Path) -> None:
    url = f"dram:on-device?device={device}"
    with pmarray.open(url, (3,)) as array:
        array[...] = 5
    with pmarray.open(url, mode="r") as array:
        assert array[...].tolist() == [5, 5, 5]
    memory = device_memory(str(device))
    other = memory.device.new_lock()
    with pytest.raises(GroupLockedError):
        other.acquire("unknown")
