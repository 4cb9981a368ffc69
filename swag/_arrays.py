"""Training data in arrays that outgrow memory: item by item for workers, or in shuffled blocks."""

from __future__ import annotations

import os
import pickle
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

import pmarray

__all__ = ["ArrayDataset", "ArrayLoader"]

_PATIENCE_SECONDS = 0.1


class ArrayDataset(Dataset[tuple[Tensor, ...]]):
    """Rows of stored arrays as a map-style data set, like `torch.utils.data.TensorDataset`.

    A `torch.utils.data.DataLoader` reads a minibatch of it by one selection of each array. Workers
    may be forked or spawned: handles are never shared between processes, each opens the arrays by
    their URLs when it first reads, and sees what was durable then.

    Parameters
    ----------
    *arrays
        `pmarray.PMArray` or URLs, all of one length.

    Raises
    ------
    ValueError
        There are none, or they differ in length.
    pickle.PicklingError
        In a worker: an array lies in the memory of the process that made it (``dram:``).

    Examples
    --------
    >>> import numpy as np, pmarray
    >>> from torch.utils.data import DataLoader
    >>> with pmarray.open_group("memmap:./data") as group:
    ...     group["x"] = np.arange(20, dtype="float32").reshape(10, 2)
    ...     group["y"] = np.arange(10)
    ...     data = ArrayDataset(group["x"], group["y"])
    ...     x, y = next(iter(DataLoader(data, batch_size=4)))
    >>> x.shape, y.tolist()
    (torch.Size([4, 2]), [0, 1, 2, 3])
    """

    def __init__(self, *arrays: pmarray.PMArray | str | os.PathLike[str]) -> None:
        self._owned: list[pmarray.PMArray] = []
        try:
            self._arrays = tuple(map(self._opened, arrays))
            self._length = self._common_length()
        except BaseException:
            self.close()
            raise
        self._pid = os.getpid()
        # Now, since a forked child finds the handles closed, and cannot ask them for their URLs.
        self._sources: bytes | pickle.PicklingError
        try:
            self._sources = pickle.dumps(self._arrays)
        except pickle.PicklingError as error:
            self._sources = error

    def _opened(self, array: pmarray.PMArray | str | os.PathLike[str]) -> pmarray.PMArray:
        if isinstance(array, pmarray.PMArray):
            return array
        self._owned.append(pmarray.open(array, mode="r"))
        return self._owned[-1]

    def _common_length(self) -> int:
        lengths = {len(array) for array in self._arrays}
        if len(lengths) != 1:
            raise ValueError(f"arrays of one length are wanted, not of {sorted(lengths)}")
        return lengths.pop()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} of {self._length} items")
        return self.__getitems__([index % self._length])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """The rows of these numbers, read together; what a `DataLoader` calls."""
        wanted = np.asarray(indices, dtype=np.int64)
        order, places = np.unique(wanted, return_inverse=True)
        columns = [_tensor(np.asarray(array[order])[places]) for array in self.open()]
        return list(zip(*columns, strict=True))

    def read(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Rows ``[start, stop)``: one run on the medium, for arrays in row-major layout."""
        return tuple(_tensor(np.asarray(array[start:stop])) for array in self.open())

    def open(self) -> tuple[pmarray.PMArray, ...]:
        """The arrays, opened in this process."""
        if self._pid != os.getpid():
            if isinstance(self._sources, pickle.PicklingError):
                raise self._sources
            self._arrays = pickle.loads(self._sources)
            self._owned, self._pid = [], os.getpid()
        return self._arrays

    def close(self) -> None:
        """Close the arrays that were given as URLs."""
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._sources, pickle.PicklingError):
            raise self._sources
        return {**self.__dict__, "_arrays": (), "_owned": [], "_pid": None}


class ArrayLoader:
    """Minibatches of an `ArrayDataset`, shuffled in blocks, read ahead by a thread.

    Reading single rows in random order makes a medium do its slowest work. Here blocks of adjacent
    rows are read in random order, several of them are mixed row by row, and the minibatches are
    cut from that, while training works on the ones before. Every epoch has every row once. With
    one mix as large as the data, it is the shuffle of a loader in memory.

    Parameters
    ----------
    data
        Where from.
    batch_size
        Rows in a minibatch; the last one of an epoch may have fewer.
    shuffle
        Whether rows come in another order in each epoch, or in their own.
    block_rows
        Adjacent rows that are read together.
    mix
        Blocks that are mixed: memory holds twice so many.
    prefetch
        Minibatches that are ready ahead.
    drop_last
        Whether to leave out a last minibatch that has fewer rows.
    seed
        Of the order, together with the number of the epoch.

    Examples
    --------
    >>> import numpy as np, pmarray
    >>> data = ArrayDataset(pmarray.from_array(np.arange(10), "dram:"))
    >>> loader = ArrayLoader(data, batch_size=4, block_rows=3, mix=2)
    >>> [len(rows) for (rows,) in loader]
    [4, 4, 2]
    >>> sorted(int(row) for (rows,) in loader for row in rows) == list(range(10))
    True
    """

    def __init__(
        self,
        data: ArrayDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        block_rows: int = 1024,
        mix: int = 16,
        prefetch: int = 4,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("block_rows", block_rows),
            ("mix", mix),
            ("prefetch", prefetch),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.block_rows = block_rows
        self.mix = mix
        self.prefetch = prefetch
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        """Number of the epoch that the next iteration goes through; set it where one resumes."""

    def __len__(self) -> int:
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._ahead(self._batches(epoch))

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        rest: tuple[Tensor, ...] = ()
        for rows in self._mixes(np.random.default_rng([self.seed, epoch])):
            if rest:
                rows = tuple(map(torch.cat, zip(rest, rows, strict=True)))
            count = len(rows[0])
            end = count - count % self.batch_size
            for start in range(0, end, self.batch_size):
                yield tuple(part[start : start + self.batch_size] for part in rows)
            rest = tuple(part[end:] for part in rows)
        if rest and len(rest[0]) and not self.drop_last:
            yield rest

    def _mixes(self, generator: np.random.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Read the data, several blocks at a time."""
        count = len(self.data)
        starts: NDArray[np.int64] = np.arange(0, count, self.block_rows)
        if self.shuffle:
            generator.shuffle(starts)
        for first in range(0, len(starts), self.mix):
            blocks = [
                self.data.read(start, min(start + self.block_rows, count))
                for start in starts[first : first + self.mix].tolist()
            ]
            rows = tuple(map(torch.cat, zip(*blocks, strict=True)))
            if self.shuffle:
                order = torch.from_numpy(generator.permutation(len(rows[0])))
                rows = tuple(part[order] for part in rows)
            yield rows

    def _ahead(self, batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        """The same, made by a thread, which ends with whoever iterates."""
        ready: queue.Queue[tuple[Tensor, ...] | BaseException | None] = queue.Queue(self.prefetch)
        over = threading.Event()

        def put(item: tuple[Tensor, ...] | BaseException | None) -> None:
            while not over.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=_PATIENCE_SECONDS)
                    return

        def work() -> None:
            try:
                for batch in batches:
                    put(batch)
                    if over.is_set():
                        return
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="swag-loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            over.set()
            thread.join()


def _tensor(values: NDArray[Any]) -> Tensor:
    """As PyTorch takes it; of a read of our own, so that nobody else writes to it."""
    return torch.from_numpy(np.ascontiguousarray(values))
