"""What a figure depends on: the machine, its system, the versions of what ran."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks._counters import device_of
from benchmarks._tables import in_bytes

__all__ = ["describe", "facts"]

_PACKAGES = ("numpy", "torch", "zarr", "h5py", "tensorstore", "safetensors")


def facts(directory: Path | None = None) -> dict[str, Any]:
    """Collect what a figure depends on; nothing in it names a path.

    Parameters
    ----------
    directory
        Where files are written: its file system and its device are told too.
    """
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: known for name in _PACKAGES if (known := _version(name))},
        "load": round(os.getloadavg()[0], 2),
    }
    if directory is not None:
        device = device_of(directory)
        found["file_system"] = _file_system(directory)
        found["device"] = None if device is None else _model(device)
        found["free_bytes"] = shutil.disk_usage(directory).free
    return found


def describe(found: Mapping[str, Any]) -> str:
    """Say the same in one line.

    Examples
    --------
    >>> describe({"cores": 2, "memory_bytes": 24e9, "system": "Linux 6.18", "load": 0.1})
    '2 cores, 24.0 GB of memory, Linux 6.18, load 0.1'
    """
    packages = found.get("packages", {})
    where = " on ".join(
        str(found[key]) for key in ("file_system", "device") if found.get(key) is not None
    )
    parts = [
        f"{found['cores']} cores" + (f" ({found['processor']})" if found.get("processor") else ""),
        f"{in_bytes(found['memory_bytes'])} of memory",
        found["system"],
        f"Python {found['python']}" if "python" in found else "",
        *(f"{name} {known}" for name, known in packages.items()),
        where,
        f"{in_bytes(found['free_bytes'])} free" if "free_bytes" in found else "",
        f"load {found['load']}",
    ]
    return ", ".join(part for part in parts if part)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), None)


def _file_system(directory: Path) -> str | None:
    """Name the type of the mount whose device number the directory has."""
    number = os.stat(directory).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    for mount in mounts:
        fields = mount.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return None


def _model(device: Path) -> str:
    """Name the device, and its model where it tells: that of the disk, for a partition."""
    for entry in (device, device.parent):
        model = entry / "device" / "model"
        if model.exists():
            return f"{device.name} ({model.read_text().strip()})"
    return device.name
