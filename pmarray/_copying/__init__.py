"""Arrays copied between backends, and made from others' arrays."""
