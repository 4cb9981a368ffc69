"""Arrays copied between backends, and made from others' arrays."""

__all__: list[str] = []
