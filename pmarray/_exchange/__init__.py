"""What a `PMArray` is for other libraries, for other processes, and in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmarray._lazy import attach

if TYPE_CHECKING:
    from pmarray._exchange.dask import to_dask, token
    from pmarray._exchange.info import ArrayInfo, describe
    from pmarray._exchange.memory import array_interface, dlpack, to_torch
    from pmarray._exchange.notebook import to_html

__all__ = [
    "ArrayInfo",
    "array_interface",
    "describe",
    "dlpack",
    "to_dask",
    "to_html",
    "to_torch",
    "token",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "pmarray._exchange.dask": ["to_dask", "token"],
        "pmarray._exchange.info": ["ArrayInfo", "describe"],
        "pmarray._exchange.memory": ["array_interface", "dlpack", "to_torch"],
        "pmarray._exchange.notebook": ["to_html"],
    },
)
