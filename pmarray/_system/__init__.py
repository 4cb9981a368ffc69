"""The operating system: the one seam for its calls, files, locks, threads."""

__all__: list[str] = []
