"""Random writes and shapes, of an array and of its model in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import pmarray

__all__ = ["write_at_random"]


def write_at_random(data: st.DataObject, url: str, sessions: int) -> NDArray[Any]:
    """Open an array up to so many times, change it, and compare it; return what it holds then."""
    model = np.zeros((7, 5))
    layout: Any = data.draw(st.sampled_from(["row", "col"]))
    for _ in range(data.draw(st.integers(1, sessions))):
        with pmarray.open(url, model.shape, layout=layout, chunks=(3, 2)) as array:
            for _ in range(data.draw(st.integers(1, 4))):
                if data.draw(st.booleans()):
                    m, n = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
                    before, model = model[:m, :n], np.zeros((m, n))
                    model[: len(before), : before.shape[1]] = before
                    array.resize((m, n))
                else:
                    rows, columns = (data.draw(st.slices(extent)) for extent in model.shape)
                    value = data.draw(st.integers(1, 99))
                    model[rows, columns] = value
                    array[rows, columns] = value
                np.testing.assert_array_equal(array[...], model)
                if data.draw(st.booleans()):
                    array.flush()
    with pmarray.open(url, mode="r") as array:
        np.testing.assert_array_equal(array[...], model)
    return model
