"""What an index selects, and in which pieces. Arithmetic alone."""
