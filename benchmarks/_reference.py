"""What there is to beat, and what cannot be beaten.

`RowMajorCollector` keeps deviations as columns of a row-major matrix, after the paper's code. A
column of it has one item in each row, so that writing it touches every page of the matrix, be it in
memory or in a mapped file.

`PlainCopies` does the least that a collector has to: the weights are copied, and written.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parameters_to_vector

__all__ = ["PlainCopies", "RowMajorCollector"]

_PAGE = mmap.PAGESIZE


class RowMajorCollector:
    """Moments by running averages, and one column of deviations an iterate.

    Parameters
    ----------
    deviations
        Row-major, float32, of shape (number of parameters, rank); column i mod rank takes the
        deviation of iterate i.
    """

    def __init__(self, deviations: NDArray[np.float32]) -> None:
        self._deviations = deviations
        self._mean = np.zeros(len(deviations), dtype=np.float32)
        self._square_mean = np.zeros(len(deviations), dtype=np.float32)
        self._n_averaged = 0

    def update_parameters(self, model: nn.Module) -> None:
        """Add the model's weights as they are now."""
        n = self._n_averaged
        theta: NDArray[Any] = parameters_to_vector(model.parameters()).detach().cpu().numpy()
        self._mean = (n * self._mean + theta) / (n + 1)
        self._square_mean = (n * self._square_mean + theta**2) / (n + 1)
        self._deviations[:, n % self._deviations.shape[1]] = theta - self._mean
        self._n_averaged = n + 1

    def flush(self) -> None:
        """Write a mapped matrix back to its file."""
        if isinstance(self._deviations, np.memmap):
            self._deviations.flush()


class PlainCopies:
    """Copies the weights with PyTorch's threads; a thread writes them, past the page cache.

    The file has its length from the beginning, and there are no transactions: every fourth write is
    made durable. Weights are not looked at, and nothing says afterwards which iterates are there.

    Parameters
    ----------
    size
        Weights, float32.
    steps
        The most that are collected.
    path
        Of the file; None writes nothing.
    """

    _BUFFERS = 4
    _TOGETHER = 4

    def __init__(self, size: int, steps: int, path: Path | None) -> None:
        self._size = size
        self._nbytes = -(-4 * size // _PAGE) * _PAGE
        self._buffers = [mmap.mmap(-1, self._nbytes) for _ in range(self._BUFFERS)]
        self._vectors = [torch.frombuffer(one, dtype=torch.float32) for one in self._buffers]
        for vector in self._vectors:
            vector.zero_()
        self._free = threading.Semaphore(self._BUFFERS)
        self._step = 0
        self._full: SimpleQueue[mmap.mmap | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if path is not None:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_DIRECT", 0)
            self._fd = os.open(path, flags)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._fd, 0, steps * self._nbytes)
            self._thread = threading.Thread(target=self._write)
            self._thread.start()

    @torch.no_grad()
    def collect(self, model: nn.Module) -> None:
        """Copy the model's weights as they are now."""
        self._free.acquire()
        number = self._step % self._BUFFERS
        start = 0
        for parameter in model.parameters():
            stop = start + parameter.numel()
            self._vectors[number][start:stop].view(parameter.shape).copy_(parameter)
            start = stop
        self._step += 1
        if self._thread is None:
            self._free.release()
        else:
            self._full.put(self._buffers[number])

    def flush(self) -> None:
        """Return when all is durable."""
        for _ in self._buffers:
            self._free.acquire()
        if self._thread is not None:
            os.fsync(self._fd)
        self._free.release(self._BUFFERS)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            os.close(self._fd)

    def _write(self) -> None:
        written = 0
        while (buffer := self._full.get()) is not None:
            os.pwritev(self._fd, [buffer], written * self._nbytes)
            written += 1
            if written % self._TOGETHER == 0:
                os.fdatasync(self._fd)
            self._free.release()
