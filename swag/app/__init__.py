"""What stands behind the command ``swag``: training on MNIST, evaluation, and reports.

It uses the library as anybody's program would; the library knows nothing of it.
"""

__all__: list[str] = []
