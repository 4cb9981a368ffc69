"""The commit protocol: journal, commits, recovery, and what readers see."""

__all__: list[str] = []
