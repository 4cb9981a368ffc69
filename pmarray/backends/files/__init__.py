"""Directories of `.npy` files, and single ones."""

__all__: list[str] = []
