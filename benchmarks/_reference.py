"""The access pattern to beat: deviations as columns of a row-major matrix, after the paper's code.

A column of a row-major (n, K) matrix has one item in each row, so that writing it touches every
page of the matrix, be it in memory or in a mapped file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parameters_to_vector

__all__ = ["RowMajorCollector"]


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
