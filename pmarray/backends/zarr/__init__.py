"""Zarr hierarchies, in directories, archives, object stores and Icechunk."""

__all__: list[str] = []
