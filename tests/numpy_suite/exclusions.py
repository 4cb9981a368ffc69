"""Tests of NumPy's that are about something else than values, each with the reason."""

from __future__ import annotations

__all__ = ["EXCLUDED"]

_COPIES = "asks whether a result shares memory; the shim gives results as copies"
_LAST_BIT = "asks for the last bit of a sum, which depends on the order of the summands"
_STRIDES = "asks for the strides of a reversed ndarray; on a medium there are two orders"

EXCLUDED: dict[str, str] = {
    "numeric.TestNonarrayArgs.test_reshape_copy_arg": _COPIES,
    "numeric.TestRollaxis.test_results": _COPIES,
    "numeric.TestNonarrayArgs.test_std_with_mean_keyword_keepdims_false": _LAST_BIT,
    "numeric.TestNonarrayArgs.test_var_with_mean_keyword_keepdims_false": _LAST_BIT,
    "numeric.TestNonarrayArgs.test_std_with_mean_keyword_where_nontrivial": _LAST_BIT,
    "numeric.TestNonarrayArgs.test_var_with_mean_keyword_where_nontrivial": _LAST_BIT,
    "numeric.TestLikeFuncs.test_ones_like": _STRIDES,
    "numeric.TestLikeFuncs.test_zeros_like": _STRIDES,
    "numeric.TestLikeFuncs.test_empty_like": _STRIDES,
    "numeric.TestLikeFuncs.test_filled_like": _STRIDES,
}
