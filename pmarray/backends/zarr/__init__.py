"""Zarr hierarchies, in directories, archives, object stores and Icechunk."""
