"""One program, written for each library in the way its documentation tells to make data durable.

A matrix of a few columns goes from state to state. Update `i` overwrites two columns, or appends
one; every number says which update wrote it, and where it belongs.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["PEERS", "ROWS", "WORKLOADS", "Columns", "Peer", "states", "update"]

ROWS = 4096
"""32 KiB a column."""
_COLUMNS = 6
Columns: TypeAlias = NDArray[np.uint64]
"""One column a row, so that a column is contiguous whatever the library."""
WORKLOADS = ("overwrite", "append")
Update: TypeAlias = Mapping[int, Columns]
Step: TypeAlias = Callable[[Update], None]


def _column(step: int, index: int) -> Columns:
    return (np.uint64(step << 40 | index << 20)) + np.arange(1, ROWS + 1, dtype=np.uint64)


def update(workload: str, step: int) -> dict[int, Columns]:
    """Return the columns that an update writes; steps begin with 1."""
    if workload == "append":
        indices = [_COLUMNS + step - 1]
    else:
        indices = [2 * step % _COLUMNS, (2 * step + 3) % _COLUMNS]
    return {i: _column(step, i) for i in indices}


def states(workload: str, steps: int) -> list[Columns]:
    """Return the matrix before the first update and after each."""
    found = [np.stack([_column(0, i) for i in range(_COLUMNS)])]
    for step in range(1, steps + 1):
        changes = update(workload, step)
        state = np.zeros((max(len(found[-1]), *(i + 1 for i in changes)), ROWS), np.uint64)
        state[: len(found[-1])] = found[-1]
        for i, column in changes.items():
            state[i] = column
        found.append(state)
    return found


@dataclass(frozen=True, slots=True)
class Peer:
    """A library, or one way of using it."""

    name: str
    package: str
    call: str
    """After which the program takes the update for durable."""
    create: Callable[[str, Columns], None]
    """Make the matrix in an empty directory, and close it."""
    session: Callable[[str], AbstractContextManager[Step]]
    """Open it for writing; what is lent makes one update and returns when it is durable."""
    read: Callable[[str], Columns]
    """Open it as a reader does."""

    @property
    def version(self) -> str:
        """That is installed."""
        return importlib.metadata.version(self.package)


# -- numpy.memmap ---------------------------------------------------------------------------------


def _memmap_create(path: str, first: Columns) -> None:
    matrix = np.memmap(f"{path}/x", np.uint64, "w+", shape=first.shape)
    matrix[:] = first
    matrix.flush()


def _start_writing_back(fd: int) -> None:
    """Let dirty pages go to the file system now: the kernel may do so at any time."""
    wait_before, write, wait_after = 1, 2, 4
    libc = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_int64(0)
    if libc.sync_file_range(fd, offset, offset, wait_before | write | wait_after):
        raise OSError(ctypes.get_errno(), "sync_file_range")


@contextmanager
def _memmap_session(path: str) -> Iterator[Step]:
    fd = os.open(f"{path}/x", os.O_RDWR)

    def step(changes: Update) -> None:
        columns = max(os.fstat(fd).st_size // (8 * ROWS), *(i + 1 for i in changes))
        matrix = np.memmap(f"{path}/x", np.uint64, "r+", shape=(columns, ROWS))
        for i, column in changes.items():
            matrix[i] = column
            _start_writing_back(fd)
        matrix.flush()

    try:
        yield step
    finally:
        os.close(fd)


def _memmap_read(path: str) -> Columns:
    flat = np.memmap(f"{path}/x", np.uint64, "r")
    return np.array(flat).reshape(-1, ROWS)


# -- h5py -----------------------------------------------------------------------------------------


def _h5_create(path: str, first: Columns, *, libver: Any = None) -> None:
    import h5py

    with h5py.File(f"{path}/x.h5", "w", libver=libver) as file:
        file.create_dataset("x", data=first, chunks=(1, ROWS), maxshape=(None, ROWS))


def _h5_create_swmr(path: str, first: Columns) -> None:
    _h5_create(path, first, libver="latest")


def _h5_session(*, sync: bool, swmr: bool) -> Callable[[str], AbstractContextManager[Step]]:
    @contextmanager
    def session(path: str) -> Iterator[Step]:
        import h5py

        with h5py.File(f"{path}/x.h5", "r+", libver="latest" if swmr else None) as file:
            if swmr:
                file.swmr_mode = True
                os.fsync(file.id.get_vfd_handle())
            matrix = file["x"]

            def step(changes: Update) -> None:
                for i, column in changes.items():
                    if i >= len(matrix):
                        matrix.resize(i + 1, axis=0)
                    matrix[i] = column
                file.flush()
                if sync:
                    os.fsync(file.id.get_vfd_handle())

            yield step

    return session


def _h5_read(path: str) -> Columns:
    import h5py

    with h5py.File(f"{path}/x.h5", "r") as file:
        return np.asarray(file["x"][:], np.uint64)


def _h5_read_swmr(path: str) -> Columns:
    import h5py

    try:
        return _h5_read(path)
    except OSError:  # a file that its writer has not closed says so, and is for SWMR readers only
        with h5py.File(f"{path}/x.h5", "r", libver="latest", swmr=True) as file:
            return np.asarray(file["x"][:], np.uint64)


# -- zarr-python ----------------------------------------------------------------------------------


def _zarr_create(path: str, first: Columns) -> None:
    import zarr

    matrix = zarr.create_array(
        f"{path}/x.zarr", shape=first.shape, chunks=(1, ROWS), dtype="uint64", compressors=None
    )
    matrix[:] = first


def _sync_everything(path: str) -> None:
    """What a user can do from outside: fsync of every file, then of every directory."""
    for directory, _, files in os.walk(path, topdown=False):
        for place in (*(f"{directory}/{name}" for name in files), directory):
            fd = os.open(place, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def _zarr_session(*, sync: bool) -> Callable[[str], AbstractContextManager[Step]]:
    @contextmanager
    def session(path: str) -> Iterator[Step]:
        import zarr

        matrix = zarr.open_array(f"{path}/x.zarr", mode="r+")

        def step(changes: Update) -> None:
            for i, column in changes.items():
                if i >= matrix.shape[0]:
                    matrix.append(column[None], axis=0)
                else:
                    matrix[i] = column
            if sync:
                _sync_everything(path)

        yield step

    return session


def _zarr_read(path: str) -> Columns:
    import zarr

    return np.asarray(zarr.open_array(f"{path}/x.zarr", mode="r")[:], np.uint64)


# -- tensorstore ----------------------------------------------------------------------------------


def _tensorstore_spec(path: str, *, ocdbt: bool) -> dict[str, Any]:
    file = f"file://{path}/x/"
    store = {"driver": "ocdbt", "base": file} if ocdbt else file
    return {"driver": "zarr3", "kvstore": store}


def _tensorstore_create(*, ocdbt: bool) -> Callable[[str, Columns], None]:
    def create(path: str, first: Columns) -> None:
        import tensorstore

        spec = _tensorstore_spec(path, ocdbt=ocdbt)
        spec["metadata"] = {
            "shape": list(first.shape),
            "data_type": "uint64",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, ROWS]}},
        }
        matrix = tensorstore.open(spec, create=True, context=tensorstore.Context()).result()
        matrix.write(first).commit.result()

    return create


def _change(matrix: Any, changes: Update) -> None:
    """Write, all columns at the same time, and wait; in a transaction that is for the staging."""
    pending = []
    for i, column in changes.items():
        if i >= matrix.shape[0]:
            matrix = matrix.resize(exclusive_max=[i + 1, ROWS]).result()
        pending.append(matrix[i].write(column).commit)
    for future in pending:
        future.result()


def _tensorstore_session(*, ocdbt: bool) -> Callable[[str], AbstractContextManager[Step]]:
    @contextmanager
    def session(path: str) -> Iterator[Step]:
        import tensorstore

        spec = _tensorstore_spec(path, ocdbt=ocdbt)
        context = tensorstore.Context()

        def step(changes: Update) -> None:
            matrix = tensorstore.open(spec, context=context).result()
            if not ocdbt:
                _change(matrix, changes)
                return
            with tensorstore.Transaction(atomic=True) as transaction:
                _change(matrix.with_transaction(transaction), changes)

        yield step

    return session


def _tensorstore_read(*, ocdbt: bool) -> Callable[[str], Columns]:
    def read(path: str) -> Columns:
        import tensorstore

        spec = _tensorstore_spec(path, ocdbt=ocdbt)
        matrix = tensorstore.open(spec, read=True, context=tensorstore.Context()).result()
        return np.asarray(matrix.read().result(), np.uint64)

    return read


# -- pmarray --------------------------------------------------------------------------------------


def _pmarray_create(path: str, first: Columns) -> None:
    import pmarray

    with pmarray.open_group(f"{path}/g") as group:
        matrix = group.create("x", (ROWS, len(first)), "uint64", layout="col")
        for i, column in enumerate(first):
            matrix[:, i] = column


@contextmanager
def _pmarray_session(path: str) -> Iterator[Step]:
    import pmarray

    with pmarray.open_group(f"{path}/g") as group:
        matrix = group["x"]

        def step(changes: Update) -> None:
            with group.transaction():
                for i, column in changes.items():
                    if i >= matrix.shape[1]:
                        matrix.append(column)
                    else:
                        matrix[:, i] = column

        yield step


def _pmarray_read(path: str) -> Columns:
    """As a reader, which recovers nothing; then as a writer, which does; they must agree."""
    import pmarray

    with pmarray.open_group(f"{path}/g", mode="r") as group:
        seen = np.asarray(group["x"][:, :].T, np.uint64).copy()
    with pmarray.open_group(f"{path}/g", mode="a") as group:
        with group.transaction():
            pass
        found = np.asarray(group["x"][:, :].T, np.uint64).copy()
    if not np.array_equal(seen, found):
        raise RuntimeError("a reader saw something else than the writer that recovered")
    return found


PEERS = {
    peer.name: peer
    for peer in (
        Peer("np.memmap", "numpy", "`flush`", _memmap_create, _memmap_session, _memmap_read),
        Peer(
            "h5py",
            "h5py",
            "`File.flush`",
            _h5_create,
            _h5_session(sync=False, swmr=False),
            _h5_read,
        ),
        Peer(
            "h5py, fsync",
            "h5py",
            "`File.flush`, then `os.fsync`",
            _h5_create,
            _h5_session(sync=True, swmr=False),
            _h5_read,
        ),
        Peer(
            "h5py SWMR, fsync",
            "h5py",
            "`File.flush`, then `os.fsync`",
            _h5_create_swmr,
            _h5_session(sync=True, swmr=True),
            _h5_read_swmr,
        ),
        Peer(
            "zarr-python",
            "zarr",
            "the assignment",
            _zarr_create,
            _zarr_session(sync=False),
            _zarr_read,
        ),
        Peer(
            "zarr-python, fsync",
            "zarr",
            "`os.fsync` of every file and directory",
            _zarr_create,
            _zarr_session(sync=True),
            _zarr_read,
        ),
        Peer(
            "tensorstore",
            "tensorstore",
            "`write(...).commit.result()`",
            _tensorstore_create(ocdbt=False),
            _tensorstore_session(ocdbt=False),
            _tensorstore_read(ocdbt=False),
        ),
        Peer(
            "tensorstore OCDBT",
            "tensorstore",
            "end of `with Transaction(atomic=True)`",
            _tensorstore_create(ocdbt=True),
            _tensorstore_session(ocdbt=True),
            _tensorstore_read(ocdbt=True),
        ),
        Peer(
            "pmarray",
            "pmarray",
            "end of `with group.transaction()`",
            _pmarray_create,
            _pmarray_session,
            _pmarray_read,
        ),
    )
}
