"""NumPy's operators, functions and methods, for arrays that do not fit into memory."""

__all__: list[str] = []
