"""Tests of NumPy's that are about something else than values, each with the reason."""

from __future__ import annotations

__all__ = ["EXCLUDED", "SOMETIMES"]

_COPIES = "asks whether a result shares memory; the shim gives results as copies"
_LAST_BIT = "asks for the last bit of a sum, which depends on the order of the summands"
_STRIDES = "asks for the strides of a reversed ndarray; on a medium there are two orders"
_WRAPPED = (
    "asks for the function itself, by pickle or by its text signature; the shim has wrapped it"
)
_UNTOLD = "NumPy does not tell another class of out=..., nor whether out=None was given"
_WORDS = "is refused, or warned of, in other words than NumPy's"

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
    "multiarray.TestMethods.test_dot_errstate": "warns of matmul, which computes the product",
    "multiarray.TestMethods.test_dot_out_mem_overlap": "an out= in the other order is taken here",
    "multiarray.TestMethods.test_diagonal_view_notwriteable": _COPIES,
    "multiarray.TestMethods.test_ravel": _COPIES,
    "multiarray.TestArrayCreationCopyArgument.test_buffer_interface": _COPIES,
    "multiarray.TestMatmul.test_out_arg": _WORDS,
    "multiarray.TestWhere.test_exotic": "a number that is taken nowhere is not cast",
    "multiarray.TestTextSignatures.test_c_func_dispatcher_text_signature": _WRAPPED,
    "ufunc.TestUfunc.test_pickle": _WRAPPED,
    "ufunc.TestUfunc.test_pickle_withstring": _WRAPPED,
    "ufunc.TestUfunc.test_pickle_name_is_qualname": _WRAPPED,
    "ufunc.TestUfunc.test_broadcast": _COPIES,
    "ufunc.TestUfunc.test_output_ellipsis": _UNTOLD,
    "ufunc.TestUfunc.test_output_ellipsis_errors": _WORDS,
    "ufunc.TestUfunc.test_where_warns": _UNTOLD,
    "ufunc.TestUfunc.test_sum": "counts warnings of overflow: each piece that overflows warns",
}

SOMETIMES: dict[str, str] = {
    "function_base.TestBincount.test_dtype_reference_leaks": (
        "counts references to a dtype, and a thread that encodes chunks has one of its own"
    ),
}
"""Fail now and then, on some media."""
