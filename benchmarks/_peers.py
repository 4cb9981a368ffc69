"""One matrix of columns in the formats of several libraries, behind the same few operations.

Every library gets the shape that suits columns best: contiguous columns, or one column a chunk,
uncompressed. What a library has no word for is done as its user would do it: a sum or a product
block by block, durability by fsync of every file it has.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PEERS", "Peer", "drop_caches", "fill_caches", "missing"]

Matrix = NDArray[np.float32]
_FILL_BYTES = 1 << 20
_BLOCK_COLUMNS = 16


class Peer(ABC):
    """A matrix of float32 in one library's hands."""

    name: str
    needs: tuple[str, ...] = ()
    """Packages."""
    note: str
    """How the matrix is stored."""
    writes = True
    """Whether it can be written, and not only read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.x: Any = None
        """What is indexed."""

    @abstractmethod
    def create(self, rows: int) -> None:
        """Make a matrix without columns."""

    @abstractmethod
    def open(self) -> None:
        """Open it, for reading and writing."""

    @abstractmethod
    def append(self, column: Matrix) -> None:
        """Add a column."""

    def close(self) -> None:
        """Let go of it."""
        self.x = None

    def durable(self) -> None:
        """Return when everything written is on the disk."""
        for directory, _, files in os.walk(self.path):
            for name in files:
                _fsync(os.path.join(directory, name))
            _fsync(directory)

    def read(self, index: Any) -> Any:
        """Return the selected items."""
        return self.x[index]

    def write(self, index: Any, values: Any) -> None:
        """Replace them."""
        self.x[index] = values

    def sum(self) -> float:
        """Add up everything, in float64."""
        return sum(float(block.sum(dtype=np.float64)) for _, block in self._blocks())

    def product(self, z: Matrix) -> Matrix:
        """Multiply by one vector, or by a few."""
        result = np.zeros((self.x.shape[0], *z.shape[1:]), np.float32)
        for columns, block in self._blocks():
            result += block @ z[columns]
        return result

    def _blocks(self) -> Iterator[tuple[slice, Matrix]]:
        for start in range(0, self.x.shape[1], _BLOCK_COLUMNS):
            columns = slice(start, min(start + _BLOCK_COLUMNS, self.x.shape[1]))
            yield columns, np.asarray(self.read((slice(None), columns)))

    def delete(self) -> None:
        """Remove the files."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)


class _PMArray(Peer):
    scheme: str
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed

    @property
    def _url(self) -> str:
        return f"{self.scheme}:{self.path}"

    def create(self, rows: int) -> None:
        import pmarray

        with pmarray.open(self._url, (rows, 0), "float32", layout="col", **self.options):
            pass

    def open(self) -> None:
        import pmarray

        self.x = pmarray.open(self._url, mode="r+")

    def append(self, column: Matrix) -> None:
        self.x.append(column)

    def close(self) -> None:
        if self.x is not None:
            self.x.close()
        self.x = None

    def durable(self) -> None:
        self.x.flush()

    def sum(self) -> float:
        return float(np.sum(self.x, dtype=np.float64))

    def product(self, z: Matrix) -> Matrix:
        result: Matrix = self.x @ z
        return result


class PMArrayFiles(_PMArray):
    """`pmarray` over files."""

    name = "pmarray memmap:"
    scheme = "memmap"
    note = "column-major .npy, direct writes"


class PMArrayZarr(_PMArray):
    """`pmarray` over Zarr."""

    name = "pmarray zarr:"
    scheme = "zarr"
    options = {"chunks": 1}  # noqa: RUF012
    note = "Zarr 3, one column a chunk"


class PMArrayIcechunk(_PMArray):
    """`pmarray` over Icechunk."""

    name = "pmarray icechunk:"
    scheme = "icechunk"
    needs = ("icechunk",)
    options = {"chunks": 1}  # noqa: RUF012
    note = "Icechunk, one column a chunk; a flush is a commit, and no fsync"


class Memmap(Peer):
    """`numpy.memmap`."""

    name = "np.memmap"
    note = "order='F', grown by truncate and mapped anew"

    @property
    def _file(self) -> Path:
        return self.path / "x"

    def create(self, rows: int) -> None:
        self.path.mkdir()
        self._file.touch()
        (self.path / "rows").write_text(str(rows))

    def open(self) -> None:
        self._rows = int((self.path / "rows").read_text())
        self._map()

    def _map(self) -> None:
        columns = self._file.stat().st_size // (4 * self._rows)
        if columns:
            self.x = np.memmap(self._file, np.float32, "r+", shape=(self._rows, columns), order="F")

    def append(self, column: Matrix) -> None:
        self.x = None
        os.truncate(self._file, self._file.stat().st_size + column.nbytes)
        self._map()
        self.x[:, -1] = column

    def durable(self) -> None:
        self.x.flush()

    def read(self, index: Any) -> Any:
        return np.array(self.x[index])  # a view alone would read nothing

    def sum(self) -> float:
        return float(self.x.sum(dtype=np.float64))

    def product(self, z: Matrix) -> Matrix:
        result: Matrix = np.asarray(self.x @ z)
        return result


