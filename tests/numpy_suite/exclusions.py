"""Tests of NumPy's that are about something else than values, each with the reason."""

from __future__ import annotations

__all__ = ["EXCLUDED"]

_COPIES = "asks whether a result shares memory; the shim gives results as copies"

EXCLUDED: dict[str, str] = {
    "numeric.TestNonarrayArgs.test_reshape_copy_arg": _COPIES,
    "numeric.TestRollaxis.test_results": _COPIES,
}
