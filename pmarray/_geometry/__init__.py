"""Where items lie: layouts, grids of chunks, spans of bytes. Arithmetic alone."""

__all__: list[str] = []
