"""``python -m pmarray`` is the command line."""

from __future__ import annotations

from pmarray.cli import app

if __name__ == "__main__":
    app(prog_name="pmarray")
