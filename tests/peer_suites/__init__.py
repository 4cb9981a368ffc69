"""The tests of zarr-python's indexing and of the array API, with arrays of ours."""
