"""Tests of other projects that do not hold here, each with the reason."""

from __future__ import annotations

__all__ = ["ARRAY_API", "ZARR"]

_ORTHOGONAL = "zarr-python indexes axis by axis where NumPy indexes points; a.oindex does here"

ZARR: dict[str, str] = {
    "test_fancy_indexing_doesnt_mix_with_implicit_slicing": "it does in NumPy, and here",
    "test_orthogonal_bool_indexing_like_numpy_ix": _ORTHOGONAL,
    "test_accessed_chunks": "counts the calls of zarr-python's store in memory",
    "test_vectorized_indexing_incompatible_shape": "is refused, in other words than zarr-python's",
}
"""Of ``tests/test_indexing.py`` of zarr-python."""

_LISTS = "NumPy's own deviation: a tuple where the standard has a list, until 2025.12"
_FINFO = "NumPy's own deviation: the attributes of finfo are NumPy scalars, not Python's"
_FREQUENCIES = "NumPy's own deviation: no parameter dtype"
_PARAMETERS = "NumPy's own deviation: other parameters than in the standard"
_INFINITE = "NumPy's own deviation: NaN, or -1, where an operand is infinite"
_COMPLEX = "NumPy's own deviation: other signs of zero, or NaN, for complex special values"

ARRAY_API: dict[str, str] = {
    "test_creation_functions.test_meshgrid": _LISTS,
    "test_data_type_functions.test_broadcast_arrays": _LISTS,
    "test_data_type_functions.test_finfo": _FINFO,
    "test_fft.test_fftfreq": _FREQUENCIES,
    "test_fft.test_rfftfreq": _FREQUENCIES,
    "test_signatures.test_extension_func_signature[fft.fftfreq]": _FREQUENCIES,
    "test_signatures.test_extension_func_signature[fft.rfftfreq]": _FREQUENCIES,
    "test_signatures.test_func_signature[clip]": _PARAMETERS,
    "test_signatures.test_func_signature[argsort]": _PARAMETERS,
    "test_signatures.test_func_signature[sort]": _PARAMETERS,
    "test_sorting_functions.test_argsort": _PARAMETERS,
    "test_sorting_functions.test_sort": _PARAMETERS,
    "test_special_cases.test_binary[floor_divide(": _INFINITE,
    "test_special_cases.test_binary[__floordiv__(": _INFINITE,
    "test_special_cases.test_iop[__ifloordiv__(": _INFINITE,
    "test_special_cases.test_unary[expm1(": _COMPLEX,
    "test_special_cases.test_unary[tanh(": _COMPLEX,
}
"""By how a test of array-api-tests begins. With NumPy as the module under test they fail, too, some
(`tanh`, `expm1`) with few of the random examples only."""
