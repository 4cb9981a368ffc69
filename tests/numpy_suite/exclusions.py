EXCLUDED: dict[str, str] = {}
