"""``python -m swag`` is the command line."""

from __future__ import annotations

from swag.cli import main

if __name__ == "__main__":
    main()
