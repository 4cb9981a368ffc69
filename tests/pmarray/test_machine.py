"""The state machine over every backend at hand."""

from __future__ import annotations

import os
import tempfile
import uuid
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import zarr

import pmarray
from pmarray.testing import ArrayMachine
from tests.persistent import MEMORY, pretend_dax, pretend_devices
from tests.sampling import examples, thorough


class InMemory(ArrayMachine):
    def url(self) -> str:
        return f"dram:{uuid.uuid4()}"


class InFiles(ArrayMachine):
    options = ""

    def url(self) -> str:
        self.directory = tempfile.TemporaryDirectory(prefix="pmarray-machine-")
        return f"memmap:{self.directory.name}/group{self.options}"

    def check_reader(self) -> None:
        """NumPy alone reads what was flushed."""
        root = os.path.join(self.directory.name, "group")
        for name, model in self.model.items():
            path = os.path.join(root, f"{name}.npy")
            stored = np.load(path, mmap_mode="r") if model.size else np.load(path)
            if stored.dtype != model.dtype:
                stored = stored.view(model.dtype)  # bfloat16 has no name in .npy
            if model.ndim:
                stored = stored[tuple(slice(0, n) for n in model.shape)]
            np.testing.assert_array_equal(stored, model)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


class InBufferedFiles(InFiles):
    options = "?direct=no"


class OnShelf(InFiles):
    """Mapped files, stored to in place, or through the cache where the machine asks for one."""

    def __init__(self) -> None:
        self.pretence = ExitStack()
        self.pretence.enter_context(pretend_dax())
        super().__init__()

    def url(self) -> str:
        self.directory = tempfile.TemporaryDirectory(prefix="pmarray-machine-", dir=MEMORY)
        return f"shelf:{self.directory.name}/group"

    def teardown(self) -> None:
        super().teardown()
        self.pretence.close()


class OnDevice(ArrayMachine):
    """A pool in a file that is mapped as a device would be."""

    def __init__(self) -> None:
        self.pretence = ExitStack()
        self.pretence.enter_context(pretend_devices())
        super().__init__()

    def url(self) -> str:
        self.directory = tempfile.TemporaryDirectory(prefix="pmarray-machine-", dir=MEMORY)
        path = os.path.join(self.directory.name, "dax0.0")
        with open(path, "wb") as file:
            file.truncate(128 << 20)
        return f"shelf:{path}"

    def teardown(self) -> None:
        super().teardown()
        self.pretence.close()
        if hasattr(self, "directory"):
            self.directory.cleanup()


class InZarr(ArrayMachine):
    def url(self) -> str:
        self.directory = tempfile.TemporaryDirectory(prefix="pmarray-machine-")
        return f"zarr:{self.directory.name}/group"

    def stores(self, dtype: np.dtype[Any]) -> bool:
        return dtype.kind in "biufcM"

    def budget(self, cache: int | str) -> int | str:
        return "256 KiB"

    def check_reader(self) -> None:
        """zarr-python reads what was flushed."""
        root = zarr.open_group(f"{self.directory.name}/group", mode="r")
        for name, model in self.model.items():
            stored = root[name]
            assert isinstance(stored, zarr.Array)
            np.testing.assert_array_equal(stored[...], model)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


class InIcechunk(InZarr):
    def url(self) -> str:
        pytest.importorskip("icechunk")
        super().url()
        return f"icechunk:{self.directory.name}/group"

    def check_reader(self) -> None:
        """Another handle sees what was flushed."""
        with pmarray.open_group(self.location, mode="r") as group:
            assert list(group) == sorted(self.model)
            for name, model in self.model.items():
                np.testing.assert_array_equal(group[name][...], model)


TestInMemory: Any = InMemory.TestCase
TestInFiles: Any = pytest.mark.uses("direct")(InFiles.TestCase)
TestInBufferedFiles: Any = InBufferedFiles.TestCase
TestOnShelf: Any = OnShelf.TestCase
TestOnDevice: Any = OnDevice.TestCase
TestInZarr: Any = InZarr.TestCase
TestInIcechunk: Any = InIcechunk.TestCase
# Every object is a file, and made durable: a step takes several times as long.
if not thorough():
    for times, cases in (
        (1, [TestInMemory]),
        (0.5, [TestInFiles, TestInBufferedFiles, TestOnShelf, TestOnDevice]),
        (0.25, [TestInZarr, TestInIcechunk]),
    ):
        for case in cases:
            case.settings = examples(times, stateful_step_count=30)
    del case, cases  # or they would be collected, and run again, under these names too


def test_the_machine_notices_a_wrong_array() -> None:
    """A machine that could not fail would prove nothing."""
    machine = InMemory()
    machine.start("auto")
    machine.group.create("a", (3,), "int32")
    machine.model["a"] = np.array([0, 0, 1], "int32")
    try:
        machine.equals_model()
    except AssertionError:
        pass
    else:
        raise AssertionError("the machine accepted an array that differs from its model")
    finally:
        machine.teardown()
