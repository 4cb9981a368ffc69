"""Persistent memory: files on DAX, pools on devices, IBM's PyMM; and volatile devices."""

__all__: list[str] = []
