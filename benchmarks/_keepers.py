"""What a user would keep the iterates of training with, instead: a step's weights at a time.

Each is used as its own documentation recommends, as durable at `Keeper.finish` as it can be made.
Some cannot be added to after they are opened; then the number of iterates is given beforehand.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parameters_to_vector

import pmarray
import swag
from benchmarks._peers import H5py, Peer, Zarr

__all__ = ["KEEPERS", "Keeper", "missing"]

Column = NDArray[np.float32]


class Keeper(ABC):
    """The iterates of one training in one library's hands.

    Parameters
    ----------
    path
        A directory that is there and empty.
    model
        Whose weights are kept.
    steps
        How many iterates there will be.
    """

    name: str
    needs: tuple[str, ...] = ()
    """Packages."""
    note: str
    """How the iterates are stored."""

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        self.path, self.steps = path, steps
        self.weights = sum(p.numel() for p in model.parameters())

    @abstractmethod
    def collect(self, model: nn.Module) -> None:
        """Keep the weights as they are now."""

    def finish(self) -> None:
        """Return when everything kept is on the disk: here, by fsync of all files there are."""
        _fsync_below(self.path)

    def close(self) -> None:  # noqa: B027  # most have nothing to let go of
        """Let go of it."""

    @abstractmethod
    def iterates(self) -> Iterator[Column]:
        """Yield what was kept, by another process too: nothing but the path is looked at.

        What raises ends it: nothing after that can be read.
        """

    def draw(self, n: int) -> Column:
        """Draw n weights from the Gaussian of the iterates, as SWAG does, reading each once.

        The mean and the squares are taken in the same pass as the products: a deviation from the
        mean of all, times a random number, is the product less the mean times their sum.
        """
        rng = np.random.default_rng(0)
        total = np.zeros(self.weights, np.float32)
        squares = np.zeros(self.weights, np.float32)
        products = np.zeros((n, self.weights), np.float32)
        sums, count = np.zeros(n, np.float32), 0
        for column in self.iterates():
            z = rng.standard_normal(n, dtype=np.float32)
            total += column
            squares += column * column
            for row, one in zip(products, z, strict=True):
                row += one * column
            sums += z
            count += 1
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0) / 2)
        for row, one in zip(products, sums, strict=True):
            row -= one * mean
            row /= np.sqrt(2 * max(1, count - 1))
            row += mean + deviation * rng.standard_normal(self.weights, dtype=np.float32)
        return products


class Ours(Keeper):
    """`swag` over files."""

    name = "swag on memmap:"
    note = "one column a step, a transaction each; draws by `sample`"

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        super().__init__(path, model, steps)
        self._posterior = swag.SWAG(model, store=f"memmap:{path}")
        self.collect = self._posterior.update_parameters  # type: ignore[method-assign]
        self.finish = self._posterior.flush  # type: ignore[method-assign]

    def collect(self, model: nn.Module) -> None:
        """Replaced by the posterior's own method."""

    def close(self) -> None:
        """End the collection."""
        self._posterior.close()

    def iterates(self) -> Iterator[Column]:
        """Yield the columns of the trajectory."""
        with pmarray.open(f"memmap:{self.path}#trajectory", mode="r") as trajectory:
            for i in range(trajectory.shape[1]):
                yield trajectory[:, i]

    def draw(self, n: int) -> Column:
        """Draw with the library's own method."""
        with swag.load(f"memmap:{self.path}") as stored:
            return _vector(stored.sample(n, generator=0), batched=True)


class VectorsInMemory(Keeper):
    """A list of vectors, as in the code published with SWAG."""

    name = "a list of vectors"
    note = "in DRAM: nothing is stored"

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        super().__init__(path, model, steps)
        self._kept: list[Column] = []

    def collect(self, model: nn.Module) -> None:
        """Copy the weights."""
        self._kept.append(parameters_to_vector(model.parameters()).detach().numpy().copy())

    def iterates(self) -> Iterator[Column]:
        """Yield the vectors of this process."""
        yield from self._kept


