"""Looking after what is stored: verify and doctor."""

__all__: list[str] = []
