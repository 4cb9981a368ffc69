"""Chunks in memory under one budget, and the thread that writes them behind."""

__all__: list[str] = []
