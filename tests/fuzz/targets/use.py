"""What a program does with a group that it has found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import pmarray
from tests.fuzz.watch import permitted

__all__ = ["Template", "attempt", "use_group"]

_MAX_READ_BYTES = 1 << 20


def attempt(call: Callable[[], Any]) -> Any:
    """Return what a call does, or None where it raises what it may."""
    try:
        return call()
    except Exception as error:
        if not permitted(error):
            raise
        return None


def use_group(url: str, mode: Any, *, commit: bool = True) -> None:
    """Open, read, and if the mode allows it write, perhaps in a transaction, and close."""
    group = attempt(lambda: pmarray.open_group(url, mode=mode, cache="8 MiB"))
    if group is None:
        return
    try:
        names = attempt(lambda: list(group)) or []
        for name in names[:4]:
            attempt(partial(_use_name, group, name, mode))
        if mode != "r":
            attempt(lambda: group.attrs.update(touched=1))
            if group._session.backend.has_journal and commit:
                attempt(lambda: _commit(group))
    finally:
        attempt(group.close)


def _use_name(group: pmarray.Group, name: str, mode: Any) -> None:
    _use_array(group[name], mode)


def _use_array(array: pmarray.PMArray, mode: Any) -> None:
    repr(array)
    if array.size:
        first = (0,) * array.ndim
        array[first]
        if array.nbytes <= _MAX_READ_BYTES:
            array[...]
        if mode != "r":
            array[first] = np.zeros((), array.dtype)


def _commit(group: pmarray.Group) -> None:
    with group.transaction():
        group.attrs["touched"] = 2


class Template:
    """A directory that is made once, and put back in its first state for each input."""

    def __init__(self, base: Path, make: Callable[[Path], None]) -> None:
        self.root = base / "g"
        make(self.root)
        self._files = {
            path.relative_to(self.root): path.read_bytes() if path.is_file() else None
            for path in sorted(self.root.rglob("*"))
            if not path.is_symlink()
        }

    def restore(self) -> Path:
        """Make it as it was; return where it is."""
        if os.path.lexists(self.root):
            shutil.rmtree(self.root)
        self.root.mkdir()
        for path, data in self._files.items():
            if data is None:
                (self.root / path).mkdir()
            else:
                (self.root / path).write_bytes(data)
        return self.root

    def read(self, name: str) -> bytes:
        """What a file held."""
        data = self._files[Path(name)]
        assert data is not None
        return data
