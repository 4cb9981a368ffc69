"""Directories of `.npy` files, and single ones."""
