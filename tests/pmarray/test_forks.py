"""Handles in a forked process: readers open again, writers are told why they cannot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmarray
from pmarray.errors import ClosedError, GroupLockedError

SCHEMES = ["memmap", "zarr", "npy"]


def _in_child(work: Callable[[], object]) -> None:
    """Run `work` in a fork of this process; an error there fails here."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0


def _made(scheme: str, directory: Path) -> str:
    if scheme == "npy":
        np.save(directory / "array.npy", np.arange(1000.0))
        return str(directory / "array.npy")
    url = f"{scheme}:{directory}/group"
    with pmarray.open(url, (1000,), mode="w", chunks=100) as array:
        array[...] = np.arange(1000)
        array.group.attrs["step"] = 1
    return url


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("used", [False, True])
def test_a_reader_goes_on_in_a_child(scheme: str, mode: Any, used: bool, tmp_path: Path) -> None:
    array = pmarray.open(_made(scheme, tmp_path), mode=mode)
    view = array.view[::2]
    if used:
        assert array[10] == 10

    def child() -> None:
        assert not array.group.closed
        assert array.shape == (1000,)
        assert array[3] == 3
        assert array[-1:].tolist() == [999]
        assert view[1] == 2
        assert array.sum() == 499500
        assert np.asarray(array)[5] == 5
        if scheme != "npy":
            assert array.group.attrs["step"] == 1
        _in_child(lambda: array[7])  # and in the child of a child
        array.close()
        with pytest.raises(ClosedError):
            array[3]

    for _ in range(2):
        _in_child(child)
    assert array[4] == 4
    array.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_reader_that_is_closed_in_a_child_stays_closed(scheme: str, tmp_path: Path) -> None:
    array = pmarray.open(_made(scheme, tmp_path), mode="r")

    def child() -> None:
        array.close()
        assert array.group.closed
        with pytest.raises(ClosedError):
            array[3]

    _in_child(child)
    array.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("scheme", [*SCHEMES, "dram"])
def test_the_copy_of_a_writer_says_forked(scheme: str, tmp_path: Path) -> None:
    url = _made(scheme, tmp_path) if scheme != "dram" else "dram:"
    array = pmarray.open(url, None if scheme == "npy" else (1000,), mode="a")
    array[0] = 5.0
    array.flush()

    def child() -> None:
        for use in (lambda: array[0], lambda: array.__setitem__(0, 1.0), array.flush):
            with pytest.raises(ClosedError, match="forked"):
                use()
        array.close()
        with pytest.raises(ClosedError, match="forked"):
            array[0]
        if scheme not in ("dram", "npy"):
            with pmarray.open(url, mode="r") as mine:
                assert mine[0] == 5
            with pytest.raises(GroupLockedError), pmarray.open(url, mode="r+") as other:
                other[0] = 1

    _in_child(child)
    array[1] = 6.0
    array.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_who_has_not_written_yet_may_in_a_child(tmp_path: Path) -> None:
    url = _made("memmap", tmp_path)
    array = pmarray.open(url, mode="r+")

    def child() -> None:
        array[0] = 7
        array.close()

    _in_child(child)
    with pmarray.open(url, mode="r") as after:
        assert after[0] == 7
    array.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_icechunk_says_that_it_cannot(tmp_path: Path) -> None:
    pytest.importorskip("icechunk", reason="icechunk is not installed")
    url = f"icechunk:{tmp_path}/group"
    with pmarray.open(url, (10,)) as array:
        array[...] = 1
    array = pmarray.open(url, mode="r")

    def child() -> None:
        with pytest.raises(ClosedError, match="spawn"):
            array[0]

    _in_child(child)
    assert array[0] == 1
    array.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_what_the_parent_was_fetching_is_not_waited_for(tmp_path: Path) -> None:
    url = f"zarr:{tmp_path}/group"
    with pmarray.open(url, (400, 1000), mode="w", chunks=(10, 1000), codecs=["zstd"]) as array:
        array[...] = 1
    array = pmarray.open(url, mode="r")
    for row in range(0, 200, 10):  # in order, so that what follows is fetched ahead
        assert array[row, 0] == 1
        array[row : row + 10]
        _in_child(lambda row=row: array[row + 100 : row + 120])  # type: ignore[misc]
    array.close()


class _Items:
    """A data set over an array that the main process has opened."""

    def __init__(self, array: pmarray.PMArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Any:
        return self._array[index]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("scheme", ["memmap", "zarr"])
def test_workers_of_a_data_loader(scheme: str, tmp_path: Path) -> None:
    data = pytest.importorskip("torch.utils.data", reason="PyTorch is not installed")
    array = pmarray.open(_made(scheme, tmp_path), mode="r")
    assert array[0] == 0
    loader = data.DataLoader(
        _Items(array), batch_size=50, num_workers=2, multiprocessing_context="fork"
    )
    assert sum(float(batch.sum()) for batch in loader) == 499500
    array.close()
