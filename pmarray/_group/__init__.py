"""What stands behind a group: attributes, transactions, the life of its handle."""

__all__: list[str] = []
