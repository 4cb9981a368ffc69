"""How tests start the command line of swag: each warning ends it."""

from __future__ import annotations

import sys

SWAG = [
    sys.executable, "-W", "error",
    # Of older typer, which imports names that click 8.5 wants no more.
    "-W", "ignore:'click.utils.get_:DeprecationWarning:typer",
    "-m", "swag",
]  # fmt: skip
