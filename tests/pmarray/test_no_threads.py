"""Where no thread can be started: the system is full, or the interpreter is ending."""

from __future__ import annotations

import _thread
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import pmarray


@pytest.mark.parametrize("scheme", ["dram", "memmap", "zarr"])
def test_the_caller_does_the_work_himself(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "dram:none-to-be-had" if scheme == "dram" else f"{scheme}:{tmp_path / 'g'}"
    pmarray.open(url, (1,), mode="w").close()  # what other libraries start once is there

    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    monkeypatch.setattr("pmarray._system.uninterrupted._idle", [])
    with pmarray.open_group(url, cache="64 KiB") as group:
        x = group.create("x", (1000, 0), "float32", layout="col", fill_value=2)
        with group.transaction():
            for i in range(30):
                x.append(np.full(1000, i, "float32"))
            group.attrs["n"] = 30
        with pytest.raises(KeyError), group.transaction():
            x[:, 3] = 7
            raise KeyError
        x[5] = 1
    with pmarray.open(f"{url}#x", mode="r") as x:
        assert (x[5] == 1).all()
        np.testing.assert_array_equal(x[0], np.arange(30))
        assert x.group.attrs["n"] == 30