class _OneFileAStep(Keeper):
    suffix: str

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        super().__init__(path, model, steps)
        self._step = 0

    def _next(self) -> Path:
        self._step += 1
        return self.path / f"{self._step:06}{self.suffix}"

    def iterates(self) -> Iterator[Column]:
        """Read the files in their order."""
        for file in sorted(self.path.glob(f"*{self.suffix}")):
            yield _vector(self._load(file))

    def _load(self, file: Path) -> dict[str, torch.Tensor]:
        raise NotImplementedError


class TorchSave(_OneFileAStep):
    """`torch.save`."""

    name = "torch.save"
    note = "a file a step, of the state_dict"
    suffix = ".pt"

    def collect(self, model: nn.Module) -> None:
        """Write a file."""
        torch.save(model.state_dict(), self._next())

    def _load(self, file: Path) -> dict[str, torch.Tensor]:
        loaded: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
        return loaded


class Safetensors(_OneFileAStep):
    """safetensors."""

    name = "safetensors"
    needs = ("safetensors",)
    note = "a file a step, of the state_dict"
    suffix = ".safetensors"

    def collect(self, model: nn.Module) -> None:
        """Write a file."""
        from safetensors.torch import save_file

        save_file(model.state_dict(), self._next())

    def _load(self, file: Path) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        loaded: dict[str, torch.Tensor] = load_file(file)
        return loaded


class DistributedCheckpoint(_OneFileAStep):
    """`torch.distributed.checkpoint.async_save`."""

    name = "dcp.async_save"
    note = "a checkpoint a step, the one before waited for; it calls fsync itself"
    suffix = ".dcp"

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        super().__init__(path, model, steps)
        self._pending: Any = None

    def collect(self, model: nn.Module) -> None:
        """Begin a checkpoint when the one before has ended."""
        self._wait()
        self._pending = self._dcp().async_save(model.state_dict(), checkpoint_id=str(self._next()))

    @staticmethod
    def _dcp() -> Any:
        return importlib.import_module("torch.distributed.checkpoint")

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def finish(self) -> None:
        """Wait for the last one."""
        self._wait()
        super().finish()

    def close(self) -> None:
        """Wait for the last one."""
        self._wait()

    def iterates(self) -> Iterator[Column]:
        """Read each into tensors of the shapes that its metadata tells."""
        dcp = self._dcp()
        for checkpoint in sorted(self.path.glob(f"*{self.suffix}")):
            reader = dcp.FileSystemReader(checkpoint)
            metadata: Any = reader.read_metadata().state_dict_metadata
            state = {name: torch.empty(entry.size) for name, entry in metadata.items()}
            dcp.load(state, storage_reader=reader)
            yield _vector(state)


class _OfPeer(Keeper):
    """One of the matrices that `benchmarks array` compares, a column appended a step."""

    peer: type[Peer]

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        super().__init__(path, model, steps)
        self._matrix = self.peer(path / "x")
        self._matrix.create(self.weights)
        self._matrix.open()

    def collect(self, model: nn.Module) -> None:
        """Append a column."""
        self._matrix.append(parameters_to_vector(model.parameters()).detach().numpy())

    def finish(self) -> None:
        """Make it durable as the library can."""
        self._matrix.durable()

    def close(self) -> None:
        """Close it."""
        self._matrix.close()

    def iterates(self) -> Iterator[Column]:
        """Read column by column."""
        matrix = self.peer(self.path / "x")
        matrix.open()
        for i in range(matrix.x.shape[1]):
            yield np.ravel(matrix.read((slice(None), i)))
        matrix.close()


class ColumnsInH5py(_OfPeer):
    """h5py."""

    name, needs, note, peer = "h5py", H5py.needs, "appended to, a flush a step; fsync", H5py

    def collect(self, model: nn.Module) -> None:
        """Append, and hand what HDF5 holds back to the system: a kill would lose the file."""
        super().collect(model)
        self._matrix.x.file.flush()


class ColumnsInZarr(_OfPeer):
    """zarr-python."""

    name, needs, note, peer = "zarr-python", Zarr.needs, "appended to; fsync of all files", Zarr