class Zarr(Peer):
    """zarr-python."""

    name = "zarr-python"
    needs: tuple[str, ...] = ("zarr",)
    note = "Zarr 3, one column a chunk, no codec; made durable by fsync of all its files"

    def create(self, rows: int) -> None:
        import zarr

        zarr.create_array(
            str(self.path), shape=(rows, 0), chunks=(rows, 1), dtype="float32", compressors=None
        )

    def open(self) -> None:
        import zarr

        self.x = zarr.open_array(str(self.path), mode="r+")

    def append(self, column: Matrix) -> None:
        self.x.append(column[:, None], axis=1)


class TensorStore(Peer):
    """tensorstore."""

    name = "tensorstore"
    needs = ("tensorstore",)
    note = "zarr3 driver, one column a chunk, no codec; it calls fsync itself"

    @property
    def _spec(self) -> dict[str, Any]:
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(self.path)}}

    def create(self, rows: int) -> None:
        import tensorstore

        grid = {"name": "regular", "configuration": {"chunk_shape": [rows, 1]}}
        tensorstore.open(
            {**self._spec, "metadata": {"chunk_grid": grid}},
            create=True,
            dtype=tensorstore.float32,
            shape=(rows, 0),
        ).result()

    def open(self) -> None:
        import tensorstore

        self.x = tensorstore.open(self._spec).result()

    def append(self, column: Matrix) -> None:
        columns = self.x.shape[1]
        self.x = self.x.resize(exclusive_max=[None, columns + 1]).result()
        self.x[:, columns].write(column).result()

    def read(self, index: Any) -> Any:
        return self.x[index].read().result()

    def write(self, index: Any, values: Any) -> None:
        self.x[index].write(values).result()

    def durable(self) -> None:
        pass


class H5py(Peer):
    """h5py."""

    name = "h5py"
    needs = ("h5py",)
    note = "HDF5, one column a chunk; flush and fsync"

    @property
    def _file(self) -> Path:
        return self.path / "x.h5"

    def create(self, rows: int) -> None:
        import h5py

        self.path.mkdir()
        with h5py.File(self._file, "w") as file:
            file.create_dataset("x", (rows, 0), "float32", chunks=(rows, 1), maxshape=(rows, None))

    def open(self) -> None:
        import h5py

        self._handle = h5py.File(self._file, "r+")
        self.x = self._handle["x"]

    def append(self, column: Matrix) -> None:
        self.x.resize(self.x.shape[1] + 1, axis=1)
        self.x[:, -1] = column

    def durable(self) -> None:
        self._handle.flush()
        super().durable()

    def close(self) -> None:
        if self.x is not None:
            self._handle.close()
        super().close()


class Blosc2(Peer):
    """blosc2."""

    name = "blosc2"
    needs = ("blosc2",)
    note = "b2nd in a directory of frames, one column a chunk, clevel 0; fsync of all its files"

    def create(self, rows: int) -> None:
        import blosc2

        blosc2.empty(
            (rows, 0),
            np.float32,
            chunks=(rows, 1),
            urlpath=str(self.path),
            contiguous=False,
            cparams={"clevel": 0},
            mode="w",
        )

    def open(self) -> None:
        import blosc2

        self.x = blosc2.open(str(self.path), mode="a")

    def append(self, column: Matrix) -> None:
        columns = self.x.shape[1]
        self.x.resize((self.x.shape[0], columns + 1))
        self.x[:, columns] = column[:, None]

    def write(self, index: Any, values: Any) -> None:
        box = tuple(one if isinstance(one, slice) else slice(one, one + 1) for one in index)
        extents = [len(range(*one.indices(n))) for one, n in zip(box, self.x.shape, strict=True)]
        self.x[box] = np.full(extents, 0, "f4") + np.reshape(values, [-1, extents[1]])


class Dask(Zarr):
    """dask over the files of zarr-python."""

    name = "dask"
    needs = ("dask", "zarr")
    note = "dask.array.from_array of the Zarr array, 16 columns a task, threads; reads only"
    writes = False

    def open(self) -> None:
        import dask.array

        super().open()
        rows = self.x.shape[0]
        from_array: Callable[..., Any] = dask.array.from_array
        self.x = from_array(self.x, chunks=(rows, _BLOCK_COLUMNS))

    def read(self, index: Any) -> Any:
        return self.x[index].compute(scheduler="threads")

    def sum(self) -> float:
        return float(self.x.sum(dtype=np.float64).compute(scheduler="threads"))

    def product(self, z: Matrix) -> Matrix:
        result: Matrix = (self.x @ z).compute(scheduler="threads")
        return result


PEERS: tuple[type[Peer], ...] = (
    PMArrayFiles,
    PMArrayZarr,
    PMArrayIcechunk,
    Memmap,
    Zarr,
    TensorStore,
    H5py,
    Blosc2,
    Dask,
)


def missing(peer: type[Peer]) -> list[str]:
    """Return the packages that it needs and that are not installed."""
    return [name for name in peer.needs if importlib.util.find_spec(name) is None]


def drop_caches(path: Path) -> None:
    """Ask the kernel to forget what it holds of the files below a path, after writing it out."""
    for directory, _, files in os.walk(path):
        for name in files:
            handle = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def fill_caches(path: Path) -> None:
    """Have the kernel hold all of the files below a path."""
    for directory, _, files in os.walk(path):
        for name in files:
            with open(os.path.join(directory, name), "rb", buffering=0) as file:
                while file.read(_FILL_BYTES):
                    pass


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
