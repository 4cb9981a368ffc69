"""What is written on a medium, byte by byte, and how it is read with suspicion."""

__all__: list[str] = []