class ColumnMajorMap(Keeper):
    """`numpy.memmap` in Fortran's order."""

    name = "np.memmap, order='F'"
    note = "of the whole length from the start; flush"

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        super().__init__(path, model, steps)
        shape = self.weights, steps
        (path / "shape").write_text(json.dumps(shape))
        self._map: Any = np.memmap(path / "x", np.float32, "w+", shape=shape, order="F")
        self._step = 0

    def collect(self, model: nn.Module) -> None:
        """Store into the next column."""
        theta = parameters_to_vector(model.parameters()).detach().numpy()
        self._map[:, self._step] = theta
        self._step += 1

    def finish(self) -> None:
        """Write the map back."""
        self._map.flush()

    def close(self) -> None:
        """Let go of the map."""
        self._map = None

    def iterates(self) -> Iterator[Column]:
        """Yield all columns: how many were written, the file does not say."""
        shape = tuple(json.loads((self.path / "shape").read_text()))
        columns = np.memmap(self.path / "x", np.float32, "r", shape=shape, order="F")
        for i in range(shape[1]):
            yield np.array(columns[:, i])


class AsynchronousTensorStore(Keeper):
    """tensorstore, whose writes are not waited for."""

    name = "tensorstore"
    needs = ("tensorstore",)
    note = "zarr3, one column a chunk, 4 writes in flight; it calls fsync itself"
    _IN_FLIGHT = 4

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        import tensorstore

        super().__init__(path, model, steps)
        chunk = {"name": "regular", "configuration": {"chunk_shape": [self.weights, 1]}}
        self._array = tensorstore.open(
            {**self._spec, "metadata": {"chunk_grid": chunk}},
            create=True,
            dtype=tensorstore.float32,
            shape=(self.weights, steps),
        ).result()
        self._step = 0
        self._pending: deque[Any] = deque()

    @property
    def _spec(self) -> dict[str, Any]:
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(self.path / "x")}}

    def collect(self, model: nn.Module) -> None:
        """Begin a write of a copy."""
        theta = parameters_to_vector(model.parameters()).detach().numpy().copy()
        self._pending.append(self._array[:, self._step].write(theta))
        self._step += 1
        while len(self._pending) > self._IN_FLIGHT:
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait for all of them."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Wait for all of them."""
        self.finish()

    def iterates(self) -> Iterator[Column]:
        """Yield all columns: how many were written, the array does not say."""
        import tensorstore

        array = tensorstore.open(self._spec).result()
        for i in range(array.shape[1]):
            yield array[:, i].read().result()


class TorchUncertainty(Keeper):
    """torch-uncertainty's wrapper."""

    name = "torch-uncertainty"
    needs = ("torch_uncertainty",)
    note = "its SWAG of all iterates, one network drawn a step; in DRAM, nothing is stored"

    def __init__(self, path: Path, model: nn.Module, steps: int) -> None:
        from torch_uncertainty.methods import SWAG

        super().__init__(path, model, steps)
        self._swag: Any = SWAG(model, 0, 1, max_num_models=steps, num_estimators=1)
        self._step = 0

    def collect(self, model: nn.Module) -> None:
        """Update the wrapper, to which a step is an epoch, the first of which is number 1."""
        self._step += 1
        self._swag.update_wrapper(self._step)

    def iterates(self) -> Iterator[Column]:
        """Yield nothing: after a kill there is nothing."""
        yield from ()

    def draw(self, n: int) -> Column:
        """Draw with the library's own method, at the scale of the SWAG paper."""
        drawn = [self._swag.sample(0.5, False) for _ in range(n)]
        return np.stack([parameters_to_vector(one.parameters()).detach().numpy() for one in drawn])


KEEPERS: tuple[type[Keeper], ...] = (
    Ours,
    TorchSave,
    Safetensors,
    DistributedCheckpoint,
    ColumnsInH5py,
    ColumnsInZarr,
    AsynchronousTensorStore,
    ColumnMajorMap,
    VectorsInMemory,
    TorchUncertainty,
)


def missing(keeper: type[Keeper]) -> list[str]:
    """Return the packages that it needs and that are not installed."""
    return [name for name in keeper.needs if importlib.util.find_spec(name) is None]


def _vector(tensors: dict[str, torch.Tensor], *, batched: bool = False) -> Column:
    parts = [tensor.flatten(1 if batched else 0) for tensor in tensors.values()]
    vector: Column = torch.cat(parts, dim=-1).float().numpy()
    return vector


def _fsync_below(path: Path) -> None:
    for directory, _, files in os.walk(path):
        for name in (*files, "."):
            handle = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
