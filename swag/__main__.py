"""``python -m swag`` is the command line."""

from __future__ import annotations

from swag.cli import app

if __name__ == "__main__":
    app()
