"""What makes a `PMArray` an operand of NumPy: operators, ufuncs, functions, reductions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from pmarray._config import config
from pmarray._numpy import functions
from pmarray._numpy.methods import Methods
from pmarray._numpy.operands import claims_operators, in_dask, is_of_pandas
from pmarray._numpy.records import compared_records
from pmarray._numpy.ufuncs import array_ufunc, in_memory, is_foreign
from pmarray._streams.sources import is_dask

__all__ = ["Arithmetic"]


_INCOMPARABLE = ("did not contain a loop", "cannot use operands with types")


class Arithmetic(NDArrayOperatorsMixin, Methods):
    """NumPy's protocols for a `PMArray`, each streamed piece by piece.

    Methods take the parameters of NumPy's functions of the same names. Results are new arrays in
    memory, refused with `BudgetError` where they would not fit, unless ``out=`` names a place.
    """

    __hash__ = None  # type: ignore[assignment]  # as an ndarray: == compares items

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return array_ufunc(ufunc, method, inputs, options)

    def __array_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if any(map(is_dask, types)):
            return in_dask(func, args, kwargs)
        if not all(
            issubclass(kind, Arithmetic)
            or getattr(kind, "__array_function__", None) is np.ndarray.__array_function__
            for kind in types
        ):
            return NotImplemented
        return functions.array_function(func, types, args, kwargs)

    def __eq__(self, other: Any) -> Any:
        return self._compared(operator.eq, np.equal, other)

    def __ne__(self, other: Any) -> Any:
        return self._compared(operator.ne, np.not_equal, other)

    def _compared(self, operate: Callable[[Any, Any], Any], ufunc: np.ufunc, other: Any) -> Any:
        """Compare; items that cannot be compared, such as text and numbers, are not equal."""
        if getattr(other, "__array_ufunc__", ...) is None:
            return NotImplemented
        if self.dtype.type is np.void:
            return compared_records(operate, self, other)
        try:
            return ufunc(self, other)
        except TypeError as error:
            # NumPy has classes for these, of no public name.
            if not any(text in str(error) for text in _INCOMPARABLE):
                raise
            shape = np.broadcast_shapes(self.shape, np.shape(other))
            config.check_result(math.prod(shape), "compare parts")
            return np.full(shape, ufunc is np.not_equal)

    # -- reductions -----------------------------------------------------------------------------

    def sum(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Sum of the items over axes; one pass. See `numpy.sum`.

        Examples
        --------
        >>> import pmarray
        >>> a = pmarray.open("dram:", shape=(2, 3), fill_value=2)
        >>> a.sum(), a.sum(axis=0)
        (np.float64(12.0), array([4., 4., 4.]))
        """
        return np.sum(self, axis, *more, **options)

    def prod(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Product of the items over axes; one pass. See `numpy.prod`."""
        return np.prod(self, axis, *more, **options)

    def mean(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Mean over axes; one pass. See `numpy.mean`."""
        return np.mean(self, axis, *more, **options)

    def var(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Variance over axes; one pass, by merged moments and not by squares. See `numpy.var`."""
        return np.var(self, axis, *more, **options)

    def std(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Standard deviation over axes; one pass. See `numpy.std`."""
        return np.std(self, axis, *more, **options)

    def min(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Least item over axes; one pass. See `numpy.min`."""
        return np.min(self, axis, *more, **options)

    def max(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Greatest item over axes; one pass. See `numpy.max`."""
        return np.max(self, axis, *more, **options)

    def argmin(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Index of the least item; one pass. See `numpy.argmin`."""
        return np.argmin(self, axis, *more, **options)

    def argmax(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Index of the greatest item; one pass. See `numpy.argmax`."""
        return np.argmax(self, axis, *more, **options)

    def any(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Whether any item is true. See `numpy.any`."""
        return np.any(self, axis, *more, **options)

    def all(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Whether all items are true. See `numpy.all`."""
        return np.all(self, axis, *more, **options)

    def cumsum(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Running sum along an axis. See `numpy.cumsum`."""
        return np.cumsum(self, axis, *more, **options)

    def cumprod(self, axis: Any = None, *more: Any, **options: Any) -> Any:
        """Running product along an axis. See `numpy.cumprod`."""
        return np.cumprod(self, axis, *more, **options)

    def dot(self, b: Any, out: Any = None) -> Any:
        """Matrix product, streamed; see `pmarray.linalg.matmul`."""
        return np.dot(cast(Any, self), b, out)

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> Any:
        """Items cut to an interval. See `numpy.clip`."""
        return np.clip(self, min, max, out)

    def conj(self) -> Any:
        """Complex conjugates. See `numpy.conj`."""
        return self.copy() if self.dtype.kind in "biuf" else np.conj(self)

    conjugate = conj

    # -- copies and conversions -------------------------------------------------------------------

    def copy(self, order: Literal["C", "F", "A", "K"] = "K") -> NDArray[Any]:
        """Read the whole into a new `numpy.ndarray`.

        Parameters
        ----------
        order
            Of its memory; "A" and "K" are that of the layout.

        Raises
        ------
        BudgetError
            It would not fit into memory; ``np.copyto(b, a)`` copies into another `PMArray`.
        """
        return np.asarray(self[...], order=order)

    def astype(self, dtype: Any, **options: Any) -> NDArray[Any]:
        """Read the whole into a new `numpy.ndarray` of another dtype; see `copy`."""
        a = self
        config.check_result(a.size * np.dtype(dtype).itemsize, "read parts of it")
        return np.asarray(a).astype(dtype, **options)

    def fill(self, value: Any) -> None:
        """Set every item."""
        self[...] = value

    def tolist(self) -> Any:
        """Read the whole into nested lists; see `copy`."""
        return self.copy().tolist()

    @property
    def real(self) -> NDArray[Any]:
        """The real parts, read into memory."""
        return self.copy().real

    @property
    def imag(self) -> NDArray[Any]:
        """The imaginary parts, read into memory."""
        return self.copy().imag

    def _only(self, what: str) -> None:
        if self.size != 1:
            raise ValueError(f"{what} needs an array of one item, not of {self.size}")

    def __bytes__(self) -> bytes:
        return self.tobytes()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() "
                "or a.all()"
            )
        return bool(self.item())

    def __int__(self) -> int:
        self._only("int()")
        return int(self.item())

    def __float__(self) -> float:
        self._only("float()")
        return float(self.item())

    def __complex__(self) -> complex:
        self._only("complex()")
        return complex(self.item())

    def __index__(self) -> int:
        a = self
        if a.ndim or a.dtype.kind not in "iu":
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return operator.index(a.item())

    def __contains__(self, value: Any) -> bool:
        a = self
        return builtins_any(
            bool((np.asarray(a[piece]) == value).any())
            for piece in a.iter_chunks(config.work_memory)
        )


builtins_any = any

# -- operators with arrays of other classes --------------------------------------------------------


def _let_decide(name: str, operate: Callable[[Any, Any], Any]) -> None:
    """Leave an operator to the class of the other operand where that makes its own of the result.

    Masked arrays keep their mask, matrices their product, sparse ones their sparseness: they get
    this array in memory.
    """
    forward = getattr(Arithmetic, f"__{name}__")
    backward = getattr(Arithmetic, f"__r{name}__", None)

    def decides(other: Any) -> bool:
        return is_foreign(type(other)) or claims_operators(other) or is_of_pandas(other)

    def ahead(self: Any, other: Any) -> Any:
        if decides(other):
            return operate(in_memory(self, f"{name} with a {type(other).__name__}"), other)
        return forward(self, other)

    def behind(self: Any, other: Any) -> Any:
        if decides(other):
            return operate(other, in_memory(self, f"{name} with a {type(other).__name__}"))
        return backward(self, other)  # type: ignore[misc]  # where there is none, this is not set

    setattr(Arithmetic, f"__{name}__", ahead)
    if backward is not None:
        setattr(Arithmetic, f"__r{name}__", behind)


for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift",
              "rshift", "and", "xor", "or", "lt", "le", "eq", "ne", "gt", "ge"):  # fmt: skip
    _let_decide(_name, getattr(operator, f"__{_name}__"))
_let_decide("divmod", divmod)
