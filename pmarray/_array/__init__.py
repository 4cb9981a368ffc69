"""What an array does beside reading and writing: loans of its memory, overlaps."""

__all__: list[str] = []
