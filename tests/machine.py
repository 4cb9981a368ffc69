"""What a machine has, and the one switch that takes it away.

Much of the suite depends on what is installed, mounted or built in. Each of these things is named
here, and ``PMARRAY_TEST_WITHOUT=libpmem,direct`` (or ``all``) makes the tests see a machine that
lacks it; nothing else reads that variable. A test that goes one way with a thing and another
without is marked ``@pytest.mark.uses("libpmem")``; ``make test-without`` runs those a second time,
with everything taken away.

The root ``conftest.py`` applies the switch. What the processor can do is asked once, when NumPy is
loaded, which plugins of pytest do: so ``python -m tests.machine`` is ``python -m pytest`` with the
variables set before.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["THINGS", "apply", "forget_files", "has_counter", "has_libpmem", "taken"]

THINGS = {
    "libpmem": "stores to persistent memory are written back by it",
    "direct": "O_DIRECT, which tmpfs and some overlays refuse",
    "counter": "a file system known to show a reader what a writer counts, as a container's is not",
    "processor": "vector instructions beyond the baseline, which round in another order",
    "fuse": "/dev/fuse, for the file system that records what other libraries write",
    "qemu": "the machine whose power is cut",
    "gpu": "a CUDA device",
    "tensorstore": "the package, another reader of Zarr",
    "h5py": "the package, a source of arrays and a peer",
    "icechunk": "the package, for icechunk:",
}
_VARIABLE = "PMARRAY_TEST_WITHOUT"
_PACKAGES = ("tensorstore", "h5py", "icechunk")


def taken(thing: str) -> bool:
    """Whether a thing has been taken away.

    >>> taken("the moon")
    Traceback (most recent call last):
        ...
    KeyError: 'the moon'
    """
    THINGS[thing]
    return thing in _without()


def has_libpmem() -> bool:
    """Whether libpmem is there, and has not been taken away."""
    from pmarray._system import pmem

    return pmem.libpmem() is not None


def has_counter(directory: Path) -> bool:
    """Whether readers of a group in a directory go by what its writer counts."""
    from pmarray._system import filesystems

    fd = os.open(directory, os.O_RDONLY)
    try:
        return filesystems.is_local(fd)
    finally:
        os.close(fd)


def forget_files(directory: Path) -> None:
    """Have the system forget what it has in memory of files, where it can."""
    for file in directory.rglob("*"):
        if file.is_file() and hasattr(os, "posix_fadvise"):
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def apply() -> None:
    """Take away what the environment says; called once in each process of pytest."""
    without = _without()
    if "processor" in without and "NPY_DISABLE_CPU_FEATURES" not in os.environ:
        raise RuntimeError(
            f"{_VARIABLE}=processor comes too late: run `python -m tests.machine`, which is pytest"
        )
    for package in _PACKAGES:
        if package in without:
            sys.modules[package] = None  # type: ignore[assignment]  # importing it fails
    if "libpmem" in without:
        from pmarray._system import pmem

        pmem.libpmem = lambda: None  # type: ignore[assignment]
    if "direct" in without:
        from pmarray._system import osops

        for name in ("open_file", "open_nameless"):
            setattr(osops, name, _refusing_direct(getattr(osops, name)))
    if "counter" in without:
        from pmarray._system import filesystems

        filesystems._LOCAL.clear()
    if "gpu" in without:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _without() -> set[str]:
    words = {word for word in os.environ.get(_VARIABLE, "").split(",") if word}
    unknown = words - {*THINGS, "all"}
    if unknown:
        known = ", ".join(THINGS)
        raise ValueError(f"{_VARIABLE}: {', '.join(sorted(unknown))}; known: all, {known}")
    return set(THINGS) if "all" in words else words


def _use_baseline() -> None:
    code = (
        "from numpy._core import _multiarray_umath as m; "
        "print(*(f for f in m.__cpu_dispatch__ if m.__cpu_features__[f]))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    os.environ["NPY_DISABLE_CPU_FEATURES"] = asked.stdout.strip()
    os.environ["OPENBLAS_CORETYPE"] = "Nehalem"
    os.environ["ATEN_CPU_CAPABILITY"] = "default"


def _refusing_direct(real: Callable[..., int]) -> Callable[..., int]:
    def open_(path: str, *, direct: bool = False, **options: Any) -> int:
        if direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return real(path, **options)

    return open_


if __name__ == "__main__":
    # Several tests run at a time. Threads of each that wait for one another with the others at work
    # spin, and take several times as long as one would.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    if taken("processor"):
        _use_baseline()
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
