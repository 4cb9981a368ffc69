"""Types of items that Zarr has and zarr-python has not: bfloat16, as Zarr's extensions have it.

https://github.com/zarr-developers/zarr-extensions/tree/main/data-types/bfloat16
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import numpy as np
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.npy.float import BaseFloat

from pmarray._dtypes import parse_dtype

__all__ = ["UNSUPPORTED", "register"]

UNSUPPORTED = frozenset(
    {"int2", "int4", "uint2", "uint4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"}
    | {"float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"}
    | {"float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "complex_bfloat16", "complex_float16"}
)
"""Types that the extensions of Zarr name, and nothing here reads."""


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """bfloat16 of ml_dtypes, which is needed when there is such an array and not before."""

    # No class tells it from other types of ml_dtypes; the name does.
    dtype_cls: ClassVar[Any] = np.dtypes.VoidDType
    _zarr_v3_name = "bfloat16"
    _zarr_v2_names = ()

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> TypeGuard[Any]:
        return bool(dtype.name == "bfloat16")

    def to_native_dtype(self) -> Any:
        """Return the dtype of ml_dtypes."""
        if self.endianness != sys.byteorder:
            raise NotImplementedError(f"bfloat16 of {self.endianness}-endian bytes")
        return parse_dtype("bfloat16")

    @property
    def item_size(self) -> int:
        """Bytes of an item."""
        return 2


def register() -> None:
    """Make the types known to zarr-python, unless it, or somebody, has them."""
    if BFloat16._zarr_v3_name not in data_type_registry.contents:
        data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
