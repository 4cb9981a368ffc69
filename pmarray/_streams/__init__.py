"""Arrays gone through in pieces that fit into memory."""

__all__: list[str] = []
