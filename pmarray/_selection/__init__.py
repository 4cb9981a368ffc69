"""What an index selects, and in which pieces. Arithmetic alone."""

__all__: list[str] = []
