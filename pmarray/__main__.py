"""``python -m pmarray`` is the command line."""

from __future__ import annotations

from pmarray.cli import main

if __name__ == "__main__":
    main()
