"""What other libraries see of an array: NumPy, PyTorch, dask, xarray, pickle, notebooks."""

__all__: list[str] = []
