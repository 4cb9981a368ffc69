"""Items of one array on one kind of medium: mapped, cached, in chunks; and views of them."""

__all__: list[str] = []
